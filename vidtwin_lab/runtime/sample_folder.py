"""The folder of sample.py: never samples of two runs, and what was interrupted goes on."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vidtwin.files import release_locks, remove_leftovers, write_json, written_whole

if TYPE_CHECKING:
    from accelerate import Accelerator

OWN_FILES = re.compile(r"sample_\d{4,}\.(mp4|gif|latents\.safetensors)|sheet\.png|sample\.json")


def new_sample_folder(first: Path) -> Path:
    """The first of FIRST, FIRST_2, FIRST_3, ... that holds no finished samples."""
    names = itertools.chain([first.name], (f"{first.name}_{n}" for n in itertools.count(2)))
    folders = (first.with_name(name) for name in names)
    return next(folder for folder in folders if not (folder / "sample.json").is_file())


class SampleFolder:
    """Samples, and until all are there `.sampling`: what was asked for, and each one's row.

    Args:
        path: of the folder.
        overwrite: remove older samples.
    Raises:
        ValueError: older samples are there that can't be gone on with.
    """

    def __init__(self, path: Path, overwrite: bool = False) -> None:
        self.path, self.overwrite = path, overwrite
        self.unfinished = path / ".sampling"
        self.asked = self.unfinished / "asked.json"
        self._check()

    def _own_files(self) -> list[Path]:
        files = sorted(self.path.iterdir()) if self.path.is_dir() else []
        return [path for path in files if OWN_FILES.fullmatch(path.name)]

    def _check(self) -> None:
        if self.overwrite or self.asked.is_file():
            return
        if older := self._own_files():
            raise ValueError(
                f"{self.path} holds older samples ({older[0].name} and {len(older) - 1} more "
                "files); remove them with --overwrite, or choose another --output"
            )

    def begin(
        self, accelerator: Accelerator, shared: Mapping[str, Any], batches: Sequence[Sequence[Any]]
    ) -> tuple[list[dict[str, Any]], list[Sequence[Any]]]:
        """Locks the folder; returns the rows of whole batches that are done, and the other batches.

        To be called by every process.

        Args:
            shared: what all samples depend on.
            batches: dataclasses with an `index`, one for each sample.
        Returns:
            tuple: the rows on the main process alone, the batches on all.
        Raises:
            ValueError: on every process, if the folder is in use, or has samples of other values.
        """
        from vidtwin_lab.runtime.processes import lock_folders  # with torch, which takes seconds

        lock_folders(accelerator, self.path)
        self._check()  # again: another may have ended meanwhile
        requests = [dataclasses.asdict(request) for batch in batches for request in batch]
        asked = json.loads(json.dumps({**shared, "requests": requests}, default=str))
        asked.pop("command", None)  # may be written otherwise
        found = None
        if self.asked.is_file():
            found = json.loads(self.asked.read_text(encoding="utf-8"))
        if found not in (None, asked) and not self.overwrite:
            changed = ", ".join(name for name in asked if found.get(name) != asked[name])
            raise ValueError(
                f"{self.path} holds interrupted sampling with another {changed}; go on with the "
                "same arguments, remove it with --overwrite, or choose another --output"
            )
        told = [] if found != asked else list(self.unfinished.glob("[0-9]*.json"))
        rows = [json.loads(path.read_text(encoding="utf-8")) for path in told]
        accelerator.wait_for_everyone()  # every process has seen the same
        if accelerator.is_main_process and found != asked:
            shutil.rmtree(self.unfinished, ignore_errors=True)
            for path in self._own_files():
                path.unlink()
            write_json(self.asked, asked)
        elif accelerator.is_main_process:
            (self.path / "sample.json").unlink(missing_ok=True)
            for place in (self.path, self.unfinished):
                remove_leftovers(place)
        accelerator.wait_for_everyone()
        done = {row["index"] for row in rows if all(Path(file).is_file() for file in row["files"])}
        left = [batch for batch in batches if not done.issuperset(each.index for each in batch)]
        again = {request.index for batch in left for request in batch}
        rows = [row for row in rows if accelerator.is_main_process and row["index"] not in again]
        return rows, left

    def note(self, row: Mapping[str, Any], thumbnails: NDArray[np.uint8]) -> None:
        """Keeps what is told of a sample whose files are written, and its part of the sheet."""
        place = self.unfinished / str(row["index"])
        with written_whole(place.with_suffix(".npy")) as partial, partial.open("wb") as file:
            np.save(file, thumbnails)
        write_json(place.with_suffix(".json"), row)

    def thumbnails(self, index: int) -> NDArray[np.uint8]:
        """What `note` has kept."""
        kept: NDArray[np.uint8] = np.load(self.unfinished / f"{index}.npy")
        return kept

    def finish(self, made_by: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes sample.json; to be called by the main process alone."""
        write_json(self.path / "sample.json", {"made_by": made_by, "samples": rows})
        shutil.rmtree(self.unfinished)

    def leave_if_empty(self) -> None:
        """Removes what `begin` made if no sample followed: the arguments were refused."""
        if list(self.unfinished.iterdir()) == [self.asked]:
            shutil.rmtree(self.unfinished)
            release_locks()
            if not any(self.path.iterdir()):
                self.path.rmdir()
