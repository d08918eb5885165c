"""The videos that are compared, by index, and the loop over them that processes share.

Video i is the same for any number of processes: which clip, prompt, class and noise it has follows
from the config and i alone, and whole batches of consecutive indices are shared out. The sources
are a data set (here) and, in generated_videos, a folder of video files or latents, or a pipeline.

Axes: T frames, H W pixels.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from tqdm import tqdm

from vidtwin.data import (
    BadFileLog,
    DataConfig,
    FileDataset,
    SkippedFile,
    UnusableVideo,
    VideoDataset,
    build_dataset,
)
from vidtwin.data.readers import VideoInfo
from vidtwin.reconstruction import software_versions
from vidtwin_lab.evaluation.config import Sizes
from vidtwin_lab.evaluation.report import Processes, batches_of, data_protocol

__all__ = ["DataVideos", "Video", "VideoSource", "check_number", "iterate_videos"]


@dataclass(frozen=True, kw_only=True)
class Video:
    """One video of a source.

    Args:
        index: in the source's order.
        name: of its file, or what it was asked for.
        frames: (3, T, H, W) float32 on the CPU, in about [-1, 1].
        fps: frames per second.
        label: index into the source's label names, -1 for none.
        asked: prompt and class of a sample, in words.
    """

    index: int
    name: str
    frames: Tensor
    fps: float
    label: int = -1
    asked: str = ""


class VideoSource(ABC):
    """Videos by index; see `load`.

    Args:
        number: how many there may be.
        sizes: (T, H, W) of each.
        label_names: the name of each label; empty without classes.
        bad_files: counts those that can't be used, and stops at too many.
        patch_size: (rows, columns) of the patches that a model drew them from, where it is known.
    """

    patch_size: tuple[int, int] | None = None

    def __init__(
        self,
        number: int,
        sizes: Sizes,
        label_names: Sequence[str] = (),
        bad_files: BadFileLog | None = None,
    ) -> None:
        self.number, self.sizes, self.label_names = number, sizes, list(label_names)
        self.bad_files = bad_files or BadFileLog(number, 1.0)

    def __len__(self) -> int:
        return self.number

    @abstractmethod
    def load(self, indices: Sequence[int]) -> list[Video | SkippedFile]:
        """The videos of one batch, in order; what can't be used is named instead."""

    @abstractmethod
    def protocol(self, n: int) -> dict[str, Any]:
        """How the videos came about, for the report; n of them were used."""

    def known_labels(self, number: int) -> list[int] | None:
        """The classes of the first videos, where they are known without making or reading them."""
        return None


def iterate_videos(
    source: VideoSource,
    number: int | None,
    batch_size: int,
    processes: Processes,
    work: Any,
    what: str,
) -> Iterator[tuple[list[Any], list[SkippedFile]]]:
    """What `work` makes of each batch, in the order of the videos, on every process.

    Batches are of fixed consecutive indices; those of a round are shared out, one for each
    process, gathered and given in order, so that sums over them are the same for any number of
    processes.

    Args:
        number: how many usable videos to take; None for all.
        work: takes a list of `Video`, returns a picklable row for each.
        what: names the videos in errors.
    Yields:
        The rows of a batch, and the files of it that could not be used.
    Raises:
        ValueError: if there are fewer usable videos than asked for.
        TooManyBadFiles: if more files are bad than `max_bad_fraction` allows.
    """
    wanted = check_number(source, number, what)
    # Every file that is beyond the wanted ones is a reserve for those that can't be used.
    batches = batches_of(len(source), batch_size)
    done, skipped = 0, 0
    # None: a bar on a terminal, none in a file.
    silent = None if processes.main else True
    bar = tqdm(total=wanted, desc=what, unit="video", disable=silent, leave=False)
    for first in range(0, len(batches), processes.count):
        mine = batches[first + processes.rank : first + processes.rank + 1]
        results = []
        for batch in mine:
            loaded = source.load(batch)
            usable = [video for video in loaded if isinstance(video, Video)]
            bad = [file for file in loaded if isinstance(file, SkippedFile)]
            results.append((batch.start, work(usable) if usable else [], bad))
        for _, rows, bad in sorted(processes.gather(results), key=lambda result: result[0]):
            if done == wanted:
                continue
            source.bad_files.add(bad)
            skipped += len(bad)
            rows = rows[: wanted - done]
            done += len(rows)
            bar.update(len(rows))
            yield rows, bad
        if done == wanted:
            break
    bar.close()
    if done == wanted:
        return
    if number is not None:
        raise _too_few(what, wanted, done, skipped)
    if done == 0:
        raise ValueError(f"none of the {len(source)} {what} videos can be used")


def check_number(source: VideoSource, number: int | None, what: str) -> int:
    """How many videos are wanted, None for all.

    Raises:
        ValueError: if a source can't have as many.
    """
    if number is not None and number > len(source):
        raise _too_few(what, number, len(source), 0)
    return len(source) if number is None else number


def _too_few(what: str, wanted: int, found: int, skipped: int) -> ValueError:
    lost = f" ({skipped} files can't be used)" if skipped else ""
    name = "num_real" if what == "real" else "num_videos"
    return ValueError(
        f"{name} asks for {wanted} {what} videos and there are {found}{lost}; lower it to "
        f"{found}, or name more videos"
    )


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
                self._check_size(self.dataset.info(clip))
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

    def _check_size(self, info: VideoInfo) -> None:
        if (info.height, info.width) != self.sizes[1:]:
            raise ValueError(
                f"{info.path} has {info.height}x{info.width} pixels, the real videos are measured "
                f"at {self.sizes[1]}x{self.sizes[2]}; set data.height and data.width to the size "
                "of the samples, or name the folder as generated.kind=data to have it resized"
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
        # A file that was exchanged under the same name makes other statistics.
        files: list[tuple[str, int | None, object]] = []  # path, label, version
        if isinstance(self.dataset, FileDataset):
            clips = enumerate(self.dataset.clips)
            files = [(clip.path, clip.label, self.dataset.version(i)) for i, clip in clips]
        elif self.config.path is not None:  # the sheets that Sprites are drawn from
            for sheet in sorted(Path(self.config.path).rglob("*.png")):
                state = sheet.stat()
                files.append((str(sheet), None, (state.st_size, state.st_mtime_ns)))
        digest = hashlib.sha256()
        for file in files:
            digest.update(repr(file).encode())
        return {
            "data": repr(self.config),
            "seed": self.seed,
            "files": digest.hexdigest(),
            "software": software_versions(),
        }
