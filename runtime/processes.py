"""Means over processes and micro-batches, and the weights that a run leaves for use."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from diffusers.training_utils import EMAModel
from torch import Tensor

from runtime.checkpoints import RunFolder
from runtime.training import ema_weights


def mean_over_processes(accelerator: Accelerator) -> Callable[[Tensor], Tensor]:
    """The function that averages a tensor over all processes."""

    def mean(value: Tensor) -> Tensor:
        reduced = accelerator.reduce(torch.as_tensor(value), reduction="mean")
        assert isinstance(reduced, Tensor)
        return reduced

    return mean


def gather_rows(accelerator: Accelerator, rows: Iterable[Any]) -> list[Any]:
    """The rows of every process, on every process."""
    return list(gather_object(list(rows)))


def add_share(logs: dict[str, Any], prefix: str, terms: Mapping[str, Tensor], parts: int) -> None:
    """Add one of `parts` micro-batches' terms to the step's means in `logs`."""
    for name, value in terms.items():
        key = f"{prefix}/{name}"
        logs[key] = logs.get(key, 0.0) + value / parts


def resume(accelerator: Accelerator, folder: RunFolder, path: str | None) -> int:
    """Go on from `path`, else from the folder's newest checkpoint, else from the start.

    Returns:
        int: steps that are done.
    """
    checkpoint = path or folder.checkpoints.latest()
    if checkpoint is None:
        return 0
    return int(folder.checkpoints.load(accelerator, checkpoint)["step"])


class Saveable(Protocol):
    """A model of diffusers or transformers."""

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> Any: ...
    def parameters(self) -> Any: ...


def export_weights(folder: RunFolder, name: str, model: Any, ema: EMAModel | None) -> None:
    """Write `name`/ and, with an average, `name`_ema/ into the run folder, for from_pretrained.

    To be called by the main process alone; a kill leaves the former folders or the new ones.
    """
    _replace_folder(folder.path / name, model)
    if ema is not None:
        with ema_weights(ema, model):
            _replace_folder(folder.path / f"{name}_ema", model)


def _replace_folder(final: Path, model: Saveable) -> None:
    writing, former = (
        final.with_name(f".{final.name}.writing"),
        final.with_name(f".{final.name}.old"),
    )
    for leftover in (writing, former):
        if leftover.exists():
            shutil.rmtree(leftover)
    model.save_pretrained(writing)
    if final.exists():
        final.rename(former)
    writing.rename(final)
    if former.exists():
        shutil.rmtree(former)
