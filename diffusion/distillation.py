"""A student that takes a few large steps along the guided trajectories of a frozen teacher.

The teacher integrates its guided velocity from noise in `teacher_steps` Euler steps for each step
of the student. The student learns the mean velocity of each of its steps, from where the teacher
begins it to where the teacher ends it; a solver's Euler step with that velocity lands where the
teacher does. Guidance is in what is learned, so one call of the student is one step. Noise and
conditions are all that is needed of a sample: no clip is encoded.

Source: the segments of progressive distillation (arXiv 2202.00512, guided as in 2210.03142), all
learned at once from whole trajectories instead of in rounds of halving.
Axes: B batch, S steps of the student.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from torch import Tensor

from diffusion.conditions import Conditions
from diffusion.config import GuidanceScales
from diffusion.distillation_config import DistillationConfig
from diffusion.dit import TwinDiT
from diffusion.flow import FlowLosses, FlowObjective, Levels
from diffusion.flow_config import NUM_TIMESTEPS
from diffusion.guidance import guidance_terms, guided_prediction
from vidtwin import VidTwinLatents, weights_digest

__all__ = ["Distillation", "build_student_scheduler"]


def build_student_scheduler(steps: int) -> FlowMatchEulerDiscreteScheduler:
    """Euler with sigmas 1, 1 - 1/S, ..., 1/S, 0 for S steps.

    Without the terminal shift diffusers' last step begins at 0.001, where nothing is left to do.
    """
    return FlowMatchEulerDiscreteScheduler(NUM_TIMESTEPS, shift_terminal=1 / steps)


class Distillation:
    """What a student is trained on.

    Args:
        teacher: predicts velocities; it is frozen.
        objective: of the teacher; weighs the latents.
        config: steps and guidance.
    """

    def __init__(
        self, teacher: TwinDiT, objective: FlowObjective, config: DistillationConfig
    ) -> None:
        self.teacher, self.objective, self.config = teacher, objective, config
        teacher.eval().requires_grad_(False)
        scheduler = build_student_scheduler(config.steps)
        scheduler.set_timesteps(config.steps)
        self.sigmas: list[float] = scheduler.sigmas.tolist()  # S + 1, from 1 down to 0

    def digest(self) -> str:
        """Of the teacher's weights."""
        return weights_digest(self.teacher)

    @torch.no_grad()
    def trajectory(self, noise: VidTwinLatents, conditions: Conditions) -> list[VidTwinLatents]:
        """Where the teacher is at each of the student's S + 1 levels.

        Args:
            noise: (B, ...) where it starts.
            conditions: of the B samples.
        """
        states = [noise]
        for above, below in zip(self.sigmas, self.sigmas[1:]):
            state, step = states[-1], (above - below) / self.config.teacher_steps
            for number in range(self.config.teacher_steps):
                velocity = self._guided(state, above - number * step, conditions)
                state = VidTwinLatents.combine(
                    lambda value, slope, step=step: value - step * slope, state, velocity
                )
            states.append(state)
        return states

    def losses(
        self, student: torch.nn.Module, noise: VidTwinLatents, conditions: Conditions
    ) -> FlowLosses:
        """Squared errors of the student's mean velocities, (S x B,) each.

        Args:
            student: as the teacher.
            noise, conditions: as of `trajectory`.
        """
        states = self.trajectory(noise, conditions)
        slopes = [
            VidTwinLatents.combine(
                lambda start, end, step=above - below: (start - end) / step, *states[i : i + 2]
            )
            for i, (above, below) in enumerate(zip(self.sigmas, self.sigmas[1:]))
        ]
        begins, wanted = VidTwinLatents.cat(states[:-1]), VidTwinLatents.cat(slopes)
        sigma = torch.tensor(self.sigmas[:-1]).repeat_interleave(noise.batch_size)
        levels = Levels(*[sigma.to(begins.structure)] * 2)
        told = Conditions.cat([conditions] * self.config.steps)
        outputs = student(*begins.tensors(), *self.objective.timesteps(levels), **told.arguments())
        # The velocity of zeros and a noise is that noise.
        nothing = wanted.map(torch.zeros_like)
        return self.objective.losses(VidTwinLatents(*outputs), nothing, wanted, levels)

    def _guided(
        self, state: VidTwinLatents, sigma: float, conditions: Conditions
    ) -> VidTwinLatents:
        """The teacher's guided velocity at one level."""

        def predict(variants: Conditions, knows: Sequence[bool]) -> VidTwinLatents:
            inputs = VidTwinLatents.cat([state] * len(knows))
            level: Tensor = torch.full((inputs.batch_size,), sigma).to(inputs.structure)
            timesteps = self.objective.timesteps(Levels(level, level))
            outputs = self.teacher(*inputs.tensors(), *timesteps, **variants.arguments())
            return VidTwinLatents(*outputs).map(Tensor.float)

        scales = GuidanceScales.from_keywords(self.config.guidance_scale)
        return guided_prediction(predict, conditions, guidance_terms(conditions, scales, False))
