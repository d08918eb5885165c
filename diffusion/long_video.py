"""Videos longer than the model's window: where the windows lie, and what they hand on.

A window's first frames are the last ones of the window before, whose dynamics it takes over, so the
dynamics of all windows make one sequence. Every window has the structure of the first one, unless
the transformer takes given frames: then each goes on from decoded frames, with its own structure.

    structure              (B, C_s, Q, h, w)      of the first window, for all, or
                           (B, C_s, W Q, h, w)    of each of W windows one after another
    dynamics_x, dynamics_y (B, C_d, N, w or h)    over all N frames; a window's are a slice of it

Axes: B batch, C channels, Q structure queries, T frames of a window, N frames of the video.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vidtwin import AutoencoderConfig, LatentWindow, VidTwinLatents, tile_starts

__all__ = ["default_overlap", "join_windows", "latent_windows", "scale_motion", "window_starts"]


def default_overlap(window: int) -> int:
    """Frames that neighbouring windows share: a quarter, and at least one that tells the pose."""
    return min(max(1, window // 4), window - 1)


def window_starts(num_frames: int, window: int, overlap: int | None = None) -> list[int]:
    """The first frame of each window; the last one is shifted back to end with the video.

    Args:
        num_frames: N.
        window: T, which the model makes at once.
        overlap: frames that neighbours share; a quarter of the window by default.
    Raises:
        ValueError: if N is less than T, or the overlap doesn't fit the window.
    """
    if num_frames < window:
        raise ValueError(
            f"`num_frames` must be at least {window}, what the model makes at once, "
            f"got {num_frames}"
        )
    overlap = default_overlap(window) if overlap is None else overlap
    if not 0 <= overlap < window:
        raise ValueError(
            f"`overlap_frames` must be from 0 to {window - 1} (the model's window has {window} "
            f"frames), got {overlap}"
        )
    return tile_starts(num_frames, window, overlap)


def join_windows(windows: Sequence[VidTwinLatents], starts: Sequence[int]) -> VidTwinLatents:
    """The windows' latents as one structure and one sequence of dynamics.

    Args:
        windows: that agree on the frames they share.
        starts: the first frame of each.
    """
    first, window = windows[0], windows[0].dynamics_x.shape[2]
    ends = [0, *(start + window for start in starts)]

    def joined(name: str) -> torch.Tensor:
        pieces = [
            getattr(latents, name)[:, :, end - start :]
            for latents, start, end in zip(windows, starts, ends)
        ]
        return torch.cat(pieces, dim=2)  # (B, C_d, N, w or h)

    structure = first.structure
    if any(latents.structure is not structure for latents in windows):
        structure = torch.cat([latents.structure for latents in windows], dim=2)
    return VidTwinLatents(structure, joined("dynamics_x"), joined("dynamics_y"))


def latent_windows(
    latents: VidTwinLatents, starts: Sequence[int], sizes: AutoencoderConfig
) -> list[LatentWindow]:
    """The windows of a joined sequence, for `vidtwin.decode_windows`, which blends the overlaps.

    Args:
        latents: as `join_windows` makes them.
        starts: the first frame of each window.
        sizes: of the autoencoder, which a window has.
    """
    size = (sizes.num_frames, sizes.height, sizes.width)
    structures = latents.structure.split(sizes.num_queries, dim=2)
    structures = structures * len(starts) if len(structures) == 1 else structures

    def dynamics(values: torch.Tensor, start: int) -> torch.Tensor:
        return values[:, :, start : start + size[0]]

    return [
        LatentWindow(
            start=(start, 0, 0),
            size=size,
            latents=VidTwinLatents(
                structure,
                dynamics(latents.dynamics_x, start),
                dynamics(latents.dynamics_y, start),
            ),
        )
        for start, structure in zip(starts, structures, strict=True)
    ]


def scale_motion(latents: VidTwinLatents, scale: float) -> VidTwinLatents:
    """The dynamics with their deviation from their mean over time multiplied.

    Args:
        latents: one window, or a joined sequence.
        scale: 1 changes nothing, 0 holds still, more moves further.
    """
    if scale == 1.0:
        return latents

    def scaled(dynamics: torch.Tensor) -> torch.Tensor:
        mean = dynamics.mean(dim=2, keepdim=True)
        return mean + scale * (dynamics - mean)

    return VidTwinLatents(latents.structure, scaled(latents.dynamics_x), scaled(latents.dynamics_y))
