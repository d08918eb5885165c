"""What `TwinDiT` is built of.

Axes: B batch, N tokens, L text tokens, D width.

Source: DiT (arXiv 2212.09748) for blocks.
"""

from __future__ import annotations

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn import functional

from diffusion.config import DiTConfig

NORM_EPSILON = 1e-6


class HeadNorm(nn.RMSNorm):
    """RMS norm in the dtype of its input."""

    def forward(self, heads: Tensor) -> Tensor:
        """Args: heads (B, N, heads, D / heads)."""
        # Under autocast the weight's own dtype would rule out the fused kernel.
        weight = self.weight.to(heads.dtype)
        return functional.rms_norm(heads, self.normalized_shape, weight, self.eps)


class DiTAttention(nn.Module):
    """Multi-head attention of (B, N, D) to itself, or to a context (B, L, D).

    Args:
        hidden_size: D.
        num_heads: heads; divides D.
        qk_norm: RMS norm of each head's queries and keys.
    """

    def __init__(self, hidden_size: int, num_heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        head_size = hidden_size // num_heads
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key_value = nn.Linear(hidden_size, 2 * hidden_size)
        self.query_norm = HeadNorm(head_size, NORM_EPSILON) if qk_norm else nn.Identity()
        self.key_norm = HeadNorm(head_size, NORM_EPSILON) if qk_norm else nn.Identity()
        self.output = nn.Linear(hidden_size, hidden_size)

    def forward(
        self, tokens: Tensor, context: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Args: mask (B, L) bool, True where the context may be looked at; None for all."""
        split = "b n (heads d) -> b n heads d"
        query = rearrange(self.query(tokens), split, heads=self.num_heads)
        key_value = self.key_value(tokens if context is None else context)
        key, value = (
            rearrange(part, split, heads=self.num_heads) for part in key_value.chunk(2, dim=-1)
        )
        # torch's own kernel, or the backend that diffusers' `set_attention_backend` names.
        attended = dispatch_attention_fn(
            self.query_norm(query),
            self.key_norm(key),
            value,
            attn_mask=None if mask is None else rearrange(mask, "b l -> b 1 1 l"),
        )
        return self.output(rearrange(attended, "b n heads d -> b n (heads d)"))


class OneTokenAttention(nn.Module):
    """`DiTAttention` to a context of one token, without what can't matter there.

    Softmax over a single key is 1, whatever queries and keys are: what is left of it, exactly, is
    a linear map of the token's value.

    Args:
        hidden_size: D.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.value = nn.Linear(hidden_size, hidden_size)
        self.output = nn.Linear(hidden_size, hidden_size)

    def forward(self, tokens: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, 1, D), the same for all tokens. Args: context (B, 1, D)."""
        attended: Tensor = self.output(self.value(context))
        return attended


class Block(nn.Module):
    """One adaLN-zero block; it starts as the identity.

    Args:
        config: sizes.
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.modulation = nn.Linear(width, 6 * width)
        self.norm_attention = layer_norm(width)
        self.attention = DiTAttention(width, config.num_heads, config.qk_norm)
        self.norm_cross: nn.Module
        self.cross_attention: DiTAttention | OneTokenAttention | None = None
        if config.reads_text:
            self.norm_cross = nn.LayerNorm(width, NORM_EPSILON)
            self.cross_attention = DiTAttention(width, config.num_heads, config.qk_norm)
        elif config.reads_class:
            self.norm_cross = nn.Identity()
            self.cross_attention = OneTokenAttention(width)
        self.norm_mlp = layer_norm(width)
        hidden = int(width * config.mlp_ratio)
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU("tanh"), nn.Linear(hidden, width)
        )

    def forward(
        self,
        tokens: Tensor,
        vector: Tensor,
        token_mask: Tensor | None,
        context: Tensor | None,
        context_mask: Tensor | None,
    ) -> Tensor:
        """Args: tokens (B, N, D); vector (B, D); token_mask (B, N); context (B, L, D)."""
        modulation = rearrange(self.modulation(functional.silu(vector)), "b d -> b 1 d")
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation.chunk(6, dim=-1)
        normed = self.norm_attention(tokens) * (1 + scale_a) + shift_a
        tokens = tokens + gate_a * self.attention(normed, mask=token_mask)
        if self.cross_attention is not None:
            assert context is not None
            tokens = tokens + self.cross_attention(self.norm_cross(tokens), context, context_mask)
        normed = self.norm_mlp(tokens) * (1 + scale_m) + shift_m
        return tokens + gate_m * self.mlp(normed)


class TextProjection(nn.Module):
    """Text states in the transformer's width, and the learned null text.

    Args:
        text_hidden_size: width of the encoder's states.
        hidden_size: D.
        attended_alone: whether no other tokens are attended to together with the text. Then the
            null token repeated says what it says alone.
    """

    def __init__(self, text_hidden_size: int, hidden_size: int, attended_alone: bool) -> None:
        super().__init__()
        self.attended_alone = attended_alone
        # Encoders differ in the scale of their states by orders of magnitude.
        self.norm = nn.LayerNorm(text_hidden_size, NORM_EPSILON)
        self.projection = nn.Sequential(
            nn.Linear(text_hidden_size, hidden_size),
            nn.GELU("tanh"),
            nn.Linear(hidden_size, hidden_size),
        )
        self.pooled = nn.Linear(hidden_size, hidden_size)
        self.null = nn.Parameter(torch.zeros(hidden_size))

    def forward(
        self, states: Tensor | None, mask: Tensor | None, batch_size: int
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """(B, L, D) tokens, their (B, L) bool mask, and the (B, D) vector of their mean.

        Without states, and for rows whose mask is all False, the text is the null token alone. The
        mask is None where all tokens count, which shapes alone decide: no device is waited for.
        """
        if states is None:
            text: Tensor = repeat(self.null, "d -> b 1 d", b=batch_size)
            return text, None, self.pooled(self.null.expand(batch_size, -1))
        text = self.projection(self.norm(states.to(self.null.dtype)))
        if mask is None:
            return text, None, self.pooled(text.mean(1))
        absent = ~mask.any(dim=1, keepdim=True)  # (B, 1)
        text = torch.where(absent[..., None], self.null, text)
        if mask.shape[1] == 1 and self.attended_alone:
            return text, None, self.pooled(text.mean(1))
        first = torch.arange(text.shape[1], device=mask.device) == 0  # (L,)
        mask = mask.expand(text.shape[:2]) | (absent & first)
        weights = mask.to(text.dtype)[..., None]
        mean = (text * weights).sum(1) / weights.sum(1)
        return text, mask, self.pooled(mean)


def layer_norm(width: int) -> nn.LayerNorm:
    """Without affine: adaLN brings its own."""
    return nn.LayerNorm(width, NORM_EPSILON, elementwise_affine=False)
