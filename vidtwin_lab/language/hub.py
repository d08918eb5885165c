"""Data sets by their names, where the optional library `datasets` is installed."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from diffusion.text_loading import one_line


def load_data_set(name: str, subset: str | None, split: str) -> Any:
    """A part of a data set.

    Raises:
        ValueError: if the library is not installed, or has no such data set.
    """
    try:
        import datasets
    except ImportError:
        raise ValueError(
            "source=datasets needs its library: pip install datasets; or set another source and "
            "give the files"
        ) from None
    try:
        return datasets.load_dataset(name, subset, split=split)
    except Exception as error:  # it raises its own, the hub's and the network's
        where = " ".join(filter(None, [name, subset, split]))
        raise ValueError(f"no data set {where}: {one_line(error)}") from error


def load_rows(name: str, subset: str | None, split: str) -> tuple[list[dict[str, Any]], str]:
    """(rows, SHA-256 of the rows) of a part of a data set.

    Raises:
        ValueError: as `load_data_set`, or if the part is empty.
    """
    rows = [dict(row) for row in load_data_set(name, subset, split)]
    if not rows:
        raise ValueError(f"the data set {name} has no rows in {split}")
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    return rows, digest.hexdigest()
