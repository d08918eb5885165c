"""The changes that docs/extending.md shows still fit the code that they change."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")


def hunks() -> list[tuple[str, str, list[str]]]:
    """(file, the line that a hunk stands below, what it expects there) of each hunk."""
    found = []
    for block in re.findall(r"^```diff\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE):
        for part in re.split(r"^(?=--- |\+\+\+ )", block, flags=re.MULTILINE):
            head, _, body = part.partition("\n")
            name = re.fullmatch(r"\+\+\+ (\S+)", head)
            if name is None:
                continue
            for hunk in re.split(r"^@@ ", body, flags=re.MULTILINE)[1:]:
                below, *lines = hunk.rstrip("\n").split("\n")
                found.append((name[1], below, [x[1:] for x in lines if x[:1] in (" ", "-")]))
    return found


@pytest.mark.parametrize(("file", "below", "expected"), hunks())
def test_a_hunk_fits(file: str, below: str, expected: list[str]) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    assert f"\n{below}\n" in f"\n{text}"
    behind = text[text.index(below) :]
    assert "\n".join(expected).strip("\n") in behind


def test_there_are_hunks() -> None:
    assert len(hunks()) > 20
