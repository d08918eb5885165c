"""Chosen clips in chosen epochs, for work that is done once and stored.

Axes: B batch, T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from vidtwin.data.bad_files import SkippedFile, UnusableVideo
from vidtwin.data.loading import worker_arguments
from vidtwin.data.video_dataset import VideoDataset


class VariantItems(Dataset[dict[str, Any]]):
    """Clips by (index, epoch); one that can't be used gives the reason alone.

    Args:
        dataset: of the clips.
        captions: how many epochs' captions each clip brings along.
    """

    def __init__(self, dataset: VideoDataset, captions: int) -> None:
        self.dataset = dataset
        self.captions = captions

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        index, epoch = key
        try:
            sample = self.dataset.get(index, epoch)
        except UnusableVideo as error:
            return {"skipped": SkippedFile(error.path, error.reason)}
        row = {
            "index": index,
            "variant": epoch,
            "path": sample["path"],
            "label": sample["label"],
            "captions": self.dataset.captions(index, self.captions),
        }
        return {"video": sample["video"], "row": row}


def collate_variants(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A batch: video (B, 3, T, H, W) or None without a usable clip, rows and skipped in lists."""
    videos = [sample["video"] for sample in samples if "video" in sample]
    return {
        "video": torch.stack(videos) if videos else None,
        "rows": [sample["row"] for sample in samples if "row" in sample],
        "skipped": [sample["skipped"] for sample in samples if "skipped" in sample],
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
        VariantItems(dataset, captions),
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
