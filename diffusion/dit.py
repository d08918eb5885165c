"""TwinDiT: one transformer over the joint tokens of structure and dynamics.

Axes: B batch, C channels, Q structure queries, T frames, h w latent grid, N latent tokens,
L text tokens, D width.

    tokens   structure: one per query and p x p patch of the grid; dynamics_x: one per frame and
             column; dynamics_y: one per frame and row; each latent has its own projections
    codes    query or frame, row and column, and which latent a token is of
    blocks   adaLN-zero self-attention over all tokens, cross-attention to the text, MLP
    vector   both noise levels, the class and the mean of the text modulate every block

Source: DiT (arXiv 2212.09748) for blocks and initialisation; UniDiffuser (arXiv 2303.06555) for
giving each modality a noise level of its own, so that one model has the joint, the conditional and
the marginal distributions. The joint tokens are this project's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

# From their own modules: type checkers can't see through the package's lazy imports.
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.modeling_utils import ModelMixin
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn import functional

from diffusion.config import DiTConfig
from diffusion.positions import position_codes
from vidtwin import StrictLoading, VidTwinLatents

NORM_EPSILON = 1e-6
TIMESTEP_CHANNELS = 256
INITIAL_STD = 0.02


class TwinDiTOutput(NamedTuple):
    """Predictions in the shapes of the three latents; what they mean is the objective's matter."""

    structure: Tensor
    dynamics_x: Tensor
    dynamics_y: Tensor


class HeadNorm(nn.RMSNorm):
    """RMS norm in the dtype of its input."""

    def forward(self, heads: Tensor) -> Tensor:
        """Args: heads (B, heads, N, D / heads)."""
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
        split = "b n (heads d) -> b heads n d"
        query = rearrange(self.query(tokens), split, heads=self.num_heads)
        key_value = self.key_value(tokens if context is None else context)
        key, value = (
            rearrange(part, split, heads=self.num_heads) for part in key_value.chunk(2, dim=-1)
        )
        attended = functional.scaled_dot_product_attention(
            self.query_norm(query),
            self.key_norm(key),
            value,
            attn_mask=None if mask is None else rearrange(mask, "b l -> b 1 1 l"),
        )
        return self.output(rearrange(attended, "b heads n d -> b n (heads d)"))


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
        self.cross_attention: DiTAttention | None = None
        if config.text_hidden_size is not None and config.text_conditioning == "cross_attention":
            self.norm_cross = nn.LayerNorm(width, NORM_EPSILON)
            self.cross_attention = DiTAttention(width, config.num_heads, config.qk_norm)
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
        text: Tensor | None,
        text_mask: Tensor | None,
    ) -> Tensor:
        """Args: tokens (B, N, D); vector (B, D); token_mask (B, N); text (B, L, D)."""
        modulation = rearrange(self.modulation(functional.silu(vector)), "b d -> b 1 d")
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation.chunk(6, dim=-1)
        normed = self.norm_attention(tokens) * (1 + scale_a) + shift_a
        tokens = tokens + gate_a * self.attention(normed, mask=token_mask)
        if self.cross_attention is not None:
            tokens = tokens + self.cross_attention(self.norm_cross(tokens), text, text_mask)
        normed = self.norm_mlp(tokens) * (1 + scale_m) + shift_m
        return tokens + gate_m * self.mlp(normed)


class TextProjection(nn.Module):
    """Text states in the transformer's width, and the learned null text.

    Args:
        text_hidden_size: width of the encoder's states.
        hidden_size: D.
    """

    def __init__(self, text_hidden_size: int, hidden_size: int) -> None:
        super().__init__()
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
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(B, L, D) tokens, their (B, L) bool mask, and the (B, D) vector of their mean.

        Without states, and for rows whose mask is all False, the text is the null token alone.
        """
        if states is None:
            text: Tensor = repeat(self.null, "d -> b 1 d", b=batch_size)
            mask = torch.ones(text.shape[:2], dtype=torch.bool, device=text.device)
        else:
            if mask is None:
                mask = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
            absent = ~mask.any(dim=1, keepdim=True)  # (B, 1)
            first = torch.arange(mask.shape[1], device=mask.device) == 0  # (L,)
            text = self.projection(self.norm(states.to(self.null.dtype)))
            text = torch.where(absent[..., None], self.null, text)
            mask = mask | (absent & first)
        weights = mask.to(text.dtype)[..., None]
        mean = (text * weights).sum(1) / weights.sum(1)
        return text, mask, self.pooled(mean)


class TwinDiT(StrictLoading, ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Diffusion transformer over structure, dynamics_x and dynamics_y; keywords as in `DiTConfig`.

    `sizes` is the config as a `DiTConfig`.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ("Block",)  # type: ignore[assignment]
    # Set by diffusers' `enable_gradient_checkpointing`.
    _gradient_checkpointing_func: Callable[..., Tensor]
    positions: Tensor

    @register_to_config
    def __init__(
        self,
        structure_shape: tuple[int, ...] = (8, 16, 7, 7),
        dynamics_x_shape: tuple[int, ...] = (8, 16, 7),
        dynamics_y_shape: tuple[int, ...] = (8, 16, 7),
        hidden_size: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        structure_patch_size: int = 1,
        dynamics_patch_size: int = 1,
        qk_norm: bool = True,
        num_classes: int | None = None,
        text_hidden_size: int | None = None,
        text_conditioning: str = "cross_attention",
    ) -> None:
        super().__init__()
        # A loaded config.json has lists here; `config` should not depend on where it came from.
        shapes = (tuple(shape) for shape in (structure_shape, dynamics_x_shape, dynamics_y_shape))
        self.register_to_config(
            **{f"{name}_shape": shape for name, shape in zip(VidTwinLatents.names, shapes)}
        )
        sizes = DiTConfig(**{name: self.config[name] for name in DiTConfig.__dataclass_fields__})
        self.sizes = sizes
        self.gradient_checkpointing = False
        width = sizes.hidden_size
        structure_values = sizes.structure_shape[0] * sizes.structure_patch_size**2
        dynamics_values = sizes.dynamics_x_shape[0] * sizes.dynamics_patch_size
        values = (structure_values, dynamics_values, dynamics_values)

        self.inputs = nn.ModuleList(nn.Linear(count, width) for count in values)
        self.query_codes = nn.Parameter(torch.empty(sizes.structure_grid[0], width // 2))
        self.latent_codes = nn.Parameter(torch.empty(3, width))
        self.register_buffer("positions", position_codes(sizes), persistent=False)
        self.timestep_code = Timesteps(TIMESTEP_CHANNELS, True, 0.0)
        self.structure_level = TimestepEmbedding(TIMESTEP_CHANNELS, width)
        self.dynamics_level = TimestepEmbedding(TIMESTEP_CHANNELS, width)
        self.classes: nn.Embedding | None = None
        if sizes.num_classes is not None:
            self.classes = nn.Embedding(sizes.num_classes + 1, width)
        self.text: TextProjection | None = None
        if sizes.text_hidden_size is not None:
            self.text = TextProjection(sizes.text_hidden_size, width)
            if sizes.text_conditioning == "in_context":
                self.text_code = nn.Parameter(torch.empty(width))
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.depth))
        self.norm = layer_norm(width)
        self.modulation = nn.Linear(width, 2 * width)
        self.outputs = nn.ModuleList(nn.Linear(width, count) for count in values)
        self.initialize()

    @torch.no_grad()
    def initialize(self) -> None:
        """DiT's initialisation: xavier, small codes, and zero gates, so that blocks do nothing."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for embedding in (self.structure_level, self.dynamics_level):
            nn.init.normal_(embedding.linear_1.weight, std=INITIAL_STD)
            nn.init.normal_(embedding.linear_2.weight, std=INITIAL_STD)
        codes: list[Tensor] = [self.query_codes, self.latent_codes]
        if self.classes is not None:
            codes.append(self.classes.weight)
        if self.text is not None:
            codes.append(self.text.null)
            if self.sizes.text_conditioning == "in_context":
                codes.append(self.text_code)
        for code in codes:
            nn.init.normal_(code, std=INITIAL_STD)
        for block in self.blocks:
            assert isinstance(block, Block)
            nn.init.zeros_(block.modulation.weight)
            if block.cross_attention is not None:
                nn.init.zeros_(block.cross_attention.output.weight)
        nn.init.zeros_(self.modulation.weight)
        for output in self.outputs:
            assert isinstance(output, nn.Linear)
            nn.init.zeros_(output.weight)

    def forward(
        self,
        structure: Tensor,
        dynamics_x: Tensor,
        dynamics_y: Tensor,
        structure_timestep: Tensor,
        dynamics_timestep: Tensor,
        class_labels: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
    ) -> TwinDiTOutput:
        """The predictions for scaled, noised latents.

        Args:
            structure: (B, C_s, Q, h, w).
            dynamics_x: (B, C_d, T, w).
            dynamics_y: (B, C_d, T, h).
            structure_timestep: (B,) in [0, 1000], 1000 x sigma; 0 is a clean latent.
            dynamics_timestep: (B,), of both dynamics latents.
            class_labels: (B,) int64; `num_classes` is the null class, which None gives to all.
            encoder_hidden_states: (B, L, text_hidden_size); None is the null text for all.
            encoder_attention_mask: (B, L) bool, True for real tokens; a row without any has the
                null text.
        Returns:
            TwinDiTOutput: shapes as the latents.
        Raises:
            ValueError: for another shape, or a condition that this model does not have.
        """
        self._check(structure, dynamics_x, dynamics_y)
        batch_size = structure.shape[0]
        tokens = self._embed(structure, dynamics_x, dynamics_y)
        vector = self._vector(structure_timestep, dynamics_timestep, class_labels, tokens)
        text, text_mask = None, None
        if self.text is not None:
            self._check_text(encoder_hidden_states, encoder_attention_mask, batch_size)
            text, text_mask, pooled = self.text(
                encoder_hidden_states, encoder_attention_mask, batch_size
            )
            vector = vector + pooled
        elif encoder_hidden_states is not None:
            raise ValueError(
                "got `encoder_hidden_states`, but this model has no text condition; "
                "train one with text_hidden_size"
            )
        token_mask = None
        num_latent_tokens = tokens.shape[1]
        if text is not None and self.sizes.text_conditioning == "in_context":
            assert text_mask is not None
            seen = text_mask.new_ones(batch_size, num_latent_tokens)
            tokens = torch.cat([tokens, text + self.text_code], dim=1)  # (B, N + L, D)
            token_mask = torch.cat([seen, text_mask], dim=1)
            text, text_mask = None, None
        for block in self.blocks:
            arguments = (tokens, vector, token_mask, text, text_mask)
            if self.gradient_checkpointing and torch.is_grad_enabled():
                tokens = self._gradient_checkpointing_func(block, *arguments)
            else:
                tokens = block(*arguments)
        return self._predict(tokens[:, :num_latent_tokens], vector)

    def patchify(
        self, structure: Tensor, dynamics_x: Tensor, dynamics_y: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(B, N, values) of each latent; `unpatchify` is the exact inverse."""
        side, frames = self.sizes.structure_patch_size, self.sizes.dynamics_patch_size
        return (
            rearrange(structure, "b c q (h i) (w j) -> b (q h w) (c i j)", i=side, j=side),
            rearrange(dynamics_x, "b c (t i) w -> b (t w) (c i)", i=frames),
            rearrange(dynamics_y, "b c (t i) h -> b (t h) (c i)", i=frames),
        )

    def unpatchify(
        self, structure: Tensor, dynamics_x: Tensor, dynamics_y: Tensor
    ) -> TwinDiTOutput:
        """The latents from the (B, N, values) of each."""
        side, frames = self.sizes.structure_patch_size, self.sizes.dynamics_patch_size
        queries, rows, _ = self.sizes.structure_grid
        steps = self.sizes.dynamics_frames
        return TwinDiTOutput(
            rearrange(
                structure,
                "b (q h w) (c i j) -> b c q (h i) (w j)",
                q=queries,
                h=rows,
                i=side,
                j=side,
            ),
            rearrange(dynamics_x, "b (t w) (c i) -> b c (t i) w", t=steps, i=frames),
            rearrange(dynamics_y, "b (t h) (c i) -> b c (t i) h", t=steps, i=frames),
        )

    def _embed(self, structure: Tensor, dynamics_x: Tensor, dynamics_y: Tensor) -> Tensor:
        """(B, N, D): the joint sequence."""
        parts = self.patchify(structure, dynamics_x, dynamics_y)
        tokens = torch.cat([layer(part) for layer, part in zip(self.inputs, parts)], dim=1)
        counts = self.sizes.token_counts
        per_query = counts[0] // self.sizes.structure_grid[0]
        queries = functional.pad(
            repeat(self.query_codes, "q d -> (q n) d", n=per_query),
            (0, self.sizes.hidden_size - self.query_codes.shape[1], 0, sum(counts[1:])),
        )  # (N, D): zero for the dynamics, whose frames have fixed codes in this half
        latents = torch.cat(
            [repeat(code, "d -> n d", n=n) for code, n in zip(self.latent_codes, counts)]
        )
        return tokens + (self.positions.to(tokens.dtype) + queries + latents)

    def _vector(
        self,
        structure_timestep: Tensor,
        dynamics_timestep: Tensor,
        class_labels: Tensor | None,
        tokens: Tensor,
    ) -> Tensor:
        """(B, D): what modulates the blocks, without the text."""
        dtype = self.latent_codes.dtype
        vector = self.structure_level(self.timestep_code(structure_timestep).to(dtype))
        vector = vector + self.dynamics_level(self.timestep_code(dynamics_timestep).to(dtype))
        if self.classes is not None:
            if class_labels is None:
                null = self.classes.num_embeddings - 1
                class_labels = torch.full((tokens.shape[0],), null, device=tokens.device)
            vector = vector + self.classes(class_labels)
        elif class_labels is not None:
            raise ValueError(
                "got `class_labels`, but this model has no classes; train one with num_classes"
            )
        return vector

    def _predict(self, tokens: Tensor, vector: Tensor) -> TwinDiTOutput:
        modulation = rearrange(self.modulation(functional.silu(vector)), "b d -> b 1 d")
        shift, scale = modulation.chunk(2, dim=-1)
        parts = (self.norm(tokens) * (1 + scale) + shift).split(self.sizes.token_counts, dim=1)
        return self.unpatchify(*(layer(part) for layer, part in zip(self.outputs, parts)))

    def _check(self, *latents: Tensor) -> None:
        for name, latent in zip(VidTwinLatents.names, latents):
            expected = getattr(self.sizes, f"{name}_shape")
            if tuple(latent.shape[1:]) != expected or len(latent) != len(latents[0]):
                raise ValueError(
                    f"expected `{name}` of shape ({len(latents[0])}, "
                    f"{', '.join(map(str, expected))}), got {tuple(latent.shape)}: these latents "
                    "belong to another autoencoder than the model was trained for"
                )

    def _check_text(self, states: Tensor | None, mask: Tensor | None, batch_size: int) -> None:
        if states is None:
            if mask is not None:
                raise ValueError("got `encoder_attention_mask` without `encoder_hidden_states`")
            return
        width = self.sizes.text_hidden_size
        if states.ndim != 3 or len(states) != batch_size or states.shape[2] != width:
            raise ValueError(
                f"expected `encoder_hidden_states` of shape ({batch_size}, L, {width}), got "
                f"{tuple(states.shape)}; take the text encoder that the model was trained with"
            )
        if mask is not None and (mask.shape != states.shape[:2] or mask.dtype != torch.bool):
            raise ValueError(
                f"expected `encoder_attention_mask` of shape {tuple(states.shape[:2])} and type "
                f"bool, got {tuple(mask.shape)} and {mask.dtype}"
            )


def layer_norm(width: int) -> nn.LayerNorm:
    """Without affine: adaLN brings its own."""
    return nn.LayerNorm(width, NORM_EPSILON, elementwise_affine=False)
