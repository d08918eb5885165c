"""What several processes do together: means, micro-batches, going on, weights for use."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from vidtwin.files import (
    damaged_file,
    folder_lock,
    folder_sums,
    folder_written_whole,
    written_whole,
)
from vidtwin_lab.runtime.checkpoints import RunFolder, find_checkpoints, step_of
from vidtwin_lab.runtime.sharding import is_sharded

logger = logging.getLogger(__name__)


def mean_over_processes(accelerator: Accelerator) -> Callable[[Tensor | float], Tensor]:
    """The function that averages a tensor or a number over all processes."""

    def mean(value: Tensor | float) -> Tensor:
        # NCCL takes tensors of the GPU only; a number would become one of the CPU.
        local = torch.as_tensor(value, device=accelerator.device)
        reduced = accelerator.reduce(local, reduction="mean")
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


def lock_folders(accelerator: Accelerator, *folders: Path) -> None:
    """`folder_lock` by the main process; to be called by every one.

    Raises:
        ValueError: on every process, if another program is writing to one of the folders.
    """
    refusal: list[str | None] = [None]
    if accelerator.is_main_process:
        try:
            for folder in folders:
                folder_lock(folder)
        except ValueError as error:
            refusal = [str(error)]
        except OSError as error:
            reason = error.strerror or error
            refusal = [f"the folder {folder} can't be written ({reason}); choose another output"]
    message = broadcast_object_list(refusal)[0]
    if message is not None:
        raise ValueError(message)


def add_share(logs: dict[str, Any], prefix: str, terms: Mapping[str, Tensor], parts: int) -> None:
    """Add one of `parts` micro-batches' terms to the step's means in `logs`."""
    for name, value in terms.items():
        key = f"{prefix}/{name}"
        logs[key] = logs.get(key, 0.0) + value / parts


def resume(
    accelerator: Accelerator, folder: RunFolder, path: str | None, refuse_damaged: bool = False
) -> int:
    """Go on from the folder's newest checkpoint, or, where it has none yet, from `path`.

    Args:
        path: a checkpoint or run folder to start from; a run that has gone beyond it goes on
            from its own newest, so that the same command can be repeated.
        refuse_damaged: raise for a damaged checkpoint instead of taking the one before it.
    Returns:
        int: steps that are done.
    Raises:
        ValueError: if `path` is an earlier checkpoint of this very run: what came after it would
            be mixed with what comes now; or if no whole checkpoint is left.
    """
    found = folder.checkpoints.all(damaged=True)
    if path is not None:
        all_given = find_checkpoints(path)
        given, checkpoint = all_given[-1], found[-1] if found else None
        if checkpoint is None or step_of(given) > step_of(checkpoint):
            found = all_given
        elif given != checkpoint and given.resolve().is_relative_to(folder.path.resolve()):
            raise ValueError(
                f"{folder.path} holds later checkpoints than {given.name} (up to "
                f"{checkpoint.name}); choose another output=FOLDER to branch off, or remove them"
            )
    if not found:
        return 0
    return folder.checkpoints.load_newest_whole(accelerator, found, refuse_damaged)


def replace_weights(folder: Path, model: Any) -> None:
    """Write a model by its `save_pretrained` so that at any moment the former or the new one is
    there; to be called by the main process alone.
    """
    with folder_written_whole(folder) as writing:
        model.save_pretrained(writing)


def write_frozen(folder: Path, model: Any, trained: str, *, anew: bool = False) -> None:
    """Writes a folder by `save_pretrained` unless all but its trained part lie there whole.

    To be called by the main process alone. The sums are in `NAME.sha256` beside it, in the form of
    sha256sum.

    Args:
        trained: subfolder that the run writes again and again.
        anew: write it in any case.
    """
    record = folder.with_name(f"{folder.name}.sha256")
    if record.is_file() and not anew:
        lines = record.read_text(encoding="utf-8").splitlines()
        sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
        damage = damaged_file(folder, sums) if sums else "its sums are missing"
        if damage is None:
            return
        logger.warning("writing %s again: %s", folder, damage)
    with folder_written_whole(folder) as writing:
        model.save_pretrained(writing)
        sums = folder_sums(writing)
    frozen = (item for item in sums.items() if not item[0].startswith(f"{trained}/"))
    with written_whole(record) as partial:
        partial.write_text("".join(f"{digest}  {name}\n" for name, digest in frozen), "utf-8")
