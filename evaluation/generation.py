"""How far generated videos are from real ones: FVD, KVD, inception score, FVD of each class.

    python evaluate.py generation --config configs/evaluation/generation.yaml \
        generated.path=checkpoints/shapes features.path=i3d_torchscript.pt

Two figures can be compared only if everything in their protocol is the same. A named protocol is
therefore not a preset that fills in keys, but a list to compare with: the report says which keys
differ from it.

Axes: B videos of a batch, T frames, H W pixels, N videos of a side, D features, R resamples.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from evaluation.codec import (
    CodecConfig,
    check_encoder,
    decode_h264,
    encode_h264,
    formats_for,
)
from evaluation.features import (
    TORCHSCRIPT,
    FeatureExtractor,
    FeaturesConfig,
    check_finite,
    features_name,
    load_features,
)
from evaluation.report import (
    COLORS,
    Processes,
    Report,
    merge_skipped,
    new_figure,
    rounded,
    save_figure,
    software_protocol,
)
from evaluation.statistics import (
    Estimate,
    FeatureSet,
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
from evaluation.videos import (
    DataVideos,
    Video,
    VideosConfig,
    VideoSource,
    build_generated,
    build_real,
    check_number,
    iterate_videos,
    model_sizes,
)
from vidtwin.data import DataConfig
from vidtwin.media import from_uint8, to_uint8

METRICS = ("fvd", "kvd", "is", "fvd_per_class")
REAL_SIDE, GENERATED_SIDE = 0, 1


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """One comparison of generated with real videos.

    Args:
        output: folder of the report.
        data: the real videos; sizes that are left at their defaults follow the pipeline's.
        generated: the videos that are measured.
        features: of FVD and KVD.
        classifier: gives the class probabilities of the inception score; None takes `features`.
        metrics: of "fvd", "kvd", "is" and "fvd_per_class".
        num_videos: generated videos.
        num_real: real videos; null for all that the data set has.
        allow_few: accept fewer than 2,048, and write n into the names: FVD@512.
        protocol: name of a published protocol to compare with, see `PROTOCOLS`.
        batch_size: videos at once, on each process.
        threads: that read files, in each process.
        seed: of the choice of real clips and of the resamples.
        bootstrap: resamples for intervals; 0 for none.
        kvd_subset_size: None measures KVD on all pairs; else KID's habit, its mean over
            `kvd_subsets` random subsets of that many.
        kvd_subsets: how many.
        is_splits: parts of the inception score.
        eight_bit: round values to 8 bits before they are measured, as most published codes do.
        reencode: also measure the generated videos after a codec, "h264@23": H.264 at that CRF.
        cache: folder for features and statistics of real videos; null for none.
    """

    output: str = "outputs/evaluation/generation"
    data: DataConfig = DataConfig()
    generated: VideosConfig = field(default_factory=lambda: VideosConfig(path="checkpoints/shapes"))
    features: FeaturesConfig = FeaturesConfig()
    classifier: FeaturesConfig | None = None
    metrics: tuple[str, ...] = ("fvd", "kvd")
    num_videos: int = 2048
    num_real: int | None = 2048
    allow_few: bool = False
    protocol: str | None = None
    batch_size: int = 16
    threads: int = 2
    seed: int = 0
    bootstrap: int = 100
    kvd_subset_size: int | None = None
    kvd_subsets: int = 100
    is_splits: int = 10
    eight_bit: bool = False
    reencode: str | None = None
    cache: str | None = "outputs/evaluation/real_statistics"

    def __post_init__(self) -> None:
        unknown = [name for name in self.metrics if name not in METRICS]
        if unknown or not self.metrics:
            raise ValueError(
                f"metrics must be some of {', '.join(METRICS)}; got {list(self.metrics)}"
            )
        for name in ("num_videos", "num_real", "batch_size", "threads", "is_splits", "kvd_subsets"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.seed < 0 or self.bootstrap < 0:
            raise ValueError(
                f"seed and bootstrap must not be negative, got {self.seed} and {self.bootstrap}"
            )
        if self.protocol is not None and self.protocol not in PROTOCOLS:
            raise ValueError(
                f"protocol must be one of {', '.join(PROTOCOLS)} or null, got {self.protocol!r}"
            )
        if self.features.name == "c3d":
            raise ValueError(
                "c3d gives class probabilities alone: set classifier.name=c3d for the inception "
                "score, and features.name to i3d, videomae or MODULE:FUNCTION"
            )
        if self.features.name == "i3d" and self.classifier is None and "is" in self.metrics:
            raise ValueError(
                "an inception score needs classes: set classifier.name=c3d (UCF-101's protocol), "
                "or a VideoMAE classifier or MODULE:FUNCTION that gives probabilities"
            )
        crf_of(self.reencode)

    @property
    def keeps_features(self) -> bool:
        """Whether features of all videos are held: a Fréchet distance alone needs no memory."""
        return self.metrics != ("fvd",) or self.bootstrap > 0


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How published figures were measured.

    Args:
        about: what it is and where it comes from.
        wants: key of `GenerationConfig` -> value.
        notes: what remains different even where all keys agree.
    """

    about: str
    wants: Mapping[str, Any]
    notes: tuple[str, ...] = ()


_UCF101: dict[str, Any] = {
    "data.source": "ucf101",
    "data.num_frames": 16,
    "data.stride": 1,
    "data.start": "random",
    "data.resize": "cover",
    "data.crop": "center",
    "data.flip": False,
    "features.name": "i3d",
    "eight_bit": True,
}
PROTOCOLS = {
    "ucf101-tats": Protocol(
        about="UCF-101, FVD and KVD of TATS (Ge et al. 2022) and its code: 2,048 samples, the "
        "classes in turn, against 2,048 clips of the train list, 16 frames, 128x128",
        wants=_UCF101
        | {
            "data.part": "train",
            "data.split": 1,
            "data.height": 128,
            "data.width": 128,
            "num_videos": 2048,
            "num_real": 2048,
            "generated.class_distribution": "balanced",
            "kvd_subset_size": None,
        },
        notes=(
            "its real clips are drawn among all windows of all videos, so long videos count more; "
            "here each video gives one random window",
            "its samples are truncated to 8 bits, ours rounded",
            "its I3D weights are another conversion of the same network",
        ),
    ),
    "ucf101-stylegan-v": Protocol(
        about="UCF-101, fvd2048_16f of StyleGAN-V (Skorokhodov et al. 2022) and its code: 2,048 "
        "samples without classes against 2,048 clips of the train and test lists, one random "
        "window of each video, 256x256",
        wants=_UCF101
        | {
            "data.part": "all",
            "data.height": 256,
            "data.width": 256,
            "num_videos": 2048,
            "num_real": 2048,
            "generated.conditions": "none",
        },
        notes=("its resize to 224x224 is done inside the TorchScript file",),
    ),
    "ucf101-10000": Protocol(
        about="UCF-101 with 10,000 samples, as quoted for inception scores (Saito et al. 2020) and "
        "by newer papers for FVD; all clips of the train list, 16 frames",
        wants=_UCF101
        | {
            "data.part": "train",
            "data.split": 1,
            "num_videos": 10000,
            "num_real": None,
            "is_splits": 10,
            "classifier.name": "c3d",
        },
        notes=(
            "papers that quote 10,000 differ in resolution and in how real clips are drawn, and "
            "many do not say; an FVD of 10,000 is lower than one of 2,048 for the same model",
        ),
    ),
}


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


def compared(config: GenerationConfig) -> dict[str, Any] | None:
    """The named protocol, and each key in which the config differs from it."""
    if config.protocol is None:
        return None
    protocol, differences = PROTOCOLS[config.protocol], []
    for key, wanted in protocol.wants.items():
        value: Any = config
        for part in key.split("."):
            value = getattr(value, part, None)
        if value != wanted:
            differences.append(f"{key} is {value}, the protocol has {wanted}")
    return {
        "name": config.protocol,
        "about": protocol.about,
        "differences": differences,
        "notes": list(protocol.notes),
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


@dataclass(frozen=True)
class Networks:
    """What is done to the videos of a batch.

    Args:
        features: makes the features.
        classifier: makes class probabilities; None for none.
        eight_bit: round values first.
        crf: also measure videos after H.264 at this quality; None for no.
    """

    features: FeatureExtractor
    classifier: FeatureExtractor | None = None
    eight_bit: bool = False
    crf: int | None = None

    def __call__(self, videos: Sequence[Video]) -> list[dict[str, Any]]:
        """A row for each video, with its features."""
        frames = torch.stack([video.frames for video in videos])
        outputs = {"features": self._features(frames)}
        if self.classifier is not None:
            shown = eight_bit(frames) if self.eight_bit else frames
            probabilities = self.classifier.both(shown)[1]
            if probabilities is None:
                raise ValueError(f"{self.classifier.name} gave no class probabilities")
            outputs["probabilities"] = probabilities.cpu().numpy()
        if self.crf is not None:
            coded = [reencoded(video.frames, video.fps or 25.0, self.crf) for video in videos]
            outputs["reencoded"] = self._features(torch.stack(coded))
        return [
            {"index": video.index, "name": video.name, "label": video.label, "asked": video.asked}
            | {name: values[place] for name, values in outputs.items()}
            for place, video in enumerate(videos)
        ]

    def _features(self, frames: torch.Tensor) -> NDArray[np.float32]:
        values = self.features(eight_bit(frames) if self.eight_bit else frames).cpu()
        # A network may make numbers of a NaN; the rows are checked where all processes see them.
        values[~frames.isfinite().flatten(1).all(1)] = math.nan
        return values.numpy()


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """The measured side.

    Args:
        set: features and statistics.
        rows: of the CSV.
        probabilities: (N, K), or None.
        reencoded: (N, D) features after the codec, or None.
    """

    set: FeatureSet
    rows: list[dict[str, Any]]
    probabilities: NDArray[np.float32] | None
    reencoded: NDArray[np.float32] | None


def collect(
    source: VideoSource,
    number: int | None,
    config: GenerationConfig,
    processes: Processes,
    networks: Networks,
    what: str,
) -> Sampled:
    """The features of one side, on every process."""
    statistics: GaussianStatistics | None = None
    kept: dict[str, list[NDArray[np.float32]]] = {}
    rows: list[dict[str, Any]] = []
    skipped: list[tuple[str, str]] = []
    batches = iterate_videos(source, number, config.batch_size, processes, networks, what)
    for found, bad in batches:
        skipped += [(file.path, file.reason) for file in bad]
        if not found:
            continue
        names = [f"{what} video {row['index']} ({row['name']})" for row in found]
        for key in ("features", "probabilities", "reencoded"):
            if key in found[0]:
                block = np.stack([row.pop(key) for row in found])
                check_finite(torch.from_numpy(block), names, key)
                if key == "features":
                    statistics = statistics or GaussianStatistics(block.shape[1])
                    statistics.add(block)
                if key != "features" or config.keeps_features:
                    kept.setdefault(key, []).append(block)
        rows += found
    assert statistics is not None
    joined = {key: np.concatenate(blocks) for key, blocks in kept.items()}
    features = FeatureSet(
        statistics=statistics,
        features=joined.get("features"),
        labels=np.array([row["label"] for row in rows], np.int64),
        names=tuple(row["name"] for row in rows),
        skipped=tuple(skipped),
    )
    return Sampled(
        set=features,
        rows=rows,
        probabilities=joined.get("probabilities"),
        reencoded=joined.get("reencoded"),
    )


def real_features(
    config: GenerationConfig, real: DataVideos, extractor: FeatureExtractor, processes: Processes
) -> FeatureSet:
    """The real side, from the cache if the very same was measured before."""
    key = {
        **real.identity(),
        "features": extractor.protocol(),
        "n": config.num_real,
        "batch_size": config.batch_size,
        "eight_bit": config.eight_bit,
        "kept": config.keeps_features,
        "device": processes.device.type,
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    path = None if config.cache is None else Path(config.cache) / f"{digest}.safetensors"
    # A process that does not see the file would leave the others waiting for its share.
    if path is not None and all(processes.gather([path.is_file()])):
        return FeatureSet.load(path)
    networks = Networks(extractor, eight_bit=config.eight_bit)
    found = collect(real, config.num_real, config, processes, networks, "real").set
    if path is not None and processes.main:
        found.save(path)
    return found


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
        found[name("FVD")] = bootstrap_estimate(value, replicates, n, 0.0).found()
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
    return bootstrap_estimate(value, replicates, n, None).found()


def score_estimate(
    config: GenerationConfig, probabilities: NDArray[np.float32], counts: NDArray[np.int64]
) -> dict[str, Any]:
    """The inception score with the deviation of its parts and, of all videos as one part, the
    interval."""
    mean, deviation = inception_score(probabilities, splits=config.is_splits, seed=config.seed)
    n = len(probabilities)
    whole = float(inception_scores(probabilities, np.ones((1, n), np.int64))[0])
    replicates = inception_scores(probabilities, counts) if len(counts) else np.empty(0)
    estimate: Estimate = bootstrap_estimate(whole, replicates, n, 1.0)
    return {
        "value": mean,
        "deviation_of_splits": deviation,
        "splits": config.is_splits,
        "n": n,
        "one_split": estimate.found(),
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


def crf_of(reencode: str | None) -> int | None:
    """The CRF of "h264@23".

    Raises:
        ValueError: for something else.
    """
    if reencode is None:
        return None
    codec, _, quality = reencode.partition("@")
    if codec != "h264" or not quality.isdecimal() or int(quality) > 51:
        raise ValueError(
            f"reencode must be h264@CRF with a CRF from 0 to 51, such as h264@23; got {reencode!r}"
        )
    check_encoder()
    return int(quality)


def reencoded(frames: torch.Tensor, fps: float, crf: int) -> torch.Tensor:
    """(3, T, H, W) frames in [-1, 1] as they come back from H.264, by x264's defaults."""
    usual = CodecConfig(pixel_formats=("yuv420p",))  # as video files are, if the size allows it
    pixel_format = formats_for(usual, *frames.shape[-2:])[0]
    stream = encode_h264(to_uint8(frames), fps, crf, pixel_format, tune=None)
    return from_uint8(decode_h264(stream))


def eight_bit(frames: torch.Tensor) -> torch.Tensor:
    """Values in [-1, 1] at the nearest of 256 levels."""
    return ((frames.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


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
        text = f"{value['value']:.4g}"
        if "low" in value:
            text += f" ({value['low']:.4g} to {value['high']:.4g})"
        elif "deviation_of_splits" in value:
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
