"""The Q-Former that extracts a clip's structure, one grid position at a time.

Axes: B batch, T frames, D width, S positions, Q structure queries, h w grid.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import nn

from vidtwin.query_transformer import QueryTransformer


class TemporalQFormer(nn.Module):
    """Learned queries attend to the frames of each position; positions don't attend to each other.

    Args:
        num_queries: Q.
        hidden_size: q, width of the queries.
        input_size: D, width of the frames' features.
        num_layers: layers, with cross-attention on layers 0, 2, 4...
        num_heads: attention heads.
        intermediate_size: feed-forward width.
        dropout: of hidden states and attention, while training.
    Source: BLIP-2 (arXiv 2301.12597); VidTwin, Sec. 3.2.
    """

    def __init__(
        self,
        *,
        num_queries: int,
        hidden_size: int,
        input_size: int,
        num_layers: int,
        num_heads: int,
        intermediate_size: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(num_queries, hidden_size))
        self.qformer = QueryTransformer(
            hidden_size=hidden_size,
            token_size=input_size,
            num_layers=num_layers,
            num_heads=num_heads,
            intermediate_size=intermediate_size,
            dropout=dropout,
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, D, T, h, w) to (B * Q, q, h, w), one image of the grid per query."""
        batch, _, _, height, _ = features.shape
        frames = rearrange(features, "b d t h w -> (b h w) t d")
        queries = self.queries.expand(frames.shape[0], -1, -1)
        found = self.qformer(queries, frames)
        return rearrange(found, "(b h w) q c -> (b q) c h w", b=batch, h=height)
