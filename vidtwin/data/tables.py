"""Rows of a file of comma-, tab- or semicolon-separated values, each with the line it begins in.

What a program that shares such files would guess is refused: a row with more or fewer fields than
the header, a quote that is never closed.
"""

from __future__ import annotations

import csv
import io
import re
import threading
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidtwin.data.folders import VIDEO_SUFFIXES
from vidtwin.text_files import read_text

__all__ = ["Row", "read_table"]

DELIMITERS = {",": "a comma", "\t": "a tab", ";": "a semicolon", "|": "a bar"}
# The csv module has one limit of the length of a field for the whole process.
_LIMIT = threading.Lock()


@dataclass(frozen=True)
class Row:
    """One clip's entry in a list.

    Args:
        place: in the file, such as "line 3".
        values: name of a column or key -> what stands there.
    """

    place: str
    values: Mapping[str, Any]


def read_table(file: Path, names: Collection[str]) -> tuple[list[str], list[Row]]:
    """The columns of a CSV file, their names without spaces around them, and its rows.

    Args:
        file: a comma between its fields, or a tab, semicolon or bar where that makes one of the
            names stand alone in the header.
        names: of a column that must be there; upper and lower case are not told apart.
    Raises:
        ValueError: for a row that does not fit the header, or quotes that are not in pairs.
    """
    text = read_text(file)
    delimiter = _delimiter(text, names, "\t" if file.suffix.lower() == ".tsv" else ",")
    # All of a text may be one field: with a smaller limit, csv refuses long captions.
    with _LIMIT:
        limit = csv.field_size_limit(len(text) + 1)
        try:
            records = list(_records(file, text, delimiter))
        finally:
            csv.field_size_limit(limit)
    if not records:
        return [], []
    header = [" ".join(name.split()) for name in records[0][1]]
    named = [name for name in header if name]
    if repeated := sorted({name for name in named if named.count(name) > 1}):
        raise ValueError(f"{file} has the column {', '.join(repeated)} twice; rename one of them")
    rows = []
    for line, fields in records[1:]:
        # Programs for tables may leave empty fields at the end of a line.
        while len(fields) > len(header) and not fields[-1]:
            fields.pop()
        if len(fields) != len(header):
            raise ValueError(_misfit(file, line, len(fields), len(header), delimiter))
        rows.append(Row(f"line {line}", dict(zip(header, fields, strict=True))))
    return header, rows


def _delimiter(text: str, names: Collection[str], expected: str) -> str:
    """What stands between the fields: what is expected, unless only another one gives a header
    with one of the names."""
    first = next((line for line in io.StringIO(text, newline=None) if line.strip()), "")[:10_000]
    for delimiter in (expected, *DELIMITERS):
        try:
            reader = csv.reader([first], delimiter=delimiter, skipinitialspace=True)
            fields = {field.strip().lower() for field in next(reader, [])}
        except csv.Error:
            continue
        if fields & set(names):
            return delimiter
    return expected


def _records(file: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """(number of the first line, stripped fields) of each record that is not blank."""
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True
    )
    # The next row of the list within a field: two quotes that were never closed make a pair.
    swallowed = re.compile(
        rf"[\r\n][^\r\n{re.escape(delimiter)}]*({'|'.join(map(re.escape, sorted(VIDEO_SUFFIXES)))})"
        rf"[ ]*{re.escape(delimiter)}",
        re.IGNORECASE,
    )
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise ValueError(_misquoted(file, line, reader.line_num, str(error))) from error
        if any("\n" in field and swallowed.search(field) for field in fields):
            raise ValueError(_misquoted(file, line, reader.line_num, "swallowed"))
        if any(field.strip() for field in fields):
            yield line, [field.strip() for field in fields]


def _misquoted(file: Path, line: int, end: int, error: str) -> str:
    if "unexpected end of data" in error:
        return f"{file}: an opening quote in line {line} is never closed; write its partner"
    if error == "swallowed":
        return (
            f"{file}: an opening quote in line {line} is closed in line {end}, behind other clips; "
            "close it where its text ends"
        )
    if "expected after" in error:
        return (
            f"{file}: line {end} has text behind a closing quote (the quote that opens its field "
            f"is in line {line}); write a quote inside a quoted text twice"
        )
    return f"{file}: line {line} can't be read as CSV: {error}"


def _misfit(file: Path, line: int, came: int, expected: int, delimiter: str) -> str:
    cure = f"a text with {DELIMITERS[delimiter]} in it must stand in quotes"
    if came < expected:
        cure = f"write {DELIMITERS[delimiter]} for each empty field too"
    fields = "field" if came == 1 else "fields"
    return f"{file}: line {line} has {came} {fields} where the header has {expected}; {cure}"
