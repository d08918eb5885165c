"""How far generated videos are from real ones: FVD, KVD, inception score, FVD of each class.

    python evaluate.py generation --config configs/evaluation/generation.yaml \\
        generated.path=checkpoints/shapes features.path=i3d_torchscript.pt

generation_features computes the features of both sides, generation_distances the numbers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vidtwin.files import shipped_path
from vidtwin_lab.evaluation.codec import check_encoder
from vidtwin_lab.evaluation.config import TORCHSCRIPT, crf_of, model_sizes
from vidtwin_lab.evaluation.features import FeatureExtractor, features_name, load_features
from vidtwin_lab.evaluation.generated_videos import build_generated, build_real
from vidtwin_lab.evaluation.generation_distances import check_classes, compute
from vidtwin_lab.evaluation.generation_features import (
    FeatureSet,
    Networks,
    Sampled,
    collect,
    real_features,
)
from vidtwin_lab.evaluation.generation_protocols import compared
from vidtwin_lab.evaluation.intervals import interval_text, mean_interval
from vidtwin_lab.evaluation.measurement_configs import GenerationConfig
from vidtwin_lab.evaluation.report import (
    COLORS,
    Processes,
    Report,
    fields_of,
    merge_skipped,
    new_figure,
    rounded,
    save_figure,
    software_protocol,
)
from vidtwin_lab.evaluation.statistics import check_enough, metric_name
from vidtwin_lab.evaluation.videos import DataVideos, check_number

logger = logging.getLogger(__name__)

__all__ = ["describe", "drawer", "markdown_row", "measure", "table"]


def describe(config: GenerationConfig) -> dict[str, Any]:
    """What would be measured, without a model; files that aren't here are named in "missing".

    A command for another machine can so be looked at before its data and networks are there.

    Raises:
        ValueError: for what can't be measured with any files.
    """
    if config.reencode is not None:
        check_encoder()
    missing = missing_files(config)
    check_enough(config.num_videos, "generated", config.allow_few)
    real: dict[str, Any] = {"clips": "unknown", "n": config.num_real, "classes": "unknown"}
    fewest = min(config.num_videos, config.num_real or config.num_videos)
    if not any(line.startswith("data.path") for line in missing):
        config, videos, num_real = prepared(config)
        real = {"clips": len(videos), "n": num_real, "classes": len(videos.label_names)}
        fewest = min(config.num_videos, num_real)
    names = [
        metric_name(name.upper(), fewest, features_name(config.features))
        for name in config.metrics
        if name != "is"
    ]
    return {
        "metrics": names + ["IS"] * ("is" in config.metrics),
        "real": real,
        "generated": {"kind": config.generated.kind, "n": config.num_videos},
        "video": [config.data.num_frames, config.data.height, config.data.width],
        "features": config.features.name,
        "batches": -(-config.num_videos // config.batch_size),
        "kept_features": config.keeps_features,
        "protocol": compared(config),
        "missing": missing,
    }


def missing_files(config: GenerationConfig) -> list[str]:
    """What the config names and isn't here, and how to get it."""
    missing = []
    for features in filter(None, (config.features, config.classifier)):
        if features.name in TORCHSCRIPT and not features.download:
            try:
                load_features(features)
            except ValueError as error:
                missing.append(str(error))
    named = {"generated.path": config.generated.path}
    if config.data.source != "glob":
        named["data.path"] = config.data.path
    for key, path in named.items():
        # A name with one slash may be a pipeline of the hub.
        may_be_hub = key == "generated.path" and path is not None and path.count("/") == 1
        if path is not None and not may_be_hub and not shipped_path(path).exists():
            missing.append(f"{key}={path} is not there")
    return missing


def measure(config: GenerationConfig, processes: Processes | None = None) -> Report:
    """Compares generated with real videos.

    Args:
        config: what with what.
        processes: that share the work.
    Returns:
        Report: the same on every process.
    Raises:
        ValueError: for too few videos, unequal sizes, an empty class, features that are not
            finite or not there.
        TooManyBadFiles: if more files can't be used than `data.max_bad_fraction` allows.
    """
    processes = processes or Processes()
    config, real, num_real = prepared(config)
    features, classifier = load_networks(config, processes)
    source = build_generated(
        config.generated, real, config.num_videos, processes.device, config.threads
    )
    check_number(source, config.num_videos, "generated")
    if "fvd_per_class" in config.metrics:  # now, not after hours of sampling
        for what, side, number in (
            ("real", real, num_real),
            ("generated", source, config.num_videos),
        ):
            labels = side.known_labels(number)
            if labels is not None:
                check_classes(np.array(labels), real.label_names, what)
    patch = source.patch_size
    if patch is not None and not all(map(seams_of, patch, source.sizes[1:])):
        patch = None
    networks = Networks(features, classifier, config.eight_bit, crf_of(config.reencode), patch)
    real_set = real_features(config, real, features, processes)
    sampled = collect(source, config.num_videos, config, processes, networks, "generated")
    found = compute(config, real_set, sampled, real.label_names, classifier, processes)
    if patch is not None:
        found["blockiness"] = mean_interval([row["blockiness"] for row in sampled.rows])
    protocol = {
        "metric": [name for name in found if name not in ("by_number", "reencoded")],
        **software_protocol(processes),
        "real": real.protocol(real_set.statistics.count),
        "generated": source.protocol(sampled.set.statistics.count),
        "features": features.protocol() | {"size": features.size},
        "classifier": classifier.protocol() if classifier and "is" in config.metrics else None,
        "values": "clipped to [-1, 1], "
        + ("rounded to 8 bits" if config.eight_bit else "not rounded to 8 bits"),
        "posterior": "mode: nothing is encoded",
        **options_of(config),
        "compared_with": compared(config),
    }
    return Report(
        name="generation",
        protocol=protocol,
        found=found,
        rows=table(real_set, sampled),
        skipped=merge_skipped((*real_set.skipped, *sampled.set.skipped)),
        markdown=markdown_row(config, found),
        draw=drawer(real_set, sampled.set, found),
    )


def seams_of(patch: int, side: int) -> bool:
    """Whether patches of this size leave seams along a side: several of them, with an inside."""
    return 2 <= patch < side


def prepared(config: GenerationConfig) -> tuple[GenerationConfig, DataVideos, int]:
    """The config with all sizes in it, the real videos, and how many of them are wanted.

    Raises:
        ValueError: for numbers of videos that don't do for what is to be measured.
    """
    if config.reencode is not None:
        check_encoder()
    config = resolved(config)
    check_enough(config.num_videos, "generated", config.allow_few)
    real = build_real(config.data, config.seed, config.threads)
    num_real = check_number(real, config.num_real, "real")
    check_enough(num_real, "real", config.allow_few)
    fewest, subset = min(config.num_videos, num_real), config.kvd_subset_size
    if "kvd" in config.metrics and subset is not None and not 2 <= subset <= fewest:
        raise ValueError(
            f"kvd_subset_size must be from 2 to the {fewest} videos, or null for all pairs; "
            f"got {subset}"
        )
    if "is" in config.metrics and config.is_splits > config.num_videos:
        raise ValueError(
            f"is_splits must be at most the {config.num_videos} videos, got {config.is_splits}"
        )
    return config, real, num_real


def resolved(config: GenerationConfig) -> GenerationConfig:
    """The config with the sizes of the pipeline or decoder in its data."""
    sizes = model_sizes(config.generated)
    data = config.data if sizes is None else config.data.sized(*sizes)
    generated = config.generated
    if generated.data is not None:
        same = generated.data.sized(data.num_frames, data.height, data.width)
        generated = replace(generated, data=same)
    return replace(config, data=data, generated=generated)


def options_of(config: GenerationConfig) -> dict[str, Any]:
    """The choices of each metric, in words where the numbers alone would not say it."""
    pairs = "all pairs"
    if config.kvd_subset_size is not None:
        pairs = f"mean over {config.kvd_subsets} subsets of {config.kvd_subset_size}"
    return {
        **fields_of(config, "seed", "batch_size", "allow_few"),
        "kvd": f"(x.y / D + 1)^3, unbiased, {pairs}" if "kvd" in config.metrics else None,
        "is": {"splits": config.is_splits} if "is" in config.metrics else None,
        "bootstrap": {
            "resamples": config.bootstrap,
            "of": "the videos of both sides",
            "interval": "95 %, of the value at this n, see docs/evaluation.md",
        }
        if config.bootstrap
        else None,
        "reencode": config.reencode,
    }


def load_networks(
    config: GenerationConfig, processes: Processes
) -> tuple[FeatureExtractor, FeatureExtractor | None]:
    """The networks of features and classes."""

    def load() -> tuple[FeatureExtractor, FeatureExtractor | None]:
        features = load_features(config.features, processes.device)
        if "is" not in config.metrics:
            return features, None
        if config.classifier is None:
            return features, features
        return features, load_features(config.classifier, processes.device)

    features, classifier = processes.main_first(load)
    if features.about and processes.main:
        logger.warning("the distances are by %s: %s", features.name, features.about)
    if classifier is not None and not classifier.probabilities:
        raise ValueError(
            f"an inception score needs class probabilities, and {classifier.name} gives none; "
            "set classifier.name=c3d, or a network whose attribute `probabilities` is true"
        )
    return features, classifier


def table(real: FeatureSet, sampled: Sampled) -> list[dict[str, Any]]:
    """The CSV: a line for each generated video, with the real one nearest to it in features.

    A model that repeats what it was trained on stands out by tiny distances.
    """
    rows = [dict(row) for row in sampled.rows]
    if real.features is None or sampled.set.features is None:
        return rows
    others = real.features.astype(np.float64)
    squares = np.square(others).sum(1)
    for row, own in zip(rows, sampled.set.features.astype(np.float64), strict=True):
        nearest = int(np.argmin(squares - 2 * others @ own))
        row["nearest_real"] = real.names[nearest]
        row["distance"] = float(np.linalg.norm(others[nearest] - own))
    return rows


def markdown_row(config: GenerationConfig, found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """One row of a table."""
    row = [
        ("generated", f"{config.generated.kind} {config.generated.path or ''}".strip()),
        ("real", f"{config.data.source} {config.data.part}"),
        ("n", f"{config.num_videos}"),
        ("video", f"{config.data.num_frames}x{config.data.height}x{config.data.width}"),
    ]
    for name, value in found.items():
        if name in ("by_number", "reencoded"):
            continue
        if name == "FVD per class":
            row.append((name, f"{value['mean']:.4g} (mean)"))
            continue
        text = interval_text(value, ".4g")
        if "deviation_of_splits" in value:
            text += f" ± {value['deviation_of_splits']:.2g}"
        row.append((name, text))
    return row


def drawer(
    real: FeatureSet, generated: FeatureSet, found: Mapping[str, Any]
) -> Callable[[Path], None] | None:
    """Draws the distance by the number of videos, and both sets on their first two axes."""
    if real.features is None or generated.features is None or not found.get("by_number"):
        return None
    steps = rounded(found["by_number"])
    mean = real.statistics.mean
    _, vectors = np.linalg.eigh(real.statistics.covariance + generated.statistics.covariance)
    axes = vectors[:, ::-1][:, :2]
    clouds = {
        "real": (real.features - mean) @ axes,
        "generated": (generated.features - mean) @ axes,
    }

    def draw(path: Path) -> None:
        figure, (left, right) = new_figure(1, 2)
        numbers = [step["n"] for step in steps]
        left.plot(numbers, [step["value"] for step in steps], "o-", color=COLORS[0])
        left.set_xlabel("videos of each side")
        left.set_ylabel("Fréchet distance")
        left.set_xscale("log", base=2)
        left.set_xticks(numbers, [str(number) for number in numbers])
        left.set_ylim(bottom=0)
        for color, (name, cloud) in zip(COLORS, clouds.items(), strict=False):
            second = cloud[:, 1] if cloud.shape[1] > 1 else np.zeros(len(cloud))
            right.scatter(cloud[:, 0], second, s=8, alpha=0.5, color=color, label=name)
        right.set_xlabel("first principal axis of the features")
        right.set_ylabel("second")
        right.legend()
        save_figure(figure, path)

    return draw
