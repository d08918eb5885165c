"""What a failing disk raises, whoever writes, is one error with the folder and what is free."""

from __future__ import annotations

import errno
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from vidtwin.files import (
    DiskError,
    disk_failures_told,
    folder_lock,
    folder_written_whole,
    release_locks,
    written_whole,
)


def refuse(number: int) -> Callable[[Path], None]:
    def write(_: Path) -> None:
        raise OSError(number, os.strerror(number))

    return write


@contextmanager
def little_space() -> Iterator[None]:
    """Context in which a file may have 400 bytes, for every writer of this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def lose(path: Path) -> None:
    shutil.rmtree(path.parent)
    path.write_text("x")


TENSORS = {"weights": torch.zeros(999)}
WRITERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "torch": (lambda path: torch.save(TENSORS, path), "iostream error|unexpected pos|Stream"),
    "safetensors": (lambda path: save_file(TENSORS, path), "File too large"),
    "numpy": (lambda path: np.zeros(999).tofile(path), "requested and"),
    "python": (lambda path: path.write_text("x" * 999), "File too large"),
    "full": (lambda _: Path("/dev/full").write_text("x"), "No space left on device"),
    "read-only": (refuse(errno.EROFS), "Read-only file system"),
    "gone": (lose, "No such file"),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_disk_that_fails_is_named_and_the_old_file_stays(tmp_path, writer):
    write, reason = WRITERS[writer]
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "old").write_text("old")

    def replace() -> None:
        with written_whole(folder / "old") as partial, little_space():
            write(partial)

    with pytest.raises(DiskError, match=f"can't write to .*folder .*({reason}).* MB are free"):
        replace()
    if writer != "gone":
        assert [path.name for path in folder.iterdir()] == ["old"]
        assert (folder / "old").read_text() == "old"


def test_a_former_folder_survives_a_full_disk(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_text("old")

    def replace() -> None:
        with folder_written_whole(tmp_path / "model") as writing:
            (writing / "config").write_text("new")
            with little_space():
                save_file(TENSORS, writing / "weights")

    with pytest.raises(DiskError):
        replace()
    assert os.listdir(tmp_path) == ["model"]
    assert (tmp_path / "model" / "weights").read_text() == "old"


@pytest.mark.parametrize("error", [ValueError("no"), RuntimeError("no"), FileNotFoundError(2, "x")])
def test_other_errors_are_told_as_they_are(tmp_path, error):
    with pytest.raises(type(error)) as raised, disk_failures_told(tmp_path):
        raise error
    assert raised.value is error


def test_a_locked_folder_that_is_another_is_not_written_to(tmp_path):
    folder = tmp_path / "run"
    folder_lock(folder)
    folder.rename(tmp_path / "elsewhere")
    lost = written_whole(folder / "checkpoints" / "file")
    with pytest.raises(DiskError, match="run is gone, or is another than before"), lost as partial:
        partial.write_text("lost")
    release_locks()
    assert not folder.exists()
