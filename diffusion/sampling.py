"""From noise to scaled latents: the loop over solver steps, and over the windows of a long video.

Axes: B batch, C channels, T frames of a window; "values" are all numbers of the latents that are
sampled, one after another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from einops import pack, unpack
from torch import Tensor

from diffusion.conditioning import Conditions, GuidanceScales, guided_prediction
from diffusion.dit import TwinDiT
from diffusion.flow import Latents, timestep_of
from diffusion.inputs import Generators, draw_latent_noise
from diffusion.latent_stats import LATENT_NAMES
from diffusion.schedulers import LatentSolver, prediction_of
from vidtwin import VidTwinLatents


@dataclass(kw_only=True)
class LatentSampler:
    """One call of the pipeline: what stays the same from its first step to its last.

    Args:
        transformer: predicts.
        scheduler: steps; fits the transformer's objective.
        num_inference_steps: solver steps of each window.
        generators: one for each sample, or one for all.
        device: of the transformer.
        conditions: what the B videos are to show.
        negative: what they are not to show.
        scales: how strongly.
        held: scaled latents that are given, not sampled: name -> (B, ...).
        after_step: (step, timestep, name -> latents) -> those of them that it changed.
        interrupted: whether to stop before the next step.
        progress_bar: makes one, from `total`.
    """

    transformer: TwinDiT
    scheduler: Any
    num_inference_steps: int
    generators: Generators
    device: torch.device
    conditions: Conditions
    negative: Conditions | None
    scales: GuidanceScales
    held: dict[str, Tensor]
    after_step: Callable[[int, Tensor, dict[str, Tensor]], dict[str, Tensor]] | None
    interrupted: Callable[[], bool]
    progress_bar: Callable[..., Any]
    steps_done: int = 0

    @cached_property
    def prediction(self) -> str:
        """What the transformer predicts."""
        return prediction_of(self.scheduler)

    def sample(self, starts: Sequence[int], batch_size: int) -> list[VidTwinLatents]:
        """The scaled latents of each window; after an interrupt, of those that were begun.

        Args:
            starts: the first frame of each window.
            batch_size: B.
        """
        shapes = {name: getattr(self.transformer.sizes, f"{name}_shape") for name in LATENT_NAMES}
        # All noise first: what a scheduler draws on its way then changes no later window's.
        noises = [
            draw_latent_noise(shapes, batch_size, self.generators, self.device) for _ in starts
        ]
        windows: list[VidTwinLatents] = []
        for number, noise in enumerate(noises):
            known: dict[str, Tensor] = {}
            if number > 0:
                self.held = self.held | {"structure": windows[0].structure}
                shift = starts[number] - starts[number - 1]
                before = windows[-1]
                known = {
                    "dynamics_x": before.dynamics_x[:, :, shift:],
                    "dynamics_y": before.dynamics_y[:, :, shift:],
                }
            windows.append(self.sample_window(noise, known))
            if self.interrupted():
                break
        return windows

    def sample_window(self, noise: dict[str, Tensor], known: dict[str, Tensor]) -> VidTwinLatents:
        """The scaled latents of one window.

        Args:
            noise: of each latent.
            known: first frames of dynamics, made by the window before. They follow the noise
                level as if they were sampled, and come out as they are.
        """
        names = [name for name in LATENT_NAMES if name not in self.held]
        # One tensor for all that is sampled: a solver that remembers its steps does so once.
        flat_noise, shapes = pack([noise[name] for name in names], "b *")

        def named(values: Tensor) -> dict[str, Tensor]:
            return dict(zip(names, unpack(values, shapes, "b *"), strict=True))

        solver = LatentSolver(
            self.scheduler, self.num_inference_steps, self.device, self.generators
        )
        clean, is_known = known_values(known, named(flat_noise))
        sample = solver.start(flat_noise)
        with self.progress_bar(total=len(solver)) as bar:
            for index in range(len(solver)):
                if self.interrupted():
                    break
                if known:
                    noised = solver.noised(clean, flat_noise, index)
                    sample = torch.where(is_known, noised, sample)
                inputs = named(solver.model_input(sample, index))
                prediction = self.predict(inputs, solver.timestep(index), noise)
                sample = solver.step(prediction, sample, index)
                sample = self.call_back(named(sample), solver.timesteps[index])
                bar.update()
        if known:
            sample = torch.where(is_known, clean, sample)
        return VidTwinLatents(**(self.held | named(sample)))

    def predict(
        self, sampled: dict[str, Tensor], timestep: Tensor, noise: dict[str, Tensor]
    ) -> Tensor:
        """(B, values): the guided prediction for the latents that are sampled.

        Args:
            sampled: those latents at their noise level.
            timestep: of that level; what is held enters clean, at timestep 0.
            noise: what enters in place of what is held, at the last timestep, where the
                prediction is not to know it.
        """
        unknown = {name: noise[name] for name in self.held}
        batch_size = len(noise["structure"])

        def predict(conditions: Conditions, knows: Sequence[bool]) -> Latents:
            variants = [sampled | (self.held if known else unknown) for known in knows]
            inputs = [
                torch.cat([variant[name] for variant in variants]).to(self.transformer.dtype)
                for name in LATENT_NAMES
            ]
            own = timestep.expand(len(inputs[0]))
            levels = torch.tensor([0.0 if known else 1.0 for known in knows], device=own.device)
            held = timestep_of(self.prediction, levels).to(own).repeat_interleave(batch_size)
            structure, dynamics_x, dynamics_y = self.transformer(
                *inputs,
                *(own if name in sampled else held for name in ("structure", "dynamics_x")),
                **conditions.arguments(),
            )
            # The solver's small steps add up in float32, whatever the transformer's dtype.
            return structure.float(), dynamics_x.float(), dynamics_y.float()

        num_classes = self.transformer.sizes.num_classes
        guided = guided_prediction(
            predict, self.conditions, self.scales, num_classes, self.negative, bool(self.held)
        )
        kept = [part for name, part in zip(LATENT_NAMES, guided, strict=True) if name in sampled]
        return packed(kept)

    def call_back(self, sampled: dict[str, Tensor], timestep: Tensor) -> Tensor:
        """(B, values): the sample, after the callback could change it."""
        step = self.steps_done
        self.steps_done += 1
        if self.after_step is not None:
            changed = self.after_step(step, timestep, self.held | sampled)
            check_changed(changed, self.held, sampled)
            sampled = {name: changed.get(name, value) for name, value in sampled.items()}
        return packed(list(sampled.values()))


def check_changed(
    changed: dict[str, Tensor], held: dict[str, Tensor], sampled: dict[str, Tensor]
) -> None:
    """Raises ValueError for what a callback returned and nothing can be done with."""
    for name, value in changed.items():
        if name in sampled:
            expected, came = tuple(sampled[name].shape), tuple(value.shape)
            if came != expected:
                raise ValueError(
                    f"the callback returned `{name}` of shape {came}, expected {expected}"
                )
        elif value is not held.get(name):
            raise ValueError(
                f"the callback returned `{name}`, which is not sampled here; it may change "
                f"{', '.join(sampled)}"
            )


def packed(tensors: list[Tensor]) -> Tensor:
    """(B, values): tensors (B, ...) one after another."""
    flat: Tensor = pack(tensors, "b *")[0]
    return flat


def known_values(known: dict[str, Tensor], like: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Known first frames among the values that are sampled.

    Args:
        known: name -> (B, C, frames, ...), of some of the latents.
        like: name -> (B, C, T, ...), of all that are sampled.
    Returns:
        (B, values) clean values, 0 where not known; (B, values) bool, True where known.
    """
    clean = {name: torch.zeros_like(value) for name, value in like.items()}
    mask = {name: torch.zeros_like(value, dtype=torch.bool) for name, value in like.items()}
    for name, value in known.items():
        frames = value.shape[2]
        clean[name][:, :, :frames] = value
        mask[name][:, :, :frames] = True
    return packed(list(clean.values())), packed(list(mask.values()))
