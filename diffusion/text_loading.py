"""Reading and writing folders of transformers without its bars and reports."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers.utils import logging as transformers_logging

__all__ = [
    "load_data_set",
    "one_line",
    "quiet",
]


@contextmanager
def quiet() -> Iterator[None]:
    """Without progress bars and transformers' report of weights, which are checked here."""
    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def one_line(error: object) -> str:
    """A library's message without its line breaks."""
    return " ".join(str(error).split())


def load_data_set(name: str, subset: str | None, split: str) -> Any:
    """The rows of a data set of the optional library `datasets`.

    Raises:
        ValueError: if the library is not installed, or has no such data set.
    """
    try:
        import datasets
    except ImportError:
        raise ValueError(
            "source=datasets needs its library: pip install datasets; or give the texts as files"
        ) from None
    try:
        return datasets.load_dataset(name, subset, split=split)
    except Exception as error:  # it raises its own, the hub's and the network's
        where = " ".join(filter(None, [name, subset, split]))
        raise ValueError(f"no data set {where}: {one_line(error)}") from error
