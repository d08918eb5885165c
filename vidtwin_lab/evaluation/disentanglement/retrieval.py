"""Whether a clip's nearest neighbours by one latent share its factor.

Latents are compared by the cosine of their deviations from the mean over all clips; every clip
asks for all the others. Ties go to the clip that comes first.

Axes: N clips, D latent values.
Source: retrieval as the probe of a representation in video self-supervision (Xu et al., Video Clip
Order Prediction, CVPR 2019); the average precision that a random order has: Bestgen, PBML 103
(2015).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidtwin_lab.evaluation.disentanglement.shares import interval_of

__all__ = ["RANKS", "Retrieval", "mean_retrieval", "retrieve", "similarities"]

RANKS = (1, 5)
Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Retrieval:
    """How well each query did.

    Args:
        precision: rank -> (n,) share of the first neighbours with the query's class.
        average_precision: (n,).
        chance: (n,) precision that a random order has, at any rank.
        chance_average: (n,) the average precision that it has.
        asked: (N,) which clips were queries: those whose class another one has.
    """

    precision: dict[int, Array]
    average_precision: Array
    chance: Array
    chance_average: Array
    asked: NDArray[np.bool_]

    def found(self) -> dict[str, Any]:
        """Means over the queries."""
        if not len(self.chance):
            return {"n": 0, "reason": "no two clips share a class"}
        return {
            **{f"precision_at_{k}": interval_of(each) for k, each in self.precision.items()},
            "precision_by_chance": float(self.chance.mean()),
            "mean_average_precision": interval_of(self.average_precision),
            "mean_average_precision_by_chance": float(self.chance_average.mean()),
            "clips_without_a_match": int((~self.asked).sum()),
        }


def similarities(latents: NDArray[Any]) -> Array:
    """(N, N) cosines of the deviations from the mean; a clip's with itself is minus infinity."""
    centered = np.asarray(latents, np.float64)
    centered = centered - centered.mean(0)
    norms = np.linalg.norm(centered, axis=1, keepdims=True)
    unit = centered / np.maximum(norms, 1e-12)
    # Rounded, so that equal clips tie whatever the processor's order of summation.
    cosines = np.round(unit @ unit.T, 12)
    np.fill_diagonal(cosines, -np.inf)
    return cosines


def retrieve(similarity: Array, labels: NDArray[np.int64]) -> Retrieval:
    """Every clip's neighbours in the order of their similarity.

    Args:
        similarity: (N, N) of `similarities`.
        labels: (N,) class of each clip.
    """
    number = len(labels)
    order = np.argsort(-similarity, axis=1, kind="stable")[:, : number - 1]  # not the clip itself
    same = labels[order] == labels[:, None]  # (N, N - 1)
    relevant = same.sum(1)
    queries = relevant > 0
    same, relevant = same[queries], relevant[queries]
    places = np.arange(1, number)
    precision_at = np.cumsum(same, axis=1) / places
    depths = {rank: min(rank, number - 1) for rank in RANKS}
    return Retrieval(
        precision={rank: precision_at[:, depth - 1] for rank, depth in depths.items()},
        average_precision=(precision_at * same).sum(1) / np.maximum(relevant, 1),
        chance=relevant / (number - 1),
        chance_average=random_average_precision(relevant, number - 1),
        asked=queries,
    )


def mean_retrieval(results: Sequence[Retrieval]) -> dict[str, Any]:
    """The mean of several factors' results by one latent, over the clips that have a match in all
    of them."""
    every = np.logical_and.reduce([result.asked for result in results])
    if not every.any():
        return {"n": 0, "reason": "no clip shares its class with another in every factor"}

    def mean(columns: Sequence[Array]) -> Array:
        chosen = [
            column[every[result.asked]] for column, result in zip(columns, results, strict=True)
        ]
        return np.mean(chosen, axis=0)

    precisions = {rank: mean([result.precision[rank] for result in results]) for rank in RANKS}
    average = mean([result.average_precision for result in results])
    average_by_chance = mean([result.chance_average for result in results])
    return {
        **{f"precision_at_{k}": interval_of(each) for k, each in precisions.items()},
        "precision_by_chance": float(mean([result.chance for result in results]).mean()),
        "mean_average_precision": interval_of(average),
        "mean_average_precision_by_chance": float(average_by_chance.mean()),
    }


def random_average_precision(relevant: NDArray[np.int64], number: int) -> Array:
    """(n,): expected average precision of a random order.

    The item at place k is relevant with R / N; given that, each of the k - 1 before it is with
    (R - 1) / (N - 1). Summed over k and divided by R.

    Args:
        relevant: (n,) R, how many of the items each query looks for.
        number: N, of items.
    """
    places = np.arange(1, number + 1, dtype=np.float64)
    others = (relevant - 1)[:, None] / max(1, number - 1)
    return ((1 + (places - 1) * others) / places).sum(1) / number
