"""The text files that a config names, found without reading them."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path


def find_text_files(places: Sequence[str], source: str) -> list[Path]:
    """The files of some files, folders and patterns, each once.

    Args:
        source: "csv", or "text" for .txt files; of folders, these alone are taken.
    Raises:
        ValueError: for a place without any.
    """
    suffix = ".csv" if source == "csv" else ".txt"
    found: dict[Path, None] = {}
    for place in places:
        path = Path(place).expanduser()
        if path.is_dir():
            files = sorted(path.rglob(f"*{suffix}"))
            if not files:
                raise ValueError(f"no {suffix} file below {path}")
        elif path.is_file():
            files = [path]
        else:
            matches = glob.glob(str(path), recursive=True)
            files = sorted(Path(name) for name in matches if Path(name).is_file())
            if not files:
                raise ValueError(f"corpus {path} does not exist")
        found.update(dict.fromkeys(files))
    return list(found)
