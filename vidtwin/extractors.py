"""The ways to read each latent off the encoder's features, by the names that a config gives them.

Each has a class that is built from the config alone. A structure extractor gives one image of the
grid for each query; a dynamics extractor two planes, over (T, w') and (T, h'). A new one is a class
in a dictionary below and a name in `vidtwin.config`.

Axes: B batch, T frames, D width, Q structure queries, q their width, h w grid, h' w' the grid
after downsampling.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from einops import rearrange, reduce
from torch import nn
from torch.nn import functional

from vidtwin.config import AutoencoderConfig
from vidtwin.qformer import JointQFormer, SpatialQFormer, TemporalQFormer

__all__ = ["DYNAMICS_EXTRACTORS", "STRUCTURE_EXTRACTORS"]


class ConvolutionExtractor(nn.Module):
    """A convolution in space and an MLP in time instead of a Q-Former.

    Source: an ablation of VidTwin, Table 3; the paper doesn't state its layers, these are ours.
    """

    any_frames = False

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.conv = nn.Conv2d(config.hidden_size, config.query_hidden_size, 3, padding=1)
        self.mlp_in = nn.Linear(config.num_frames, 4 * config.num_frames)
        self.mlp_out = nn.Linear(4 * config.num_frames, config.num_queries)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, D, T, h, w) to (B * Q, q, h, w), one image of the grid per query."""
        batch = features.shape[0]
        images = functional.relu(self.conv(rearrange(features, "b d t h w -> (b t) d h w")))
        frames = rearrange(images, "(b t) c h w -> b c h w t", b=batch)
        queries = self.mlp_out(functional.gelu(self.mlp_in(frames)))
        return rearrange(queries, "b c h w q -> (b q) c h w")


class MeanExtractor(nn.Module):
    """The mean over the rows and the mean over the columns of each frame."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.width = config.hidden_size

    def forward(self, images: torch.Tensor, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(B * T, D, h', w') to (B, D, T, w') and (B, D, T, h')."""
        columns = reduce(images, "(b t) d h w -> b d t w", "mean", b=batch)
        rows = reduce(images, "(b t) d h w -> b d t h", "mean", b=batch)
        return columns, rows


Build = Callable[[AutoencoderConfig], Any]
STRUCTURE_EXTRACTORS: dict[str, Build] = {
    "qformer": TemporalQFormer,
    "joint_qformer": JointQFormer,
    "convolution": ConvolutionExtractor,
}
DYNAMICS_EXTRACTORS: dict[str, Build] = {
    "mean": MeanExtractor,
    "qformer": SpatialQFormer,
}
