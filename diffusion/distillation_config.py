"""Settings of the distillation to few steps, without torch."""

from __future__ import annotations

from dataclasses import dataclass

from diffusion.config import GUIDANCE_SCALE, GuidanceScales

__all__ = ["DistillationConfig"]


@dataclass(frozen=True, kw_only=True)
class DistillationConfig:
    """A transformer trained to take few guided steps at once, see `diffusion.distillation`.

    Args:
        steps: of the student, 2 or more; 0 trains the transformer as usual.
        teacher_steps: of the teacher for each of the student's.
        guidance_scale: of the teacher's prompts and classes; the student has it built in.
    """

    steps: int = 0
    teacher_steps: int = 3
    guidance_scale: float = GUIDANCE_SCALE

    def __post_init__(self) -> None:
        if self.steps < 0 or self.steps == 1:
            raise ValueError(f"`distill.steps` must be 2 or more, or 0 for none, got {self.steps}")
        if self.teacher_steps < 1:
            raise ValueError(
                f"`distill.teacher_steps` must be at least 1, got {self.teacher_steps}"
            )
        GuidanceScales.check("distill.guidance_scale", self.guidance_scale)
