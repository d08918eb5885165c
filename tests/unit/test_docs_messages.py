"""docs/troubleshooting.md quotes messages that the code really prints."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
MESSAGES = [text for _, text in re.findall(r"^> (`+) ?(.*?) ?\1$", PAGE, re.MULTILINE)]


@cache
def literals() -> tuple[str, ...]:
    """Every text in the sources, those that are put together as one, with … for what differs."""
    files = [*ROOT.glob("*.py"), *(f for name in ("vidtwin", "diffusion", "vidtwin_lab")
                                   for f in (ROOT / name).rglob("*.py"))]  # fmt: skip
    found = []
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [str(v.value) if isinstance(v, ast.Constant) else "…" for v in node.values]
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(re.sub(r"%(\.\d)?[a-z]|\{\w*\}", "…", node.value))
    return tuple(found)


def printed(message: str) -> bool:
    """Whether one text of the sources has the message's words, in their order."""
    words = [re.escape(part.strip()) for part in message.split("…")]
    whole = re.compile(".*".join(words), re.DOTALL)
    return any(whole.search(text) for text in literals())


def test_the_page_quotes_messages() -> None:
    assert len(MESSAGES) >= 18


@pytest.mark.parametrize("message", MESSAGES)
def test_it_is_a_message_of_the_code(message: str) -> None:
    assert printed(message)


def test_another_message_would_be_found() -> None:
    assert not printed("… files can't be read, more than the … of data.max_bad_fraction")
    assert not printed("the loss is not a number")
