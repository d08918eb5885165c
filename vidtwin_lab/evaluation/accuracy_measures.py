"""The measures of the Sprites literature, of a classifier's probabilities.

They are those of C-DSVAE (Bai et al., arXiv 2110.12091) in their released form: natural logarithms,
on equally many videos of each class. With K classes H(y) is at most ln K and IS at most K.

Axes: N videos, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidtwin_lab.evaluation.judges.classifier_judge import UNKNOWN
from vidtwin_lab.evaluation.statistics import inception_score, log_or_zero

__all__ = ["balanced_places", "inter_entropy", "intra_entropy", "sprites_measures"]

Array = NDArray[np.float64]


def inter_entropy(probabilities: Array) -> float:
    """H(y): entropy of the mean of (N, K) probabilities, in nats; higher is more varied."""
    return float(_entropy(np.asarray(probabilities, np.float64).mean(0)))


def intra_entropy(probabilities: Array) -> float:
    """H(y|x): mean entropy of (N, K) probabilities, in nats; lower is more certain."""
    return float(_entropy(np.asarray(probabilities, np.float64)).mean())


def _entropy(probabilities: Array) -> Array:
    """Of the last axis, in nats; 0 log 0 is 0."""
    # Adding zero makes of minus zero a plain one.
    return np.asarray(-(probabilities * log_or_zero(probabilities)).sum(-1) + 0.0)


def balanced_places(labels: Sequence[int] | NDArray[np.int64]) -> list[int]:
    """Places of equally many videos of each class that is there: the first ones of each.

    Args:
        labels: of the videos; UNKNOWN are left out.
    """
    array = np.asarray(labels)
    present = [number for number in np.unique(array).tolist() if number != UNKNOWN]
    if not present:
        return []
    fewest = min(int((array == number).sum()) for number in present)
    chosen = [np.flatnonzero(array == number)[:fewest] for number in present]
    return sorted(np.concatenate(chosen).tolist())


def sprites_measures(probabilities: Array, labels: Sequence[int]) -> dict[str, Any]:
    """The published measures of one factor, on equally many videos of each class.

    Args:
        probabilities: (N, K) float64.
        labels: what each video was to show; if none is known, all videos are taken as they are
            and there is no accuracy.
    Returns:
        accuracy (of all videos with a label), inter_entropy H(y), intra_entropy H(y|x),
        inception_score exp(H(y) - H(y|x)), n (videos of the last three), and what is possible:
        largest_inter_entropy and largest_inception_score.
    """
    array = np.asarray(labels)
    known = array != UNKNOWN
    right = probabilities.argmax(1) == array
    taken = probabilities[balanced_places(array)] if known.any() else probabilities
    return {
        "accuracy": float(right[known].mean()) if known.any() else None,
        "inter_entropy": inter_entropy(taken),
        "intra_entropy": intra_entropy(taken),
        "inception_score": inception_score(taken, splits=1)[0],
        "n": len(taken),
        "largest_inter_entropy": math.log(probabilities.shape[1]),
        "largest_inception_score": float(probabilities.shape[1]),
    }
