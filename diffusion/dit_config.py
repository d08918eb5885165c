"""What can be said of a transformer; imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from vidtwin import AutoencoderConfig

__all__ = ["DiTConfig", "TransformerConfig"]

TEXT_CONDITIONINGS = ("cross_attention", "in_context")
CLASS_CONDITIONINGS = ("adaln", "cross_attention")


@dataclass(frozen=True, kw_only=True)
class DiTConfig:
    """Sizes of a `TwinDiT`; the latent shapes default to the released autoencoder's.

    Args:
        structure_shape: (C_s, Q, h, w) of a clip's structure latent.
        dynamics_x_shape: (C_d, T, w).
        dynamics_y_shape: (C_d, T, h).
        hidden_size: D, a multiple of 8 and of the heads.
        depth: blocks.
        num_heads: attention heads.
        mlp_ratio: hidden width of each MLP over D.
        structure_patch_size: rows and columns of the structure grid that one token covers.
        dynamics_patch_size: frames of a dynamics latent that one token covers.
        qk_norm: RMS norm of queries and keys.
        num_classes: None for a model without classes; a null class is added.
        text_hidden_size: width of the text encoder's states, None for a model without text.
        text_conditioning: "cross_attention", or "in_context" (text tokens join the sequence).
        structure_query_patch_size: structure queries that one token covers.
        class_conditioning: "adaln" (with the noise levels), or "cross_attention" (a vector of
            `class_embed_dim` values that every block reads as one token, beside the text's).
        class_embed_dim: values of that vector.
        given_frames: whether the model takes frames that are given, see `diffusion.given_frames`.

    Raises:
        ValueError: if sizes do not fit together; the message names the keyword.
    Source: the presets' depths and widths are those of DiT (arXiv 2212.09748), table 1.
    """

    structure_shape: tuple[int, ...] = (8, 16, 7, 7)
    dynamics_x_shape: tuple[int, ...] = (8, 16, 7)
    dynamics_y_shape: tuple[int, ...] = (8, 16, 7)
    hidden_size: int = 1152
    depth: int = 28
    num_heads: int = 16
    mlp_ratio: float = 4.0
    structure_patch_size: int = 1
    dynamics_patch_size: int = 1
    qk_norm: bool = True
    num_classes: int | None = None
    text_hidden_size: int | None = None
    text_conditioning: str = "cross_attention"
    structure_query_patch_size: int = 1
    class_conditioning: str = "adaln"
    class_embed_dim: int = 256
    given_frames: bool = False

    def __post_init__(self) -> None:
        for name, axes in (("structure", 4), ("dynamics_x", 3), ("dynamics_y", 3)):
            shape = getattr(self, f"{name}_shape")
            if len(shape) != axes or any(type(size) is not int or size < 1 for size in shape):
                raise ValueError(
                    f"`{name}_shape` must be {axes} counts, got {shape}; take it from the "
                    f"autoencoder's `sizes.{name}_shape`"
                )
        if self.dynamics_x_shape[:2] != self.dynamics_y_shape[:2]:
            raise ValueError(
                "`dynamics_x_shape` and `dynamics_y_shape` must have the same channels and "
                f"frames, got {self.dynamics_x_shape} and {self.dynamics_y_shape}"
            )
        for name in (
            "hidden_size",
            "depth",
            "num_heads",
            "structure_patch_size",
            "structure_query_patch_size",
            "dynamics_patch_size",
            "class_embed_dim",
            "num_classes",
            "text_hidden_size",
        ):
            value = getattr(self, name)
            may_be_none = name in ("num_classes", "text_hidden_size")
            if not (value is None and may_be_none) and (type(value) is not int or value < 1):
                raise ValueError(f"`{name}` must be at least 1, got {value!r}")
        if not 0 < self.mlp_ratio < math.inf:
            raise ValueError(f"`mlp_ratio` must be positive, got {self.mlp_ratio}")
        for name, choices in (
            ("text_conditioning", TEXT_CONDITIONINGS),
            ("class_conditioning", CLASS_CONDITIONINGS),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"`{name}` must be one of {', '.join(choices)}; got {getattr(self, name)!r}"
                )
        self._check_divisibility()

    def _check_divisibility(self) -> None:
        if self.hidden_size % 8:
            raise ValueError(
                f"`hidden_size` must be a multiple of 8 (position codes), got {self.hidden_size}"
            )
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"`num_heads`={self.num_heads} must divide `hidden_size`={self.hidden_size}"
            )
        for name, size, patch in (
            (
                "structure_query_patch_size",
                self.structure_shape[1],
                self.structure_query_patch_size,
            ),
            ("structure_patch_size", self.structure_shape[2], self.structure_patch_size),
            ("structure_patch_size", self.structure_shape[3], self.structure_patch_size),
            ("dynamics_patch_size", self.dynamics_x_shape[1], self.dynamics_patch_size),
        ):
            if size % patch:
                raise ValueError(f"`{name}`={patch} must divide the latent's {size}; set {name}=1")

    @property
    def structure_grid(self) -> tuple[int, int, int]:
        """(queries, rows, columns) of structure tokens."""
        _, queries, height, width = self.structure_shape
        side = self.structure_patch_size
        return queries // self.structure_query_patch_size, height // side, width // side

    @property
    def patches(self) -> tuple[int, int, int]:
        """What a token covers: structure queries; their rows and columns; frames of dynamics."""
        sizes = self.structure_query_patch_size, self.structure_patch_size
        return (*sizes, self.dynamics_patch_size)

    @property
    def reads_text(self) -> bool:
        """Whether blocks have cross-attention to the text."""
        return self.text_hidden_size is not None and self.text_conditioning == "cross_attention"

    @property
    def reads_class(self) -> bool:
        """Whether they have it to the class."""
        return self.num_classes is not None and self.class_conditioning == "cross_attention"

    @property
    def dynamics_frames(self) -> int:
        """Tokens of a dynamics latent along time."""
        return self.dynamics_x_shape[1] // self.dynamics_patch_size

    @property
    def token_counts(self) -> tuple[int, int, int]:
        """Tokens of structure, dynamics_x and dynamics_y; 784, 112 and 112 for the released one."""
        frames = self.dynamics_frames
        return (
            math.prod(self.structure_grid),
            frames * self.dynamics_x_shape[2],
            frames * self.dynamics_y_shape[2],
        )

    @staticmethod
    def preset(name: str, **changes: Any) -> DiTConfig:
        """The sizes of "debug", "S", "B", "L" or "XL", with changes to any other keyword."""
        if name not in PRESETS:
            raise ValueError(f"the presets are {', '.join(PRESETS)}; got {name!r}")
        hidden_size, depth, num_heads = PRESETS[name]
        sizes = DiTConfig(hidden_size=hidden_size, depth=depth, num_heads=num_heads)
        return replace(sizes, **changes)


# hidden_size, depth, num_heads
PRESETS = {
    "debug": (32, 2, 2),
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "XL": (1152, 28, 16),
}


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """What a run says of its transformer; the rest follows from autoencoder and conditions.

    Args:
        preset: "debug", "S", "B", "L" or "XL".
        hidden_size, depth, num_heads: instead of the preset's; None for those.
        mlp_ratio, structure_patch_size, structure_query_patch_size, dynamics_patch_size, qk_norm,
            text_conditioning, class_conditioning, class_embed_dim: see `DiTConfig`.
    """

    preset: str = "S"
    hidden_size: int | None = None
    depth: int | None = None
    num_heads: int | None = None
    mlp_ratio: float = DiTConfig.mlp_ratio
    structure_patch_size: int = DiTConfig.structure_patch_size
    dynamics_patch_size: int = DiTConfig.dynamics_patch_size
    qk_norm: bool = DiTConfig.qk_norm
    text_conditioning: str = DiTConfig.text_conditioning
    structure_query_patch_size: int = DiTConfig.structure_query_patch_size
    class_conditioning: str = DiTConfig.class_conditioning
    class_embed_dim: int = DiTConfig.class_embed_dim

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ValueError(f"`preset` must be one of {', '.join(PRESETS)}; got {self.preset!r}")

    def sizes(
        self, autoencoder: AutoencoderConfig, conditions: Mapping[str, Any] | None = None
    ) -> DiTConfig:
        """The transformer's sizes for the latents of an autoencoder.

        Args:
            autoencoder: gives the latents' shapes.
            conditions: keywords of `DiTConfig` that the conditions bring, such as num_classes.
        Raises:
            ValueError: if they do not fit together.
        """
        given = {name: value for name, value in vars(self).items() if value is not None}
        return DiTConfig.preset(
            given.pop("preset"),
            **given,
            structure_shape=autoencoder.structure_shape,
            dynamics_x_shape=autoencoder.dynamics_x_shape,
            dynamics_y_shape=autoencoder.dynamics_y_shape,
            **(conditions or {}),
        )
