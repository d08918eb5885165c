"""Which name was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["nearest_name"]


def nearest_name(name: str, allowed: Iterable[str]) -> str:
    """The allowed name, of at least one, that looks most like this one."""
    return difflib.get_close_matches(str(name), list(allowed), n=1, cutoff=0.0)[0]
