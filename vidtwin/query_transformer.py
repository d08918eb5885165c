"""The transformer of a Q-Former, as in BLIP-2, so that the autoencoder needs no other library.

Its parameters have the names, and a seed gives the weights and outputs, of `Blip2QFormerModel` in
transformers, bit for bit: the released weights and earlier runs stay what they are.
Axes: N sequences, Q queries, L tokens, q width of the queries, D width of the tokens.
"""

from __future__ import annotations

from collections.abc import Callable

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["QueryTransformer"]

INITIAL_STD = 0.02
EPSILON = 1e-12
CROSS_ATTENTION_EVERY = 2  # layers


class HeadAttention(nn.Module):
    """Multi-head attention of queries to a source, without the projection of its output."""

    def __init__(self, width: int, source_width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(source_width, width)
        self.value = nn.Linear(source_width, width)

    def forward(self, queries: Tensor, source: Tensor) -> Tensor:
        """(N, Q, q), and a source (N, L, D), to (N, Q, q)."""
        projected = self.query(queries), self.key(source), self.value(source)
        query, key, value = (rearrange(x, "n l (m c) -> n m l c", m=self.heads) for x in projected)
        dropout = self.dropout if self.training else 0.0
        found = functional.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        return rearrange(found, "n m q c -> n q (m c)")


class Residual(nn.Module):
    """Projection, dropout, sum and norm after an attention or a feed-forward."""

    def __init__(self, width_in: int, width: int, dropout: float) -> None:
        super().__init__()
        self.dense = nn.Linear(width_in, width)
        self.LayerNorm = nn.LayerNorm(width, eps=EPSILON)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        """(N, Q, q)."""
        normed: Tensor = self.LayerNorm(self.dropout(self.dense(hidden)) + residual)
        return normed


class Attention(nn.Module):
    """Attention of queries to a source, with its residual."""

    def __init__(self, width: int, source_width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = HeadAttention(width, source_width, heads, dropout)
        self.output = Residual(width, width, dropout)

    def forward(self, queries: Tensor, source: Tensor) -> Tensor:
        """(N, Q, q), and a source (N, L, D), to (N, Q, q)."""
        found: Tensor = self.output(self.attention(queries, source), queries)
        return found


class FeedForwardIn(nn.Module):
    """The first half of a feed-forward."""

    def __init__(self, width: int, width_out: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width_out)

    def forward(self, queries: Tensor) -> Tensor:
        """(N, Q, q) to (N, Q, feed-forward width)."""
        return functional.gelu(self.dense(queries))


class Layer(nn.Module):
    """Self-attention, in every other layer attention to the tokens, and a feed-forward."""

    def __init__(
        self, width: int, token_width: int | None, heads: int, wide: int, dropout: float
    ) -> None:
        super().__init__()
        self.attention = Attention(width, width, heads, dropout)
        self.reads_tokens = token_width is not None
        if token_width is not None:
            self.crossattention = Attention(width, token_width, heads, dropout)
        self.intermediate_query = FeedForwardIn(width, wide)
        self.output_query = Residual(wide, width, dropout)

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        """(N, Q, q), and tokens (N, L, D), to (N, Q, q)."""
        queries = self.attention(queries, queries)
        if self.reads_tokens:
            queries = self.crossattention(queries, tokens)
        found: Tensor = self.output_query(self.intermediate_query(queries), queries)
        return found


class Layers(nn.Module):
    """The layers one after another, with gradient checkpointing where it is switched on."""

    # Set by diffusers' `enable_gradient_checkpointing`.
    _gradient_checkpointing_func: Callable[..., Tensor]

    def __init__(self, layers: list[Layer]) -> None:
        super().__init__()
        self.layer = nn.ModuleList(layers)
        self.gradient_checkpointing = False

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        """(N, Q, q), and tokens (N, L, D), to (N, Q, q)."""
        for layer in self.layer:
            if self.gradient_checkpointing and self.training:
                queries = self._gradient_checkpointing_func(layer, queries, tokens)
            else:
                queries = layer(queries, tokens)
        return queries


class QueryTransformer(nn.Module):
    """Queries that attend to each other, and in layers 0, 2, 4... to tokens.

    Args:
        hidden_size: q.
        token_size: D.
        num_layers, num_heads, intermediate_size: layers, heads of attention, feed-forward width.
        dropout: of hidden states and attention, while training.
    Source: BLIP-2 (arXiv 2301.12597).
    """

    def __init__(
        self,
        *,
        hidden_size: int,
        token_size: int,
        num_layers: int,
        num_heads: int,
        intermediate_size: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.layernorm = nn.LayerNorm(hidden_size, eps=EPSILON)
        self.dropout = nn.Dropout(dropout)
        self.encoder = Layers(
            [
                Layer(
                    hidden_size,
                    token_size if index % CROSS_ATTENTION_EVERY == 0 else None,
                    num_heads,
                    intermediate_size,
                    dropout,
                )
                for index in range(num_layers)
            ]
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=INITIAL_STD)
                nn.init.zeros_(module.bias)

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        """(N, Q, q), and tokens (N, L, D), to (N, Q, q)."""
        found: Tensor = self.encoder(self.dropout(self.layernorm(queries)), tokens)
        return found
