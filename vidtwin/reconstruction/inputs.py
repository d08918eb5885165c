"""The frames of video files of any size and length, as streams.

Axes: T frames, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray

from vidtwin.data.bad_files import UnusableVideo
from vidtwin.data.frames import fit_frame, nearest_frames
from vidtwin.data.readers import iter_frames, read_video_info

__all__ = ["OpenVideo", "fit_uint8", "open_video"]


@dataclass(frozen=True, kw_only=True)
class OpenVideo:
    """A video ready to be read, its frames selected and resized.

    Args:
        path: the file.
        fps: frames per second of `frames`.
        source_fps: frames per second of the file.
        total: number of frames.
        size: (H, W) of a frame.
        backend: the library that decodes it.
        frames: (H, W, 3) uint8 each; can be read once.
    """

    path: Path
    fps: float
    source_fps: float
    total: int
    size: tuple[int, int]
    backend: str
    frames: Iterator[NDArray[np.uint8]]


def open_video(
    path: Path,
    fps: float | None = None,
    max_frames: int | None = None,
    size: tuple[int, int] | None = None,
) -> OpenVideo:
    """A video's frames as a stream, in memory that doesn't grow with its length.

    Args:
        path: the file.
        fps: take the frames nearest to multiples of 1 / fps seconds, at most the file's own rate;
            None takes all.
        max_frames: stop after this many.
        size: (H, W) to scale to (short side, then centre crop); None keeps the video's own.
    Raises:
        UnusableVideo: if the file can't be read as a video or has a lower rate than `fps`.
    """
    info = read_video_info(path)
    # 30 fps may be requested of a file with 29.97.
    if fps is not None and fps > info.fps * 1.002:
        raise UnusableVideo(str(path), f"has {info.fps:.6g} frames per second, fewer than {fps:g}")
    if fps is None:
        indices = np.arange(info.num_frames)
    else:
        instants = np.arange(max(1, math.ceil(info.duration * fps - 1e-6))) / fps
        indices = nearest_frames(info.timestamps, instants)
    indices = indices[:max_frames]
    frames = _pick(iter_frames(path, stop=int(indices[-1]) + 1), indices)
    height, width = size or (info.height, info.width)
    if size is not None:
        frames = (fit_uint8(frame, height, width) for frame in frames)
    return OpenVideo(
        path=path,
        fps=fps or info.fps,
        source_fps=info.fps,
        total=len(indices),
        size=(height, width),
        backend=info.backend,
        frames=frames,
    )


def fit_uint8(frame: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """The frame scaled to cover height x width, then centre-cropped; (H, W, 3) uint8."""
    if frame.shape[:2] == (height, width):
        return frame
    pixels = fit_frame(frame, height, width).round().clamp(0, 255).to(torch.uint8)
    return rearrange(pixels, "c h w -> h w c").contiguous().numpy()


def _pick(
    frames: Iterator[NDArray[np.uint8]], indices: NDArray[np.intp]
) -> Iterator[NDArray[np.uint8]]:
    """The frames with these non-decreasing indices; a repeated index repeats its frame."""
    wanted = iter(indices.tolist())
    next_index = next(wanted, None)
    for index, frame in enumerate(frames):
        while next_index == index:
            yield frame
            next_index = next(wanted, None)
