"""The measures of GLUE in numpy, and their median over seeds.

Axes: N samples. All shares and correlations are in [0, 1] or [-1, 1]; tables show them times 100.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


def accuracy(predicted: ArrayLike, wanted: ArrayLike) -> float:
    """Share of the (N,) predictions that are right."""
    first, second = _pair(predicted, wanted)
    return float(np.mean(first == second))


def f1(predicted: ArrayLike, wanted: ArrayLike) -> float:
    """F1 of class 1, as GLUE has it for MRPC and QQP; 0 where it is never met."""
    first, second = (values == 1 for values in _pair(predicted, wanted))
    total = int(first.sum() + second.sum())
    return 2 * int(np.sum(first & second)) / total if total else 0.0


def matthews(predicted: ArrayLike, wanted: ArrayLike) -> float:
    """Matthews correlation of (N,) classes, of any number; 0 if either is constant.

    Source: Gorodkin, "Comparing two K-category assignments by a K-category correlation
    coefficient" (2004), Eq. 8; of two classes it is Matthews's own.
    """
    first, second = _pair(predicted, wanted)
    classes = np.unique(np.concatenate([first, second]))
    one_hot = [np.asarray(values[:, None] == classes, np.float64) for values in (first, second)]
    return _correlation(*one_hot)


def pearson(predicted: ArrayLike, wanted: ArrayLike) -> float:
    """Linear correlation of (N,) scores; 0 if either is constant, where it is not defined."""
    first, second = (values.astype(np.float64) for values in _pair(predicted, wanted))
    return _correlation(first[:, None], second[:, None])


def spearman(predicted: ArrayLike, wanted: ArrayLike) -> float:
    """Linear correlation of the ranks; equal scores share the mean of their ranks."""
    return pearson(*(mean_ranks(values) for values in _pair(predicted, wanted)))


def mean_ranks(values: ArrayLike) -> NDArray[np.float64]:
    """(N,) ranks from 1, equal values having the mean of theirs."""
    _, inverse, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse.reshape(-1)]


METRICS: dict[str, Callable[[ArrayLike, ArrayLike], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
}


def over_seeds(measures: Sequence[Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """Median, lowest, highest and all values of each measure, in the order of the seeds."""
    found: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(name for row in measures for name in row):
        values = [row[name] for row in measures if name in row]
        median = float(np.median(values))
        found[name] = {"median": median, "low": min(values), "high": max(values), "values": values}
    return found


def percent(summary: Mapping[str, Any]) -> str:
    """A measure of `over_seeds` as tables show it: the median in percent, and the spread."""
    text = f"{100 * summary['median']:.1f}"
    if len(summary["values"]) > 1:
        text += f" ({100 * summary['low']:.1f} to {100 * summary['high']:.1f})"
    return text


def _correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Of (N, K) columns, whose covariances are summed."""
    if any(np.ptp(values, axis=0).max() == 0 for values in (first, second)):
        return 0.0  # before rounding of the means makes a constant column look as if it varied
    first, second = first - first.mean(0), second - second.mean(0)
    value = np.sum(first * second) / (np.linalg.norm(first) * np.linalg.norm(second))
    return float(np.clip(value, -1.0, 1.0))


def _pair(predicted: ArrayLike, wanted: ArrayLike) -> tuple[NDArray[Any], NDArray[Any]]:
    first, second = np.asarray(predicted), np.asarray(wanted)
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise ValueError(
            "predictions and labels must be two lists of equal length, not empty; got shapes "
            f"{first.shape} and {second.shape}"
        )
    return first, second
