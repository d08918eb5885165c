"""What a list of clips says about each, and how it is split into parts. Imports no torch."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Clip", "ClipList", "split_clips", "split_key", "split_names"]

# UCF-101's names: v_<Label>_g<group>_c<clip>; the clips of a group come from one recording.
GROUPED_NAME = re.compile(r"^v_.+_(g\d+)_c\d+$")


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One video of a data set.

    Args:
        path: of the file.
        name: the path within the data set, with "/": what splits go by.
        caption: "" for none; the first one of several.
        other_captions: the others; each epoch takes one of all.
        label: index into the label names, -1 for none.
        factors: name of a factor -> class, "" where it is not known; see `Factors`.
    """

    path: str
    name: str
    caption: str = ""
    other_captions: tuple[str, ...] = ()
    label: int = -1
    factors: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def captions(self) -> tuple[str, ...]:
        """All of them, at least one."""
        return (self.caption, *self.other_captions)


@dataclass(frozen=True, kw_only=True)
class ClipList:
    """The clips of a source and the names of their labels."""

    clips: list[Clip]
    label_names: list[str]


def split_key(name: str) -> str:
    """What is split as one: UCF-101's group for names such as v_Bend_g01_c02, else the path.

    A group is one person and place; its number alone counts, as in UCF-101's official splits.
    """
    if "v_" not in name:
        return name  # millions of names are looked at
    grouped = GROUPED_NAME.match(Path(name).stem)
    return grouped.group(1) if grouped else name


def _digest(key: str) -> bytes:
    # Names of files need not be UTF-8: Python holds their other bytes as surrogates.
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def split_names(names: Sequence[str], part: str, validation_fraction: float) -> list[int]:
    """The places of the clips of a part, by their names.

    A clip belongs to the validation part if the digest of its `split_key` lies below the fraction:
    a clip never changes sides when others come or go, and the share is only about the fraction.
    Where that would leave a part empty, the nearest digest fills it.

    Args:
        part: "train", "validation" or "all".
        validation_fraction: in [0, 1); 0 leaves the list as it is.
    Raises:
        ValueError: if there is only one clip or group, so nothing to split.
    """
    if part == "all" or validation_fraction == 0:
        return list(range(len(names)))
    digests = {
        key: int.from_bytes(_digest(key)[:8], "big") / 2**64
        for key in {split_key(name) for name in names}
    }
    if len(digests) < 2:
        raise ValueError(
            f"data.validation_fraction={validation_fraction} needs at least two clips or groups "
            f"of clips to split, got {len(digests)}; set it to 0"
        )
    ordered = sorted(digests, key=lambda key: (digests[key], key))
    count = sum(digests[key] < validation_fraction for key in ordered)
    validation = set(ordered[: min(max(count, 1), len(ordered) - 1)])
    return [
        place
        for place, name in enumerate(names)
        if (split_key(name) in validation) == (part == "validation")
    ]


def split_clips(clips: Sequence[Clip], part: str, validation_fraction: float) -> list[Clip]:
    """The clips of a part; see `split_names`."""
    names = [clip.name for clip in clips]
    return [clips[place] for place in split_names(names, part, validation_fraction)]
