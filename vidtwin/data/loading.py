"""The order of the samples over epochs and ranks, and the loaders that read them.

Axes: B batch, T frames, H W pixels.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from vidtwin.data.bad_files import BadFileLog, SkippedFile, UnusableVideo
from vidtwin.data.config import PAIRED_AUGMENTATIONS
from vidtwin.data.dataset import VideoDataset, as_video_dataset

__all__ = [
    "GlobalBatchSampler",
    "VideoLoader",
    "build_evaluation_loader",
    "build_loader",
    "collate",
    "iterate_variants",
    "worker_arguments",
]


class GlobalBatchSampler(Sampler[list[tuple[int, int]]]):
    """This rank's share of an endless stream of global batches.

    The stream is one permutation of the data set after another, a batch may reach from one epoch
    into the next, and every rank takes its contiguous slice: the union over ranks is the same for
    any number of them.

    Args:
        num_samples: size of the data set.
        batch_size: of the global batch, over all ranks.
        seed: of the permutations.
        rank: of this process.
        world_size: number of processes.
        start_batch: batches to leave out, those an interrupted run has done.
        shuffle: False for the order of the data set.
    Raises:
        ValueError: if the batch can't be divided over the ranks, or a number is out of range.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        start_batch: int = 0,
        shuffle: bool = True,
    ):
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples}")
        if batch_size < 1 or batch_size % world_size:
            raise ValueError(
                f"the global batch_size must be a multiple of the {world_size} processes, "
                f"got {batch_size}"
            )
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in [0, {world_size}), got {rank}")
        if start_batch < 0:
            raise ValueError(f"start_batch must not be negative, got {start_batch}")
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.start_batch = start_batch
        self.shuffle = shuffle

    def order(self, epoch: int) -> np.ndarray:
        """(num_samples,) the indices of an epoch in the order of the stream."""
        if not self.shuffle:
            return np.arange(self.num_samples)
        return np.random.default_rng([self.seed, epoch]).permutation(self.num_samples)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        share = self.batch_size // self.world_size
        position = self.start_batch * self.batch_size + self.rank * share
        known_epoch, order = -1, np.empty(0, dtype=np.int64)
        while True:
            batch = []
            for place in range(position, position + share):
                epoch, offset = divmod(place, self.num_samples)
                if epoch != known_epoch:
                    known_epoch, order = epoch, self.order(epoch)
                batch.append((epoch, int(order[offset])))
            yield batch
            position += self.batch_size


class DatasetBatchSampler(GlobalBatchSampler):
    """The same stream, each epoch in the order that the data set gives it.

    Args:
        dataset: of the clips.
        settings: the other arguments of `GlobalBatchSampler`.
    """

    def __init__(self, dataset: VideoDataset, **settings: Any):
        super().__init__(len(dataset), **settings)
        self.dataset = dataset

    def order(self, epoch: int) -> np.ndarray:
        """(num_samples,) the indices of an epoch in the order of the stream."""
        return self.dataset.order(self.seed, epoch)


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A batch: tensors and numbers stacked, strings in lists, "skipped" of all samples in one list.

    "unfilled" counts the samples without a video; the others make the batch.
    """
    filled = [sample for sample in samples if "video" in sample]
    batch: dict[str, Any] = {
        "skipped": [item for sample in samples for item in sample["skipped"]],
        "unfilled": len(samples) - len(filled),
    }
    if filled:
        batch["video"] = torch.stack([sample["video"] for sample in filled])
        batch["frame_indices"] = torch.stack([sample["frame_indices"] for sample in filled])
        for name in ("actions", "states", *PAIRED_AUGMENTATIONS):
            if name in filled[0]:
                batch[name] = torch.stack([sample[name] for sample in filled])
        for name in ("label", "index", "noise_seed"):
            batch[name] = torch.tensor([sample[name] for sample in filled], dtype=torch.int64)
        batch["fps"] = torch.tensor([sample["fps"] for sample in filled])
        for name in ("caption", "path"):
            batch[name] = [sample[name] for sample in filled]
    return batch


class VideoLoader(DataLoader[dict[str, Any]]):
    """A loader that counts the bad files of all its workers, and stops at too many of them.

    Args:
        dataset: of samples.
        bad_file_log: counts in this process.
        drop_unusable: leave samples without a video out, instead of stopping at them.
        arguments: of `DataLoader`.
    """

    def __init__(
        self,
        dataset: Dataset[dict[str, Any]],
        bad_file_log: BadFileLog,
        drop_unusable: bool = False,
        **arguments: Any,
    ):
        super().__init__(dataset, collate_fn=collate, **arguments)
        self.bad_file_log = bad_file_log
        self.drop_unusable = drop_unusable

    def __iter__(self) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        batches = super().__iter__()
        try:
            for batch in batches:
                # An evaluation goes on and says how many clips it saw; a training must not.
                if self.drop_unusable:
                    self.bad_file_log.record(batch["skipped"])
                else:
                    self.bad_file_log.add(batch["skipped"])
                if batch.pop("unfilled") and not self.drop_unusable:
                    self.bad_file_log.fail(batch["skipped"])
                if "video" in batch:
                    yield batch
        finally:
            # Ends the workers at once: held by an error's traceback they would take ten seconds.
            del batches


def worker_arguments(num_workers: int) -> dict[str, Any]:
    """What every loader of ours tells `DataLoader` about its workers."""
    if num_workers < 0:
        raise ValueError(f"num_workers must not be negative, got {num_workers}")
    arguments: dict[str, Any] = {
        "num_workers": num_workers,
        "pin_memory": torch.cuda.is_available(),
    }
    if num_workers > 0:
        # A fork is safe here: readers are opened and closed within one item, so none is shared with
        # the parent, and workers never touch CUDA. It starts at once and shares the list of files;
        # "spawn" would import the whole script again in every worker.
        methods = multiprocessing.get_all_start_methods()
        arguments["multiprocessing_context"] = "fork" if "fork" in methods else "spawn"
        arguments["worker_init_fn"] = _outlast_signals
    return arguments


def _outlast_signals(_worker: int) -> None:
    """Lets the main process finish its step when a signal tells the whole group to end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(20))


def build_loader(
    dataset: VideoDataset | Dataset[Any],
    *,
    batch_size: int,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    start_batch: int = 0,
    num_workers: int = 0,
) -> VideoLoader:
    """The endless training loader of this rank; see `GlobalBatchSampler` and `collate`.

    Args:
        dataset: of `build_dataset`, or any that `vidtwin.data.dataset.PlainDataset` takes.
        batch_size: of the global batch, over all ranks.
        seed: of the order of the samples.
        start_batch: batches to leave out, those an interrupted run has done.
        num_workers: processes that read; 0 reads in this one.
    Raises:
        ValueError: if the batch can't be divided over the ranks.
    While it is read, `TooManyBadFiles` when more than `max_bad_fraction` of the files are bad.
    """
    dataset = as_video_dataset(dataset)
    sampler = DatasetBatchSampler(
        dataset,
        batch_size=batch_size,
        seed=seed,
        rank=rank,
        world_size=world_size,
        start_batch=start_batch,
    )
    return VideoLoader(
        dataset, dataset.bad_file_log, batch_sampler=sampler, **worker_arguments(num_workers)
    )


class UsableItems(Dataset[dict[str, Any]]):
    """Clips by index (of epoch 0) or (index, epoch); one that can't be used has only a reason.

    Args:
        dataset: of the clips.
        captions: how many epochs' captions each clip brings along, in "captions".
    """

    def __init__(self, dataset: VideoDataset, captions: int = 0) -> None:
        self.dataset = dataset
        self.captions = captions

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        index, epoch = key if isinstance(key, tuple) else (key, 0)
        try:
            sample = self.dataset.get(index, epoch)
        except UnusableVideo as error:
            return {"skipped": [SkippedFile(error.path, error.reason)]}
        if self.captions:
            sample |= {"variant": epoch, "captions": self.dataset.captions(index, self.captions)}
        return sample


def build_evaluation_loader(
    dataset: VideoDataset | Dataset[Any],
    *,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
    max_samples: int | None = None,
) -> VideoLoader:
    """A loader of every clip exactly once over all ranks, in order, in epoch 0.

    Unusable files are left out, counted and logged, never replaced; a batch may therefore be
    smaller, and ranks may have different numbers of batches. Build the data set with start and
    crop "center" for windows that depend on nothing else.

    Args:
        dataset: as of `build_loader`.
        batch_size: of this rank.
        max_samples: look at the first clips alone; None for all.
    While it is read, `TooManyBadFiles` when more than `max_bad_fraction` of the files are bad.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be in [0, {world_size}), got {rank}")
    dataset = as_video_dataset(dataset)
    total = len(dataset) if max_samples is None else min(max_samples, len(dataset))
    return VideoLoader(
        UsableItems(dataset),
        dataset.bad_file_log,
        drop_unusable=True,
        batch_size=batch_size,
        sampler=range(rank, total, world_size),
        **worker_arguments(num_workers),
    )


ROW = ("index", "variant", "path", "label", "captions")


def collate_variants(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A batch: video (B, 3, T, H, W) or None without a usable clip, rows and skipped in lists."""
    filled = [sample for sample in samples if "video" in sample]
    return {
        "video": torch.stack([sample["video"] for sample in filled]) if filled else None,
        "rows": [{name: sample[name] for name in ROW} for sample in filled],
        "skipped": [item for sample in samples for item in sample["skipped"]],
    }


def iterate_variants(
    dataset: VideoDataset,
    batches: Sequence[list[tuple[int, int]]],
    *,
    captions: int = 1,
    num_workers: int = 0,
) -> Iterator[dict[str, Any]]:
    """The batches that were asked for, in their order.

    Args:
        batches: (index, epoch) of each clip.
        captions: how many epochs' captions each clip brings along.
        num_workers: processes that read; 0 reads in this one.
    Returns:
        For each batch a dict: video (B, 3, T, H, W) float32 in [-1, 1], or None if no clip of it
        can be used; rows, a dict with index, variant, path, label and captions of each of these;
        skipped, a list of `SkippedFile`.
    """
    loader: DataLoader[dict[str, Any]] = DataLoader(
        UsableItems(dataset, captions),
        batch_sampler=batches,
        collate_fn=collate_variants,
        **worker_arguments(num_workers),
    )
    iterator = iter(loader)
    try:
        yield from iterator
    finally:
        # Ends the workers at once: held by an error's traceback they would take ten seconds.
        del iterator
