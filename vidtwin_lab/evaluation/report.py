"""What every measurement hands back, and the files it becomes.

A measurement is cut into fixed batches of consecutive videos. Any number of processes shares them
(`Processes.share`), rows are gathered and sorted, sums run in the order of the rows: the JSON and
the CSV don't depend on how many processes there were.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from vidtwin.data import DataConfig, SkippedFile
from vidtwin.files import write_json, written_whole
from vidtwin.reconstruction import software_versions, weights_digest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "COLORS",
    "Processes",
    "Report",
    "batches_of",
    "data_protocol",
    "fields_of",
    "markdown_table",
    "merge_skipped",
    "model_protocol",
    "new_figure",
    "rounded",
    "save_figure",
    "software_protocol",
    "write_report",
]

Item = TypeVar("Item")
# Digits of a written number. A sum's last bits differ between processors, these don't.
SIGNIFICANT_DIGITS = 9
# Distinguishable also for the colour-blind (Okabe and Ito 2008).
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
}


def _itself(rows: list[Any]) -> list[Any]:
    return rows


@dataclass(frozen=True, kw_only=True)
class Processes:
    """Which of how many processes this one is, and how rows reach all of them.

    Args:
        rank: of this process, from 0.
        count: number of processes.
        device: of this process.
        gather: takes this process' picklable rows, gives those of all processes, on each of them;
            every process must call it equally often.
    """

    rank: int = 0
    count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    gather: Callable[[list[Any]], list[Any]] = _itself

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.count:
            raise ValueError(f"rank must be in [0, {self.count}), got {self.rank}")

    @property
    def main(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def share(self, batches: Sequence[Item]) -> Sequence[Item]:
        """This process' part of the batches: batch b goes to process b % count."""
        return batches[self.rank :: self.count]

    def main_first(self, load: Callable[[], Item]) -> Item:
        """What `load` gives on every process; the main one first, which may download a file."""
        loaded = load() if self.main else None
        self.gather([])  # the others wait here
        return load() if loaded is None else loaded

    def gather_sorted(self, rows: list[dict[str, Any]], key: str = "index") -> list[dict[str, Any]]:
        """The rows of all processes in the order of their `key`, on every process."""
        return sorted(self.gather(rows), key=lambda row: row[key])


@dataclass(frozen=True, kw_only=True)
class Report:
    """The result of one measurement.

    Args:
        name: of the measurement; the files are called after it.
        protocol: everything the numbers depend on, so that they can be had again.
        found: the numbers, nested; an interval is {"value", "low", "high", "n"}.
        rows: the CSV, one for each video; flat, in order.
        skipped: {"path", "reason"} of what could not be used.
        markdown: (column, text) of the row that goes into a table.
        draw: draws the figure into a PNG file; None for no figure.
        pictures: more of them by name, each for a file of its own.
    """

    name: str
    protocol: dict[str, Any]
    found: dict[str, Any]
    rows: list[dict[str, Any]]
    skipped: list[dict[str, str]] = field(default_factory=list)
    markdown: list[tuple[str, str]] = field(default_factory=list)
    draw: Callable[[Path], Any] | None = None
    pictures: Mapping[str, Callable[[Path], Any]] = field(default_factory=dict)


def write_report(report: Report, folder: str | Path) -> list[Path]:
    """Writes NAME.json, .csv, .md, .png and NAME.PICTURE.png, each whole or not at all.

    To be called by the main process alone.

    Args:
        report: CSV, Markdown and PNG are left out where it has no rows, no row or no figure.
        folder: made if it isn't there.
    Returns:
        list[Path]: the files.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "measurement": report.name,
        "found": report.found,
        "skipped": {"n": len(report.skipped), "files": report.skipped},
        "protocol": report.protocol,
    }
    written = []
    if report.rows:
        written.append(_write_text(folder / f"{report.name}.csv", _as_csv(report.rows)))
    if report.markdown:
        table = markdown_table([report.markdown])
        written.append(_write_text(folder / f"{report.name}.md", table))
    drawings = {} if report.draw is None else {f"{report.name}.png": report.draw}
    drawings |= {f"{report.name}.{name}.png": each for name, each in report.pictures.items()}
    for name, draw in drawings.items():
        with written_whole(folder / name) as partial:
            draw(partial)
        written.append(folder / name)
    # The JSON last: where it is, the others are.
    return [write_json(folder / f"{report.name}.json", rounded(content)), *written]


def rounded(value: Any) -> Any:
    """The value in plain types that JSON knows, its floats to nine significant digits.

    Tuples become lists, dataclasses dicts, arrays and tensors lists; infinity and NaN become the
    texts "inf", "-inf" and "nan", since JSON has no numbers for them.
    """
    if isinstance(value, bool | int | str | None):
        return value
    if isinstance(value, float):
        return float(f"{value:.{SIGNIFICANT_DIGITS}g}") if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): rounded(each) for key, each in value.items()}
    if isinstance(value, DataConfig):
        return rounded(value.to_dict())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [each.name for each in dataclasses.fields(value)]
        return {name: rounded(getattr(value, name)) for name in names}
    if isinstance(value, torch.Tensor | np.ndarray | np.generic):
        return rounded(value.tolist())
    if isinstance(value, Sequence | set | frozenset):
        ordered = sorted(value) if isinstance(value, set | frozenset) else value
        return [rounded(each) for each in ordered]
    return str(value)


def markdown_table(rows: Sequence[Sequence[tuple[str, str]]]) -> str:
    """A Markdown table of rows that have the same columns.

    Raises:
        ValueError: if the columns of two rows differ.
    """
    header = [column for column, _ in rows[0]]
    lines = [header, ["-"] * len(header)]
    for row in rows:
        if [column for column, _ in row] != header:
            raise ValueError(
                f"expected the columns {header}, got {[column for column, _ in row]}; results of "
                "different protocols don't go into one table"
            )
        lines.append([text.replace("|", "\\|") for _, text in row])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def batches_of(number: int, batch_size: int) -> list[range]:
    """The indices from 0 to number - 1 in batches of consecutive ones; the last may be smaller."""
    return [range(start, min(start + batch_size, number)) for start in range(0, number, batch_size)]


def data_protocol(data: DataConfig, n: int) -> dict[str, Any]:
    """How the videos of a data set were chosen and read.

    Args:
        data: as it was used, sizes included.
        n: how many videos were measured.
    """
    versions = software_versions()
    readers = {"auto": ("av",), "decord": ("decord", "av"), "pyav": ("av",)}[data.backend]
    reader = {"backend": data.backend, "versions": {name: versions[name] for name in readers}}
    return {
        **fields_of(data, "source", "path"),
        "split": getattr(data.options, "split", data.split),
        "part": data.part,
        "n": n,
        "resolution": [data.height, data.width],
        "frames": data.num_frames,
        **fields_of(data, "stride", "fps", "start", "short", "resize", "crop", "flip"),
        "reader": reader if data.options.reads_files else None,
        "seed": data.seed,
        "config": rounded(data),
    }


def fields_of(config: Any, *names: str) -> dict[str, Any]:
    """Some fields of a config, for a protocol."""
    return {name: getattr(config, name) for name in names}


def model_protocol(path: str | Path, model: torch.nn.Module) -> dict[str, Any]:
    """Which weights were measured: the path as the user gave it, and their digest."""
    return {"checkpoint": str(path), "weights_digest": weights_digest(model)}


def software_protocol(processes: Processes, dtype: str = "float32") -> dict[str, Any]:
    """On what the numbers were computed; nothing of it varies with the number of processes."""
    return {
        "device": processes.device.type,
        "dtype": dtype,
        "software": {**software_versions(), "numpy": np.__version__},
    }


def merge_skipped(skipped: Iterable[SkippedFile | Sequence[str]]) -> list[dict[str, str]]:
    """(path, reason) pairs of all processes as a report lists them: by path, each once."""
    unique = {(str(path), str(reason)) for path, reason in skipped}
    return [{"path": path, "reason": reason} for path, reason in sorted(unique)]


def new_figure(
    rows: int = 1, columns: int = 1, *, size: tuple[float, float] = (4.2, 3.2)
) -> tuple[Figure, list[Axes]]:
    """An empty figure in the style of all of them.

    Args:
        rows: of panels.
        columns: of panels.
        size: width and height of one panel, in inches.
    Returns:
        The figure and its panels, row after row; to be closed by nobody.
    """
    import matplotlib
    from matplotlib.figure import Figure

    # Without pyplot there is no global state, no window and no backend to choose.
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(columns * size[0], rows * size[1]), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False)
    return figure, list(panels.flat)


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG."""
    figure.savefig(path, format="png", dpi=150)


def _as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line for each row; a column that a row hasn't got stays empty, as does None."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        plain = rounded(row)
        writer.writerow(
            {
                name: json.dumps(cell) if isinstance(cell, dict | list) else cell
                for name, cell in plain.items()
            }
        )
    return text.getvalue()


def _write_text(path: Path, text: str) -> Path:
    with written_whole(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return path
