"""Atomic writes, digests, versions, and the nearest of several names.

Imports nothing of this project and only the standard library at import time: all may use it.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import platform
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = [
    "check_folder",
    "file_digest",
    "nearest_name",
    "partial_path",
    "software_versions",
    "weights_digest",
    "write_json",
    "written_whole",
]


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
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def file_digest(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


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
