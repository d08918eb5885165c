"""The two branches, structure and dynamics, and what a training shows each of them.

Axes: B batch, C channels, T frames, H W pixels, h w grid, D width, Q structure queries, q their
width, C_s C_d channels of the latents; h' w' the grid after downsampling.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch
from einops import rearrange, repeat
from torch import nn
from torch.nn import functional

from vidtwin.config import AutoencoderConfig, BranchDropout, FrameShuffle
from vidtwin.extractors import DYNAMICS_EXTRACTORS, STRUCTURE_EXTRACTORS
from vidtwin.latents import VidTwinLatents, draw_noise

__all__ = [
    "DynamicsDecoder",
    "DynamicsEncoder",
    "NoDynamicsDecoder",
    "NoDynamicsEncoder",
    "StructureDecoder",
    "StructureEncoder",
    "branch_videos",
    "branch_weights",
    "latent_noise",
    "shuffle_frames",
]

# Streams of random numbers apart from the noise that is drawn with the same seed.
DROPOUT_STREAM, SHUFFLE_STREAM, LATENT_NOISE_STREAM = 3, 4, 5


class StructureEncoder(nn.Module):
    """Features (B, D, T, h, w) to moments (B, 2 C_s, Q, h', w')."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.num_queries = config.num_queries
        self.temporal = STRUCTURE_EXTRACTORS[config.structure_extractor](config)
        widths = structure_widths(config)
        self.conv_in = nn.Conv2d(config.query_hidden_size, widths[0], 3, padding=1)
        self.downsamplers = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=2, padding=1) for before, after in pairwise(widths)
        )
        self.to_moments = nn.Conv2d(widths[-1], 2 * config.structure_channels, 3, padding=1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, D, T, h, w) to (B, 2 C_s, Q, h', w')."""
        grid = self.conv_in(self.temporal(features))
        for downsampler in self.downsamplers:
            grid = functional.relu(downsampler(grid))
        return rearrange(self.to_moments(grid), "(b q) c h w -> b c q h w", q=self.num_queries)


class StructureDecoder(nn.Module):
    """Structure latent (B, C_s, Q, h', w') to features (B, D, T, h, w)."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.grid = config.grid
        widths = structure_widths(config)[::-1]
        self.conv_in = nn.Conv2d(config.structure_channels, widths[0], 3, padding=1)
        self.upsamplers = nn.ModuleList(
            nn.Conv2d(before, after, 3, padding=1) for before, after in pairwise(widths)
        )
        self.conv_out = nn.Conv2d(widths[-1], config.query_hidden_size, 3, padding=1)
        self.to_width = nn.Linear(config.query_hidden_size, config.hidden_size)
        # A convolution of kernel 1 over the query axis is a linear map from Q queries to T frames.
        self.to_frames = nn.Conv1d(config.num_queries, config.num_frames, 1)

    def forward(self, structure: torch.Tensor) -> torch.Tensor:
        """(B, C_s, Q, h', w') to (B, D, T, h, w)."""
        batch = structure.shape[0]
        images = rearrange(structure, "b c q h w -> (b q) c h w")
        images = functional.relu(self.conv_in(images))
        for upsampler in self.upsamplers:
            images = functional.relu(upsampler(images))
            images = functional.interpolate(images, scale_factor=2.0, mode="nearest")
        images = crop_to(self.conv_out(images), self.grid)
        queries = rearrange(images, "(b q) c h w -> (b h w) q c", b=batch)
        frames = functional.relu(self.to_frames(functional.relu(self.to_width(queries))))
        return rearrange(
            frames, "(b h w) t d -> b d t h w", b=batch, h=self.grid[0], w=self.grid[1]
        )


class DynamicsEncoder(nn.Module):
    """Features (B, D, T, h, w) to moments (B, 2 C_d, T, w') and (B, 2 C_d, T, h')."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.downsamplers = nn.ModuleList(
            nn.Conv2d(width, width, 3, stride=2, padding=1)
            for _ in range(config.dynamics_downsamples)
        )
        self.extractor = DYNAMICS_EXTRACTORS[config.dynamics_extractor](config)
        # One convolution serves both planes, so x and y speak the same code.
        channels = 2 * config.dynamics_channels
        self.to_moments = nn.Conv2d(self.extractor.width, channels, 3, padding=1)

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, D, T, h, w) to (B, 2 C_d, T, w') and (B, 2 C_d, T, h')."""
        batch = features.shape[0]
        images = rearrange(features, "b d t h w -> (b t) d h w")
        for downsampler in self.downsamplers:
            images = functional.relu(downsampler(images))
        columns, rows = self.extractor(images, batch)
        return self.to_moments(columns), self.to_moments(rows)


class AxisUpsampler(nn.Module):
    """Linear, ReLU, Linear, ReLU along the last axis: size' to size."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.linear_in = nn.Linear(before, after)
        self.linear_out = nn.Linear(after, after)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(..., size') to (..., size)."""
        return functional.relu(self.linear_out(functional.relu(self.linear_in(features))))


class DynamicsDecoder(nn.Module):
    """Dynamics latents (B, C_d, T, w') and (B, C_d, T, h') to features (B, D, T, h, w).

    Differs from the released model only where that one cannot run: with downsampling and h != w
    each axis has its own upsampler.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        (self.height, self.width), (height, width) = config.grid, config.dynamics_grid
        self.linear_in = nn.Linear(config.dynamics_channels, config.hidden_size)
        self.linear_out = nn.Linear(config.hidden_size, config.hidden_size)
        self.upsamplers = nn.ModuleList()
        if config.dynamics_downsamples:
            self.upsamplers.append(AxisUpsampler(width, self.width))
            if self.height != self.width:
                self.upsamplers.append(AxisUpsampler(height, self.height))

    def forward(self, dynamics_x: torch.Tensor, dynamics_y: torch.Tensor) -> torch.Tensor:
        """(B, C_d, T, w') and (B, C_d, T, h') to (B, D, T, h, w)."""
        columns, rows = self._widen(dynamics_x), self._widen(dynamics_y)
        if len(self.upsamplers) > 0:
            # The first module is the columns'; the last is the rows', the same one on a square.
            columns, rows = self.upsamplers[0](columns), self.upsamplers[-1](rows)
        return repeat(columns, "b d t w -> b d t h w", h=self.height) + repeat(
            rows, "b d t h -> b d t h w", w=self.width
        )

    def _widen(self, dynamics: torch.Tensor) -> torch.Tensor:
        features = rearrange(dynamics, "b c t n -> b t n c")
        features = functional.relu(self.linear_out(functional.relu(self.linear_in(features))))
        return rearrange(features, "b t n d -> b d t n")


class NoDynamicsEncoder(nn.Module):
    """Dynamics of no channels, where the structure is the one latent of everything."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.shapes = config.dynamics_x_shape, config.dynamics_y_shape

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, D, T, h, w) to (B, 0, T, w') and (B, 0, T, h')."""
        columns, rows = (features.new_zeros(len(features), *shape) for shape in self.shapes)
        return columns, rows


class NoDynamicsDecoder(nn.Module):
    """Features that are 0, from dynamics of no channels."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.shape = config.hidden_size, config.num_frames, *config.grid

    def forward(self, dynamics_x: torch.Tensor, dynamics_y: torch.Tensor) -> torch.Tensor:
        """(B, 0, T, w') and (B, 0, T, h') to (B, D, T, h, w)."""
        return dynamics_x.new_zeros(len(dynamics_x), *self.shape)


def structure_widths(config: AutoencoderConfig) -> list[int]:
    """Channels of the structure branch before and after each downsampling."""
    levels = range(config.structure_downsamples + 1)
    return [config.structure_base_channels * 2**level for level in levels]


def crop_to(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(..., H, W) cut to `size`, each axis by its own border of (H - size) // 2."""
    top, left = ((now - want) // 2 for now, want in zip(images.shape[-2:], size, strict=True))
    return images[..., top : top + size[0], left : left + size[1]]


def branch_weights(dropout: BranchDropout, seeds: Sequence[int]) -> torch.Tensor | None:
    """(B, 2) ones, with a zero where a sample is decoded without that branch; None with no dropout.

    Args:
        dropout: the share of the clips that go without each branch.
        seeds: one per sample; its row depends on its own seed alone.
    """
    if not dropout.structure and not dropout.dynamics:
        return None
    draws = torch.tensor([np.random.default_rng([int(s), DROPOUT_STREAM]).random() for s in seeds])
    either = dropout.structure + dropout.dynamics
    structure = draws >= dropout.structure
    dynamics = (draws < dropout.structure) | (draws >= either)
    return torch.stack([structure, dynamics], dim=1).float()


def latent_noise(config: AutoencoderConfig, std: float, seeds: Sequence[int]) -> VidTwinLatents:
    """Noise that is added to the latents before they are decoded in training.

    A decoder that has seen latents a little off decodes what a generator gets a little wrong.

    Args:
        std: of the noise, in the units of raw latents.
        seeds: one per sample, which the noise alone depends on.
    Source: l-DeTok (arXiv 2507.15856) and SSVAE, which trains the decoder at a variance of 0.005.
    """
    streams = [np.random.default_rng([int(s), LATENT_NOISE_STREAM]) for s in seeds]
    own = [int(stream.integers(2**63)) for stream in streams]
    return draw_noise(config, own).map(lambda noise: noise * std)


def shuffle_frames(
    video: torch.Tensor, shuffle: FrameShuffle, seeds: Sequence[int]
) -> torch.Tensor | None:
    """A share of the clips with their frames, or some of them, in random order.

    Args:
        video: (B, C, T, H, W).
        shuffle: the share, and how many frames such a clip keeps.
        seeds: one per sample; its order depends on its own seed alone.
    Returns:
        (B, C, T, H, W), where T is `shuffle.frames` if the share is 1; None if the share is 0.
    """
    if not shuffle.share:
        return None
    frames = np.arange(video.shape[2])
    clips = []
    for clip, seed in zip(video, seeds, strict=True):
        rng = np.random.default_rng([int(seed), SHUFFLE_STREAM])
        order = frames
        if rng.random() < shuffle.share:
            order = rng.permutation(frames)[: shuffle.frames]
            if shuffle.share < 1:
                order = np.resize(order, frames.shape)
        clips.append(clip[:, torch.from_numpy(order)])
    return torch.stack(clips)


def branch_videos(
    video: torch.Tensor,
    pairs: Mapping[str, torch.Tensor],
    seeds: Sequence[int],
    shuffle: FrameShuffle,
) -> dict[str, torch.Tensor | None]:
    """What each branch of the encoder sees in training, where that is not the clip itself.

    The structure may be encoded from a clip of the same appearance in another motion, or from
    shuffled frames; the dynamics from a clip of the same motion in another appearance. What only
    the clip itself has can then reach the decoder through the other branch alone.

    Args:
        video: (B, C, T, H, W).
        pairs: the paired clips of the batch, "appearance_swap", "motion_swap", both or neither.
        seeds: one per sample, for the shuffle.
        shuffle: of the structure branch's frames.
    Returns:
        The keywords `structure_video` and `dynamics_video` of `VidTwinAutoencoder.encode`.
    """
    motion_swap = pairs.get("motion_swap")
    shuffled = shuffle_frames(video if motion_swap is None else motion_swap, shuffle, seeds)
    return {
        "structure_video": motion_swap if shuffled is None else shuffled,
        "dynamics_video": pairs.get("appearance_swap"),
    }
