"""What can be said of an objective; imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["GIVEN_GUIDANCE_SCALE", "NUM_TIMESTEPS", "FlowConfig", "LevelConfig"]

# How strongly a pipeline is guided by what is given, if it was trained for that.
GIVEN_GUIDANCE_SCALE = 2.0

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
