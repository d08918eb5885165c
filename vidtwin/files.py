"""Atomic writes, digests, locks of folders, versions, and the nearest of several names.

Imports nothing of this project and only the standard library at import time: all may use it.
"""

from __future__ import annotations

import atexit
import difflib
import errno
import hashlib
import json
import logging
import os
import platform
import re
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

__all__ = [
    "DiskError",
    "check_folder",
    "damaged_file",
    "disk_failures_told",
    "file_digest",
    "folder_lock",
    "folder_sums",
    "folder_written_whole",
    "former_folder",
    "nearest_name",
    "partial_path",
    "publish_folder",
    "release_locks",
    "remove_leftovers",
    "restore_folder",
    "root_folder",
    "shipped_path",
    "software_versions",
    "unfinished_folder",
    "weights_digest",
    "write_json",
    "written_whole",
]


class DiskError(OSError):
    """A disk is full, read-only or gone; the text names the folder and what is free."""


_DISK_FAILURES = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG, errno.ENODEV, errno.ENXIO),
    *(errno.ESTALE, errno.ENOTCONN),
)
# What compiled writers say instead: torch, numpy, and, with an errno as above, safetensors.
_DISK_TEXTS = re.compile(
    r"PytorchStreamWriter|iostream error|unexpected pos \d|\d requested and \d"
    rf"|os error ({'|'.join(map(str, _DISK_FAILURES))})\b"
)


@contextmanager
def disk_failures_told(folder: Path) -> Iterator[None]:
    """Context of writing to a folder, in which a failing disk raises DiskError, whoever writes.

    Raises:
        DiskError: also where a lock of this process on the folder is gone, as it is once another
            disk, or none, lies there.
    """
    place = folder.absolute()
    for lock in _held:
        if place.resolve().is_relative_to(lock.parent) and not os.path.exists(lock):
            raise DiskError(f"{lock.parent} is gone, or is another than before: it has no {LOCK}")
    try:
        yield
    except DiskError:
        raise
    except Exception as error:
        reason, number = " ".join(str(error).split()), getattr(error, "errno", None)
        lost = number in (None, errno.ENOENT) and not os.path.exists(place)
        if not lost and number not in _DISK_FAILURES and not _DISK_TEXTS.search(reason):
            raise
        raise DiskError(
            f"can't write to {folder} ({getattr(error, 'strerror', None) or reason}); "
            f"{_free_space(place)}; what was saved before is whole, and the same command goes on "
            "from it once that is mended"
        ) from error


def _free_space(folder: Path) -> str:
    existing = next(path for path in (folder, *folder.parents) if os.path.exists(path))
    try:
        return f"{shutil.disk_usage(existing).free / 1e6:,.1f} MB are free on its disk"
    except OSError as error:
        return f"its disk can't be read either ({error.strerror})"


def partial_path(path: Path) -> Path:
    """Path for a file while it is incomplete: hidden, beside it, unique to this process."""
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path to write to, which is renamed to `path` after the `with` block.

    After an exception in the block the old file, if any, is still there, and the new one removed.

    Args:
        path: the file; its folder is created if needed.
    """
    path = Path(path)
    partial = partial_path(path)
    with disk_failures_told(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            _flush_to_disk(partial)
            os.replace(partial, path)
        finally:
            with suppress(OSError):  # what went wrong before is what is told
                partial.unlink(missing_ok=True)


def root_folder() -> Path:
    """The folder of the scripts, configs/ and checkpoints/: the checkout's, or the package's."""
    site = Path(__file__).resolve().parents[1]
    installed = site / "vidtwin_lab" / "_root"
    return installed if installed.is_dir() else site


def shipped_path(name: str | Path) -> Path:
    """The path itself, or, where nothing lies there, a shipped config or checkpoint of that name.

    So "checkpoints/shapes", "configs/ae/shapes.yaml" and "ae/shapes.yaml" work from any folder.
    """
    path = Path(name).expanduser()
    if not path.exists() and not path.is_absolute():
        for found in (root_folder() / path, root_folder() / "configs" / path):
            if found.exists() and path.parts[0] != "outputs":
                return found
    return path


def unfinished_folder(path: Path) -> Path:
    """Where a folder is written until it is complete."""
    return path.with_name(f".{path.name}.writing")


def former_folder(path: Path) -> Path:
    """Where the former folder of this name lies while another takes its place."""
    return path.with_name(f".{path.name}.old")


@contextmanager
def folder_written_whole(path: Path) -> Iterator[Path]:
    """Gives an empty folder to write to; it has its own name once the `with` block is left.

    An exception in the block leaves what was there before. A kill at any moment leaves the former
    folder or the new one, at worst set aside as `former_folder`, which the next call puts back.
    For one process alone.
    """
    writing = unfinished_folder(path)
    with disk_failures_told(path.parent):
        restore_folder(path)
        shutil.rmtree(writing, ignore_errors=True)
        writing.mkdir(parents=True)
        try:
            yield writing
            publish_folder(path)
        finally:
            shutil.rmtree(writing, ignore_errors=True)


def publish_folder(path: Path) -> None:
    """Gives `unfinished_folder(path)`, once it is on the disk, its name."""
    writing, former = unfinished_folder(path), former_folder(path)
    for file in (*sorted(writing.rglob("*")), writing):
        _flush_to_disk(file)
    if path.exists():
        path.rename(former)
    writing.rename(path)
    _flush_to_disk(path.parent)
    if former.exists():
        shutil.rmtree(former)


def restore_folder(path: Path) -> None:
    """Puts a former folder back if a kill came before the new one had its name."""
    former = former_folder(path)
    if former.exists() and not path.exists():
        former.rename(path)
    elif former.exists():
        shutil.rmtree(former)


def remove_leftovers(folder: Path) -> None:
    """Removes what killed writers have left in a folder, and puts a former folder back.

    For one process alone, while no other writes there.
    """
    for entry in folder.glob(".*"):
        if entry.name.endswith(".old"):
            restore_folder(entry.with_name(entry.name[1 : -len(".old")]))
        elif entry.name.endswith(".writing"):
            shutil.rmtree(entry)
        elif entry.name.endswith(".partial"):
            entry.unlink()


LOCK = ".lock"
_held: dict[Path, dict[str, Any]] = {}  # the locks of this process


def folder_lock(folder: Path) -> None:
    """Makes this process the only one that writes to a folder, until it ends or `release_locks`.

    The lock is a file that names host and process, so that it holds on shared folders too. That
    of a process of this host that is gone is taken over with a warning. For one process of a run.

    Args:
        folder: made if needed.
    Raises:
        ValueError: another process holds it; says which, since when, and what to do.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder.resolve() / LOCK
    mine = {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "started": _start_of(os.getpid()),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": " ".join(sys.argv),
    }
    while not _make_lock(path, mine):
        found = _read_lock(path)
        if found is None:
            continue  # given back meanwhile
        who = "process {process} on {host}, since {since} ({command})".format_map(found)
        if found["host"] != mine["host"]:
            raise ValueError(
                f"{folder} is in use by {who}; if that process is gone, remove {folder / LOCK}"
            )
        process = int(found["process"])
        if process == os.getpid() and path in _held:
            return
        if process != os.getpid() and found["started"] == _start_of(process) is not None:
            raise ValueError(f"{folder} is in use by {who}; wait for it, or choose another folder")
        if _take_away(path, found):
            logger.warning("taking over %s from %s, which is gone", folder, who)
    _held[path] = mine


def release_locks() -> None:
    """Gives back every lock that this process holds, where its disk still lets it."""
    for path, lock in list(_held.items()):
        if lock["process"] == os.getpid():  # not in a fork of the holder
            del _held[path]
            with suppress(OSError):
                if path.is_file() and path.read_text(encoding="utf-8") == json.dumps(lock):
                    path.unlink(missing_ok=True)


atexit.register(release_locks)


def _make_lock(path: Path, lock: Mapping[str, Any]) -> bool:
    """Writes a lock unless there is one; nobody ever sees half of it."""
    partial = partial_path(path)
    partial.write_text(json.dumps(lock), encoding="utf-8")
    try:
        try:
            os.link(partial, path)
        except PermissionError:  # where the file system has no links
            with path.open("x", encoding="utf-8") as file:
                file.write(json.dumps(lock))
    except FileExistsError:
        return False
    finally:
        partial.unlink(missing_ok=True)
    return True


def _read_lock(path: Path) -> dict[str, Any] | None:
    """The lock; None if there is none."""
    try:
        lock = json.loads(path.read_text(encoding="utf-8"))
        return {name: lock[name] for name in ("host", "process", "started", "since", "command")}
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError):
        raise ValueError(
            f"{path} can't be read; if no process writes to {path.parent}, remove it"
        ) from None


def _take_away(path: Path, stale: Mapping[str, Any]) -> bool:
    """Removes a stale lock; False if another process has taken it over meanwhile."""
    doomed = path.with_name(f"{LOCK}.{os.getpid()}.partial")
    try:
        path.rename(doomed)
    except FileNotFoundError:
        return False
    if is_stale := _read_lock(doomed) == stale:
        doomed.unlink()
    else:
        doomed.rename(path)
    return is_stale


def _start_of(process: int) -> str | None:
    """When a process of this host began, as a text that tells it from others; None if it is gone.

    Elsewhere than on Linux "" for every process that there is.
    """
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass  # of another user
    try:
        # The command's name in brackets may hold spaces; what follows has the start as number 20.
        fields = (
            Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        )
    except OSError:
        return ""
    return None if fields[0] == "Z" else fields[19]


def _flush_to_disk(path: Path) -> None:
    """Waits until a file or folder is on the disk itself."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_digest(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def folder_sums(folder: Path) -> dict[str, str]:
    """`file_digest` of every file below a folder, by its path in it."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in files}


def damaged_file(folder: Path, sums: Mapping[str, str]) -> str | None:
    """The first file that is not what its entry in `folder_sums` was made of; None if all are."""
    for name, expected in sums.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if file_digest(path) != expected:
            size = path.stat().st_size
            return f"{name} ({size:,} bytes) was altered or cut short: its SHA-256 differs"
    return None


def weights_digest(model: torch.nn.Module) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of all names and weights."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def nearest_name(name: str, allowed: Iterable[str]) -> str:
    """The allowed name most similar to this one; `allowed` must not be empty."""
    return difflib.get_close_matches(str(name), list(allowed), n=1, cutoff=0.0)[0]


def check_folder(folder: Path, option: str = "--output", *, make: bool = False) -> None:
    """Raises if results can't be written to the folder.

    Args:
        folder: the folder; need not exist yet.
        option: the flag that sets it, for the message.
        make: create the folder if needed.
    Raises:
        ValueError: naming the folder and the reason.
    """
    try:
        if make:
            folder.mkdir(parents=True, exist_ok=True)
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise ValueError(
            f"can't write to the folder {folder} ({error.strerror or error}); "
            f"choose another with {option}"
        ) from error


def software_versions() -> dict[str, str]:
    """Versions of the packages that reported numbers depend on."""
    versions = {"python": platform.python_version()}
    for name in ("torch", "diffusers", "transformers", "torchmetrics", "lpips", "decord", "av"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def write_json(path: Path, content: Mapping[str, Any]) -> Path:
    """Writes JSON atomically; values of other types are written as text."""
    with written_whole(path) as partial:
        partial.write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")
    return path
