"""What a user wrote. Text is read from files: UTF-8, or refused in one line that says where.

Imports nothing of this project and only the standard library.
"""

from __future__ import annotations

import codecs
import io
import json
import math
from collections import Counter
from os import PathLike
from pathlib import Path
from typing import Any

__all__ = ["number_in", "parse_json", "read_json", "read_lines", "read_text", "split_lines"]

# What a file begins with -> its encoding. That of UTF-32 begins like that of UTF-16.
MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


def read_text(path: str | PathLike[str]) -> str:
    """The text of a UTF-8 file, without the byte order mark that some editors put before it.

    Raises:
        ValueError: if the file can't be read, or is in another encoding; the message names the
            file, the byte and its line.
    """
    try:
        content = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"the file {str(path)!r} can't be read: {reason}") from error
    for mark, encoding in MARKS:
        if content.startswith(mark):
            raise ValueError(
                f"{path} is {encoding} text (it begins with the bytes "
                f"{mark.hex(' ').upper()}); save it as UTF-8"
            )
    try:
        text = content.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError as error:
        place = content.removeprefix(codecs.BOM_UTF8)[: error.start]
        raise ValueError(
            f"{path} is not UTF-8 text: byte 0x{error.object[error.start]:02X} in line "
            f"{_line(place)} (byte {len(place) + 1} of the text) can't be read; save it as UTF-8"
        ) from error
    if (position := text.find("\0")) >= 0:
        raise ValueError(
            f"{path} is not UTF-8 text: line {_line(text[:position].encode())} holds the byte "
            "0x00, as UTF-16 and binary files do; save it as UTF-8"
        )
    return text


def _line(before: bytes) -> int:
    """The number of the line that begins or goes on after these bytes."""
    return 1 + len(before.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")[:-1])


def split_lines(text: str) -> list[str]:
    """The lines of a text, without their ends: Unix, Windows and old Mac ones.

    `str.splitlines` would also cut at characters that may stand in a caption, such as U+2028.
    """
    return [line.removesuffix("\n") for line in io.StringIO(text, newline=None)]


def read_lines(path: str | PathLike[str]) -> list[str]:
    """The lines of a UTF-8 file; raises as `read_text` does."""
    return split_lines(read_text(path))


def read_json(path: str | PathLike[str]) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: if it isn't UTF-8, or isn't JSON, or names a key of an object twice.
    """
    return parse_json(read_text(path), str(path))


def parse_json(text: str, where: str) -> Any:
    """The content of a JSON text.

    Args:
        where: the file and the place in it, for messages.
    Raises:
        ValueError: if it isn't JSON, or names a key of an object twice.
    """
    try:
        content = json.loads(text, object_pairs_hook=_without_repeats)
        if "\\u" in text:  # half of a pair such as "\\ud83d" alone is no character
            json.dumps(content, ensure_ascii=False).encode("utf-8")
        return content
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON: {error}") from error


def number_in(text: str) -> float:
    """The number that a text is; NaN if it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        raise ValueError(f"it names {counts.most_common(1)[0][0]!r} twice in one object")
    return found
