"""Run folders and atomic, resumable checkpoints on top of accelerate's save_state."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import logging
import os
import pickle
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidtwin.files import (
    damaged_file,
    disk_failures_told,
    folder_sums,
    publish_folder,
    remove_leftovers,
    unfinished_folder,
    write_json,
)
from vidtwin_lab.runtime.accelerate_state import (
    check_random_state,
    weights_only,
    without_wrappers,
)
from vidtwin_lab.runtime.config import (
    ConfigError,
    config_to_dict,
    flatten,
    load_config,
    read_yaml,
    save_config,
)
from vidtwin_lab.runtime.run_config import CHANGEABLE, FIXED

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

_NAME = re.compile(r"\.?(step_\d{9,})(\.old)?")
_PROGRESS = "progress.json"
_CONFIG = "config.yaml"
_PENDING = "validation_pending"
_DAMAGED = ".damaged"


class DamagedCheckpointError(ValueError):
    """A file of a checkpoint is not what was written."""


class CheckpointFolder:
    """Checkpoints `step_000001000` of one run; each is whole or is not there.

    With several machines the folder must lie on a file system they share.
    """

    def __init__(self, path: str | Path, keep: int | None = 3) -> None:
        """
        Args:
            path: folder of the checkpoints; made at the first save.
            keep: how many of the newest stay; None keeps all.
        """
        if keep is not None and keep < 1:
            raise ValueError(f"`keep` must be >= 1, or null to keep all checkpoints, got {keep}")
        self.path = Path(path)
        self.keep = keep
        self.config: Any = None  # saved in each checkpoint once the run has one

    def save(self, accelerator: Accelerator, step: int, *, validated: bool = True) -> Path:
        """Write a checkpoint; to be called by every process at the same step.

        Saved are the prepared models (safetensors, without the names that DDP or compile add),
        optimizers, the objects given to `register_for_checkpointing`, the random state of every
        process, and the run's config.

        Args:
            step: the steps that are done.
            validated: whether the validation that follows this step, if any, is done as well.
        Returns:
            Path: the finished checkpoint.
        Raises:
            DiskError: it could not be written; those before it are as they were.
        """
        final = self.path / f"step_{step:09d}"
        with disk_failures_told(self.path):
            try:
                self._write(accelerator, final, {} if validated else {_PENDING: True})
            except BaseException:
                if accelerator.is_main_process:
                    shutil.rmtree(unfinished_folder(final), ignore_errors=True)
                raise
        return final

    def _write(self, accelerator: Accelerator, final: Path, notes: Mapping[str, Any]) -> None:
        writing, step = unfinished_folder(final), _step_in(final.name)
        if accelerator.is_main_process:
            self.clean()
            writing.mkdir(parents=True)
        accelerator.wait_for_everyone()
        with without_wrappers(accelerator):
            accelerator.save_state(str(writing))
        if accelerator.is_main_process:
            if self.config is not None:
                save_config(self.config, writing / _CONFIG)
            record = {"step": step, "num_processes": accelerator.num_processes}
            record |= {**notes, "files": folder_sums(writing)}
            write_json(writing / _PROGRESS, record | {"sha256": _record_digest(record)})
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            publish_folder(final)
            self.rotate()
        accelerator.wait_for_everyone()

    def load(self, accelerator: Accelerator, path: str | Path) -> int:
        """Put back everything that `save` wrote; unpickles nothing but tensors and numbers.

        Args:
            path: a checkpoint, or a folder of them or run folder, whose newest is taken.
        Returns:
            int: the steps that were done when it was saved.
        Raises:
            DamagedCheckpointError: naming the file; nothing was loaded.
            ValueError: not a checkpoint, or one of another model or set of objects.
        """
        from safetensors import SafetensorError

        path = find_checkpoint(path)
        record = _read_record(path)
        if damage := damaged_file(path, record.get("files", {})):
            raise DamagedCheckpointError(f"checkpoint {path} is damaged: {damage}")
        rank = accelerator.process_index
        if fixed := self._changes(path, FIXED):
            raise ConfigError(
                f"checkpoint {path} can't be continued with {'; '.join(fixed)}; take that back, or "
                "start from its weights with init_from"
            )
        if record["num_processes"] != accelerator.num_processes:
            logger.warning(
                "%s was written by %d processes and is loaded by %d: the random states of the "
                "processes are not its own",
                path,
                record["num_processes"],
                accelerator.num_processes,
            )
        try:
            with without_wrappers(accelerator), weights_only():
                # Whole states of all processes need not lie on the device at one time.
                accelerator.load_state(str(path), map_location="cpu")
                check_random_state(path / f"random_states_{rank}.pkl")
        except (EOFError, pickle.UnpicklingError, SafetensorError) as error:
            # Only of a checkpoint without sums.
            reason = " ".join(str(error).split())
            raise DamagedCheckpointError(f"checkpoint {path} can't be read: {reason}") from error
        except (RuntimeError, KeyError, ValueError, FileNotFoundError) as error:
            reason = " ".join(str(error).split())
            changes = "; ".join(self._changes(path))
            why = f"its run's config differs ({changes}): {reason}" if changes else reason
            raise ValueError(f"checkpoint {path} does not fit this run: {why}") from error
        return int(record["step"])

    def _changes(self, checkpoint: Path, only: Sequence[str] = ("*",)) -> list[str]:
        """Where the run's config differs from a checkpoint's, in keys of these patterns."""
        file = checkpoint / _CONFIG
        if self.config is None or not file.is_file():
            return []
        saved, current = flatten(read_yaml(file)), flatten(config_to_dict(self.config))
        shared = [key for key in saved.keys() & current.keys() if _fits(key, only)]
        return _differences(
            {key: saved[key] for key in shared}, {key: current[key] for key in shared}, CHANGEABLE
        )

    def load_newest_whole(
        self, accelerator: Accelerator, checkpoints: Sequence[Path], refuse: bool = False
    ) -> int:
        """Load the newest of some checkpoints that is not damaged; warns of those that are.

        Damaged ones of this folder are set aside as `step_….damaged` until the run has passed
        them. To be called by every process.

        Args:
            checkpoints: oldest first, at least one.
            refuse: raise for the first damaged one.
        Returns:
            int: the steps that were done when it was saved.
        Raises:
            DamagedCheckpointError: all are damaged, or the newest is and `refuse` is set.
        """
        damaged: list[Path] = []
        for checkpoint in reversed(checkpoints):
            try:
                step = self.load(accelerator, checkpoint)
                break
            except DamagedCheckpointError as error:
                damaged.append(checkpoint)
                if checkpoint == checkpoints[0]:
                    cure = f"none before it is whole: remove {checkpoint.parent} to start anew"
                    raise DamagedCheckpointError(f"{error}; {cure}") from error
                if refuse:
                    cure = "damaged_checkpoints=skip goes on from the one before it"
                    raise DamagedCheckpointError(f"{error}; {cure}") from error
                if accelerator.is_main_process:
                    logger.warning("%s; going on from the checkpoint before it", error)
        accelerator.wait_for_everyone()  # every process has read what is renamed now
        if accelerator.is_main_process:
            for path in damaged:
                if path.parent == self.path:
                    aside = path.with_name(path.name + _DAMAGED)
                    shutil.rmtree(aside, ignore_errors=True)
                    path.rename(aside)
        return step

    def all(self, *, damaged: bool = False) -> list[Path]:
        """The finished checkpoints, oldest first.

        Args:
            damaged: also those whose record is missing.
        """
        if not self.path.is_dir():
            return []
        found: dict[str, Path] = {}
        # A save over an older checkpoint of the same step, killed between its two renames,
        # leaves only the older one, set aside.
        for entry in (*self.path.glob(".step_*.old"), *self.path.glob("step_*")):
            name = _NAME.fullmatch(entry.name)
            if name and (damaged or (entry / _PROGRESS).is_file()):
                found[name[1]] = entry
        return [found[name] for name in sorted(found, key=_step_in)]

    def validation_pending(self, step: int) -> bool:
        """Whether this run's checkpoint of a step was saved before the step's validation."""
        newest = self.latest()
        if newest is None or step_of(newest) != step:
            return False
        return bool(_read_record(newest).get(_PENDING))

    def latest(self) -> Path | None:
        """The newest finished checkpoint, or None."""
        checkpoints = self.all()
        return checkpoints[-1] if checkpoints else None

    def clean(self) -> None:
        """Remove what killed saves have left; to be called by the main process alone."""
        if self.path.is_dir():
            remove_leftovers(self.path)

    def rotate(self) -> None:
        """Remove all but the newest checkpoints that stay, and damaged ones before the newest."""
        if not (checkpoints := self.all()):
            return
        newest = checkpoints[-1]
        for aside in self.path.glob(f"step_*{_DAMAGED}"):
            if aside.name.removesuffix(_DAMAGED) <= newest.name:
                shutil.rmtree(aside)
        if self.keep is None:
            return
        for old in checkpoints[: -self.keep]:
            # Renamed first: a removal that is killed must not leave half a checkpoint behind.
            doomed = unfinished_folder(old)
            old.rename(doomed)
            shutil.rmtree(doomed)


class RunFolder:
    """The folder of one run: config.yaml, checkpoints/, metrics.jsonl and what trackers write."""

    def __init__(self, path: str | Path, keep: int | None = 3) -> None:
        """
        Args:
            path: made if it is not there.
            keep: how many checkpoints stay; None keeps all.
        Raises:
            ValueError: the folder can't be made or written.
        """
        self.path = Path(path)
        self.config_path = self.path / _CONFIG
        self.log = self.path / "metrics.jsonl"
        self.checkpoints = CheckpointFolder(self.path / "checkpoints", keep)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise ValueError(
                f"run folder {self.path} can't be written ({error.strerror}); choose another"
            ) from error

    def claim(self, config: Any, changeable: Sequence[str] = ()) -> None:
        """Make this the folder of the run with this config, and save the config.

        Args:
            config: the resolved config of the run.
            changeable: patterns of keys, such as "trackers.*", that a resumed run may change.
        Raises:
            ConfigError: the folder belongs to a run with another config; names the keys.
        """
        # A run that has no checkpoint yet has nothing that another config could spoil.
        if self.config_path.exists() and self.checkpoints.latest() is not None:
            # Loaded, so that a key which did not exist when the run began has its default.
            begun = load_config(type(config), self.config_path)
            saved, current = (flatten(config_to_dict(each)) for each in (begun, config))
            differences = _differences(saved, current, changeable)
            if differences:
                raise ConfigError(
                    f"run folder {self.path} belongs to a run with another config: "
                    f"{'; '.join(differences)}; take the changes back or choose another folder"
                )
        # One process writes; the others can only meet the old file or the new one.
        if os.environ.get("RANK", "0") == "0":
            below = [path for path in self.path.rglob("*") if path.is_dir()]
            for folder in (self.path, *below):
                remove_leftovers(folder)
            # A kill between a checkpoint and the removal of the oldest leaves one too many.
            self.checkpoints.rotate()
            save_config(config, self.config_path)
        self.checkpoints.config = config


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint at `path`, or the newest one below it if it is a run folder.

    Raises:
        ValueError: there is none.
    """
    found = find_checkpoints(path)
    return next((each for each in reversed(found) if (each / _PROGRESS).is_file()), found[-1])


def find_checkpoints(path: str | Path) -> list[Path]:
    """The checkpoint at `path` alone, or all below it, oldest first, if it is a run folder.

    Those whose record is missing are among them, if there is another.

    Raises:
        ValueError: there is none.
    """
    path = Path(path)
    if (path / _PROGRESS).is_file() or (_NAME.fullmatch(path.name) and path.is_dir()):
        return [path]
    for folder in (path, path / "checkpoints"):
        if CheckpointFolder(folder).latest() is not None:
            return CheckpointFolder(folder).all(damaged=True)
    if not path.exists():
        raise ValueError(f"checkpoint {path} does not exist")
    raise ValueError(f"{path} is neither a checkpoint (no {_PROGRESS}) nor a folder with one")


def step_of(checkpoint: Path) -> int:
    """The steps that were done when a checkpoint was written, by its name where it has its own."""
    name = _NAME.fullmatch(checkpoint.name)
    return _step_in(name[1]) if name else int(_read_record(checkpoint)["step"])


def _read_record(checkpoint: Path) -> dict[str, Any]:
    """What `save` noted in a checkpoint.

    Raises:
        DamagedCheckpointError: it is missing, or not what was written.
    """
    try:
        record = json.loads((checkpoint / _PROGRESS).read_text(encoding="utf-8"))
        written = record.pop("sha256", None)
        whole = {"step", "num_processes"} <= record.keys()
        # Those from before there were sums have none of their files either.
        whole = whole and (written == _record_digest(record) or not (written or "files" in record))
    except FileNotFoundError:
        raise DamagedCheckpointError(
            f"checkpoint {checkpoint} is damaged: {_PROGRESS} is missing"
        ) from None
    except (ValueError, AttributeError):
        whole = False
    if not whole:
        raise DamagedCheckpointError(f"checkpoint {checkpoint} is damaged: {_PROGRESS} was altered")
    return dict(record)


def _record_digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _step_in(name: str) -> int:
    return int(name.removeprefix("step_"))


def _fits(key: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns)


def _differences(
    saved: dict[str, Any], current: dict[str, Any], changeable: Sequence[str]
) -> list[str]:
    lines = []
    for key in sorted(saved.keys() | current.keys()):
        if _fits(key, changeable):
            continue
        if key not in saved:
            lines.append(f"{key} was absent, now {current[key]!r}")
        elif key not in current:
            lines.append(f"{key} was {saved[key]!r}, now absent")
        elif saved[key] != current[key]:
            lines.append(f"{key} was {saved[key]!r}, now {current[key]!r}")
    return lines
