"""The numbers of a report, from the features of both sides.

Axes: N videos of a side, D features, K classes, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidtwin_lab.evaluation.features import FeatureExtractor, features_name
from vidtwin_lab.evaluation.generation_features import FeatureSet, Sampled
from vidtwin_lab.evaluation.measurement_configs import GenerationConfig
from vidtwin_lab.evaluation.report import Processes
from vidtwin_lab.evaluation.statistics import (
    GaussianStatistics,
    bootstrap_estimate,
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

__all__ = ["check_classes", "compute"]

REAL_SIDE, GENERATED_SIDE = 0, 1


def compute(
    config: GenerationConfig,
    real: FeatureSet,
    sampled: Sampled,
    label_names: Sequence[str],
    classifier: FeatureExtractor | None,
    processes: Processes,
) -> dict[str, Any]:
    """The numbers of the report."""
    generated = sampled.set
    found: dict[str, Any] = {}
    n = min(real.statistics.count, generated.statistics.count)

    def name(metric: str) -> str:
        return metric_name(metric, n, features_name(config.features))

    counts = [
        resampling_counts(side.statistics.count, config.bootstrap, config.seed, place)
        for place, side in ((REAL_SIDE, real), (GENERATED_SIDE, generated))
    ]
    if "fvd" in config.metrics:
        value = frechet_distance(real.statistics, generated.statistics)
        replicates = frechet_replicates(real, generated, counts, processes)
        found[name("FVD")] = bootstrap_estimate(value, replicates, n, 0.0)
    if "kvd" in config.metrics:
        found[name("KVD")] = kernel_estimate(config, real, generated, counts, n)
    if "is" in config.metrics and classifier is not None:
        assert sampled.probabilities is not None
        count = len(sampled.probabilities)
        found[metric_name("IS", count, classifier.name).replace("[c3d]", "")] = score_estimate(
            config, sampled.probabilities, counts[GENERATED_SIDE]
        )
    if "fvd_per_class" in config.metrics:
        names = features_name(config.features)
        found["FVD per class"] = per_class(real, generated, label_names, names)
    if real.features is not None and generated.features is not None:
        found["by_number"] = distances_by_number(
            real.features, generated.features, seed=config.seed
        )
    if sampled.reencoded is not None:
        found["reencoded"] = reencoding_cost(config, real, generated, sampled.reencoded, name)
    return found


def frechet_replicates(
    real: FeatureSet,
    generated: FeatureSet,
    counts: Sequence[NDArray[np.int64]],
    processes: Processes,
) -> NDArray[np.float64]:
    """(R,) distances of the resamples, shared out: each takes as long as the distance itself."""
    if not len(counts[0]) or real.features is None or generated.features is None:
        return np.empty(0)
    mine = range(processes.rank, len(counts[0]), processes.count)
    values = weighted_frechet_distances(
        real.features, generated.features, *(each[mine] for each in counts)
    )
    gathered = processes.gather(list(zip(mine, values.tolist(), strict=True)))
    return np.array([value for _, value in sorted(gathered)])


def kernel_estimate(
    config: GenerationConfig,
    real: FeatureSet,
    generated: FeatureSet,
    counts: Sequence[NDArray[np.int64]],
    n: int,
) -> dict[str, Any]:
    """KVD with its interval, or by subsets with their deviation."""
    assert real.features is not None and generated.features is not None
    if config.kvd_subset_size is not None:
        mean, deviation = kernel_distance_subsets(
            real.features,
            generated.features,
            subset_size=config.kvd_subset_size,
            subsets=config.kvd_subsets,
            seed=config.seed,
        )
        return {"value": mean, "deviation_of_subsets": deviation, "n": n}
    value = kernel_distance(real.features, generated.features)
    replicates = np.empty(0)
    if config.bootstrap:
        replicates = kernel_distances(real.features, generated.features, *counts)
    return bootstrap_estimate(value, replicates, n, None)


def score_estimate(
    config: GenerationConfig, probabilities: NDArray[np.float32], counts: NDArray[np.int64]
) -> dict[str, Any]:
    """The inception score with the deviation of its parts and, of all videos as one part, the
    interval."""
    mean, deviation = inception_score(probabilities, splits=config.is_splits, seed=config.seed)
    n = len(probabilities)
    whole = float(inception_scores(probabilities, np.ones((1, n), np.int64))[0])
    replicates = inception_scores(probabilities, counts) if len(counts) else np.empty(0)
    return {
        "value": mean,
        "deviation_of_splits": deviation,
        "splits": config.is_splits,
        "n": n,
        "one_split": bootstrap_estimate(whole, replicates, n, 1.0),
    }


def check_classes(labels: NDArray[np.int64], label_names: Sequence[str], what: str) -> None:
    """Raises unless every class has the two videos that a distance needs.

    Raises:
        ValueError: naming the classes.
    """
    if not label_names:
        raise ValueError("fvd_per_class needs classes; the real data has none, see data.source")
    counts = {name: int((labels == label).sum()) for label, name in enumerate(label_names)}
    lacking = [f"{name!r} has {count}" for name, count in counts.items() if count < 2]
    if lacking:
        more = f" and {len(lacking) - 5} more" if len(lacking) > 5 else ""
        raise ValueError(
            f"a distance for each class needs at least 2 {what} videos of it, and "
            f"{', '.join(lacking[:5])}{more}; raise num_videos and num_real, or leave "
            "fvd_per_class out"
        )


def per_class(
    real: FeatureSet, generated: FeatureSet, label_names: Sequence[str], features: str
) -> dict[str, Any]:
    """The Fréchet distance of each class, and their mean.

    Raises:
        ValueError: naming a class that has fewer than two videos on a side.
    """
    assert real.features is not None and generated.features is not None
    for what, side in (("real", real), ("generated", generated)):
        check_classes(side.labels, label_names, what)
    found: dict[str, Any] = {}
    for label, class_name in enumerate(label_names):
        ours = generated.features[generated.labels == label]
        theirs = real.features[real.labels == label]
        found[class_name] = {
            "metric": metric_name("FVD", min(len(ours), len(theirs)), features),
            "value": frechet_distance(GaussianStatistics.of(theirs), GaussianStatistics.of(ours)),
            "n": len(ours),
            "n_real": len(theirs),
        }
    mean = float(np.mean([each["value"] for each in found.values()]))
    return {"mean": mean, "classes": found}


def reencoding_cost(
    config: GenerationConfig,
    real: FeatureSet,
    generated: FeatureSet,
    coded: NDArray[np.float32],
    name: Callable[[str], str],
) -> dict[str, Any]:
    """The same distances once the generated videos have been through the codec."""
    statistics = GaussianStatistics(coded.shape[1])
    for start in range(0, len(coded), config.batch_size):
        statistics.add(coded[start : start + config.batch_size])
    before = frechet_distance(real.statistics, generated.statistics)
    after = frechet_distance(real.statistics, statistics)
    found = {
        "codec": config.reencode,
        name("FVD"): {"value": after, "change": after - before},
        f"{name('FVD')} to themselves before": {
            "value": frechet_distance(generated.statistics, statistics)
        },
    }
    if "kvd" in config.metrics and real.features is not None and generated.features is not None:
        after = kernel_distance(real.features, coded)
        before = kernel_distance(real.features, generated.features)
        found[name("KVD")] = {"value": after, "change": after - before}
    return found
