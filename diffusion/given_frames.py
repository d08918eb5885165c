"""Frames of a video that are given: what is known of its latents, as one more condition.

    given      some frames of T: the first, the last, both, or a prefix
    filled     every other frame is a copy of the nearest given one (of the earlier, of two)
    encoded    structure', dynamics_x', dynamics_y' of the filled video
    condition  structure', and the dynamics' of the frames that are given, at noise level 0

No token of the video itself can be fixed in general: the structure is a summary of all frames, and
a frame's dynamics depend on other frames. So what is given stands beside what is sampled: each
token has a second, clean value, zero where nothing is given, and a mark which frames are given;
`TwinDiT` adds a projection of them that starts at zero. It costs no tokens, has no loss of its own,
and without given frames adds exactly nothing. Where the encoder is causal in time, a frame's
dynamics depend on it, those before and the next one (the last convolution sees three frames), so
those of a prefix but for its last frame are the whole video's, and `diffusion.sampling` fixes them.

Axes: B batch, T frames, H W pixels, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from diffusion.conditions import Condition, ConditionEmbedder
from diffusion.config import GivenFramesConfig
from vidtwin import VidTwinLatents

__all__ = [
    "FramesCondition",
    "FramesEmbedder",
    "GivenFrames",
    "filled_video",
    "given_video",
    "known_dynamics",
]


@dataclass(frozen=True)
class FramesCondition(Condition):
    """What is known of each sample.

    Args:
        given_structure, given_dynamics_x, given_dynamics_y: scaled latents of the filled video.
        given_frames: (B, T) bool, True for frames that are given; a row without any has none.
    """

    name = "frames"
    dropout_column = 3

    given_structure: Tensor
    given_dynamics_x: Tensor
    given_dynamics_y: Tensor
    given_frames: Tensor

    def null(self) -> FramesCondition:
        """Nothing given to any."""
        return replace(self, given_frames=torch.zeros_like(self.given_frames))


class FramesEmbedder(ConditionEmbedder):
    """Draws which frames of a training clip are given.

    Args:
        config: the share of each kind; the others learn without.
        num_frames: T.
    """

    condition = FramesCondition
    column = "video"

    def __init__(self, config: GivenFramesConfig, num_frames: int) -> None:
        super().__init__(dropout=0.0)
        self.config, self.num_frames = config, num_frames

    def embed(self, values: tuple[VidTwinLatents, Tensor]) -> FramesCondition:
        """The condition of scaled latents of filled videos, and (B, T) bool."""
        latents, frames = values
        return FramesCondition(*latents.tensors(), frames)

    def sizes(self) -> dict[str, Any]:
        """That the transformer takes it."""
        return {"given_frames": True}

    def draw(self, uniforms: Tensor) -> Tensor:
        """(B, T) bool from (B, 2) uniform numbers: of which kind, and how long a prefix."""
        kind, length = uniforms.unbind(1)
        frames = torch.arange(self.num_frames, device=uniforms.device).expand(len(kind), -1)
        end = self.num_frames - 1
        count = 1 + (length[:, None] * end).long().clamp(max=end - 1)  # 1 to T - 1
        kinds = {
            "first": frames == 0,
            "last": frames == end,
            "ends": (frames == 0) | (frames == end),
            "prefix": frames < count,
        }
        drawn = torch.zeros_like(frames, dtype=torch.bool)
        below = 0.0
        for name, given in kinds.items():
            above = below + getattr(self.config, name)
            drawn |= given & ((below <= kind) & (kind < above))[:, None]
            below = above
        return drawn


@dataclass(frozen=True)
class GivenFrames:
    """The frames of a call of the pipeline.

    Args:
        video: (B, 3, T, H, W) in [-1, 1] with them in it.
        frames: (T,) bool, True for given.
        latents: scaled, of the filled video.
        num_known: first frames whose dynamics are exactly these latents'.
    """

    video: Tensor
    frames: Tensor
    latents: VidTwinLatents
    num_known: int

    def repeated(self, batch_size: int) -> GivenFrames:
        """For as many videos, the repeats of each beside each other."""
        count = batch_size // len(self.video)
        video = self.video.repeat_interleave(count, 0)
        latents = self.latents.map(lambda tensor: tensor.repeat_interleave(count, 0))
        return replace(self, video=video, latents=latents)

    def condition(self) -> FramesCondition:
        """What the transformer is told."""
        frames = self.frames.expand(len(self.video), -1)
        return FramesCondition(*self.latents.tensors(), frames)

    def put_into(self, videos: Tensor) -> Tensor:
        """(B, 3, N, H, W) videos of N >= T frames with the given ones in their places."""
        videos = videos.clone()
        place = self.frames.nonzero()[:, 0].to(videos.device)
        videos[:, :, place] = self.video.to(videos)[:, :, place]
        return videos


def filled_video(video: Tensor, frames: Tensor) -> Tensor:
    """(B, 3, T, H, W) with the nearest given frame in place of each that is not.

    Args:
        video: (B, 3, T, H, W); what is not given counts for nothing, in a row with any given.
        frames: (B, T) bool, True for given.
    """
    place = torch.arange(frames.shape[1], device=frames.device)
    # Twice the distance, so that of two that are equally near the earlier one is nearer.
    distance = 2 * (place[:, None] - place).abs() + (place > place[:, None]).long()  # (T, T)
    far = 4 * frames.shape[1]
    nearest = torch.where(frames[:, None], distance, far).argmin(2)  # (B, T)
    index = nearest[:, None, :, None, None].expand(-1, video.shape[1], -1, *video.shape[3:])
    return video.gather(2, index.to(video.device))


def known_dynamics(frames: Tensor) -> int:
    """How many first frames' dynamics follow exactly from (T,) given frames, True for given."""
    leading = int(frames.long().cumprod(0).sum())
    return max(0, leading - 1)  # the encoder's last convolution sees one frame ahead


def given_video(
    first_frame: Tensor | None,
    last_frame: Tensor | None,
    prefix: Tensor | None,
    shape: Sequence[int],
) -> tuple[Tensor, Tensor] | None:
    """(B, 3, T, H, W) video, zero where nothing is given, and (T,) bool, True for given frames.

    Args:
        first_frame, last_frame: (3, H, W) or (B, 3, H, W) in [-1, 1]; None for none.
        prefix: (3, N, H, W) or (B, 3, N, H, W), N from 1 to T - 1; in place of first_frame.
        shape: (3, T, H, W) of a video.
    Returns:
        None if nothing is given.
    Raises:
        ValueError: naming the keyword.
    """
    channels, num_frames, height, width = shape
    if first_frame is not None and prefix is not None:
        raise ValueError("`first_frame` is the first of `prefix`; give one of them")
    ends = {"first_frame": first_frame, "last_frame": last_frame}
    parts = {name: _batch(name, value, 3, shape) for name, value in ends.items()}
    parts = {name: None if part is None else part[:, :, None] for name, part in parts.items()}
    start, end = _batch("prefix", prefix, 4, shape), parts["last_frame"]
    start = parts["first_frame"] if start is None else start
    known = [part for part in (start, end) if part is not None]
    if not known:
        return None
    rows = max(map(len, known))
    if any(len(part) not in (1, rows) for part in known):
        raise ValueError(f"expected as many first as last frames, got {[len(p) for p in known]}")
    if start is not None and start.shape[2] >= num_frames:
        raise ValueError(
            f"`prefix` must have 1 to {num_frames - 1} frames, fewer than the model makes, got "
            f"{start.shape[2]}"
        )
    video = known[0].new_zeros(rows, channels, num_frames, height, width)
    frames = torch.zeros(num_frames, dtype=torch.bool, device=video.device)
    if start is not None:
        video[:, :, : start.shape[2]], frames[: start.shape[2]] = start, True
    if end is not None:
        video[:, :, -1:], frames[-1] = end, True
    return video, frames


def _batch(name: str, value: Any, axes: int, shape: Sequence[int]) -> Tensor | None:
    """Given pixels with a batch axis, checked."""
    if value is None:
        return None
    what = "(B, 3, H, W)" if axes == 3 else "(B, 3, N, H, W)"
    expected = f"`{name}` must be a float tensor {what} in [-1, 1] of {shape[-2]} x {shape[-1]}"
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise ValueError(f"{expected} pixels, got {type(value).__name__}")
    value = value[None] if value.ndim == axes else value
    fits = value.ndim == axes + 1 and len(value) and value.shape[1] == shape[0]
    if not fits or tuple(value.shape[-2:]) != tuple(shape[-2:]) or 0 in value.shape:
        raise ValueError(f"{expected} pixels, got {tuple(value.shape)}")
    if not bool(value.isfinite().all()):
        raise ValueError(f"`{name}` holds values that are not finite")
    return value
