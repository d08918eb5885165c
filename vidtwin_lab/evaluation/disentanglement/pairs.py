"""Which clips exchange their latents."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

RULE = (
    "A goes through the clips in a drawn order; B is drawn from the clips that differ from A in "
    "every judged factor of content and of motion, so that each verdict can only follow one of "
    "the two; no pair twice"
)


class Pairs(NamedTuple):
    """(A, B) of each pair as places among the clips, and the clips that have no partner."""

    places: list[tuple[int, int]]
    without_partner: list[int]


def draw_pairs(codes: NDArray[np.int64], count: int, seed: int) -> Pairs:
    """Pairs of clips that differ in every factor.

    Args:
        codes: (N, F) class of each clip in each factor.
        count: of pairs; fewer come where the clips have fewer.
        seed: of the draws.
    Raises:
        ValueError: if no clip differs from any other in all factors.
    """
    number = len(codes)
    order = np.random.default_rng([seed, 0]).permutation(number).tolist()
    partners: dict[int, list[int]] = {}
    for place in order:
        different = np.flatnonzero((codes != codes[place]).all(1))
        drawn = np.random.default_rng([seed, 1, place]).permutation(different)
        partners[place] = drawn.tolist()
    places: list[tuple[int, int]] = []
    round_number = 0
    while len(places) < count:
        more = [
            (place, partners[place][round_number])
            for place in order
            if round_number < len(partners[place])
        ]
        if not more:
            break
        places += more
        round_number += 1
    if not places:
        raise ValueError(
            f"no two of the {number} clips differ in every factor of content and motion, so none "
            "can be swapped; take more clips (samples=...) or fewer factors (content=[...])"
        )
    return Pairs(places[:count], sorted(place for place in order if not partners[place]))
