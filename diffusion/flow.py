"""What TwinDiT learns: noise levels, noised latents, targets and losses, on tensors alone.

Axes: B batch; the latents keep their own axes behind it.

Structure and dynamics have a noise level sigma in [0, 1] each (1 is noise). A prediction is one of

    velocity   x = (1 - sigma) x0 + sigma eps        target eps - x0     (flow matching)
    epsilon    x = sqrt(a_t) x0 + sqrt(1 - a_t) eps  target eps          (DDPM, t = 1000 sigma)
    v          the same x                            target sqrt(a_t) eps - sqrt(1 - a_t) x0
    x0         either x                              target x0, scaled latents as all of these

A predicted x0 may have the loss of the velocity that it implies, (x - x0) / sigma in flow matching
and v in DDPM: its error over the share of noise, which is clipped there.

Source: Lipman et al. (arXiv 2210.02747) and Esser et al. (arXiv 2403.03206, logit-normal levels and
the shift); Ho et al. (arXiv 2006.11239); Salimans & Ho (arXiv 2202.00512); Hang et al. (arXiv
2303.09556, min-SNR); x0 with the velocity's loss: JiT (arXiv 2511.13720) and pixel MeanFlow (arXiv
2601.22158), whose clip this is; two levels drawn equal or apart: UniDiffuser (arXiv 2303.06555);
one ahead of the other: Semantic-First Diffusion (arXiv 2512.04926).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor

from diffusion.flow_config import NUM_TIMESTEPS, SPECIAL_LEVELS, FlowConfig, LevelConfig
from vidtwin import VidTwinLatents

# The least share of noise that a velocity's error is divided by.
LEAST_NOISE = 0.05
# Of which kind a sample is; which of its two levels is drawn first; both levels.
NUM_UNIFORMS = 4


class Levels(NamedTuple):
    """Noise levels sigma in [0, 1] of a batch, (B,) each."""

    structure: Tensor
    dynamics: Tensor

    def of_latents(self) -> VidTwinLatents:
        """The (B,) level of each of the three latents."""
        return VidTwinLatents(self.structure, self.dynamics, self.dynamics)


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
        structure = quantile(config.structure_levels, first)
        dynamics = quantile(config.dynamics_levels, second)
        equal = torch.where(which < 0.5, structure, quantile(config.dynamics_levels, first))
        levels = {
            "independent": (structure, dynamics),
            "structure_clean": (torch.zeros_like(structure), dynamics),
            "dynamics_clean": (structure, torch.zeros_like(dynamics)),
            "structure_noise": (torch.ones_like(structure), dynamics),
            "dynamics_noise": (structure, torch.ones_like(dynamics)),
            "lead": self._leading(quantile(config.structure_levels, first)),
        }
        drawn = Levels(equal, equal)
        below = torch.zeros_like(kind)
        for name, pair in levels.items():
            above = below + getattr(config, name)
            chosen = (below <= kind) & (kind < above)
            drawn = Levels(*(torch.where(chosen, new, old) for new, old in zip(pair, drawn)))
            below = above
        return Levels(*(level.float() for level in drawn))

    def leads(self, uniforms: Tensor) -> Tensor:
        """(B,) whether a sample's levels are those of a lead, from the same numbers."""
        below = sum(getattr(self.config, name) for name in SPECIAL_LEVELS if name != "lead")
        kind = uniforms[:, 0].double().clamp(1e-6, 1 - 1e-6)
        return (below <= kind) & (kind < below + self.config.lead)

    def _leading(self, remaining: Tensor) -> tuple[Tensor, Tensor]:
        """Both levels where a share of the way of both, 1 + |lead| long, remains."""
        lead = self.config.structure_lead
        remaining = remaining * (1 + abs(lead))
        leader, follower = (remaining - abs(lead)).clamp(min=0), remaining.clamp(max=1)
        return (leader, follower) if lead > 0 else (follower, leader)

    def timesteps(self, levels: Levels) -> tuple[Tensor, Tensor]:
        """What the model is told of the levels: 1000 sigma, or whole DDPM steps."""
        structure, dynamics = (timestep_of(self.config.is_flow, level) for level in levels)
        return structure, dynamics

    def coefficients(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) factors of the clean latents and of the noise. Sigma 0 is exactly clean."""
        if self.config.is_flow:
            return 1 - sigma, sigma
        signal = self.signal.to(sigma.device)[step_of(sigma)]
        clean = sigma == 0
        alpha = torch.where(clean, torch.ones_like(signal), signal.sqrt())
        noise = torch.where(clean, torch.zeros_like(signal), (1 - signal).sqrt())
        return alpha.to(sigma), noise.to(sigma)

    def add_noise(
        self, latents: VidTwinLatents, noise: VidTwinLatents, levels: Levels
    ) -> VidTwinLatents:
        """The latents at their levels."""
        return self._mix(latents, noise, levels, self.coefficients)

    def targets(
        self, latents: VidTwinLatents, noise: VidTwinLatents, levels: Levels
    ) -> VidTwinLatents:
        """What the model should predict."""

        if self.config.prediction == "x0":
            return latents

        def factors(sigma: Tensor) -> tuple[Tensor, Tensor]:
            if self.config.prediction == "velocity":
                return -torch.ones_like(sigma), torch.ones_like(sigma)
            if self.config.prediction == "epsilon":
                return torch.zeros_like(sigma), torch.ones_like(sigma)
            alpha, share = self.coefficients(sigma)
            return -share, alpha

        return self._mix(latents, noise, levels, factors)

    def losses(
        self,
        predictions: VidTwinLatents,
        latents: VidTwinLatents,
        noise: VidTwinLatents,
        levels: Levels,
    ) -> FlowLosses:
        """Squared errors of predictions, for scaled latents and the noise they were mixed with.

        A latent that was given clean has nothing to predict, and its loss is 0.
        """

        def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
            return (prediction.float() - target.float()).square().flatten(1)

        targets = self.targets(latents, noise, levels)
        errors = VidTwinLatents.combine(squared_error, predictions, targets)
        structure = errors.structure.mean(1) * self._weights(levels.structure)
        dynamics = torch.cat([errors.dynamics_x, errors.dynamics_y], dim=1).mean(1)
        dynamics = dynamics * self._weights(levels.dynamics)
        config = self.config
        total = config.structure_weight * structure + config.dynamics_weight * dynamics
        return FlowLosses(structure, dynamics, total)

    def clean_latents(
        self, predictions: VidTwinLatents, noised: VidTwinLatents, levels: Levels
    ) -> VidTwinLatents:
        """The clean latents that the predictions imply; exact if the predictions are."""

        if self.config.prediction == "x0":
            return predictions

        def clean(prediction: Tensor, latent: Tensor, sigma: Tensor) -> Tensor:
            alpha, share = (wide(value, latent) for value in self.coefficients(sigma))
            if self.config.prediction == "velocity":
                return latent - share * prediction
            if self.config.prediction == "v":
                return alpha * latent - share * prediction
            return (latent - share * prediction) / alpha

        return VidTwinLatents.combine(clean, predictions, noised, levels.of_latents())

    def _weights(self, sigma: Tensor) -> Tensor:
        weights = torch.ones_like(sigma)
        alpha, share = self.coefficients(sigma)
        if self.config.loss == "velocity":
            weights = share.clamp(min=LEAST_NOISE).pow(-2)
        if self.config.min_snr_gamma is not None:
            ratio = (alpha / share.clamp(min=1e-8)).square()  # signal to noise
            weights = ratio.clamp(max=self.config.min_snr_gamma)
            in_units_of = {"epsilon": ratio, "v": ratio + 1, "x0": torch.ones_like(ratio)}
            weights = weights / in_units_of[self.config.prediction]
        return torch.where(sigma == 0, torch.zeros_like(weights), weights)

    @staticmethod
    def _mix(
        latents: VidTwinLatents,
        noise: VidTwinLatents,
        levels: Levels,
        factors: Callable[[Tensor], tuple[Tensor, Tensor]],
    ) -> VidTwinLatents:
        """Latents and noise, each times a factor of the level."""

        def mix(latent: Tensor, eps: Tensor, sigma: Tensor) -> Tensor:
            first, second = (wide(value, latent) for value in factors(sigma))
            return first * latent + second * eps

        return VidTwinLatents.combine(mix, latents, noise, levels.of_latents())


def quantile(levels: LevelConfig, uniform: Tensor) -> Tensor:
    """Sigma in [0, 1] whose share of lower levels is `uniform`, in (0, 1)."""
    sigma = uniform
    if levels.distribution == "logit_normal":
        sigma = torch.sigmoid(levels.mean + levels.std * torch.special.ndtri(uniform))
    return levels.shift * sigma / (1 + (levels.shift - 1) * sigma)


def wide(values: Tensor, latent: Tensor) -> Tensor:
    """(B,) values that multiply a latent sample by sample."""
    return values.to(latent).reshape(-1, *[1] * (latent.ndim - 1))


def step_of(sigma: Tensor) -> Tensor:
    """The DDPM step, 0 to 999, of a level."""
    return (sigma * NUM_TIMESTEPS).long().clamp(max=NUM_TIMESTEPS - 1)


def timestep_of(is_flow: bool, sigma: Tensor) -> Tensor:
    """What a model is told of a level: 1000 sigma of a flow, or a whole DDPM step."""
    return sigma * NUM_TIMESTEPS if is_flow else step_of(sigma).float()


def draw_uniforms(seeds: Sequence[int], count: int, stream: int) -> Tensor:
    """(B, count) uniform numbers in (0, 1), each row from its own seed alone.

    Args:
        seeds: one per sample.
        count: numbers of each.
        stream: separates uses of the same seed.
    """
    rows = [np.random.default_rng([int(seed), stream]).random(count) for seed in seeds]
    return torch.from_numpy(np.stack(rows))
