"""Checks that the configs of this package share: ranges, choices, seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

_RANGES: dict[str, Callable[[Any], bool]] = {
    "at least 0": lambda value: value >= 0,
    "at least 1": lambda value: value >= 1,
    "above 0": lambda value: value > 0,
    "in (0, 1)": lambda value: 0 < value < 1,
    "in [0, 1)": lambda value: 0 <= value < 1,
    "in (0, 1]": lambda value: 0 < value <= 1,
    "in [0, 1]": lambda value: 0 <= value <= 1,
}


def check_range(config: Any, range_of_values: str, *names: str) -> None:
    """Raises ValueError for a field out of a range, such as "in [0, 1)"; None is in every range."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not _RANGES[range_of_values](value):
            raise ValueError(f"`{name}` must be {range_of_values}, got {value}")


def check_choices(config: Any, **known: Iterable[str | None]) -> None:
    """Raises ValueError for a field that is none of the values known for it."""
    for name, choices in known.items():
        value, choices = getattr(config, name), list(choices)
        if value not in choices:
            shown = ", ".join("null" if choice is None else choice for choice in choices)
            raise ValueError(f"`{name}` must be one of {shown}; got {value!r}")


def check_seeds(seeds: Sequence[int]) -> None:
    """Raises ValueError unless there are seeds, all different and none below 0."""
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise ValueError(f"`seeds` must be different numbers from 0, got {list(seeds)}")
