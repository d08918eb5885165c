"""From a config to a report: both sides, the networks, the work of this process, the protocol."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vidtwin_lab.evaluation.codec import crf_of
from vidtwin_lab.evaluation.features import (
    TORCHSCRIPT,
    FeatureExtractor,
    features_name,
    load_features,
)
from vidtwin_lab.evaluation.generation.collecting import Networks, collect, real_features
from vidtwin_lab.evaluation.generation.comparing import check_classes, compute
from vidtwin_lab.evaluation.generation.config import GenerationConfig
from vidtwin_lab.evaluation.generation.protocols import compared
from vidtwin_lab.evaluation.generation.showing import drawer, markdown_row, table
from vidtwin_lab.evaluation.report import Processes, Report, merge_skipped, software_protocol
from vidtwin_lab.evaluation.statistics import check_enough, metric_name
from vidtwin_lab.evaluation.videos import (
    DataVideos,
    build_generated,
    build_real,
    check_number,
    model_sizes,
)

__all__ = ["describe", "measure"]


def describe(config: GenerationConfig) -> dict[str, Any]:
    """What would be measured, without a model; files that aren't here are named in "missing".

    A command for another machine can so be looked at before its data and networks are there.

    Raises:
        ValueError: for what can't be measured with any files.
    """
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
        if path is not None and not may_be_hub and not Path(path).expanduser().exists():
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
    networks = Networks(features, classifier, config.eight_bit, crf_of(config.reencode))
    real_set = real_features(config, real, features, processes)
    sampled = collect(source, config.num_videos, config, processes, networks, "generated")
    found = compute(config, real_set, sampled, real.label_names, classifier, processes)
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


def prepared(config: GenerationConfig) -> tuple[GenerationConfig, DataVideos, int]:
    """The config with all sizes in it, the real videos, and how many of them are wanted.

    Raises:
        ValueError: for numbers of videos that don't do for what is to be measured.
    """
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
        "seed": config.seed,
        "batch_size": config.batch_size,
        "allow_few": config.allow_few,
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
    """The networks of features and classes; the main process first, which may download."""

    def load() -> tuple[FeatureExtractor, FeatureExtractor | None]:
        features = load_features(config.features, processes.device)
        if "is" not in config.metrics:
            return features, None
        if config.classifier is None:
            return features, features
        return features, load_features(config.classifier, processes.device)

    loaded = load() if processes.main else None
    processes.gather([])  # the others wait here
    features, classifier = loaded or load()
    if classifier is not None and not classifier.probabilities:
        raise ValueError(
            f"an inception score needs class probabilities, and {classifier.name} gives none; "
            "set classifier.name=c3d, or a network whose attribute `probabilities` is true"
        )
    return features, classifier
