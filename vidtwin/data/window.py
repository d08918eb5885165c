"""The clip that a model takes, from one video file that was named by hand.

Axes: T frames, H W pixels.
"""

from __future__ import annotations

from pathlib import Path

import torch

from vidtwin.data.building import build_dataset
from vidtwin.data.config import DataConfig

__all__ = ["read_first_window"]


def read_first_window(
    path: str | Path, num_frames: int, height: int, width: int, fps: float | None = None
) -> torch.Tensor:
    """The first frames of a video, scaled until they cover the size, the centre cut out.

    Args:
        path: the file.
        num_frames: T.
        height: H in pixels.
        width: W in pixels.
        fps: take the frames nearest to instants 1 / fps apart; None takes every frame.
    Returns:
        torch.Tensor: (3, T, H, W) float32 in [-1, 1].
    Raises:
        ValueError: if there is no such file, or (UnusableVideo) it can't be read or is too short.
    """
    if not Path(path).is_file():
        raise ValueError(f"expected a video, but {str(path)!r} is not a file")
    config = DataConfig(
        source="files",
        path=str(path),
        part="all",
        num_frames=num_frames,
        height=height,
        width=width,
        fps=fps,
        stride=None if fps is not None else 1,
        start="first",
        crop="center",
    )
    video: torch.Tensor = build_dataset(config).get(0)["video"]
    return video
