"""Published figures, read from the tables of the page that has their sources."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

__all__ = ["PUBLISHED", "PublishedTable", "read_published", "read_tables"]

_NUMBER = re.compile(r"\d+(?:\.\d+)?")
# Columns of GLUE whose measure every paper means alike.
_GLUE = {
    "CoLA": ("glue/cola/matthews",),
    "SST-2": ("glue/sst2/accuracy",),
    "RTE": ("glue/rte/accuracy",),
}
_F1 = {**_GLUE, "MRPC": ("glue/mrpc/f1",), "STS-B": ("glue/stsb/spearman",)}
_ACCURACY = {**_GLUE, "MRPC": ("glue/mrpc/accuracy",)}
_SQUAD = {"v1.1": ("squad/squad1/exact", "squad/squad1/f1")}
_OBJECTIVES = {
    "MRPC acc.": ("glue/mrpc/accuracy",),
    "SST-2": ("glue/sst2/accuracy",),
    "SQuAD 1.1 F1": ("squad/squad1/f1",),
}


class Source(NamedTuple):
    """A row of a published table.

    section: number of its heading; table: first cell of its header; row: first cell of the row.
    columns: column -> the measures of the numbers in its cell, in their order.
    """

    section: int
    table: str
    row: str
    columns: Mapping[str, tuple[str, ...]]


# A column of ours -> where its figures stand. Measures that a paper doesn't name are left out.
PUBLISHED: dict[str, tuple[Source, ...]] = {
    "BERT base, masked tokens (dev)": (
        Source(8, "BERT, Table 5 (base)", "masked tokens", _OBJECTIVES),
    ),
    "BERT base, left to right (dev)": (
        Source(8, "BERT, Table 5 (base)", "left to right", _OBJECTIVES),
    ),
    "GPT (test)": (Source(1, "BERT, Table 1", "GPT", _F1),),
    "BERT base (test; SQuAD dev)": (
        Source(1, "BERT, Table 1", "BERT base", _F1),
        Source(6, "model", "BERT base", _SQUAD),
    ),
    "SpanBERT large (test)": (
        Source(1, "SpanBERT, Table 5 (all large)", "SpanBERT", _F1),
        Source(7, "model", "SpanBERT large", _SQUAD),
    ),
    "RoBERTa large (dev)": (
        Source(3, "model", "RoBERTa", _ACCURACY),
        Source(6, "model", "RoBERTa large", _SQUAD),
    ),
    "ALBERT xxlarge (dev)": (
        Source(3, "model", "ALBERT xxlarge 1.5M", _ACCURACY),
        Source(6, "model", "ALBERT xxlarge 1.5M", _SQUAD),
    ),
    "DistilBERT (dev)": (
        Source(4, "DistilBERT, Table 1, medians of 5", "DistilBERT", _GLUE),
        Source(6, "model", "DistilBERT; distilled again on SQuAD", _SQUAD),
    ),
    "ELECTRA small (dev)": (
        Source(4, "ELECTRA's README, medians", "ELECTRA small",
               {**_GLUE, "MRPC acc.": ("glue/mrpc/accuracy",),
                "STS-B Spearman": ("glue/stsb/spearman",)}),
        Source(6, "model", "released ELECTRA small, base (EM only)",
               {"v1.1": ("squad/squad1/exact",)}),
    ),
}  # fmt: skip


class PublishedTable(NamedTuple):
    """A table: the number of its section, its header, and its rows by their first cells."""

    section: int
    header: tuple[str, ...]
    rows: dict[str, tuple[str, ...]]


def read_published(page: str | Path) -> dict[str, dict[str, str]]:
    """The figures of `PUBLISHED`: title -> measure -> figure in percent, as printed.

    Args:
        page: docs/results/published_language.md.
    Raises:
        ValueError: if it isn't there, or a table, row or column is not in it; names it.
    """
    try:
        tables = read_tables(Path(page).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"the published figures can't be read: {error}") from error
    found: dict[str, dict[str, str]] = {title: {} for title in PUBLISHED}
    for title, sources in PUBLISHED.items():
        for source in sources:
            table = next((t for t in tables if (t.section, t.header[0]) == source[:2]), None)
            if table is None or source.row not in table.rows:
                raise ValueError(
                    f"{page} has no row {source.row!r} in a table {source.table!r} of section "
                    f"{source.section}"
                )
            for column, measures in source.columns.items():
                if column not in table.header:
                    raise ValueError(f"{page}: the table {source.table!r} has no column {column!r}")
                cell = table.rows[source.row][table.header.index(column)]
                found[title] |= dict(zip(measures, _NUMBER.findall(cell), strict=False))
    return found


def read_tables(text: str) -> list[PublishedTable]:
    """The Markdown tables under numbered headings ("## 3. ...")."""
    tables: list[PublishedTable] = []
    section, within = 0, False
    for line in text.splitlines():
        if heading := re.match(r"## (\d+)\.", line):
            section = int(heading[1])
        if line.startswith("|"):
            cells = tuple(cell.strip() for cell in line.strip().strip("|").split("|"))
            if not within:
                tables.append(PublishedTable(section, cells, {}))
            elif set("".join(cells)) - set("-: "):
                tables[-1].rows[cells[0]] = cells
        within = line.startswith("|")
    return tables
