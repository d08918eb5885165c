"""Which clips of a list are for training and which for validation, by digests of their names."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from vidtwin.data.file_sources import Clip

# UCF-101's names: v_<Label>_g<group>_c<clip>; the clips of a group come from one recording.
GROUPED_NAME = re.compile(r"^v_.+_(g\d+)_c\d+$")


def split_key(name: str) -> str:
    """What is split as one: UCF-101's group for names such as v_Bend_g01_c02, else the path.

    A group is one person and place; its number alone counts, as in UCF-101's official splits.
    """
    grouped = GROUPED_NAME.match(Path(name).stem)
    return grouped.group(1) if grouped else name


def split_clips(clips: Sequence[Clip], part: str, validation_fraction: float) -> list[Clip]:
    """The clips of a part.

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
        return list(clips)
    digests = {
        key: int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
        for key in {split_key(clip.name) for clip in clips}
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
        clip for clip in clips if (split_key(clip.name) in validation) == (part == "validation")
    ]
