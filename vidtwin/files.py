"""Files that are there whole or not at all, what tells them apart, and names that were meant.

Imports nothing of this project and no library beyond the standard one, so everything may use it.
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
    """Where a file is written until it is complete: hidden, beside it, of this process alone."""
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Gives the path to write to; the file has its own name once the `with` block is left.

    An exception in the block leaves what was there before, and nothing of the new file.

    Args:
        path: the file; its folder is made if needed.
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
    """The allowed name, of at least one, that looks most like this one."""
    return difflib.get_close_matches(str(name), list(allowed), n=1, cutoff=0.0)[0]


def check_folder(folder: Path, option: str = "--output", *, make: bool = False) -> None:
    """Raises if results could not be written there.

    Args:
        folder: where results will go; need not exist yet.
        option: by which the user chose it, for the message.
        make: make the folder; else nothing is made.
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
    """Writes a report, whole or not at all; what JSON does not know is written as its text."""
    with written_whole(path) as partial:
        partial.write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")
    return path
