"""Counts of verdicts: shares, chance and entropy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidtwin_lab.evaluation.intervals import mean_interval, share_interval


def share_of(verdicts: Iterable[bool]) -> dict[str, Any]:
    """The share of what is true, with its interval."""
    known = [bool(verdict) for verdict in verdicts]
    return share_interval(sum(known), len(known))


def interval_of(values: NDArray[Any]) -> dict[str, Any]:
    """A mean over clips with its interval: Wilson's if each is 0 or 1, since a bootstrap of ones
    alone has no width, and a bootstrap's otherwise."""
    array = np.asarray(values, np.float64)
    if np.isin(array, (0.0, 1.0)).all():
        return share_interval(int(array.sum()), len(array))
    return mean_interval(array.tolist())


def chance_of(labels: NDArray[np.int64]) -> float:
    """Probability that two clips drawn from the data have the same class."""
    shares = np.bincount(labels) / len(labels)
    return float(np.square(shares).sum())


def entropy_bits(seen: NDArray[np.int64]) -> float:
    """Entropy of the frequencies of classes, in bits; what is unknown, -1, is one class."""
    counts = np.unique(seen, return_counts=True)[1]
    shares = counts / counts.sum()
    return float(-(shares * np.log2(shares)).sum()) + 0.0
