"""A student of few steps: it is taught to land where its guided teacher does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from diffusion import FlowConfig, FlowObjective
from diffusion.conditions import Conditions, TextCondition
from diffusion.distillation import Distillation, build_student_scheduler
from diffusion.distillation_config import DistillationConfig
from diffusion.schedulers import LatentSolver
from vidtwin import VidTwinLatents

SHAPES = ((2, 3, 1, 2), (2, 3, 2), (2, 3, 2))
CONFIG = DistillationConfig(steps=4, teacher_steps=3, guidance_scale=5.0)


class Teacher(nn.Module):
    """Velocity x + what the text says, nothing for the null text: guided by g it is x + g text."""

    def forward(
        self,
        *tensors: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor,
    ) -> Any:
        said = (encoder_hidden_states[:, 0, 0] * encoder_attention_mask[:, 0]).float()
        return tuple(x + said.view(-1, *[1] * (x.ndim - 1)) for x in tensors[:3])


class Student(Teacher):
    """The exact mean velocity of a segment of `teacher_steps` Euler steps."""

    def __init__(self, scale: float = CONFIG.guidance_scale) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, *tensors: Tensor, **text: Tensor) -> Any:
        text["encoder_hidden_states"] = self.scale * text["encoder_hidden_states"]
        segment, count = 1 / CONFIG.steps, CONFIG.teacher_steps
        factor = (1 - (1 - segment / count) ** count) / segment
        return tuple(factor * velocity for velocity in super().forward(*tensors, **text))


def asked() -> tuple[VidTwinLatents, Conditions]:
    generator = torch.Generator().manual_seed(0)
    noise = VidTwinLatents(*(torch.randn(2, *shape, generator=generator) for shape in SHAPES))
    states = torch.tensor([0.3, -0.7]).view(2, 1, 1)
    return noise, Conditions([TextCondition(states, torch.ones(2, 1, dtype=torch.bool))])


def distillation() -> Distillation:
    return Distillation(Teacher(), FlowObjective(FlowConfig()), CONFIG)  # type: ignore[arg-type]


def test_the_student_that_lands_where_the_guided_teacher_does_has_no_loss() -> None:
    losses = distillation().losses(Student(), *asked())
    assert losses.total.shape == (CONFIG.steps * 2,)
    assert losses.total.max() < 1e-10
    assert distillation().losses(Student(scale=1.0), *asked()).total.min() > 0.1
    assert distillation().losses(Teacher(), *asked()).total.min() > 0.1


def test_sampling_the_student_without_guidance_ends_at_the_teachers_end() -> None:
    noise, conditions = asked()
    states = distillation().trajectory(noise, conditions)
    scheduler = build_student_scheduler(CONFIG.steps)
    solver = LatentSolver(scheduler, CONFIG.steps, torch.device("cpu"), torch.Generator())
    sample = noise.pack()
    for index in range(CONFIG.steps):
        assert float(solver.timestep(index)) == pytest.approx(1000 - 250 * index)
        now = VidTwinLatents.unpack(sample, noise)
        velocity = VidTwinLatents(*Student()(*now.tensors(), **conditions.arguments()))
        sample = solver.step(velocity.pack(), sample, index)
        assert_close(sample, states[index + 1].pack(), atol=1e-5, rtol=1e-5)


def test_the_teacher_is_left_alone() -> None:
    teacher = nn.Linear(2, 2)
    Distillation(teacher, FlowObjective(FlowConfig()), CONFIG)  # type: ignore[arg-type]
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


@pytest.mark.parametrize(
    "values", [{"steps": 1}, {"steps": -1}, {"teacher_steps": 0}, {"guidance_scale": 0.5}]
)
def test_bad_values_are_named(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"distill.{next(iter(values))}"):
        DistillationConfig(**values)
