"""95 % intervals of means and shares over videos; chance and entropy of class counts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidtwin_lab.evaluation.statistics import LEVEL, resampling_counts

__all__ = ["interval_text", "mean_interval", "share_interval"]

Z = 1.959964
NOTHING: dict[str, Any] = {"value": None, "low": None, "high": None, "n": 0}


def share_interval(right: int, number: int) -> dict[str, Any]:
    """A share of videos, with Wilson's interval.

    Args:
        right: videos that count.
        number: of all.
    Returns:
        dict: value, low, high and n; the first three None without a video.
    """
    if number == 0:
        return dict(NOTHING)
    share = right / number
    center = (share + Z * Z / (2 * number)) / (1 + Z * Z / number)
    half = Z * math.sqrt(share * (1 - share) / number + Z * Z / (4 * number * number))
    half /= 1 + Z * Z / number
    low, high = max(0.0, center - half), min(1.0, center + half)
    return {"value": share, "low": low, "high": high, "n": number}


def mean_interval(
    values: Sequence[float], *, resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """A mean over videos, with the interval of a bootstrap over them.

    The percentiles of the means of resamples with replacement: where the mean would lie for other
    videos of the same kind. Not what another training of the model would change.

    Args:
        values: one for each video.
        resamples: 0 for no interval.
        seed: of the resamples.
    Returns:
        dict: value, low, high and n; the first three None without a video, low and high None for
            a single one or no resamples.
    """
    array = np.asarray(values, np.float64)
    number = len(array)
    if number == 0:
        return dict(NOTHING)
    low = high = None
    if number > 1 and resamples > 0:
        counts = resampling_counts(number, resamples, seed, 0)  # (R, N)
        ends = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
        low, high = map(float, np.quantile(counts @ array / number, ends))
    return {"value": float(array.mean()), "low": low, "high": high, "n": number}


def interval_text(found: Mapping[str, Any] | None, style: str = ".1f", scale: float = 1.0) -> str:
    """A value and its interval in a cell of a table; "-" where there is none.

    Args:
        found: value and, where they are known, low and high.
        style: of each number, as a format specification.
        scale: what they are multiplied by, such as 100 for percent.
    """
    if found is None or found["value"] is None:
        return "-"
    value, low, high = (
        None if found.get(key) is None else format(scale * found[key], style)
        for key in ("value", "low", "high")
    )
    return f"{value}" if low is None else f"{value} ({low} to {high})"


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
