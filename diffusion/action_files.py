"""Actions that a user wrote: a table with a column for each, a row for each frame. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from vidtwin.data.tables import read_table
from vidtwin.text_files import number_in

__all__ = ["read_actions"]


def read_actions(file: Path, names: Sequence[str], num_frames: int) -> list[list[float]]:
    """What acts from each frame to the next, num_frames rows of one number for each name.

    Args:
        file: a table (.csv, .tsv) whose header has each name, in any order.
        names: the actions that the pipeline was trained with.
        num_frames: T, frames of a video of the pipeline.
    Raises:
        ValueError: for another header, another number of rows, or what is not a finite number.
    """
    if not names:
        raise ValueError(
            f"--actions {file}: this pipeline was not trained with actions; leave it out, or train "
            "one with action_conditional=true"
        )
    columns, rows = read_table(file, names)
    if sorted(columns) != sorted(names):
        found = ", ".join(columns) or "none"
        raise ValueError(f"--actions {file}: expected the columns {', '.join(names)}, got {found}")
    if len(rows) != num_frames:
        raise ValueError(
            f"--actions {file}: expected a row for each of the {num_frames} frames, got {len(rows)}"
        )
    return [[_number(file, row.place, name, row.values[name]) for name in names] for row in rows]


def _number(file: Path, place: str, name: str, text: str) -> float:
    number = number_in(text)
    if not math.isfinite(number):
        raise ValueError(f"--actions {file}, {place}: {name} must be a number, got {text!r}")
    return number
