"""What TwinDiT learns: noise levels, noised latents, targets and losses, on tensors alone.

Axes: B batch; the latents keep their own axes behind it.

Structure and dynamics have a noise level sigma in [0, 1] each (1 is noise). A prediction is one of

    velocity   x = (1 - sigma) x0 + sigma eps        target eps - x0     (flow matching)
    epsilon    x = sqrt(a_t) x0 + sqrt(1 - a_t) eps  target eps          (DDPM, t = 1000 sigma)
    v          the same x                            target sqrt(a_t) eps - sqrt(1 - a_t) x0

Source: Lipman et al. (arXiv 2210.02747) and Esser et al. (arXiv 2403.03206, logit-normal levels and
the shift); Ho et al. (arXiv 2006.11239); Salimans & Ho (arXiv 2202.00512); Hang et al. (arXiv
2303.09556, min-SNR); two levels drawn equal or apart: UniDiffuser (arXiv 2303.06555).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor

PREDICTIONS = ("velocity", "epsilon", "v")
DISTRIBUTIONS = ("logit_normal", "uniform")
NUM_TIMESTEPS = 1000
# Of which kind a sample is; which of its two levels is drawn first; both levels.
NUM_UNIFORMS = 4

Latents = tuple[Tensor, Tensor, Tensor]  # structure, dynamics_x, dynamics_y


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

    def quantile(self, uniform: Tensor) -> Tensor:
        """Sigma in [0, 1] whose share of lower levels is `uniform`, in (0, 1)."""
        sigma = uniform
        if self.distribution == "logit_normal":
            sigma = torch.sigmoid(self.mean + self.std * torch.special.ndtri(uniform))
        return self.shift * sigma / (1 + (self.shift - 1) * sigma)


@dataclass(frozen=True, kw_only=True)
class FlowConfig:
    """The objective.

    A training sample has equal levels, unless one of these falls to it (probabilities):

    Args:
        prediction: "velocity", "epsilon" or "v".
        structure_levels, dynamics_levels: distributions of the two levels; equal levels are drawn
            from one or the other, each half of the time.
        independent: of levels that are drawn apart.
        structure_clean: of a structure without noise, for p(dynamics | structure).
        dynamics_clean: of dynamics without noise, for p(structure | dynamics).
        structure_noise, dynamics_noise: of a latent that is all noise, for the other's marginal.
        structure_weight, dynamics_weight: of the losses.
        min_snr_gamma: of min-SNR weights for epsilon and v; None weighs all levels alike.
        beta_schedule: of DDPM, for epsilon and v: "linear", "scaled_linear" or "squaredcos_cap_v2".
    Raises:
        ValueError: for a value out of range; the message names the keyword.
    """

    prediction: str = "velocity"
    structure_levels: LevelConfig = LevelConfig()
    dynamics_levels: LevelConfig = LevelConfig()
    independent: float = 0.2
    structure_clean: float = 0.1
    dynamics_clean: float = 0.1
    structure_noise: float = 0.0
    dynamics_noise: float = 0.0
    structure_weight: float = 1.0
    dynamics_weight: float = 1.0
    min_snr_gamma: float | None = None
    beta_schedule: str = "squaredcos_cap_v2"

    def __post_init__(self) -> None:
        if self.prediction not in PREDICTIONS:
            raise ValueError(
                f"`prediction` must be one of {', '.join(PREDICTIONS)}; got {self.prediction!r}"
            )
        shares = {name: getattr(self, name) for name in SPECIAL_LEVELS}
        if any(not 0 <= share <= 1 for share in shares.values()) or sum(shares.values()) > 1 + 1e-9:
            raise ValueError(
                "the probabilities of unequal levels must lie in [0, 1] and sum to at most 1, "
                f"got {', '.join(f'{name}={share}' for name, share in shares.items())}"
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
            if self.prediction == "velocity":
                raise ValueError(
                    "`min_snr_gamma` belongs to prediction=epsilon or v, got prediction=velocity; "
                    "set min_snr_gamma=null"
                )
        if self.beta_schedule not in ("linear", "scaled_linear", "squaredcos_cap_v2"):
            raise ValueError(
                '`beta_schedule` must be "linear", "scaled_linear" or "squaredcos_cap_v2", '
                f"got {self.beta_schedule!r}"
            )

    def check_steps(self, name: str, steps: int) -> None:
        """Raises ValueError for a number of solver steps that no scheduler takes."""
        most = math.inf if self.prediction == "velocity" else NUM_TIMESTEPS
        if not 1 <= steps <= most:
            raise ValueError(
                f"`{name}` must be at least 1, and at most {NUM_TIMESTEPS} for "
                f"flow.prediction=epsilon or v; got {steps} for {self.prediction}"
            )


SPECIAL_LEVELS = (
    "independent",
    "structure_clean",
    "dynamics_clean",
    "structure_noise",
    "dynamics_noise",
)


class Levels(NamedTuple):
    """Noise levels sigma in [0, 1] of a batch, (B,) each."""

    structure: Tensor
    dynamics: Tensor


class FlowLosses(NamedTuple):
    """(B,) losses of each sample: the means over the values of a latent, and their weighted sum."""

    structure: Tensor
    dynamics: Tensor
    total: Tensor


class FlowObjective:
    """The objective of a config; no state, no randomness of its own.

    Args:
        config: which.
    """

    def __init__(self, config: FlowConfig) -> None:
        self.config = config
        scheduler = DDPMScheduler(NUM_TIMESTEPS, beta_schedule=config.beta_schedule)
        self.signal = scheduler.alphas_cumprod.double()  # (1000,)

    def draw_levels(self, uniforms: Tensor) -> Levels:
        """The levels of a batch from (B, NUM_UNIFORMS) uniform numbers."""
        config = self.config
        kind, which, first, second = uniforms.double().clamp(1e-6, 1 - 1e-6).unbind(1)
        structure = config.structure_levels.quantile(first)
        dynamics = config.dynamics_levels.quantile(second)
        equal = torch.where(which < 0.5, structure, config.dynamics_levels.quantile(first))
        levels = {
            "independent": (structure, dynamics),
            "structure_clean": (torch.zeros_like(structure), dynamics),
            "dynamics_clean": (structure, torch.zeros_like(dynamics)),
            "structure_noise": (torch.ones_like(structure), dynamics),
            "dynamics_noise": (structure, torch.ones_like(dynamics)),
        }
        drawn = Levels(equal, equal)
        below = torch.zeros_like(kind)
        for name, pair in levels.items():
            above = below + getattr(config, name)
            chosen = (below <= kind) & (kind < above)
            drawn = Levels(*(torch.where(chosen, new, old) for new, old in zip(pair, drawn)))
            below = above
        return Levels(*(level.float() for level in drawn))

    def timesteps(self, levels: Levels) -> tuple[Tensor, Tensor]:
        """What the model is told of the levels: 1000 sigma, or whole DDPM steps."""
        structure, dynamics = (timestep_of(self.config.prediction, level) for level in levels)
        return structure, dynamics

    def coefficients(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) factors of the clean latents and of the noise. Sigma 0 is exactly clean."""
        if self.config.prediction == "velocity":
            return 1 - sigma, sigma
        signal = self.signal.to(sigma.device)[step_of(sigma)]
        clean = sigma == 0
        alpha = torch.where(clean, torch.ones_like(signal), signal.sqrt())
        noise = torch.where(clean, torch.zeros_like(signal), (1 - signal).sqrt())
        return alpha.to(sigma), noise.to(sigma)

    def add_noise(self, latents: Latents, noise: Latents, levels: Levels) -> Latents:
        """The latents at their levels."""
        return self._combine(latents, noise, levels, self.coefficients)

    def targets(self, latents: Latents, noise: Latents, levels: Levels) -> Latents:
        """What the model should predict."""

        def factors(sigma: Tensor) -> tuple[Tensor, Tensor]:
            if self.config.prediction == "velocity":
                return -torch.ones_like(sigma), torch.ones_like(sigma)
            if self.config.prediction == "epsilon":
                return torch.zeros_like(sigma), torch.ones_like(sigma)
            alpha, share = self.coefficients(sigma)
            return -share, alpha

        return self._combine(latents, noise, levels, factors)

    def losses(
        self, predictions: Latents, latents: Latents, noise: Latents, levels: Levels
    ) -> FlowLosses:
        """Squared errors of predictions, for scaled latents and the noise they were mixed with.

        A latent that was given clean has nothing to predict, and its loss is 0.
        """
        targets = self.targets(latents, noise, levels)
        errors = [
            (prediction.float() - target.float()).square().flatten(1)
            for prediction, target in zip(predictions, targets)
        ]
        structure = errors[0].mean(1) * self._weights(levels.structure)
        dynamics = torch.cat(errors[1:], dim=1).mean(1) * self._weights(levels.dynamics)
        config = self.config
        total = config.structure_weight * structure + config.dynamics_weight * dynamics
        return FlowLosses(structure, dynamics, total)

    def clean_latents(self, predictions: Latents, noised: Latents, levels: Levels) -> Latents:
        """The clean latents that the predictions imply; exact if the predictions are."""
        found = []
        for prediction, latent, sigma in zip(predictions, noised, per_latent(levels)):
            alpha, share = (wide(value, latent) for value in self.coefficients(sigma))
            if self.config.prediction == "velocity":
                found.append(latent - share * prediction)
            elif self.config.prediction == "v":
                found.append(alpha * latent - share * prediction)
            else:
                found.append((latent - share * prediction) / alpha)
        return found[0], found[1], found[2]

    def _weights(self, sigma: Tensor) -> Tensor:
        weights = torch.ones_like(sigma)
        if self.config.min_snr_gamma is not None:
            alpha, share = self.coefficients(sigma)
            ratio = (alpha / share.clamp(min=1e-8)).square()  # signal to noise
            weights = ratio.clamp(max=self.config.min_snr_gamma)
            weights = weights / (ratio if self.config.prediction == "epsilon" else ratio + 1)
        return torch.where(sigma == 0, torch.zeros_like(weights), weights)

    @staticmethod
    def _combine(latents: Latents, noise: Latents, levels: Levels, factors) -> Latents:
        mixed = []
        for latent, eps, sigma in zip(latents, noise, per_latent(levels), strict=True):
            first, second = (wide(value, latent) for value in factors(sigma))
            mixed.append(first * latent + second * eps)
        return mixed[0], mixed[1], mixed[2]


def per_latent(levels: Levels) -> tuple[Tensor, Tensor, Tensor]:
    """The level of each of the three latents."""
    return levels.structure, levels.dynamics, levels.dynamics


def wide(values: Tensor, latent: Tensor) -> Tensor:
    """(B,) values that multiply a latent sample by sample."""
    return values.to(latent).reshape(-1, *[1] * (latent.ndim - 1))


def step_of(sigma: Tensor) -> Tensor:
    """The DDPM step, 0 to 999, of a level."""
    return (sigma * NUM_TIMESTEPS).long().clamp(max=NUM_TIMESTEPS - 1)


def timestep_of(prediction: str, sigma: Tensor) -> Tensor:
    """What a model of a prediction is told of a level: 1000 sigma, or a whole DDPM step."""
    return sigma * NUM_TIMESTEPS if prediction == "velocity" else step_of(sigma).float()


def draw_uniforms(seeds: Sequence[int], count: int, stream: int) -> Tensor:
    """(B, count) uniform numbers in (0, 1), each row from its own seed alone.

    Args:
        seeds: one per sample.
        count: numbers of each.
        stream: separates uses of the same seed.
    """
    rows = [np.random.default_rng([int(seed), stream]).random(count) for seed in seeds]
    return torch.from_numpy(np.stack(rows))
