"""The Q-Formers: learned queries that read the structure, or the dynamics, off the features.

Axes: B batch, T frames, D width, S positions, Q structure queries, q their width, h w grid, h' w'
the grid after downsampling.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import nn

from vidtwin.config import AutoencoderConfig
from vidtwin.query_transformer import QueryTransformer


class QFormer(nn.Module):
    """Learned queries that attend to each other and to a sequence of tokens.

    Args:
        config: of the autoencoder; the `query_*` keywords are this module's.
        num_queries: learned queries of each sequence.
    Source: BLIP-2 (arXiv 2301.12597); VidTwin, Sec. 3.2.
    """

    def __init__(self, config: AutoencoderConfig, num_queries: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(num_queries, config.query_hidden_size))
        self.qformer = QueryTransformer(
            hidden_size=config.query_hidden_size,
            token_size=config.hidden_size,
            num_layers=config.query_layers,
            num_heads=config.query_heads,
            intermediate_size=config.query_intermediate_size,
            dropout=config.query_dropout,
        )

    def find(self, tokens: torch.Tensor) -> torch.Tensor:
        """(b, N, D) to what the queries of each sequence found, (b, queries, q)."""
        queries = self.queries.expand(tokens.shape[0], -1, -1)
        found: torch.Tensor = self.qformer(queries, tokens)
        return found


class TemporalQFormer(QFormer):
    """Queries attend to the frames of each position; positions don't attend to each other."""

    any_frames = True

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__(config, config.num_queries)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, D, T, h, w) to (B * Q, q, h, w), one image of the grid per query."""
        batch, _, _, height, _ = features.shape
        found = self.find(rearrange(features, "b d t h w -> (b h w) t d"))
        return rearrange(found, "(b h w) q c -> (b q) c h w", b=batch, h=height)


class JointQFormer(QFormer):
    """Queries of all positions attend to all frames of all positions, and to each other.

    As many queries as `TemporalQFormer` has in all, each with learned values of its own: they would
    all find the same otherwise.
    """

    any_frames = True

    def __init__(self, config: AutoencoderConfig) -> None:
        height, width = config.grid
        super().__init__(config, config.num_queries * height * width)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, D, T, h, w) to (B * Q, q, h, w), one image of the grid per query."""
        _, _, _, height, width = features.shape
        found = self.find(rearrange(features, "b d t h w -> b (t h w) d"))
        return rearrange(found, "b (q h w) c -> (b q) c h w", h=height, w=width)


class SpatialQFormer(QFormer):
    """Per frame, w' + h' queries attend to all positions, instead of a mean of each row and column.

    The decoder spreads what they found over columns and rows as it does with means.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        height, width = config.dynamics_grid
        super().__init__(config, width + height)
        self.split = width, height
        self.width = config.query_hidden_size

    def forward(self, images: torch.Tensor, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(B * T, D, h', w') to (B, q, T, w') and (B, q, T, h')."""
        found = self.find(rearrange(images, "n d h w -> n (h w) d"))
        planes = rearrange(found, "(b t) n c -> b c t n", b=batch)
        columns, rows = planes.split(self.split, dim=-1)
        return columns, rows
