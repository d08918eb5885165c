"""Distances between two sets of videos, from their features, in float64.

Axes: N videos of one set, M of the other, D features, K classes, R resamples of a bootstrap.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "LEVEL",
    "MINIMUM_VIDEOS",
    "GaussianStatistics",
    "bootstrap_estimate",
    "check_enough",
    "distances_by_number",
    "frechet_distance",
    "inception_score",
    "inception_scores",
    "kernel_distance",
    "kernel_distance_subsets",
    "kernel_distances",
    "log_or_zero",
    "metric_name",
    "resampling_counts",
    "weighted_frechet_distances",
]

Array = NDArray[np.float64]
# The fewest videos that published FVD figures are computed from. Below it a distance is mostly
# its bias, which falls as 1 / N.
MINIMUM_VIDEOS = 2048
# Eigenvalues below this share of the largest are rounding errors of a singular covariance.
RANK_TOLERANCE = 100 * np.finfo(np.float64).eps
# Pairs of videos are compared in blocks of so many rows.
BLOCK = 1024
# Share of repetitions that an interval is to hold.
LEVEL = 0.95


class GaussianStatistics:
    """Count, mean and covariance of features that pass in blocks: one pass, flat memory.

    Blocks are merged by the rule of Chan, Golub and LeVeque (1979): each is centred on its own
    mean first, so features far from zero lose no digits, as they would in a sum of squares. The
    same blocks in the same order give the same bits; other blocks differ in the last ones.

    Args:
        size: D.
    """

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError(f"features must have at least one value, got size={size}")
        self.count = 0
        self.mean: Array = np.zeros(size)
        self.scatter: Array = np.zeros((size, size))

    @staticmethod
    def of(features: NDArray[Any]) -> GaussianStatistics:
        """The statistics of (N, D) features at once."""
        statistics = GaussianStatistics(_rows(features).shape[1])
        statistics.add(features)
        return statistics

    @property
    def size(self) -> int:
        """D."""
        return len(self.mean)

    @property
    def covariance(self) -> Array:
        """(D, D), unbiased: divided by N - 1, as every published FVD does.

        Raises:
            ValueError: for fewer than two videos.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 videos, got {self.count}")
        return self.scatter / (self.count - 1)

    def add(self, features: NDArray[Any]) -> None:
        """Takes a block of features.

        Args:
            features: (N, D), any float type.
        Raises:
            ValueError: for another D, or values that are not finite.
        """
        block = _rows(features)
        if block.shape[1] != self.size:
            raise ValueError(f"expected features of size {self.size}, got {block.shape[1]}")
        if not np.isfinite(block).all():
            bad = np.flatnonzero(~np.isfinite(block).all(1))
            raise ValueError(f"features {bad[:8].tolist()} of the block are not finite")
        if not len(block):
            return
        mean = block.mean(0)
        centred = block - mean
        self._merge(len(block), mean, centred.T @ centred)

    def merge(self, other: GaussianStatistics) -> None:
        """Takes all that another one has seen."""
        if other.size != self.size:
            raise ValueError(f"expected statistics of size {self.size}, got {other.size}")
        if other.count:
            self._merge(other.count, other.mean, other.scatter)

    def _merge(self, count: int, mean: Array, scatter: Array) -> None:
        total = self.count + count
        shift = mean - self.mean
        self.scatter = self.scatter + scatter
        self.scatter += np.outer(shift, shift) * (self.count * count / total)
        self.mean = self.mean + shift * (count / total)
        self.count = total


def frechet_distance(one: GaussianStatistics, other: GaussianStatistics) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1^1/2 S2 S1^1/2)^1/2), at least 0.

    Raises:
        ValueError: for different sizes, or fewer than two videos.
    Source: Dowson and Landau (1982); Heusel et al. 2017 (FID); Unterthiner et al. 2018 (FVD).
    """
    if one.size != other.size:
        raise ValueError(f"features of one size are needed, got {one.size} and {other.size}")
    # With S1 = A A' and S2 = B B' the eigenvalues of S1^1/2 S2 S1^1/2 are the squares of the
    # singular values of A' B, so the trace of its root is their sum. Nothing is inverted and no
    # root of a product that is not symmetric is taken: scipy's sqrtm of S1 S2, which the usual
    # codes take, gives complex numbers or fails where a covariance is singular, and adding
    # epsilons to a diagonal moves the distance. Singular values of A' B also keep the digits
    # that eigenvalues of A' S2 A would lose by squaring.
    factor, other_factor = _factor(one), _factor(other)
    shared = np.linalg.svd(factor.T @ other_factor, compute_uv=False).sum()
    spread = np.square(factor).sum() + np.square(other_factor).sum() - 2 * shared
    return max(0.0, float(np.square(one.mean - other.mean).sum() + spread))


def _factor(statistics: GaussianStatistics) -> Array:
    """(D, rank), A with A A' the covariance.

    The root of a rounding error of 1e-16 is 1e-8: eigenvalues that can only be rounding errors
    are left out, those beyond the N - 1 that N videos can have, and those below the tolerance.
    """
    values, vectors = np.linalg.eigh(statistics.covariance)
    keep = values > RANK_TOLERANCE * max(values[-1], 0.0)
    keep[: max(0, statistics.size - (statistics.count - 1))] = False
    return vectors[:, keep] * np.sqrt(values[keep])


def weighted_frechet_distances(
    real: NDArray[Any],
    generated: NDArray[Any],
    real_counts: NDArray[np.int64],
    generated_counts: NDArray[np.int64],
) -> Array:
    """The Fréchet distance of R resamples.

    Args:
        real: (N, D) features.
        generated: (M, D) features.
        real_counts: (R, N), how often each video is in a resample.
        generated_counts: (R, M).
    Returns:
        (R,).
    """
    sides = ((_rows(real), real_counts), (_rows(generated), generated_counts))
    distances = []
    for index in range(len(real_counts)):
        one, other = (
            GaussianStatistics.of(np.repeat(features, counts[index], axis=0))
            for features, counts in sides
        )
        distances.append(frechet_distance(one, other))
    return np.array(distances)


def kernel_distance(real: NDArray[Any], generated: NDArray[Any]) -> float:
    """The squared maximum mean discrepancy under k(x, y) = (x·y / D + 1)^3, unbiased.

    Over all pairs of both whole sets, in blocks, so that memory is flat; may be negative.

    Args:
        real: (N, D), at least 2.
        generated: (M, D), at least 2.
    Source: Binkowski et al. 2018 (KID), for videos Unterthiner et al. 2018 (KVD).
    """
    ones = [np.ones((1, len(_rows(features))), np.int64) for features in (real, generated)]
    return float(kernel_distances(real, generated, ones[0], ones[1])[0])


def kernel_distances(
    real: NDArray[Any],
    generated: NDArray[Any],
    real_counts: NDArray[np.int64],
    generated_counts: NDArray[np.int64],
) -> Array:
    """`kernel_distance` of R resamples at once; arguments as `weighted_frechet_distances`."""
    x, y = _rows(real), _rows(generated)
    if x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(
            "a kernel distance needs two sets of at least 2 videos with features of one size, "
            f"got {x.shape} and {y.shape}"
        )
    return (
        _mean_of_pairs(x, real_counts)
        + _mean_of_pairs(y, generated_counts)
        - 2
        * _kernel_sums(x, y, real_counts, generated_counts)
        / (real_counts.sum(1) * generated_counts.sum(1))
    )


def _mean_of_pairs(x: Array, counts: NDArray[np.int64]) -> Array:
    """(R,): the kernel's mean over all pairs of different places of a resample."""
    number = counts.sum(1)
    themselves = counts @ (np.square(x).sum(1) / x.shape[1] + 1) ** 3
    return (_kernel_sums(x, x, counts, counts) - themselves) / (number * (number - 1))


def _kernel_sums(
    x: Array, y: Array, x_counts: NDArray[np.int64], y_counts: NDArray[np.int64]
) -> Array:
    """(R,): the kernel summed over all pairs of x and y, each as often as it is counted."""
    weights = y_counts.astype(np.float64).T  # (M, R)
    total = np.zeros(len(x_counts))
    for start in range(0, len(x), BLOCK):
        rows = slice(start, start + BLOCK)
        kernel = (x[rows] @ y.T / x.shape[1] + 1) ** 3
        total += np.einsum("rn,nr->r", x_counts[:, rows], kernel @ weights)
    return total


def kernel_distance_subsets(
    real: NDArray[Any],
    generated: NDArray[Any],
    *,
    subset_size: int = 1000,
    subsets: int = 100,
    seed: int = 0,
) -> tuple[float, float]:
    """KID's habit: mean and standard deviation of `kernel_distance` over random subsets.

    The mean estimates the same as all pairs at once, with more noise; the deviation is that of a
    subset, not of the mean.

    Args:
        subset_size: videos drawn from each set, without replacement.
        subsets: how many are drawn.
        seed: of the draws.
    Raises:
        ValueError: if a subset is larger than a set.
    """
    x, y = _rows(real), _rows(generated)
    if not 2 <= subset_size <= min(len(x), len(y)) or subsets < 1:
        raise ValueError(
            f"subsets of 2 to {min(len(x), len(y))} videos can be drawn, got "
            f"kvd_subset_size={subset_size} and kvd_subsets={subsets}"
        )
    rng = np.random.default_rng([seed, 4])
    values = [
        kernel_distance(*(side[rng.permutation(len(side))[:subset_size]] for side in (x, y)))
        for _ in range(subsets)
    ]
    return float(np.mean(values)), float(np.std(values))


def inception_score(
    probabilities: NDArray[Any], *, splits: int = 10, seed: int = 0
) -> tuple[float, float]:
    """exp(mean KL(p(y|x) || p(y))): mean and standard deviation over equal parts of the videos.

    The score is at most K, and lower the fewer videos a part has. On UCF-101 the classes are
    those of a C3D network trained on Sports-1M and fine-tuned on UCF-101 (Saito et al. 2017,
    2020), the videos have 16 frames and are 10,000, the parts 10.

    Args:
        probabilities: (N, K), rows that sum to 1.
        splits: number of parts; videos are shuffled before, since they may come class by class.
        seed: of the shuffle.
    Raises:
        ValueError: if rows are no probabilities, or there are fewer videos than parts.
    Source: Salimans et al. 2016.
    """
    table = _probabilities(probabilities)
    if not 1 <= splits <= len(table):
        raise ValueError(f"is_splits must be from 1 to the {len(table)} videos, got {splits}")
    order = np.random.default_rng([seed, 5]).permutation(len(table))
    scores = [
        float(inception_scores(part, np.ones((1, len(part)), np.int64))[0])
        for part in np.array_split(table[order], splits)
    ]
    return float(np.mean(scores)), float(np.std(scores))


def inception_scores(probabilities: NDArray[Any], counts: NDArray[np.int64]) -> Array:
    """(R,): the score of R resamples, each as one part; see `inception_score`."""
    table = _probabilities(probabilities)
    share = counts / counts.sum(1, keepdims=True)  # (R, N)
    negative_entropy = (table * log_or_zero(table)).sum(1)  # (N,)
    marginal = share @ table  # (R, K)
    return np.exp(share @ negative_entropy - (marginal * log_or_zero(marginal)).sum(1))


def log_or_zero(values: Array) -> Array:
    """The logarithm, 0 for 0: p log p is 0 there."""
    return np.log(values, where=values > 0, out=np.zeros_like(values))


def _probabilities(values: NDArray[Any]) -> Array:
    table = _rows(values)
    if not np.isfinite(table).all() or table.min() < 0 or abs(table.sum(1) - 1).max() > 1e-3:
        raise ValueError(
            "an inception score needs probabilities: rows that are not negative and sum to 1; "
            "does the classifier give scores instead?"
        )
    # Rows of a float32 softmax miss 1 by some 1e-7, which the logarithms would carry on.
    return table / table.sum(1, keepdims=True)


def resampling_counts(number: int, resamples: int, seed: int, side: int) -> NDArray[np.int64]:
    """(R, N): how often each video is drawn in each resample, N drawn with replacement.

    Args:
        side: another number draws other resamples.
    """
    rng = np.random.default_rng([seed, 6, side])
    return rng.multinomial(number, np.full(number, 1 / number), size=resamples).astype(np.int64)


def bootstrap_estimate(
    value: float, replicates: Array, n: int, floor: float | None
) -> dict[str, Any]:
    """Where 95 % of repetitions with other videos of the same number would put the value.

    What is resampled: the videos of both sides, independently, with replacement. Not the networks
    that made the videos or their features, nor training runs.

    A Fréchet distance of N videos is too large by about c / N, and one of a resample, which knows
    the N videos alone, by that much again: percentiles of the resamples would lie above the value
    they belong to, often entirely. So the resamples' spread is put around the measured value:
    (low, high) = value + (2.5 %, 97.5 % of the resamples) - mean of the resamples. The interval is
    for the distance at this N, bias included, as it is quoted and compared; two distances of
    different N are not to be compared by it. `bias`, the resamples' mean less the value,
    estimates how much of the value is due to the finite N: value - bias is nearer to the distance
    of endless sets. Near 0, where a distance can only err upwards, the interval is too wide.

    Args:
        value: measured on all videos.
        replicates: (R,) measured on resamples; none for no interval.
        n: videos, the fewer of the two sides.
        floor: the smallest value there can be; None if there is none.
    Returns:
        dict: value and n; with resamples also low and high, their standard deviation and bias.
    """
    if not len(replicates):
        return {"value": value, "n": n}
    bias = float(replicates.mean()) - value
    ends = np.quantile(replicates, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) - bias
    low, high = (float(end if floor is None else max(end, floor)) for end in ends)
    spread = {"deviation": float(replicates.std()), "bias": bias}
    return {"value": value, "low": low, "high": high, "n": n, **spread}


def check_enough(number: int, what: str, allow_few: bool) -> None:
    """Refuses a distance of too few videos.

    Args:
        what: names the videos, such as "generated".
        allow_few: whether the user knows what they are doing.
    Raises:
        ValueError: for fewer than 2 in any case, for fewer than 2,048 unless allowed.
    """
    if number < 2:
        raise ValueError(f"a distance needs at least 2 {what} videos, got {number}")
    if number < MINIMUM_VIDEOS and not allow_few:
        raise ValueError(
            f"{number} {what} videos are too few for a distance that others could compare with: "
            f"the bias of FVD falls as 1/n, and published figures have n >= {MINIMUM_VIDEOS}; "
            "raise num_videos and num_real, or set allow_few=true, which writes n into the name"
        )


def metric_name(metric: str, n: int, features: str = "i3d") -> str:
    """FVD, FVD@512 for fewer than 2,048 videos, FVD[videomae-...] for other features than I3D."""
    number = "" if n >= MINIMUM_VIDEOS else f"@{n}"
    return f"{metric}{number}" + ("" if features == "i3d" else f"[{features}]")


def _rows(features: NDArray[Any]) -> Array:
    """(N, D) in float64."""
    rows = np.asarray(features)
    if rows.ndim != 2 or rows.shape[1] < 1:
        raise ValueError(f"expected features of shape (N, D), got {rows.shape}")
    return rows.astype(np.float64)


def distances_by_number(
    real: NDArray[Any],
    generated: NDArray[Any],
    *,
    parts: Sequence[float] = (0.125, 0.25, 0.5, 1.0),
    seed: int = 0,
) -> list[dict[str, float]]:
    """The Fréchet distance of random parts of both sets: how it falls as there are more videos.

    Returns:
        list: {"n", "value"} from the smallest part that has two videos to all of them.
    """
    rng = np.random.default_rng([seed, 7])
    shuffled = [side[rng.permutation(len(side))] for side in (_rows(real), _rows(generated))]
    found = []
    for part in parts:
        chosen = [side[: round(part * len(side))] for side in shuffled]
        if min(len(side) for side in chosen) >= 2:
            value = frechet_distance(*(GaussianStatistics.of(side) for side in chosen))
            found.append({"n": min(len(side) for side in chosen), "value": value})
    return found
