"""Latents that go from noise to clean together; a lead in time makes two such tracks.

With a lead, every track takes the solver's own schedule of M steps, and one of them starts k steps
after the other, so that N = M + k steps are taken in all and the lead is k / M of a schedule:

    structure_lead > 0   structure  |0 ........ M-1|            structure_lead < 0   the reverse
                         dynamics       wait  |0 ........ M-1|

A track that waits is noise at its first level, one that has ended is clean. Each keeps a solver
with a memory of its own, so this holds for every scheduler that is taken here: of one step (Euler,
DDIM, DDPM), of two calls in a step (Heun, whose tracks stay in the same half), and of several
steps (DPM-Solver++, UniPC).

Source: Semantic-First Diffusion (arXiv 2512.04926), which has one latent lead in training and
sampling; whole steps instead of shifted levels are this project's.
Axes: B batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffusion.schedulers import LatentSolver

__all__ = ["Track"]


@dataclass(kw_only=True, eq=False)
class Track:
    """One of them, in one window.

    Args:
        names: of the latents.
        solver: steps them.
        delay: model calls of the window before its first.
        noise: (B, values) that it starts from.
        guider: of diffusers, for these latents alone; None for none.
        known, is_known: (B, values) clean values that follow the noise level as if they were
            sampled, and bool, where; None for none.
    """

    names: frozenset[str]
    solver: LatentSolver
    delay: int
    noise: Tensor
    guider: Any = None
    known: Tensor | None = None
    is_known: Tensor | None = None

    def __post_init__(self) -> None:
        self.sample = self.solver.start(self.noise)

    @property
    def end(self) -> int:
        """The call at which all is clean."""
        return self.delay + len(self.solver)

    def moves(self, call: int) -> bool:
        """Whether it is stepped then; else it waits, or is clean."""
        return self.delay <= call < self.end

    def index(self, call: int) -> int:
        """Of its own step; the first one while it waits."""
        return max(0, call - self.delay)

    def model_input(self, call: int) -> Tensor:
        """(B, values) as the model was trained to see them."""
        if call >= self.end:
            return self.sample
        if self.known is not None and self.is_known is not None:
            noised = self.solver.noised(self.known, self.noise, self.index(call))
            self.sample = torch.where(self.is_known, noised, self.sample)
        return self.solver.model_input(self.sample, self.index(call))

    def timestep(self, call: int) -> Tensor | None:
        """What the model is told of the noise level, without axes; None for clean."""
        return None if call >= self.end else self.solver.timestep(self.index(call))

    def step(self, prediction: Tensor, call: int) -> None:
        """Takes the (B, values) that were predicted one noise level down."""
        self.sample = self.solver.step(prediction, self.sample, self.index(call))

    def finish(self) -> None:
        """What is known comes out as it is."""
        if self.known is not None and self.is_known is not None:
            self.sample = torch.where(self.is_known, self.known, self.sample)
