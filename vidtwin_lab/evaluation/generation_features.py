"""The features of both sides, batch by batch; those of real videos are cached in a file.

Axes: T frames, H W pixels, N videos of a side, D features, K classes.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from vidtwin.files import written_whole
from vidtwin.media import eight_bit
from vidtwin.metrics import blockiness
from vidtwin_lab.evaluation.codec import reencoded
from vidtwin_lab.evaluation.features import FeatureExtractor, check_finite
from vidtwin_lab.evaluation.measurement_configs import GenerationConfig
from vidtwin_lab.evaluation.report import Processes
from vidtwin_lab.evaluation.statistics import GaussianStatistics
from vidtwin_lab.evaluation.videos import DataVideos, Video, VideoSource, iterate_videos

__all__ = ["FeatureSet", "Networks", "Sampled", "collect", "real_features"]


@dataclass(frozen=True, kw_only=True)
class FeatureSet:
    """What is known of one side's videos once they have been seen; saved without pickle.

    Args:
        statistics: of all videos.
        features: (N, D) float32, or None where they were not kept.
        labels: (N,) int64 class of each video, -1 for none.
        names: of the videos.
        skipped: (path, reason) of those that could not be used.
    """

    statistics: GaussianStatistics
    features: NDArray[np.float32] | None
    labels: NDArray[np.int64]
    names: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...] = ()

    def save(self, path: Path) -> None:
        """Writes a safetensors file, whole or not at all."""
        tensors: dict[str, NDArray[Any]] = {
            "count": np.array([self.statistics.count]),
            "mean": self.statistics.mean,
            "scatter": self.statistics.scatter,
            "labels": self.labels,
            "names": _bytes_of(self.names),
            "skipped": _bytes_of(text for pair in self.skipped for text in pair),
        }
        if self.features is not None:
            tensors["features"] = self.features
        with written_whole(path) as partial:
            save_file({name: np.ascontiguousarray(t) for name, t in tensors.items()}, str(partial))

    @staticmethod
    def load(path: Path) -> FeatureSet:
        """What `save` wrote.

        Raises:
            ValueError: if the file is something else.
        """
        try:
            with safe_open(str(path), framework="numpy") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            statistics = GaussianStatistics(len(tensors["mean"]))
            statistics.count = int(tensors["count"][0])
            statistics.mean, statistics.scatter = tensors["mean"], tensors["scatter"]
            skipped = _texts_of(tensors["skipped"])
            return FeatureSet(
                statistics=statistics,
                features=tensors.get("features"),
                labels=tensors["labels"],
                names=_texts_of(tensors["names"]),
                skipped=tuple(zip(skipped[::2], skipped[1::2], strict=True)),
            )
        except (SafetensorError, KeyError) as error:
            raise ValueError(
                f"{path} holds no saved statistics ({error}); remove it and they are made anew"
            ) from error


def _bytes_of(texts: Iterable[str]) -> NDArray[np.uint8]:
    """Texts as one array of UTF-8, each ended by a zero byte."""
    joined = b"".join(text.replace("\0", "").encode() + b"\0" for text in texts)
    return np.frombuffer(joined, np.uint8)


def _texts_of(content: NDArray[np.uint8]) -> tuple[str, ...]:
    return tuple(part.decode() for part in content.tobytes().split(b"\0")[:-1])


@dataclass(frozen=True)
class Networks:
    """What is done to the videos of a batch.

    Args:
        features: makes the features.
        classifier: makes class probabilities; None for none.
        eight_bit: round values first.
        crf: also measure videos after H.264 at this quality; None for no.
        patch_size: also measure the seams between patches of this size; None for no.
    """

    features: FeatureExtractor
    classifier: FeatureExtractor | None = None
    eight_bit: bool = False
    crf: int | None = None
    patch_size: tuple[int, int] | None = None

    def __call__(self, videos: Sequence[Video]) -> list[dict[str, Any]]:
        """A row for each video, with its features."""
        frames = torch.stack([video.frames for video in videos])
        outputs: dict[str, Any] = {"features": self._features(frames)}
        if self.patch_size is not None:
            outputs["blockiness"] = blockiness(frames, self.patch_size).tolist()
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
