"""What one training step sees: scaled latents, their noise and levels, and the conditions.

Everything random about a sample follows from its own seed, so a batch means the same on one
process and on many.

Axes: B batch, C channels, T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from diffusion.conditioning import Conditions
from diffusion.flow import NUM_UNIFORMS, FlowLosses, FlowObjective, Latents, Levels, draw_uniforms
from diffusion.latent_stats import LATENT_NAMES, LatentStats
from diffusion.text_encoder import CachedTextEncoder
from vidtwin import AutoencoderConfig, VidTwinAutoencoder, VidTwinLatents, draw_noise

# The sample's seed itself draws the posterior's noise; these keep the other draws apart from it.
NOISE_STREAM = 0x2545F4914F6CDD1D
LEVELS_STREAM = 1
DROPOUT_STREAM = 2


@dataclass(frozen=True)
class TrainingBatch:
    """Latents and noise (structure, dynamics_x, dynamics_y), scaled, and what is asked of them."""

    latents: Latents
    noise: Latents
    levels: Levels
    conditions: Conditions


class BatchReader:
    """Turns a loader's batches into training batches.

    Args:
        sizes: of the autoencoder.
        stats: scale the latents.
        objective: draws the noise levels.
        autoencoder: encodes videos, for batches without latents.
        text_encoder: reads captions; None for a model without text.
        num_classes: of the model; None for a model without classes.
        class_dropout, text_dropout: probabilities of leaving a condition out.
        given_dropout: probability of leaving out each of them where a latent is given clean: what
            structure or dynamics of another video are continued with mostly comes without a
            prompt.
        device: of the batches.
    """

    def __init__(
        self,
        sizes: AutoencoderConfig,
        stats: LatentStats,
        objective: FlowObjective,
        *,
        autoencoder: VidTwinAutoencoder | None = None,
        text_encoder: CachedTextEncoder | None = None,
        num_classes: int | None = None,
        class_dropout: float = 0.1,
        text_dropout: float = 0.1,
        given_dropout: float = 0.5,
        device: torch.device | str = "cpu",
    ) -> None:
        self.sizes = sizes
        self.stats = stats
        self.objective = objective
        self.autoencoder = autoencoder
        self.text_encoder = text_encoder
        self.num_classes = num_classes
        self.dropout = (class_dropout, text_dropout)
        self.given_dropout = given_dropout
        self.device = torch.device(device)

    def read(self, batch: Mapping[str, Any], part: slice = slice(None)) -> TrainingBatch:
        """Some samples of a loader's batch.

        Args:
            batch: with structure, dynamics_x and dynamics_y, or video; noise_seed; label and
                caption where the model has these conditions.
            part: which samples.
        """
        seeds = batch["noise_seed"][part].tolist()
        uniforms = draw_uniforms(seeds, NUM_UNIFORMS, LEVELS_STREAM)
        levels = self.objective.draw_levels(uniforms.to(self.device, torch.float32))
        held = (levels.structure == 0) | (levels.dynamics == 0)
        by_class, by_text = (torch.where(held, max(self.given_dropout, p), p) for p in self.dropout)
        uniforms = draw_uniforms(seeds, 2, DROPOUT_STREAM).to(self.device, torch.float32)
        conditions = self.conditions(batch, part)
        conditions = conditions.drop(uniforms, by_class, by_text, self.num_classes)
        return TrainingBatch(self.latents(batch, part), self.noise(seeds), levels, conditions)

    def latents(self, batch: Mapping[str, Any], part: slice = slice(None)) -> Latents:
        """The scaled latents of some samples."""
        with torch.no_grad():
            return self.stats.scale(self._raw(batch, part)).tensors()

    def noise(self, seeds: Sequence[int]) -> Latents:
        """Each sample's noise from its own seed."""
        drawn = draw_noise(self.sizes, [seed ^ NOISE_STREAM for seed in seeds])
        return drawn.to(self.device).tensors()

    def conditions(self, batch: Mapping[str, Any], part: slice = slice(None)) -> Conditions:
        """The conditions of some samples, none left out; no label is the null class."""
        labels = states = mask = None
        if self.num_classes is not None:
            labels = batch["label"][part].to(self.device)
            labels = torch.where(labels < 0, self.num_classes, labels)
        if self.text_encoder is not None:
            states, mask, _ = self.text_encoder(batch["caption"][part])
        return Conditions(labels, states, mask)

    def _raw(self, batch: Mapping[str, Any], part: slice) -> VidTwinLatents:
        if "video" not in batch:
            return VidTwinLatents(*(batch[name][part].to(self.device) for name in LATENT_NAMES))
        if self.autoencoder is None:
            raise ValueError("the batch holds videos, and there is no autoencoder to encode them")
        posterior = self.autoencoder.encode(batch["video"][part].to(self.device))
        noise = draw_noise(self.sizes, batch["noise_seed"][part].tolist())
        return posterior.sample(noise=noise.to(self.device))


def losses_of(model: torch.nn.Module, objective: FlowObjective, batch: TrainingBatch) -> FlowLosses:
    """The losses of a model's predictions for a batch, (B,) each."""
    noised = objective.add_noise(batch.latents, batch.noise, batch.levels)
    timesteps = objective.timesteps(batch.levels)
    predictions = model(*noised, *timesteps, **batch.conditions.arguments())
    return objective.losses(predictions, batch.latents, batch.noise, batch.levels)
