"""What each branch of the encoder is shown in training, where that is not the clip itself.

Structure may be read off a clip with the same look in another motion or off shuffled frames,
dynamics off a clip with the same motion in another look. What the clip has and its pair has not
can then reach the decoder through the other branch alone.

Axes: B batch, C channels, T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from vidtwin.frame_shuffle import FrameShuffle


def branch_videos(
    video: torch.Tensor,
    twins: Mapping[str, torch.Tensor],
    seeds: Sequence[int],
    shuffle: FrameShuffle,
) -> dict[str, torch.Tensor | None]:
    """The keywords `structure_video` and `dynamics_video` of the autoencoder.

    Args:
        video: (B, C, T, H, W).
        twins: "appearance_swap" and "motion_swap" of the samples, as far as they have them.
        seeds: one per sample, for the shuffle.
        shuffle: of the structure's frames.
    """
    motion_swap = twins.get("motion_swap")
    shuffled = shuffle.shuffled(video if motion_swap is None else motion_swap, seeds)
    return {
        "structure_video": motion_swap if shuffled is None else shuffled,
        "dynamics_video": twins.get("appearance_swap"),
    }
