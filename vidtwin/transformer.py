"""The space-time transformer of the encoder and of the decoder.

Axes: B batch, T frames, S positions of the grid (h * w, row-major), D width, N tokens of one
sequence. Source: VidTwin (arXiv 2412.17726) and its released code, which decides the order of
operations where the paper leaves it open.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional

LAYER_NORM_EPSILON = 1e-6


def sincos(positions: torch.Tensor, width: int) -> torch.Tensor:
    """Sine-cosine codes of (N,) positions: (N, width), all sines first, then all cosines."""
    index = torch.arange(width // 2, dtype=torch.float64)
    angles = positions[:, None].double() * 10000.0 ** (-index / (width / 2))
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def spatial_table(height: int, width: int, hidden_size: int) -> torch.Tensor:
    """(h * w, D) float64: the first half of D encodes the column, the second half the row."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    codes = [sincos(axis.flatten(), hidden_size // 2) for axis in (columns, rows)]
    return torch.cat(codes, dim=-1)


def temporal_table(num_frames: int, hidden_size: int) -> torch.Tensor:
    """(T, D) float64 codes of the frame index."""
    return sincos(torch.arange(num_frames), hidden_size)


class PositionTables(nn.Module):
    """The fixed spatial and temporal codes, correctly rounded in every dtype the model is moved to.

    Args:
        num_frames: T.
        grid: (h, w).
        hidden_size: D.
    """

    spatial: torch.Tensor
    temporal: torch.Tensor

    def __init__(self, num_frames: int, grid: tuple[int, int], hidden_size: int) -> None:
        super().__init__()
        self.sizes = (num_frames, grid, hidden_size)
        spatial, temporal = self._exact()
        dtype = torch.get_default_dtype()
        self.register_buffer("spatial", spatial.to(dtype), persistent=False)
        self.register_buffer("temporal", temporal.to(dtype), persistent=False)

    def _exact(self) -> tuple[torch.Tensor, torch.Tensor]:
        num_frames, grid, hidden_size = self.sizes
        return spatial_table(*grid, hidden_size), temporal_table(num_frames, hidden_size)

    def _apply(self, fn, recurse=True):
        # A float32 table cast to float64 would keep float32's error (and float64 buffers cannot
        # be moved to every device), so each move rounds the exact values again.
        super()._apply(fn, recurse)
        if not self.spatial.is_meta:
            for buffer, exact in zip((self.spatial, self.temporal), self._exact(), strict=True):
                buffer.data = exact.to(dtype=buffer.dtype).to(device=buffer.device)
        return self


class GatedAttention(nn.Module):
    """Multi-head self-attention over (..., N, D) with one projection for q, k and v.

    Args:
        hidden_size: D.
        num_heads: heads; divides D.
        causal: whether token n attends to tokens 0..n only.
    """

    def __init__(self, hidden_size: int, num_heads: int, causal: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.causal = causal
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, tokens: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        """gate (D,) times the attention of (b, N, D) tokens."""
        query, key, value = rearrange(
            self.qkv(tokens),
            "b n (three heads d) -> three b heads n d",
            three=3,
            heads=self.num_heads,
        )
        attended = functional.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        return gated_linear(rearrange(attended, "b heads n d -> b n (heads d)"), self.proj, gate)


class FeedForward(nn.Module):
    """Linear, GELU (tanh approximation), Linear.

    Args:
        hidden_size: D.
        intermediate_size: width between the two layers.
    """

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, intermediate_size)
        self.fc2 = nn.Linear(intermediate_size, hidden_size)

    def forward(self, tokens: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        """gate (D,) times the MLP of (..., D) tokens."""
        return gated_linear(functional.gelu(self.fc1(tokens), approximate="tanh"), self.fc2, gate)


class Block(nn.Module):
    """Spatial attention, temporal attention, MLP, with a learned, unconditional modulation.

    Args:
        hidden_size: D.
        num_heads: heads of both attentions.
        mlp_size: width between the two layers of the MLP.
        causal: whether temporal attention is causal.
    """

    def __init__(self, hidden_size: int, num_heads: int, mlp_size: int, causal: bool) -> None:
        super().__init__()
        self.modulation = nn.Parameter(torch.randn(6, hidden_size) / math.sqrt(hidden_size))
        self.spatial_attention = GatedAttention(hidden_size, num_heads)
        self.temporal_attention = GatedAttention(hidden_size, num_heads, causal=causal)
        self.mlp = FeedForward(hidden_size, mlp_size)
        self.apply(_xavier)
        nn.init.zeros_(self.temporal_attention.proj.weight)

    def forward(self, tokens: torch.Tensor, frame_codes: torch.Tensor | None) -> torch.Tensor:
        """(B, T, S, D) to the same; `frame_codes` (T, D) in the first block, None in the others."""
        batch, _, positions, _ = tokens.shape
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation.unbind(0)

        inputs = modulated_norm(tokens, shift_a, scale_a)
        attended = self.spatial_attention(rearrange(inputs, "b t s d -> (b t) s d"), gate_a)
        tokens = tokens + rearrange(attended, "(b t) s d -> b t s d", b=batch)

        # As released: no norm or modulation here, the gate of spatial attention once more, and
        # frame codes that don't enter the residual.
        inputs = tokens if frame_codes is None else tokens + frame_codes[:, None]
        attended = self.temporal_attention(rearrange(inputs, "b t s d -> (b s) t d"), gate_a)
        tokens = tokens + rearrange(attended, "(b s) t d -> b t s d", s=positions)

        return tokens + self.mlp(modulated_norm(tokens, shift_m, scale_m), gate_m)


def modulated_norm(tokens: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """LN(tokens) * (1 + scale) + shift over D in one kernel: the modulation is its affine."""
    return functional.layer_norm(
        tokens, tokens.shape[-1:], 1 + scale, shift, eps=LAYER_NORM_EPSILON
    )


def gated_linear(inputs: torch.Tensor, linear: nn.Linear, gate: torch.Tensor) -> torch.Tensor:
    """gate * linear(inputs); applying the gate to the weights saves two passes over the tokens."""
    return functional.linear(inputs, gate[:, None] * linear.weight, gate * linear.bias)


class SpaceTimeTransformer(nn.Module):
    """Position codes and a stack of blocks over (B, T, S, D).

    Args:
        num_frames: T.
        grid: (h, w), S = h * w.
        hidden_size: D.
        depth: blocks.
        num_heads: heads of every attention.
        mlp_size: width between the two layers of the MLPs.
        causal: whether temporal attention is causal.
    """

    # Set by diffusers' `enable_gradient_checkpointing`.
    _gradient_checkpointing_func: Callable[..., torch.Tensor]

    def __init__(
        self,
        *,
        num_frames: int,
        grid: tuple[int, int],
        hidden_size: int,
        depth: int,
        num_heads: int,
        mlp_size: int,
        causal: bool,
    ) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        self.positions = PositionTables(num_frames, grid, hidden_size)
        self.blocks = nn.ModuleList(
            Block(hidden_size, num_heads, mlp_size, causal) for _ in range(depth)
        )

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, T, S, D) to (B, T, S, D); fewer frames than T get the codes of the first frames."""
        tokens = tokens + self.positions.spatial
        first_codes = self.positions.temporal[: tokens.shape[1]]
        for index, block in enumerate(self.blocks):
            frame_codes = first_codes if index == 0 else None
            if self.gradient_checkpointing and torch.is_grad_enabled():
                tokens = self._gradient_checkpointing_func(block, tokens, frame_codes)
            else:
                tokens = block(tokens, frame_codes)
        return tokens


def _xavier(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)


class PatchEmbedding(nn.Conv3d):
    """Video (B, C, T, H, W) to tokens (B, T, S, D): one linear map per patch.

    Args:
        in_channels: C.
        hidden_size: D.
        patch_size: (1, ph, pw).
    """

    def __init__(
        self, in_channels: int, hidden_size: int, patch_size: tuple[int, int, int]
    ) -> None:
        super().__init__(in_channels, hidden_size, kernel_size=patch_size, stride=patch_size)
        nn.init.xavier_uniform_(self.weight.data.flatten(1))

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        """(B, C, T, H, W) to (B, T, S, D)."""
        return rearrange(super().forward(video), "b d t h w -> b t (h w) d")


class PatchHead(nn.Module):
    """Tokens (B, T, S, D) to video (B, C, T, H, W): modulated norm, Linear, unpatchify.

    Args:
        hidden_size: D.
        patch_size: (1, ph, pw).
        grid: (h, w).
        out_channels: C.
    """

    def __init__(
        self,
        hidden_size: int,
        patch_size: tuple[int, int, int],
        grid: tuple[int, int],
        out_channels: int,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.grid = grid
        self.modulation = nn.Parameter(torch.randn(2, hidden_size) / math.sqrt(hidden_size))
        self.linear = nn.Linear(hidden_size, math.prod(patch_size) * out_channels)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, T, S, D) to (B, C, T, H, W)."""
        shift, scale = self.modulation.unbind(0)
        patches = self.linear(modulated_norm(tokens, shift, scale))
        # Channel is the fastest axis inside a patch.
        return rearrange(
            patches,
            "b t (h w) (ph pw c) -> b c t (h ph) (w pw)",
            h=self.grid[0],
            w=self.grid[1],
            ph=self.patch_size[1],
            pw=self.patch_size[2],
        )
