"""What can be said of a transformer, of its objective and of sampling; imports no torch.

A command reads and checks its configuration with this module before anything heavy is imported.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from diffusion.flow_config import GIVEN_GUIDANCE_SCALE, FlowConfig, LevelConfig
from diffusion.inputs import check_count
from vidtwin import AutoencoderConfig, DataConfig

__all__ = [
    "GIVEN_GUIDANCE_SCALE",
    "GUIDANCE_SCALE",
    "NUM_INFERENCE_STEPS",
    "DiTConfig",
    "FlowConfig",
    "GivenFramesConfig",
    "GuidanceScales",
    "InputsConfig",
    "LevelConfig",
    "TransformerConfig",
]

# How a new pipeline samples unless told otherwise.
NUM_INFERENCE_STEPS = 30
GUIDANCE_SCALE = 6.0

TEXT_CONDITIONINGS = ("cross_attention", "in_context")
CLASS_CONDITIONINGS = ("adaln", "cross_attention")
# Conditions that every prediction of guidance knows: they have no scale.
ALWAYS_KNOWN = ("frames", "actions")


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
        action_size: values of a frame's action; None for a model without actions.

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
    action_size: int | None = None

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
            "action_size",
        ):
            value = getattr(self, name)
            may_be_none = name in ("num_classes", "text_hidden_size", "action_size")
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
        mlp_ratio: as of `DiTConfig`, as are all that follow: hidden width of each MLP over D.
        structure_patch_size: rows and columns of the structure grid that one token covers.
        dynamics_patch_size: frames of a dynamics latent that one token covers.
        qk_norm: RMS norm of queries and keys.
        text_conditioning: "cross_attention" or "in_context".
        structure_query_patch_size: structure queries that one token covers.
        class_conditioning: "adaln" or "cross_attention".
        class_embed_dim: width of a class for "cross_attention".
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


@dataclass(frozen=True)
class GuidanceScales:
    """Strengths of classifier-free guidance; 1.0 is off.

    Args:
        text: of the prompt.
        class_: of the class.
        structure: for the structure latent, instead of those of all conditions; None for them.
        dynamics: the same for the dynamics latents.
        given: of a latent that is given while the others are sampled.
    Raises:
        ValueError: for a scale below 1, or one that is not finite.
    """

    # Field -> keyword of the pipeline.
    KEYWORDS: ClassVar[dict[str, str]] = {
        "text": "guidance_scale",
        "class_": "class_guidance_scale",
        "structure": "structure_guidance_scale",
        "dynamics": "dynamics_guidance_scale",
        "given": "given_guidance_scale",
    }

    text: float = 1.0
    class_: float = 1.0
    structure: float | None = None
    dynamics: float | None = None
    given: float = 1.0

    def __post_init__(self) -> None:
        for field, keyword in self.KEYWORDS.items():
            self.check(keyword, getattr(self, field))

    @staticmethod
    def check(keyword: str, value: float | None) -> None:
        """Raises ValueError for a scale that guidance can't have; None stands for another's."""
        number = isinstance(value, numbers.Real) and 1.0 <= value < math.inf
        if value is not None and not number:
            raise ValueError(f"`{keyword}` must be at least 1.0 (which is off), got {value!r}")

    @staticmethod
    def from_keywords(
        guidance_scale: float,
        class_guidance_scale: float | None = None,
        structure_guidance_scale: float | None = None,
        dynamics_guidance_scale: float | None = None,
        given_guidance_scale: float = 1.0,
    ) -> GuidanceScales:
        """The scales by the pipeline's keywords; a class has that of the prompt unless it is told.

        Raises:
            ValueError: as of the constructor.
        """
        if class_guidance_scale is None:
            class_guidance_scale = guidance_scale
        return GuidanceScales(
            guidance_scale,
            class_guidance_scale,
            structure_guidance_scale,
            dynamics_guidance_scale,
            given_guidance_scale,
        )

    def of(self, condition: str) -> tuple[float, float, float]:
        """A condition's scale for structure, dynamics_x and dynamics_y."""
        if condition in ALWAYS_KNOWN:
            return 1.0, 1.0, 1.0
        scale = getattr(self, condition)
        if condition == "given":
            return scale, scale, scale
        structure = scale if self.structure is None else self.structure
        dynamics = scale if self.dynamics is None else self.dynamics
        return structure, dynamics, dynamics


@dataclass(frozen=True, kw_only=True)
class GivenFramesConfig:
    """Which frames of a training clip are given, see `diffusion.given_frames`; shares of samples.

    They are drawn apart from the noise levels, those of `FlowConfig.structure_clean` included.

    Args:
        first, last: of clips whose first or last frame is given.
        ends: of both.
        prefix: of the first N, N being 1 to T - 1 alike often.
    """

    first: float = 0.0
    last: float = 0.0
    ends: float = 0.0
    prefix: float = 0.0

    def __post_init__(self) -> None:
        if any(not 0 <= share <= 1 for share in vars(self).values()) or self.share > 1 + 1e-9:
            raise ValueError(
                "the shares of `given` must lie in [0, 1] and sum to at most 1, got "
                f"{', '.join(f'{name}={share}' for name, share in vars(self).items())}"
            )

    @property
    def share(self) -> float:
        """Of samples with any frame given."""
        return self.first + self.last + self.ends + self.prefix


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters that are trained instead of the transformer, see `diffusion.lora`.

    Args:
        rank: of the adapters; 0 trains the transformer itself.
        alpha: the adapters' output is scaled by alpha / rank; None for `rank`.
        dropout: of their inputs.
        target_modules: the linear layers that get one, by the ends of their names.
    """

    rank: int = 0
    alpha: float | None = None
    dropout: float = 0.0
    target_modules: tuple[str, ...] = ("query", "key_value", "output")

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise ValueError(f"`lora.rank` must be at least 0, got {self.rank}")
        if self.alpha is not None and not self.alpha > 0:
            raise ValueError(f"`lora.alpha` must be positive, got {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"`lora.dropout` must lie in [0, 1), got {self.dropout}")
        if not self.target_modules:
            raise ValueError("`lora.target_modules` must name at least one layer")


@dataclass(frozen=True, kw_only=True)
class InputsConfig:
    """What a training run learns from, and what it learns.

    Args:
        autoencoder: folder of the frozen autoencoder, or the run folder of its training.
        cache: folder of encode.py with `train` and, to validate, `validation`; None encodes `data`.
        verify: compare the whole cache with its sums when it is opened.
        data: for a run without a cache; its sizes follow the autoencoder's.
        posterior: without a cache, learn a "sample" of each clip's posterior or its "mode". A model
            that goes on from another must learn what that one did: the mode where a cache was
            made with store=mode, as the shipped one's.
        stats_samples: clips that the latents' statistics are measured on, without a cache.
        class_conditional: learn the classes of the data set.
        text_encoder: folder or hub id of the encoder that reads captions; None for no text.
        text_layer: which of its hidden states; -1 is the last.
        max_text_length: in tokens; None for what the encoder takes.
        action_conditional: learn what follows from the actions of the data set, frame by frame.
        class_dropout, text_dropout, action_dropout: share of the samples that learn without the
            condition.
        given_dropout: the same where structure or dynamics are given clean, if it is larger.
        given: frames that are given.
        flow: the objective.
        overfit: learn the first N clips by heart.
        noise_draws: how often a step learns each clip, with noise, levels and dropout of its own;
            above 1 where encoding a clip costs more than the transformer does.
    """

    autoencoder: str = "checkpoints/shapes/autoencoder"
    cache: str | None = None
    verify: bool = True
    data: DataConfig = DataConfig()
    posterior: str = "sample"
    stats_samples: int = 512
    class_conditional: bool = False
    action_conditional: bool = False
    text_encoder: str | None = None
    text_layer: int = -1
    max_text_length: int | None = None
    class_dropout: float = 0.1
    text_dropout: float = 0.1
    action_dropout: float = 0.1
    given_dropout: float = 0.5
    given: GivenFramesConfig = GivenFramesConfig()
    flow: FlowConfig = FlowConfig()
    overfit: int | None = None
    noise_draws: int = 1

    def __post_init__(self) -> None:
        for name in ("class_dropout", "text_dropout", "action_dropout", "given_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must lie in [0, 1], got {getattr(self, name)}")
        if self.posterior not in ("sample", "mode"):
            raise ValueError(f"`posterior` must be sample or mode, got {self.posterior!r}")
        if self.posterior == "mode" and self.cache is not None:
            raise ValueError(
                "`posterior` is for clips that are encoded at every step, and a cache holds what "
                f"encode.py stored; set posterior=sample, got mode and cache={self.cache}"
            )
        check_count("stats_samples", self.stats_samples)
        check_count("noise_draws", self.noise_draws)
        if self.action_conditional and self.cache is not None:
            raise ValueError(
                "action_conditional=true needs clips, and a cache holds no actions; set "
                f"cache=null, or action_conditional=false; got cache={self.cache}"
            )
        if self.given.share and self.cache is not None:
            raise ValueError(
                "`given` frames are encoded anew at every step, from clips that a cache does not "
                f"hold; set cache=null, or all shares of given to 0; got cache={self.cache}"
            )
