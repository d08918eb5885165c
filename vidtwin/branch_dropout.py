"""Leaving a branch out of the decoder, so that the other learns to tell the whole clip.

A decoder that at times has to do without the dynamics keeps colours and background in the
structure; one that at times has to do without the structure keeps the movement in the dynamics.
Then each latent determines what it must of the other: p(dynamics | structure) animates the clip's
own look, p(structure | dynamics) follows the clip's own motion.

Axes: B batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

STREAM = 3  # apart from the noise that the same seed draws


@dataclass(frozen=True, kw_only=True)
class BranchDropout:
    """How often a training decodes a clip without one of its branches.

    Args:
        structure, dynamics: share of the clips without this branch; the others have both.
    """

    structure: float = 0.0
    dynamics: float = 0.0

    def __post_init__(self) -> None:
        shares = (self.structure, self.dynamics)
        if min(shares) < 0 or not sum(shares) <= 1:
            raise ValueError(
                "the shares of branch_dropout must not be negative and sum to at most 1, got "
                f"structure={shares[0]} and dynamics={shares[1]}"
            )

    def weights(self, seeds: Sequence[int]) -> torch.Tensor | None:
        """(B, 2) ones, with a zero for the branch a sample goes without; None if none ever does.

        Args:
            seeds: one per sample; its row follows from its own seed alone.
        """
        if not self.structure and not self.dynamics:
            return None
        draws = torch.tensor([np.random.default_rng([int(s), STREAM]).random() for s in seeds])
        either = self.structure + self.dynamics
        structure = draws >= self.structure
        dynamics = (draws < self.structure) | (draws >= either)
        return torch.stack([structure, dynamics], dim=1).float()
