"""Reading the structure off a clip's frames in shuffled order, so that it can't tell the movement.

What the order of the frames says then reaches the decoder through the dynamics alone; from a
single frame, neither where else the clip goes.

Axes: B batch, C channels, T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

STREAM = 4  # apart from the noise and the branch dropout that the same seed draws


@dataclass(frozen=True, kw_only=True)
class FrameShuffle:
    """How often a training shows the structure branch shuffled frames.

    Args:
        share: of the clips; the dynamics branch always sees the frames in order. Above 0, every
            clip is encoded twice.
        frames: how many different frames such a clip keeps; None keeps all. With 1, a still,
            nothing that moves can be told. Repeated to the clip's length, unless every clip keeps
            as few: then only these are encoded.
    Source: `shuffle_content_ratio` of the released VidTwin code, 0.5 there where it is used. Its
        `shuffle_content`, which shuffles the encoder's features, changes nothing: the Q-Former
        reads the frames of a position as a set.
    """

    share: float = 0.0
    frames: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"frame_shuffle.share must be in [0, 1], got {self.share}")
        if self.frames is not None and self.frames < 1:
            raise ValueError(f"frame_shuffle.frames must be at least 1 or null, got {self.frames}")

    def shuffled(self, video: torch.Tensor, seeds: Sequence[int]) -> torch.Tensor | None:
        """What the structure branch sees; None if it always sees the video itself.

        Args:
            video: (B, C, T, H, W).
            seeds: one per sample; its order follows from its own seed alone.
        Returns:
            (B, C, T, H, W): a share of the clips with their frames, or some of them, in another
            order. With a share of 1, T is `frames`.
        """
        if not self.share:
            return None
        frames = np.arange(video.shape[2])
        orders = []
        for seed in seeds:
            rng = np.random.default_rng([int(seed), STREAM])
            order = frames
            if rng.random() < self.share:
                order = rng.permutation(frames)[: self.frames]
                if self.share < 1:
                    order = np.resize(order, frames.shape)
            orders.append(order)
        chosen = zip(video, orders, strict=True)
        return torch.stack([clip[:, torch.from_numpy(order)] for clip, order in chosen])
