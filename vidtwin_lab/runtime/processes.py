"""Means over processes and micro-batches, and the weights that a run leaves for use."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from diffusers.training_utils import EMAModel
from torch import Tensor

from vidtwin_lab.runtime.checkpoints import RunFolder, find_checkpoint, flush_to_disk, step_of
from vidtwin_lab.runtime.sharding import is_sharded
from vidtwin_lab.runtime.training import ema_weights


def mean_over_processes(accelerator: Accelerator) -> Callable[[Tensor], Tensor]:
    """The function that averages a tensor over all processes."""

    def mean(value: Tensor) -> Tensor:
        reduced = accelerator.reduce(torch.as_tensor(value), reduction="mean")
        assert isinstance(reduced, Tensor)
        return reduced

    return mean


def sync_on_last(
    accelerator: Accelerator, model: torch.nn.Module, index: int, parts: int
) -> AbstractContextManager[Any]:
    """Context of a micro-batch: gradients are averaged over processes in the last one alone.

    Those of a sharded model in every one: unaveraged they would lie whole on each process.
    """
    last = index == parts - 1
    return nullcontext() if last or is_sharded(model) else accelerator.no_sync(model)


def gather_rows(accelerator: Accelerator, rows: Iterable[Any]) -> list[Any]:
    """The rows of every process, on every process."""
    return list(gather_object(list(rows)))


def add_share(logs: dict[str, Any], prefix: str, terms: Mapping[str, Tensor], parts: int) -> None:
    """Add one of `parts` micro-batches' terms to the step's means in `logs`."""
    for name, value in terms.items():
        key = f"{prefix}/{name}"
        logs[key] = logs.get(key, 0.0) + value / parts


def resume(accelerator: Accelerator, folder: RunFolder, path: str | None) -> int:
    """Go on from the folder's newest checkpoint, or, where it has none yet, from `path`.

    Args:
        path: a checkpoint or run folder to start from; a run that has gone beyond it goes on
            from its own newest, so that the same command can be repeated.
    Returns:
        int: steps that are done.
    Raises:
        ValueError: if `path` is an earlier checkpoint of this very run: what came after it would
            be mixed with what comes now.
    """
    checkpoint = folder.checkpoints.latest()
    if path is not None:
        given = find_checkpoint(path)
        if checkpoint is None or step_of(given) > step_of(checkpoint):
            checkpoint = given
        elif given != checkpoint and given.resolve().is_relative_to(folder.path.resolve()):
            raise ValueError(
                f"{folder.path} holds later checkpoints than {given.name} (up to "
                f"{checkpoint.name}); choose another output=FOLDER to branch off, or remove them"
            )
    if checkpoint is None:
        return 0
    return int(folder.checkpoints.load(accelerator, checkpoint)["step"])


class Saveable(Protocol):
    """A model of diffusers or transformers."""

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> Any: ...


def export_weights(
    accelerator: Accelerator,
    folder: RunFolder,
    name: str,
    model: torch.nn.Module,
    ema: EMAModel | None,
    files: Callable[[Any], Saveable] = lambda model: model,
) -> None:
    """Write `name`/ and, with an average, `name`_ema/ into the run folder, for from_pretrained.

    To be called by every process; the main one writes, see `replace_weights`.

    Args:
        files: what of a model is to be saved, such as the model with its tokenizer.
    """
    averages = {name: None} if ema is None else {name: None, f"{name}_ema": ema}
    for target, average in averages.items():
        with ema_weights(average, model) as weighted:
            if accelerator.is_main_process:
                replace_weights(folder.path / target, files(weighted))


def replace_weights(final: Path, model: Saveable) -> None:
    """Write a model to a folder so that at any moment the former or the new one lies there.

    To be called by the main process alone. A kill may leave the former as `.{name}.old`, which
    the next call puts back.
    """
    writing = final.with_name(f".{final.name}.writing")
    former = final.with_name(f".{final.name}.old")
    if former.exists() and not final.exists():
        former.rename(final)  # a kill came between the two renames below
    for leftover in (writing, former):
        if leftover.exists():
            shutil.rmtree(leftover)
    model.save_pretrained(writing)
    for file in writing.rglob("*"):
        flush_to_disk(file)
    if final.exists():
        final.rename(former)
    writing.rename(final)
    if former.exists():
        shutil.rmtree(former)
