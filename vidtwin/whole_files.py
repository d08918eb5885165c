"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["partial_path", "written_whole"]


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
