"""The windows of videos that are measured: one of each, or all that don't overlap.

Axes: B batch, T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from vidtwin.data import FileDataset, SkippedFile, UnusableVideo, VideoDataset
from vidtwin.data.frames import consecutive_windows
from vidtwin.data.loading import collate, worker_arguments
from vidtwin.data.readers import VideoInfo, read_video_info
from vidtwin_lab.evaluation.report import Processes, batches_of

__all__ = ["Window", "iterate_windows", "list_windows"]


@dataclass(frozen=True)
class Window:
    """One window of one video.

    Args:
        video: index in the data set.
        number: of the window in the video, from 0; None for the one that the config chooses.
    """

    video: int
    number: int | None = None


def list_windows(
    dataset: VideoDataset, which: str, processes: Processes
) -> tuple[list[Window], list[SkippedFile]]:
    """The windows of all videos in order, the same on every process.

    Args:
        dataset: of videos.
        which: "one" or "all", for which the processes share the reading of the files' lengths.
    Returns:
        The windows, and the files that can't be used.
    """
    if which == "one" or not isinstance(dataset, FileDataset):
        return [Window(index) for index in range(len(dataset))], []
    found: list[dict[str, Any]] = []
    for index in processes.share(range(len(dataset))):
        path = dataset.clips[index].path
        try:
            info = read_video_info(path, timeout=dataset.config.timeout)
        except UnusableVideo as error:
            found.append({"index": index, "skipped": (error.path, error.reason)})
        else:
            found.append({"index": index, "windows": len(windows_in(dataset, info))})
    windows: list[Window] = []
    skipped: list[SkippedFile] = []
    for row in processes.gather_sorted(found):
        if "skipped" in row:
            skipped.append(SkippedFile(*row["skipped"]))
        # The data set decides on a video without a whole window: skip it, or repeat its last frame.
        numbers = range(row.get("windows", 0)) or ([None] if "windows" in row else [])
        windows += [Window(row["index"], number) for number in numbers]
    return windows, skipped


def windows_in(dataset: FileDataset, info: VideoInfo) -> np.ndarray:
    """(W, T) frames of all whole windows of a video."""
    config = dataset.config
    return consecutive_windows(
        info.timestamps, info.duration, config.num_frames, config.fps, config.stride
    )


class WindowItems(Dataset[dict[str, Any]]):
    """The windows' samples; one that can't be read gives only the reason."""

    def __init__(self, dataset: VideoDataset, windows: Sequence[Window]) -> None:
        self.dataset = dataset
        self.windows = windows

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, place: int) -> dict[str, Any]:
        window = self.windows[place]
        try:
            sample = self._read(window)
        except UnusableVideo as error:
            return {"skipped": [SkippedFile(error.path, error.reason)]}
        # What a loader's batch calls the clip's index is here the place in the list of windows.
        return {**sample, "index": place, "noise_seed": 0, "skipped": []}

    def _read(self, window: Window) -> dict[str, Any]:
        dataset, number = self.dataset, window.number
        if number is None:
            return dataset.get(window.video)
        assert isinstance(dataset, FileDataset)

        def choose(info: VideoInfo) -> np.ndarray:
            windows = windows_in(dataset, info)
            if number >= len(windows):
                # Decoding found fewer frames than the packets promised.
                raise UnusableVideo(info.path, f"window {number} of {len(windows)} can't be read")
            return windows[number]

        return dataset.read(window.video, choose)


def collate_windows(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A batch as `vidtwin.data.loading.collate` makes it, and the backends in "backend"."""
    backends = [sample.get("backend") for sample in samples if "video" in sample]
    return {**collate(samples), "backend": backends}


def iterate_windows(
    dataset: VideoDataset,
    windows: Sequence[Window],
    batch_size: int,
    processes: Processes,
    num_workers: int = 0,
) -> Iterator[dict[str, Any]]:
    """This process' share of the batches of consecutive windows.

    Args:
        dataset: whose windows were listed.
        windows: the same list on every process.
        batch_size: windows in a batch.
        num_workers: processes that read; 0 reads in this one.
    Returns:
        Batches, see `vidtwin.data.loading.collate`; "index" is the place in `windows`. Windows
        that can't be read are left out and named in "skipped"; without any other there is no
        "video".
    """
    batches = [list(batch) for batch in processes.share(batches_of(len(windows), batch_size))]
    loader: DataLoader[dict[str, Any]] = DataLoader(
        WindowItems(dataset, windows),
        batch_sampler=batches,
        collate_fn=collate_windows,
        **worker_arguments(num_workers),
    )
    iterator = iter(loader)
    try:
        yield from iterator
    finally:
        # Ends the workers at once: an error's traceback would keep them for ten seconds.
        del iterator
