"""What each branch of the encoder is shown in training, where that is not the clip itself.

Structure may be read off a reenactment (the same look in another movement) or off shuffled frames,
dynamics off a recast (the same movement in another look). What the clip has and its twin has not
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
        twins: "recast" and "reenactment" of the samples, as far as they have them.
        seeds: one per sample, for the shuffle.
        shuffle: of the structure's frames.
    """
    reenactment = twins.get("reenactment")
    shuffled = shuffle.shuffled(video if reenactment is None else reenactment, seeds)
    return {
        "structure_video": reenactment if shuffled is None else shuffled,
        "dynamics_video": twins.get("recast"),
    }
