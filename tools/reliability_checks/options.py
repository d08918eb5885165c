"""What a check is given."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Options:
    """How much a check is to do, and where.

    Args:
        quick: the form for continuous integration: all checks in under eight minutes.
        share: of the long form's cases that are done, drawn at random.
        folder: an empty folder of its own, removed afterwards.
        jobs: processes that work at the same time.
        seed: of what is drawn at random.
    """

    quick: bool
    folder: Path
    jobs: int = 2
    share: float = 1.0
    seed: int = 0

    def rng(self, *names: object) -> random.Random:
        """Random numbers that depend on the seed and the names alone."""
        return random.Random(repr((self.seed, *names)))
