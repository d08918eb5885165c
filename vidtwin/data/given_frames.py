"""Images, and the last frames of a video, as what a new video is to start or end with.

Axes: T frames, H W pixels.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from vidtwin.data.frames import fit_frame, nearest_frames
from vidtwin.data.readers import UnusableVideo, VideoInfo, read_clip

__all__ = ["read_image", "read_last_frames"]


def read_image(path: str | Path, height: int, width: int) -> torch.Tensor:
    """An image, scaled until it covers the size, the centre cut out.

    Returns:
        torch.Tensor: (3, H, W) float32 in [-1, 1].
    Raises:
        ValueError: if there is no image that can be read.
    """
    try:
        with Image.open(path) as image:
            # Photographs may be stored turned.
            pixels = np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is no image that can be read: {error}") from error
    return fit_frame(pixels, height, width) / 127.5 - 1


def read_last_frames(
    path: str | Path, num_frames: int, height: int, width: int, fps: float | None = None
) -> torch.Tensor:
    """The last frames of a video, fitted as `read_image` does.

    Args:
        path: the file.
        num_frames: T.
        fps: take the frames nearest to instants 1 / fps apart, the last one being the video's;
            None takes every frame.
    Returns:
        torch.Tensor: (3, T, H, W) float32 in [-1, 1].
    Raises:
        UnusableVideo: if it can't be read, or is too short.
    """

    def choose(info: VideoInfo) -> NDArray[np.intp]:
        back = np.arange(num_frames)[::-1]
        if fps is None:
            indices = info.num_frames - 1 - back
        else:
            indices = nearest_frames(info.timestamps, info.timestamps[-1] - back / fps)
        if indices[0] < 0 or (fps and info.timestamps[-1] + 0.5 / fps < (num_frames - 1) / fps):
            at = "" if fps is None else f" at {fps:g} frames per second"
            raise UnusableVideo(str(path), f"too short: {num_frames} frames{at} are to be given")
        return indices

    _, _, frames = read_clip(path, choose, lambda frame: fit_frame(frame, height, width))
    return torch.stack(frames, dim=1) / 127.5 - 1
