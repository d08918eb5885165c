"""Laws of distances between sets, and equality with independent formulas."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from vidtwin_lab.evaluation.generation_features import FeatureSet
from vidtwin_lab.evaluation.statistics import (
    GaussianStatistics,
    bootstrap_estimate,
    check_enough,
    distances_by_number,
    frechet_distance,
    inception_score,
    inception_scores,
    kernel_distance,
    kernel_distance_subsets,
    kernel_distances,
    metric_name,
    resampling_counts,
    weighted_frechet_distances,
)


def draw(count: int, size: int = 6, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(size, size))
    return scale * rng.normal(size=(count, size)) @ mixing + rng.normal(size=size)


def distance(one: np.ndarray, other: np.ndarray) -> float:
    return frechet_distance(GaussianStatistics.of(one), GaussianStatistics.of(other))


def exact_distance(one: np.ndarray, other: np.ndarray, digits: int = 60) -> float:
    """The same from the features by 60-digit arithmetic, with eigenvalues of S1 S2 itself."""
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(digits):
        sides = []
        for features in (one, other):
            rows = mpmath.matrix(features.tolist())
            n, size = rows.rows, rows.cols
            mean = [mpmath.fsum(rows[i, j] for i in range(n)) / n for j in range(size)]
            centred = mpmath.matrix(n, size)
            for i in range(n):
                for j in range(size):
                    centred[i, j] = rows[i, j] - mean[j]
            sides.append((mean, centred.T * centred / (n - 1)))
        (mean, cov), (other_mean, other_cov) = sides
        # A root of the one, by its eigenvectors, then the eigenvalues of root S2 root.
        values, vectors = mpmath.eigsy(cov)
        root = vectors * mpmath.diag([mpmath.sqrt(max(value, 0)) for value in values]) * vectors.T
        product = root * other_cov * root
        shared = mpmath.fsum(
            mpmath.sqrt(max(value, 0))
            for value in mpmath.eigsy((product + product.T) / 2, eigvals_only=True)
        )
        trace = mpmath.fsum(cov[i, i] + other_cov[i, i] for i in range(cov.rows))
        shift = mpmath.fsum((a - b) ** 2 for a, b in zip(mean, other_mean, strict=True))
        return float(shift + trace - 2 * shared)


SINGULAR = {
    "full rank": (draw(40, 6, 1), draw(30, 6, 2)),
    "fewer videos than features": (draw(4, 6, 1), draw(3, 6, 2)),
    "one of them singular": (draw(40, 6, 1), draw(3, 6, 2)),
    "two videos": (draw(2, 5, 1), draw(2, 5, 2)),
    "constant features": (
        np.hstack([draw(30, 4, 1), np.ones((30, 2))]),
        np.hstack([draw(30, 4, 2), np.zeros((30, 2))]),
    ),
    "repeated features": (np.tile(draw(30, 3, 1), 2), draw(20, 6, 2)),
    "spaces at right angles": (
        np.hstack([draw(20, 3, 1), np.zeros((20, 3))]),
        np.hstack([np.zeros((20, 3)), draw(20, 3, 2)]),
    ),
    "one a point": (np.ones((5, 6)), draw(20, 6, 2)),
    "far from zero": (draw(30, 4, 1) + 1e5, draw(30, 4, 2) + 1e5),
    "very different scales": (draw(30, 5, 1) * np.logspace(-4, 4, 5), draw(30, 5, 2)),
}


@pytest.mark.parametrize("case", SINGULAR)
def test_frechet_distance_equals_one_of_sixty_digits(case: str) -> None:
    one, other = SINGULAR[case]
    expected = exact_distance(one, other)
    assert distance(one, other) == pytest.approx(expected, rel=1e-6)
    assert distance(other, one) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_equals_scipy_where_scipy_can() -> None:
    linalg = pytest.importorskip("scipy.linalg")
    one, other = draw(500, 20, 1), draw(400, 20, 2)
    covs = [np.cov(side, rowvar=False) for side in (one, other)]
    root = linalg.sqrtm(covs[0] @ covs[1]).real
    expected = np.square(one.mean(0) - other.mean(0)).sum() + np.trace(covs[0] + covs[1] - 2 * root)
    assert distance(one, other) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_of_many_singular_dimensions() -> None:
    """The size of real features, of far fewer videos: no error adds up over the dimensions.

    From the features themselves, without a covariance: with S = X'X the eigenvalues that matter
    are the squared singular values of X1 X2'.
    """
    rng = np.random.default_rng(3)
    one, other = rng.normal(size=(40, 300)), rng.normal(size=(30, 300)) + 0.1
    roots = [(side - side.mean(0)) / np.sqrt(len(side) - 1) for side in (one, other)]
    shared = torch.linalg.svdvals(torch.from_numpy(roots[0] @ roots[1].T)).sum().item()
    traces = sum(np.square(root).sum() for root in roots)
    expected = np.square(one.mean(0) - other.mean(0)).sum() + traces - 2 * shared
    assert distance(one, other) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_a_set_to_itself_is_zero() -> None:
    for features in (draw(50), draw(3), np.ones((4, 6))):
        assert distance(features, features) == pytest.approx(0, abs=1e-10)


def test_two_halves_of_one_gaussian_come_together() -> None:
    values = [distance(draw(n, seed=0)[::2], draw(n, seed=0)[1::2]) for n in (100, 10_000)]
    assert 0 < values[1] < values[0] / 10


def test_a_shift_is_its_squared_length() -> None:
    features, shift = draw(60), np.arange(6.0)
    assert distance(features, features + shift) == pytest.approx(np.square(shift).sum(), rel=1e-9)


def test_scaling_one_axis_is_known_in_closed_form() -> None:
    """sum (s1 - s2)^2 for covariances that commute."""
    features = np.linalg.qr(draw(50) - draw(50).mean(0))[0] * np.sqrt(49)
    features = features - features.mean(0)
    cov = np.cov(features, rowvar=False)
    scaled = features * 3
    assert distance(features, scaled) == pytest.approx(4 * np.trace(cov), rel=1e-9)


def test_orthogonal_maps_change_nothing_and_scales_square() -> None:
    one, other = draw(40, seed=1), draw(30, seed=2)
    rotation = np.linalg.qr(np.random.default_rng(5).normal(size=(6, 6)))[0]
    expected = distance(one, other)
    assert distance(one @ rotation, other @ rotation) == pytest.approx(expected, rel=1e-9)
    assert distance(3 * one, 3 * other) == pytest.approx(9 * expected, rel=1e-9)
    both_kernels = kernel_distance(one, other), kernel_distance(one @ rotation, other @ rotation)
    assert both_kernels[1] == pytest.approx(both_kernels[0], rel=1e-9)


def test_streaming_equals_all_at_once_also_far_from_zero() -> None:
    features = draw(101) + 1e6
    whole = GaussianStatistics.of(features)
    stream = GaussianStatistics(6)
    for block in np.array_split(features, 9):
        stream.add(block)
    assert stream.count == whole.count == 101
    np.testing.assert_allclose(stream.mean, features.mean(0), rtol=1e-15)
    np.testing.assert_allclose(stream.covariance, np.cov(features, rowvar=False), rtol=1e-9)
    np.testing.assert_allclose(stream.covariance, whole.covariance, rtol=1e-9)


def test_merging_in_any_order_and_the_same_blocks_to_the_bit() -> None:
    blocks = np.array_split(draw(90), 7)
    parts = [GaussianStatistics.of(block) for block in blocks]
    forward, backward, streamed = (GaussianStatistics(6) for _ in range(3))
    for part, block in zip(parts, blocks, strict=True):
        forward.merge(part)
        streamed.add(block)
    for part in parts[::-1]:
        backward.merge(part)
    backward.merge(GaussianStatistics(6))
    np.testing.assert_array_equal(forward.scatter, streamed.scatter)
    np.testing.assert_allclose(forward.covariance, backward.covariance, rtol=1e-12)
    assert forward.count == backward.count == 90


def test_statistics_say_what_they_cannot_take() -> None:
    statistics = GaussianStatistics(3)
    with pytest.raises(ValueError, match="size 3, got 4"):
        statistics.add(np.zeros((2, 4)))
    with pytest.raises(ValueError, match=r"\[1\] of the block are not finite"):
        statistics.add(np.array([[1, 2, 3], [1, np.nan, 3]]))
    with pytest.raises(ValueError, match="at least 2 videos"):
        _ = statistics.covariance
    with pytest.raises(ValueError, match=r"\(N, D\)"):
        GaussianStatistics.of(np.zeros(3))
    with pytest.raises(ValueError, match="one size"):
        distance(draw(5, 3), draw(5, 4))


def test_kernel_distance_equals_its_definition() -> None:
    one, other = draw(30, seed=1), draw(20, seed=2)

    def mean_of_pairs(x: list[np.ndarray], y: list[np.ndarray]) -> float:
        return float(np.mean([(a @ b / 6 + 1) ** 3 for a in x for b in y if a is not b]))

    rows = [list(one), list(other)]
    own = [mean_of_pairs(side, side) for side in rows]
    expected = sum(own) - 2 * mean_of_pairs(*rows)
    assert kernel_distance(one, other) == pytest.approx(expected, rel=1e-9)


def test_kernel_distance_is_unbiased() -> None:
    """Sets of one distribution: the mean over many is 0 within its error, at any n."""
    rng = np.random.default_rng(0)
    values = [kernel_distance(rng.normal(size=(8, 3)), rng.normal(size=(8, 3))) for _ in range(400)]
    assert abs(np.mean(values)) < 3 * np.std(values) / 20
    one, other = draw(300, seed=1), draw(300, seed=2)
    mean, deviation = kernel_distance_subsets(one, other, subset_size=50, subsets=60)
    assert mean == pytest.approx(kernel_distance(one, other), abs=4 * deviation / np.sqrt(60))
    with pytest.raises(ValueError, match="kvd_subset_size=301"):
        kernel_distance_subsets(one, other, subset_size=301)


def test_resamples_by_counts_equal_resamples_by_repetition(monkeypatch) -> None:
    monkeypatch.setattr(
        "vidtwin_lab.evaluation.statistics.BLOCK", 7
    )  # several blocks of the kernel
    one, other = draw(20, seed=1), draw(15, seed=2)
    counts = [resampling_counts(len(side), 3, 0, place) for place, side in enumerate((one, other))]
    assert all((each.sum(1) == each.shape[1]).all() for each in counts)
    frechet = weighted_frechet_distances(one, other, *counts)
    kernel = kernel_distances(one, other, *counts)
    for index in range(3):
        drawn = [
            np.repeat(side, each[index], axis=0)
            for side, each in zip((one, other), counts, strict=True)
        ]
        assert frechet[index] == pytest.approx(distance(*drawn), rel=1e-9)
        assert kernel[index] == pytest.approx(kernel_distance(*drawn), rel=1e-9)


def test_intervals_hold_the_expected_value_as_often_as_they_say() -> None:
    """Of the distance at this n, bias included: what repetitions scatter around."""
    rng = np.random.default_rng(0)
    n, size, shift = 60, 4, 0.8

    def experiment() -> tuple[np.ndarray, np.ndarray]:
        return rng.normal(size=(n, size)), rng.normal(size=(n, size)) + shift

    expected = np.mean([distance(*experiment()) for _ in range(300)])
    held, biases = [], []
    for trial in range(30):
        one, other = experiment()
        counts = [resampling_counts(n, 40, trial, place) for place in (0, 1)]
        estimate = bootstrap_estimate(
            distance(one, other), weighted_frechet_distances(one, other, *counts), n, 0.0
        )
        held.append(estimate["low"] <= expected <= estimate["high"])
        biases.append(estimate["bias"])
        assert estimate["low"] <= estimate["value"] <= estimate["high"]
    assert np.mean(held) > 0.8
    # The true distance is that of endless sets; the bootstrap knows how far above it n puts us.
    assert np.mean(biases) == pytest.approx(expected - size * shift**2, rel=0.5)


def test_without_resamples_there_is_no_interval() -> None:
    assert bootstrap_estimate(2.0, np.empty(0), 5, 0.0) == {"value": 2.0, "n": 5}
    low = bootstrap_estimate(0.1, np.array([0.0, 3.0]), 5, 0.0)["low"]
    assert low == 0


def test_inception_score_has_its_known_extremes() -> None:
    certain = np.eye(5)[np.arange(100) % 5]
    assert inception_score(certain, splits=1)[0] == pytest.approx(5)
    assert inception_score(np.full((100, 5), 0.2))[0] == pytest.approx(1)
    assert inception_score(np.eye(5)[np.zeros(100, int)])[0] == pytest.approx(1)
    rng = np.random.default_rng(0)
    table = rng.dirichlet(np.ones(4), size=30)
    kl = (table * np.log(table / table.mean(0))).sum(1).mean()
    assert inception_score(table, splits=1)[0] == pytest.approx(np.exp(kl), rel=1e-12)
    twice = inception_scores(table, np.full((1, 30), 2))[0]
    assert twice == pytest.approx(np.exp(kl), rel=1e-12)
    mean, deviation = inception_score(table, splits=3)
    assert deviation > 0 and 1 <= mean <= 4
    with pytest.raises(ValueError, match="sum to 1"):
        inception_score(table * 2)
    with pytest.raises(ValueError, match="is_splits"):
        inception_score(table, splits=31)


def test_too_few_videos_are_refused_and_named() -> None:
    with pytest.raises(ValueError, match="allow_few=true"):
        check_enough(512, "generated", False)
    with pytest.raises(ValueError, match="at least 2 real"):
        check_enough(1, "real", True)
    check_enough(512, "generated", True)
    check_enough(2048, "generated", False)
    assert metric_name("FVD", 512) == "FVD@512"
    assert metric_name("FVD", 2048) == "FVD"
    assert metric_name("KVD", 512, "videomae-base") == "KVD@512[videomae-base]"


def test_a_set_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    features = draw(7).astype(np.float32)
    saved = FeatureSet(
        statistics=GaussianStatistics.of(features),
        features=features,
        labels=np.arange(7),
        names=tuple(f"vidéo {index}" for index in range(7)),
        skipped=(("bad.mp4", "not a video"),),
    )
    saved.save(tmp_path / "deep" / "set.safetensors")
    loaded = FeatureSet.load(tmp_path / "deep" / "set.safetensors")
    assert (loaded.names, loaded.skipped) == (saved.names, saved.skipped)
    np.testing.assert_array_equal(loaded.features, features)
    np.testing.assert_array_equal(loaded.statistics.scatter, saved.statistics.scatter)
    np.testing.assert_array_equal(loaded.labels, saved.labels)
    FeatureSet(statistics=saved.statistics, features=None, labels=saved.labels, names=()).save(
        tmp_path / "flat.safetensors"
    )
    flat = FeatureSet.load(tmp_path / "flat.safetensors")
    assert (flat.features, flat.names, flat.skipped) == (None, (), ())
    (tmp_path / "text").write_text("no statistics")
    with pytest.raises(ValueError, match="made anew"):
        FeatureSet.load(tmp_path / "text")


def test_the_distance_falls_as_there_are_more_videos() -> None:
    steps = distances_by_number(draw(800, seed=4), draw(800, seed=4)[::-1] + 0.0)
    assert [step["n"] for step in steps] == [100, 200, 400, 800]
    values = [step["value"] for step in steps]
    assert values[0] > values[1] > values[2]
    assert values[3] == pytest.approx(0, abs=1e-9)
