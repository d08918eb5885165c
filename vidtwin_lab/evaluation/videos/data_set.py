"""The clips of a data set."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from vidtwin.data import (
    DataConfig,
    FileDataset,
    SkippedFile,
    UnusableVideo,
    VideoDataset,
    build_dataset,
)
from vidtwin.data.readers import read_video_info
from vidtwin.reconstruction import software_versions
from vidtwin_lab.evaluation.report import data_protocol
from vidtwin_lab.evaluation.videos.sources import Video, VideoSource

__all__ = ["DataVideos"]


class DataVideos(VideoSource):
    """Clips of a data set, in a random order: any first n of them are a fair choice.

    Args:
        config: of the data set, sizes included.
        seed: of the order.
        shuffled: False keeps the order of the paths.
        threads: that read.
        exact_size: whether files must have the size already.
    """

    def __init__(
        self,
        config: DataConfig,
        seed: int = 0,
        *,
        shuffled: bool = True,
        threads: int = 1,
        exact_size: bool = False,
    ) -> None:
        self.dataset: VideoDataset = build_dataset(config)
        size = len(self.dataset)
        sizes = (config.num_frames, config.height, config.width)
        super().__init__(size, sizes, self.dataset.label_names, self.dataset.bad_file_log)
        rng = np.random.default_rng([seed, 1])
        self.order = rng.permutation(size) if shuffled else np.arange(size)
        self.config, self.seed, self.shuffled = config, seed, shuffled
        self.threads, self.exact_size = threads, exact_size

    def load(self, indices: Sequence[int]) -> list[Video | SkippedFile]:
        """The clips of one batch, read by some threads; what can't be used is named instead."""
        with ThreadPoolExecutor(self.threads) as pool:
            return list(pool.map(self._load, indices))

    def _load(self, index: int) -> Video | SkippedFile:
        try:
            clip = int(self.order[index])
            if self.exact_size and isinstance(self.dataset, FileDataset):
                self._check_size(self.dataset.clips[clip].path)
            sample = self.dataset.get(clip)
        except UnusableVideo as error:
            return SkippedFile(error.path, error.reason)
        return Video(
            index=index,
            name=str(sample["path"]),
            frames=sample["video"],
            fps=float(sample["fps"]),
            label=int(sample["label"]),
            asked=str(sample["caption"]),
        )

    def _check_size(self, path: str) -> None:
        info = read_video_info(path, timeout=self.config.timeout)
        if (info.height, info.width) != self.sizes[1:]:
            raise ValueError(
                f"{path} has {info.height}x{info.width} pixels, the real videos are measured at "
                f"{self.sizes[1]}x{self.sizes[2]}; set data.height and data.width to the size of "
                "the samples, or name the folder as generated.kind=data to have it resized"
            )

    def known_labels(self, number: int) -> list[int] | None:
        """Those that the list of files tells; None for clips that are drawn."""
        if not isinstance(self.dataset, FileDataset):
            return None
        return [self.dataset.clips[clip].label for clip in self.order[:number]]

    def labels(self, number: int) -> list[int]:
        """The classes of the first videos; files are not read for it."""
        known = self.known_labels(number)
        if known is not None:
            return known
        return [int(self.dataset.get(int(clip))["label"]) for clip in self.order[:number]]

    def caption(self, index: int) -> str:
        """The caption of a video, without reading it."""
        return self.dataset.captions(int(self.order[index]), 1)[0]

    def protocol(self, n: int) -> dict[str, Any]:
        """How the data set is read, and which of its clips were chosen."""
        chosen = f"random order of seed {self.seed}" if self.shuffled else "order of the paths"
        return {
            "kind": "data",
            **data_protocol(self.config, n),
            "clips": self.number,
            "chosen": f"the first {n} that can be used, in {chosen}",
        }

    def identity(self) -> dict[str, Any]:
        """What the videos depend on, for the cache."""
        files: list[tuple[str, int | None]] = []  # and labels
        if isinstance(self.dataset, FileDataset):
            files = [(clip.path, clip.label) for clip in self.dataset.clips]
        elif self.config.path is not None:  # the sheets that Sprites are drawn from
            files = [(str(sheet), None) for sheet in sorted(Path(self.config.path).rglob("*.png"))]
        digest = hashlib.sha256()
        for name, label in files:
            # A file that was exchanged under the same name makes other statistics.
            state = Path(name).stat() if Path(name).exists() else None
            version = (state.st_size, state.st_mtime_ns) if state else None
            digest.update(repr((name, label, version)).encode())
        return {
            "data": repr(self.config),
            "seed": self.seed,
            "files": digest.hexdigest(),
            "software": software_versions(),
        }
