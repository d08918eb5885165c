"""The labels of a list of clips as numbers, and their names."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Sequence

__all__ = ["MAX_CLASSES", "label_indices"]

logger = logging.getLogger(__name__)

# Every class up to the highest number has a name and a row in the model's table of classes.
MAX_CLASSES = 100_000
NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?")
# What programs for tables write for "no value" in a column of numbers.
NO_NUMBER = frozenset({"nan", "none", "null", "na", "n/a"})


def label_indices(
    labels: Sequence[str], places: Sequence[str], where: str
) -> tuple[list[int], list[str]]:
    """The label of each clip as an index, and the names of all labels.

    Whole numbers (2 or 2.0) are the indices themselves, other numbers are numbered by their size,
    names by the alphabet. "" and -1 mean that a clip has no label: index -1.

    Args:
        places: of each label in the file, for messages.
        where: the file.
    Raises:
        ValueError: for a number that can't be that of a class.
    """
    known = {label for label in labels if label and not _is_minus_one(label)}
    numbers = {label: float(label) for label in known if NUMBER.fullmatch(label)}
    if not numbers or known - numbers.keys() - {
        each for each in known if each.lower() in NO_NUMBER
    }:
        names = sorted(known)
        position = {name: index for index, name in enumerate(names)}
        return [position.get(label, -1) for label in labels], names
    if not all(value.is_integer() for value in numbers.values() if math.isfinite(value)):
        values = sorted(set(numbers.values()))
        by_value = {value: index for index, value in enumerate(values)}
        named = {value: label for label, value in sorted(numbers.items(), reverse=True)}
        indices = [by_value[numbers[label]] if label in numbers else -1 for label in labels]
        return indices, [named[value] for value in values]
    for label, place in zip(labels, places, strict=True):
        if label in numbers and not 0 <= numbers[label] < MAX_CLASSES:
            shown = label if len(label) <= 20 else f"{label[:20]}..."
            raise ValueError(
                f"{where}: the label {shown} in {place} must be the number of a class, from 0 to "
                f"{MAX_CLASSES - 1}; use names for other labels, and -1 or nothing for none"
            )
    lowest, highest = int(min(numbers.values())), int(max(numbers.values()))
    if lowest == 1:
        logger.warning(
            "%s: the labels are numbers from 1 to %d, so class 0 has no clip; classes count from 0",
            *(where, highest),
        )
    indices = [int(numbers[label]) if label in numbers else -1 for label in labels]
    return indices, [str(number) for number in range(highest + 1)]


def _is_minus_one(label: str) -> bool:
    return NUMBER.fullmatch(label) is not None and float(label) == -1
