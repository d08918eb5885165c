"""What can be said of a transformer, of its objective and of sampling; imports no torch.

A command reads and checks its configuration with this module before anything heavy is imported.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from diffusion.dit_config import DiTConfig, TransformerConfig
from diffusion.inputs import check_count
from vidtwin import DataConfig

__all__ = [
    "GIVEN_GUIDANCE_SCALE",
    "GUIDANCE_SCALE",
    "NUM_INFERENCE_STEPS",
    "SCHEDULER_NAMES",
    "DiTConfig",
    "FlowConfig",
    "GivenFramesConfig",
    "GuidanceScales",
    "InputsConfig",
    "LevelConfig",
    "TransformerConfig",
]

# How a new pipeline samples unless told otherwise; the last, if trained for it.
NUM_INFERENCE_STEPS = 30
GUIDANCE_SCALE = 6.0
GIVEN_GUIDANCE_SCALE = 2.0

# Of `diffusion.schedulers.build_scheduler`; which of them there are depends on the objective.
SCHEDULER_NAMES = ("euler", "heun", "dpm++", "unipc", "ddim", "ddpm")

PREDICTIONS = ("velocity", "epsilon", "v", "x0")
# How noise is mixed in -> what can be predicted then.
PREDICTIONS_OF = {"flow": ("velocity", "x0"), "ddpm": ("epsilon", "v", "x0")}
LOSSES = ("prediction", "velocity")
DISTRIBUTIONS = ("logit_normal", "uniform")
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
NUM_TIMESTEPS = 1000


@dataclass(frozen=True, kw_only=True)
class LevelConfig:
    """The distribution of one latent's noise level.

    Args:
        distribution: "logit_normal" or "uniform".
        mean, std: of the logit of sigma, for "logit_normal".
        shift: s > 0 moves sigma to s sigma / (1 + (s - 1) sigma); above 1 towards noise.
    """

    distribution: str = "logit_normal"
    mean: float = 0.0
    std: float = 1.0
    shift: float = 1.0

    def __post_init__(self) -> None:
        if self.distribution not in DISTRIBUTIONS:
            raise ValueError(
                f"`distribution` must be one of {', '.join(DISTRIBUTIONS)}; "
                f"got {self.distribution!r}"
            )
        if not math.isfinite(self.mean):
            raise ValueError(f"`mean` must be finite, got {self.mean}")
        for name in ("std", "shift"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"`{name}` must be positive, got {getattr(self, name)}")


SPECIAL_LEVELS = (
    "independent",
    "structure_clean",
    "dynamics_clean",
    "structure_noise",
    "dynamics_noise",
    "lead",
)


@dataclass(frozen=True, kw_only=True)
class FlowConfig:
    """The objective.

    A training sample has equal levels, unless one of these falls to it (probabilities):

    Args:
        prediction: "velocity", "epsilon", "v" or "x0", the clean latents themselves.
        process: how noise is mixed in: "flow" (for velocity, x0) or "ddpm" (for epsilon, v, x0);
            None for flow wherever it can be.
        loss: "prediction", or "velocity": of the velocity that a predicted x0 implies.
        structure_levels, dynamics_levels: distributions of the two levels; equal levels are drawn
            from one or the other, each half of the time.
        independent: of levels that are drawn apart.
        structure_clean: of a structure without noise, for p(dynamics | structure).
        dynamics_clean: of dynamics without noise, for p(structure | dynamics).
        structure_noise, dynamics_noise: of a latent that is all noise, for the other's marginal.
        lead: of levels that sampling with `structure_lead` meets, also those at its ends, where
            one latent waits as noise or is clean already.
        structure_lead: as of `VidTwinPipeline`, whose own it becomes if `lead` is above 0.
        structure_weight, dynamics_weight: of the losses.
        min_snr_gamma: of min-SNR weights for epsilon, v and x0; None weighs all levels alike.
        beta_schedule: of process ddpm: "linear", "scaled_linear" or "squaredcos_cap_v2".
    Raises:
        ValueError: for a value out of range; the message names the keyword.
    """

    prediction: str = "velocity"
    process: str | None = None
    loss: str = "prediction"
    structure_levels: LevelConfig = LevelConfig()
    dynamics_levels: LevelConfig = LevelConfig()
    independent: float = 0.2
    structure_clean: float = 0.1
    dynamics_clean: float = 0.1
    structure_noise: float = 0.0
    dynamics_noise: float = 0.0
    lead: float = 0.0
    structure_lead: float = 0.0
    structure_weight: float = 1.0
    dynamics_weight: float = 1.0
    min_snr_gamma: float | None = None
    beta_schedule: str = "squaredcos_cap_v2"

    def __post_init__(self) -> None:
        self._check_kind()
        shares = {name: getattr(self, name) for name in SPECIAL_LEVELS}
        if any(not 0 <= share <= 1 for share in shares.values()) or sum(shares.values()) > 1 + 1e-9:
            raise ValueError(
                "the probabilities of unequal levels must lie in [0, 1] and sum to at most 1, "
                f"got {', '.join(f'{name}={share}' for name, share in shares.items())}"
            )
        if not -1 <= self.structure_lead <= 1 or bool(self.lead) != bool(self.structure_lead):
            raise ValueError(
                "`structure_lead` must lie in [-1, 1], and be 0 unless `lead`, the share of the "
                f"samples, is above 0; got structure_lead={self.structure_lead}, lead={self.lead}"
            )
        weights = (self.structure_weight, self.dynamics_weight)
        if any(not 0 <= weight < math.inf for weight in weights) or not sum(weights):
            raise ValueError(
                "`structure_weight` and `dynamics_weight` must be finite, not negative and not "
                f"both 0, got {weights}"
            )
        if self.min_snr_gamma is not None:
            if not 0 < self.min_snr_gamma < math.inf:
                raise ValueError(f"`min_snr_gamma` must be positive, got {self.min_snr_gamma}")
            if "velocity" in (self.prediction, self.loss):
                raise ValueError(
                    "`min_snr_gamma` belongs to prediction=epsilon, v or x0 with loss=prediction, "
                    f"got prediction={self.prediction}, loss={self.loss}; set min_snr_gamma=null"
                )
        if self.beta_schedule not in BETA_SCHEDULES:
            raise ValueError(
                '`beta_schedule` must be "linear", "scaled_linear" or "squaredcos_cap_v2", '
                f"got {self.beta_schedule!r}"
            )

    def _check_kind(self) -> None:
        for name, choices in (("prediction", PREDICTIONS), ("loss", LOSSES)):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"`{name}` must be one of {', '.join(choices)}; got {getattr(self, name)!r}"
                )
        fitting = [name for name, kinds in PREDICTIONS_OF.items() if self.prediction in kinds]
        if self.process not in (None, *fitting):
            raise ValueError(
                f"`process` must be null or {' or '.join(fitting)} for prediction="
                f"{self.prediction}; got {self.process!r}"
            )
        if self.loss == "velocity" and self.prediction != "x0":
            raise ValueError(
                "`loss`=velocity belongs to prediction=x0, got prediction="
                f"{self.prediction}; set loss=prediction"
            )

    @property
    def is_flow(self) -> bool:
        """Whether noise is mixed in as flow matching does, not as DDPM."""
        return (self.process or "flow") == "flow" and self.prediction in PREDICTIONS_OF["flow"]

    @property
    def given_guidance_scale(self) -> float:
        """By a given latent: 1.0 (off) unless both kinds were trained as noise beside the other."""
        return GIVEN_GUIDANCE_SCALE if min(self.structure_noise, self.dynamics_noise) > 0 else 1.0

    def check_steps(self, name: str, steps: int) -> None:
        """Raises ValueError for a number of solver steps that no scheduler takes."""
        most = math.inf if self.is_flow else NUM_TIMESTEPS
        if not 1 <= steps <= most:
            raise ValueError(
                f"`{name}` must be at least 1, and at most {NUM_TIMESTEPS} for "
                f"flow.prediction=epsilon or v, or flow.process=ddpm; got {steps} for "
                f"{self.prediction}"
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
        if value is not None and not 1.0 <= value < math.inf:
            raise ValueError(f"`{keyword}` must be at least 1.0 (which is off), got {value}")

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
        if condition == "frames":  # known to every prediction
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
class InputsConfig:
    """What a training run learns from, and what it learns.

    Args:
        autoencoder: folder of the frozen autoencoder, or the run folder of its training.
        cache: folder of encode.py with `train` and, for validation, `validation` in it; None
            encodes the videos of `data` at every step.
        verify: read the whole cache when it is opened, and compare it with its sums.
        data: for a run without a cache; its sizes follow the autoencoder's.
        stats_samples: clips that the latents' statistics are measured on, without a cache.
        class_conditional: learn the classes of the data set.
        text_encoder: folder or hub id of the encoder that reads captions; None for no text.
        text_layer: which of its hidden states; -1 is the last.
        max_text_length: in tokens; None for what the encoder takes.
        class_dropout, text_dropout: share of the samples that learn without the condition.
        given_dropout: the same where structure or dynamics are given clean, if it is larger.
        given: frames that are given.
        flow: the objective.
        overfit: learn the first N clips by heart.
    """

    autoencoder: str = "checkpoints/shapes/autoencoder"
    cache: str | None = None
    verify: bool = True
    data: DataConfig = DataConfig()
    stats_samples: int = 512
    class_conditional: bool = False
    text_encoder: str | None = None
    text_layer: int = -1
    max_text_length: int | None = None
    class_dropout: float = 0.1
    text_dropout: float = 0.1
    given_dropout: float = 0.5
    given: GivenFramesConfig = GivenFramesConfig()
    flow: FlowConfig = FlowConfig()
    overfit: int | None = None

    def __post_init__(self) -> None:
        for name in ("class_dropout", "text_dropout", "given_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must lie in [0, 1], got {getattr(self, name)}")
        check_count("stats_samples", self.stats_samples)
        if self.given.share and self.cache is not None:
            raise ValueError(
                "`given` frames are encoded anew at every step, from clips that a cache does not "
                f"hold; set cache=null, or all shares of given to 0; got cache={self.cache}"
            )
