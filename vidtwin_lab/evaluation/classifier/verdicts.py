"""What a classifier said of videos, beside what they show: shares, confusions, lines of a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vidtwin.data import Factors
from vidtwin_lab.evaluation.intervals import share_interval

__all__ = ["UNKNOWN", "accuracies", "confusion", "flat_row", "percent"]

UNKNOWN = -1


def accuracies(rows: Sequence[Mapping[str, Any]], factors: Factors) -> dict[str, Any]:
    """Share of the clips whose likeliest class is the label: of each factor, of all content, of
    all motion and of all factors at once, with 95 % intervals; clips without a label left out."""
    right = {
        name: [likeliest(row, name) == row["labels"][name] for row in rows] for name in factors.all
    }
    known = {name: [row["labels"][name] != UNKNOWN for row in rows] for name in factors.all}
    groups = {name: [name] for name in factors.all}
    groups |= {
        f"all {group}": list(names)
        for group, names in (("content", factors.content), ("motion", factors.motion))
        if len(names) > 1
    }
    if len(factors.all) > 1:
        groups["all"] = list(factors.all)
    found = {}
    for group, names in groups.items():
        verdicts = [
            all(right[name][place] for name in names)
            for place in range(len(rows))
            if all(known[name][place] for name in names)
        ]
        found[group] = share_interval(sum(verdicts), len(verdicts))
    return found


def likeliest(row: Mapping[str, Any], name: str) -> int:
    """The class that a clip most likely has."""
    return int(np.argmax(row["probabilities"][name]))


def confusion(
    rows: Sequence[Mapping[str, Any]], name: str, names: Sequence[str]
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """(classes, classes): how many clips of a class (row) were taken for each (column)."""
    counts = np.zeros((len(names), len(names)), np.int64)
    for row in rows:
        if row["labels"][name] != UNKNOWN:
            counts[row["labels"][name], likeliest(row, name)] += 1
    return counts


def flat_row(row: Mapping[str, Any], factors: Factors) -> dict[str, Any]:
    """A line of the CSV: what is so, what was seen, and how sure."""
    line: dict[str, Any] = {"index": row["index"], "path": row["path"]}
    for name, names in factors.all.items():
        label, seen = row["labels"][name], likeliest(row, name)
        line[name] = names[label] if label != UNKNOWN else ""
        line[f"{name}_seen"] = names[seen]
        line[f"{name}_probability"] = row["probabilities"][name][seen]
    return line


def percent(share: Mapping[str, Any]) -> str:
    """A share with its interval, in percent."""
    if share["value"] is None:
        return "-"
    value, low, high = (100 * share[key] for key in ("value", "low", "high"))
    return f"{value:.1f} ({low:.1f} to {high:.1f})"
