"""Videos by index, and the walk over them that any number of processes shares.

Axes: T frames, H W pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from tqdm import tqdm

from vidtwin.data import BadFileLog, SkippedFile
from vidtwin_lab.evaluation.report import Processes, batches_of
from vidtwin_lab.evaluation.videos.config import Sizes

__all__ = ["Video", "VideoSource", "check_number", "iterate_videos"]


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
    """

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
