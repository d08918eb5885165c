"""TwinDiT: one transformer over the joint tokens of structure and dynamics.

Axes: B batch, C channels, Q structure queries, T frames, h w latent grid, N latent tokens,
L text tokens, D width.

    tokens   structure: one per patch of queries, rows and columns; dynamics_x: one per frames and
             column; dynamics_y: one per frames and row; each latent has its own projections
    codes    query or frame, row and column, and which latent a token is of
    blocks   adaLN-zero self-attention over all tokens, cross-attention to the text and, instead of
             in the vector, to the class, MLP
    vector   both noise levels, the class and the mean of the text modulate every block

Source: DiT (arXiv 2212.09748) for blocks and initialisation; UniDiffuser (arXiv 2303.06555) for
giving each modality a noise level of its own, so that one model has the joint, the conditional and
the marginal distributions. The joint tokens are this project's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

# From their own modules: type checkers can't see through the package's lazy imports.
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders.peft import PeftAdapterMixin
from diffusers.models.cache_utils import CacheMixin
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.modeling_utils import ModelMixin
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn import functional

from diffusion.caching import cache_config, let_blocks_be_hooked
from diffusion.config import DiTConfig
from diffusion.dit_blocks import Block, TextProjection, layer_norm
from diffusion.positions import position_codes
from vidtwin import StrictLoading, VidTwinLatents

TIMESTEP_CHANNELS = 256
INITIAL_STD = 0.02


class TwinDiTOutput(NamedTuple):
    """Predictions in the shapes of the three latents; what they mean is the objective's matter."""

    structure: Tensor
    dynamics_x: Tensor
    dynamics_y: Tensor


class TwinDiT(  # type: ignore[misc]
    StrictLoading, ModelMixin, PeftAdapterMixin, CacheMixin, ConfigMixin
):
    """Diffusion transformer over structure, dynamics_x and dynamics_y; keywords as in `DiTConfig`.

    `sizes` is the config as a `DiTConfig`.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ("Block",)  # type: ignore[assignment]
    _repeated_blocks = ("Block",)  # type: ignore[assignment]
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
        structure_query_patch_size: int = 1,
        class_conditioning: str = "adaln",
        class_embed_dim: int = 256,
        given_frames: bool = False,
        action_size: int | None = None,
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
        patch = sizes.structure_query_patch_size * sizes.structure_patch_size**2
        structure_values = sizes.structure_shape[0] * patch
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
            size = sizes.class_embed_dim if sizes.reads_class else width
            self.classes = nn.Embedding(sizes.num_classes + 1, size)
        if sizes.reads_class:
            self.class_projection = nn.Linear(sizes.class_embed_dim, width)
        self.text: TextProjection | None = None
        if sizes.text_hidden_size is not None:
            in_context = sizes.text_conditioning == "in_context"
            attended_alone = not (in_context or sizes.reads_class)
            self.text = TextProjection(sizes.text_hidden_size, width, attended_alone)
            if in_context:
                self.text_code = nn.Parameter(torch.empty(width))
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.depth))
        self.norm = layer_norm(width)
        self.modulation = nn.Linear(width, 2 * width)
        self.outputs = nn.ModuleList(nn.Linear(width, count) for count in values)
        self.initialize()
        # After all others, which then begin as those of a model without.
        self.given: nn.ModuleList | None = None
        if given_frames:
            channels = (sizes.structure_shape[0], sizes.dynamics_x_shape[0])
            structure, dynamics = (
                count // c * (c + 1) for count, c in zip(values, channels)
            )  # with the mark which frames are given
            counts = (structure, dynamics, dynamics)
            self.given = nn.ModuleList(nn.Linear(count, width, bias=False) for count in counts)
            for weight in self.given.parameters():
                nn.init.zeros_(weight)
        self.actions: nn.Linear | None = None
        if action_size is not None:
            # The actions of the frames that a token covers, and whether there are any.
            self.actions = nn.Linear(sizes.dynamics_patch_size * (action_size + 1), width, False)
            nn.init.zeros_(self.actions.weight)

    def enable_cache(self, config: Any) -> None:
        """Lets what one step computed serve later ones, until `disable_cache`.

        Args:
            config: of diffusers, `FirstBlockCacheConfig`, `MagCacheConfig` or
                `TaylorSeerCacheConfig`. The first decides by the mean over a batch, so a video
                then depends on those beside it.
        Raises:
            ValueError: for another cache, or while one is enabled.
        """
        let_blocks_be_hooked(Block)
        super().enable_cache(cache_config(config, len(self.blocks)))

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
        given_structure: Tensor | None = None,
        given_dynamics_x: Tensor | None = None,
        given_dynamics_y: Tensor | None = None,
        given_frames: Tensor | None = None,
        actions: Tensor | None = None,
        has_actions: Tensor | None = None,
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
                null text. Or (B, 1) where no text is padded: whether a row has one. Attention
                takes no mask then, unless the null text stands among other tokens.
            given_structure, given_dynamics_x, given_dynamics_y, given_frames: see
                `diffusion.given_frames.FramesCondition`; all of them, or None for nothing given.
            actions: (B, T, action_size), each held from its frame to the next; None for none.
            has_actions: (B,) bool, False for samples without; None where all have some.
        Returns:
            TwinDiTOutput: shapes as the latents.
        Raises:
            ValueError: for another shape, or a condition that this model does not have.
        """
        self._check(structure, dynamics_x, dynamics_y)
        batch_size = structure.shape[0]
        tokens = self._embed(structure, dynamics_x, dynamics_y)
        if given_frames is not None:
            given = (given_structure, given_dynamics_x, given_dynamics_y)
            tokens = tokens + self._embed_given(given, given_frames)
        if actions is not None:
            tokens = tokens + self._embed_actions(actions, has_actions)
        vector = self._vector(structure_timestep, dynamics_timestep)
        class_vector = self._class_vector(class_labels, batch_size, tokens.device)
        if class_vector is not None and not self.sizes.reads_class:
            vector = vector + class_vector
        context, context_mask = None, None
        if self.text is not None:
            self._check_text(encoder_hidden_states, encoder_attention_mask, batch_size)
            context, context_mask, pooled = self.text(
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
        if context is not None and self.sizes.text_conditioning == "in_context":
            tokens = torch.cat([tokens, context + self.text_code], dim=1)  # (B, N + L, D)
            token_mask = seen_before(num_latent_tokens, context_mask)
            context, context_mask = None, None
        if class_vector is not None and self.sizes.reads_class:
            context, context_mask = joined(class_vector, context, context_mask)
        for block in self.blocks:
            arguments = (tokens, vector, token_mask, context, context_mask)
            if self.gradient_checkpointing and torch.is_grad_enabled():
                tokens = self._gradient_checkpointing_func(block, *arguments)
            else:
                tokens = block(*arguments)
        return self._predict(tokens[:, :num_latent_tokens], vector)

    def patchify(
        self, structure: Tensor, dynamics_x: Tensor, dynamics_y: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(B, N, values) of each latent; `unpatchify` is the exact inverse."""
        queries, side, frames = self.sizes.patches
        return (
            rearrange(
                structure,
                "b c (q k) (h i) (w j) -> b (q h w) (c k i j)",
                k=queries,
                i=side,
                j=side,
            ),
            rearrange(dynamics_x, "b c (t i) w -> b (t w) (c i)", i=frames),
            rearrange(dynamics_y, "b c (t i) h -> b (t h) (c i)", i=frames),
        )

    def unpatchify(
        self, structure: Tensor, dynamics_x: Tensor, dynamics_y: Tensor
    ) -> TwinDiTOutput:
        """The latents from the (B, N, values) of each."""
        queries, side, frames = self.sizes.patches
        grid_queries, rows, _ = self.sizes.structure_grid
        steps = self.sizes.dynamics_frames
        return TwinDiTOutput(
            rearrange(
                structure,
                "b (q h w) (c k i j) -> b c (q k) (h i) (w j)",
                q=grid_queries,
                h=rows,
                k=queries,
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

    def added_state(self) -> dict[str, Tensor]:
        """The part of the state dict that a model without given frames and actions has not."""
        added = ("given.", "actions.")
        return {name: t for name, t in self.state_dict().items() if name.startswith(added)}

    def _embed_given(self, latents: tuple[Tensor | None, ...], frames: Tensor) -> Tensor:
        """(B, N, D): what is given, in its place; zero for samples without."""
        if self.given is None:
            raise ValueError(
                "got `given_frames`, but this model does not take them; train one with given_frames"
            )
        dtype = self.latent_codes.dtype
        known = [latent.to(dtype) for latent in latents if latent is not None]
        self._check(*known)
        # (B, 1, ...): of the structure if any frame is given, of the dynamics frame by frame.
        of_structure = rearrange(frames.any(1).to(dtype), "b -> b 1 1 1 1")
        of_dynamics = rearrange(frames.to(dtype), "b t -> b 1 t 1")
        marks = (of_structure, of_dynamics, of_dynamics)
        marked = [
            torch.cat([latent * mark, mark.expand_as(latent[:, :1])], dim=1)
            for latent, mark in zip(known, marks)
        ]
        parts = zip(self.given, self.patchify(*marked))
        return torch.cat([layer(part) for layer, part in parts], dim=1)

    def _embed_actions(self, actions: Tensor, has_actions: Tensor | None) -> Tensor:
        """(B, N, D): each frame's action at its dynamics' tokens; zero for samples without."""
        if self.actions is None:
            raise ValueError(
                "got `actions`, but this model does not take them; train one with action_size"
            )
        batch, frames = len(actions), self.sizes.dynamics_x_shape[1]
        expected = (frames, self.sizes.action_size)
        if actions.ndim != 3 or tuple(actions.shape[1:]) != expected:
            raise ValueError(
                f"expected `actions` of shape (B, {expected[0]}, {expected[1]}), got "
                f"{tuple(actions.shape)}"
            )
        if has_actions is None:
            has_actions = torch.ones(batch, dtype=torch.bool, device=actions.device)
        dtype, patch = self.latent_codes.dtype, self.sizes.dynamics_patch_size
        mark = rearrange(has_actions.to(dtype), "b -> b 1 1").expand(batch, frames, 1)
        marked = torch.cat([actions.to(dtype) * mark, mark], dim=2)
        steps = self.actions(rearrange(marked, "b (t i) a -> b t (i a)", i=patch))
        structure, along_x, along_y = self.sizes.token_counts
        columns, rows = along_x // steps.shape[1], along_y // steps.shape[1]
        parts = [repeat(steps, "b t d -> b (t n) d", n=n) for n in (columns, rows)]
        return functional.pad(torch.cat(parts, dim=1), (0, 0, structure, 0))

    def _vector(self, structure_timestep: Tensor, dynamics_timestep: Tensor) -> Tensor:
        """(B, D): what the noise levels add to what modulates the blocks."""
        dtype = self.latent_codes.dtype
        vector = self.structure_level(self.timestep_code(structure_timestep).to(dtype))
        return vector + self.dynamics_level(self.timestep_code(dynamics_timestep).to(dtype))

    def _class_vector(
        self, labels: Tensor | None, batch_size: int, device: torch.device
    ) -> Tensor | None:
        """(B, D): each sample's class; None for a model without classes."""
        if self.classes is None:
            if labels is not None:
                raise ValueError(
                    "got `class_labels`, but this model has no classes; train one with num_classes"
                )
            return None
        if labels is None:
            labels = torch.full((batch_size,), self.classes.num_embeddings - 1, device=device)
        vector: Tensor = self.classes(labels)
        return self.class_projection(vector) if self.sizes.reads_class else vector

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
        if mask is None:
            return
        shapes = (tuple(states.shape[:2]), (batch_size, 1))
        if tuple(mask.shape) not in shapes or mask.dtype != torch.bool:
            raise ValueError(
                f"expected `encoder_attention_mask` of shape {shapes[0]} or {shapes[1]} and type "
                f"bool, got {tuple(mask.shape)} and {mask.dtype}"
            )


def joined(
    class_vector: Tensor, text: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """(B, 1 + L, D) and the mask of that: the class as a token, before the text if there is one."""
    token = rearrange(class_vector, "b d -> b 1 d")
    if text is None:
        return token, None
    return torch.cat([token, text], dim=1), seen_before(1, mask)


def seen_before(count: int, mask: Tensor | None) -> Tensor | None:
    """(B, N + L): a mask with as many tokens before it that all see; None stays None."""
    if mask is None:
        return None
    return torch.cat([mask.new_ones(len(mask), count), mask], dim=1)
