"""The features of one side of a comparison, and the file that keeps them for the next time.

Axes: N videos, D features.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from vidtwin.files import written_whole
from vidtwin_lab.evaluation.statistics import GaussianStatistics

__all__ = ["FeatureSet"]


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
