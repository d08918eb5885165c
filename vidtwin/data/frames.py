"""Which frames of a video make a clip, and how a frame becomes the model's size.

Axes: T frames, H W pixels, C colour channels. Everything here is a pure function of its arguments.
"""

from __future__ import annotations

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch.nn.functional import interpolate

__all__ = [
    "consecutive_windows",
]

# Two instants closer than this are one instant: timestamps are multiples of a time base that is
# rarely finer, and 3 / 8 s and 90 / 240 s must not differ by a rounding error.
TIME_TOLERANCE = 1e-6


def nearest_frames(timestamps: NDArray[np.float64], times: NDArray[np.float64]) -> NDArray[np.intp]:
    """The index of the frame nearest to each time; the earlier one where two are equally near.

    Args:
        timestamps: (N,) seconds, increasing.
        times: (T,) seconds.
    """
    halfway = (timestamps[1:] + timestamps[:-1]) / 2
    return np.searchsorted(halfway, times - TIME_TOLERANCE, side="left")


def frames_by_time(
    timestamps: NDArray[np.float64], duration: float, num_frames: int, fps: float, position: float
) -> NDArray[np.intp] | None:
    """Frames nearest to `num_frames` instants exactly 1 / fps apart, the first one on a frame.

    The spacing is in time, so a variable frame rate is sampled right and no error adds up. Where
    the video has fewer frames a second than `fps`, a frame is taken again until the next is nearer.
    The last instant lies at most half a frame after the last frame.

    Args:
        timestamps: (N,) seconds, increasing from 0.
        duration: seconds, to the end of the last frame.
        position: where the window starts, from 0 (the first frame) up to 1 (as late as it fits).
    Returns:
        (T,) indices, or None where the video is too short.
    """
    span = (num_frames - 1) / fps
    latest = timestamps[-1] + (duration - timestamps[-1]) / 2 - span
    num_starts = int(np.count_nonzero(timestamps <= latest + TIME_TOLERANCE))
    if num_starts == 0:
        return None
    start = min(int(position * num_starts), num_starts - 1)
    return nearest_frames(timestamps, timestamps[start] + np.arange(num_frames) / fps)


def frames_by_stride(
    total: int, num_frames: int, stride: int, position: float
) -> NDArray[np.intp] | None:
    """Every `stride`-th frame, whatever its time; None where the video is too short.

    Args:
        total: frames in the video.
        position: where the window starts, from 0 (the first frame) up to 1 (as late as it fits).
    """
    num_starts = total - (num_frames - 1) * stride
    if num_starts <= 0:
        return None
    start = min(int(position * num_starts), num_starts - 1)
    return start + stride * np.arange(num_frames)


def frames_repeating_last(
    timestamps: NDArray[np.float64], num_frames: int, fps: float | None, stride: int | None
) -> NDArray[np.intp]:
    """The window from the first frame on, with the last frame held once the video is over."""
    if stride is not None:
        return np.minimum(stride * np.arange(num_frames), len(timestamps) - 1)
    assert fps is not None
    return nearest_frames(timestamps, np.arange(num_frames) / fps)


def consecutive_windows(
    timestamps: NDArray[np.float64],
    duration: float,
    num_frames: int,
    fps: float | None,
    stride: int | None,
) -> NDArray[np.intp]:
    """Every whole window from the first frame on, one after another, none overlapping.

    Args:
        timestamps: (N,) seconds, increasing from 0.
        duration: seconds, to the end of the last frame.
        num_frames: T, of a window.
        fps: take the frames nearest to instants 1 / fps apart; or None, and `stride`:
        stride: take every n-th frame.
    Returns:
        (W, T) indices; W is 0 where the video is shorter than one window.
    """
    if stride is not None:
        taken = np.arange(0, len(timestamps), stride, dtype=np.intp)
    else:
        assert fps is not None
        # As for one window: the last instant lies at most half a frame after the last frame.
        latest = timestamps[-1] + (duration - timestamps[-1]) / 2
        number = int((latest + TIME_TOLERANCE) * fps) + 1
        taken = nearest_frames(timestamps, np.arange(number) / fps)
    whole = len(taken) // num_frames * num_frames
    return rearrange(taken[:whole], "(w t) -> w t", t=num_frames)


def fit_frame(
    frame: NDArray[np.uint8],
    height: int,
    width: int,
    resize: str = "cover",
    crop: tuple[float, float] = (0.5, 0.5),
    flip: bool = False,
) -> torch.Tensor:
    """One frame at the model's size, values still in [0, 255].

    Args:
        frame: (H, W, 3).
        resize: "cover" scales until both sides are covered, keeping the proportions, and crops the
            rest; "stretch" scales each side by its own factor. Both are bilinear with antialias.
            "cover_uint8" and "stretch_uint8" do so in whole gray levels: some times as fast, and
            at most a level or so off.
        crop: where the crop lies between the top and bottom, and the left and right: 0 to 1.
        flip: mirror left and right.
    Returns:
        (3, height, width) float32.
    """
    pixels = rearrange(torch.from_numpy(np.ascontiguousarray(frame)), "H W C -> C H W")
    if not resize.endswith("_uint8"):
        pixels = pixels.float()
    if resize.startswith("cover"):
        scale = max(height / frame.shape[0], width / frame.shape[1])
        size = (
            max(height, round(frame.shape[0] * scale)),
            max(width, round(frame.shape[1] * scale)),
        )
    else:
        size = (height, width)
    if size != frame.shape[:2]:
        pixels = interpolate(
            rearrange(pixels, "C H W -> 1 C H W"), size=size, mode="bilinear", antialias=True
        )[0]
    top = min(int(crop[0] * (size[0] - height + 1)), size[0] - height)
    left = min(int(crop[1] * (size[1] - width + 1)), size[1] - width)
    pixels = pixels[:, top : top + height, left : left + width]
    return (pixels.flip(-1) if flip else pixels).float()
