"""What runs have logged, as curves, and the videos that they made over time as a sheet."""

from __future__ import annotations

import base64
import html
import io
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vidtwin.data.readers import iter_frames
from vidtwin.media import contact_sheet, thumbnail
from vidtwin_lab.evaluation.report import COLORS, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "draw_curves",
    "find_runs",
    "labelled",
    "page_of",
    "read_log",
    "sample_files",
    "sample_sheet",
]

Curve = tuple[NDArray[np.int64], NDArray[np.float64]]

LOG = "metrics.jsonl"
COLUMNS, SHEET_ROWS = 3, 8
SMOOTHED_FROM, SMOOTHING = 100, 0.95  # points of a curve from which on its mean is drawn too
QUARTILE = re.compile(r"_q(\d+)$")  # a loss by noise level: structure_q1 to structure_q4
BY_LEVEL = " by noise level"
STYLES = ("-", "--", "-.", ":")
STEP = re.compile(r"(.+)_(\d{9})\.(mp4|gif)$")
# Validation says how good a run is, the losses how it got there, speed comes last.
ORDER = ("validation/", "loss/", "training/", "learning_rate", "gradient_norm", "")
LEFT_OUT = {
    *("validation/clips", "validation/tokens", "tokens_per_sample", "memory_gib", "data_wait"),
    "nonfinite_steps",
}


def find_runs(folder: str | Path) -> list[Path]:
    """Run folders at or below a folder, in the order of their names.

    Raises:
        ValueError: if it is no folder, or no run is in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"expected a run folder, but {folder} is not a folder")
    found = sorted(path.parent for path in folder.rglob(LOG))
    if not found:
        raise ValueError(f"{folder} holds no run: no {LOG} is in it or below it")
    return found


def labelled(runs: Iterable[Path]) -> dict[str, Path]:
    """Runs by the part of their paths in which they differ."""
    paths = list(dict.fromkeys(run.resolve() for run in runs))
    common = Path(os.path.commonpath([path.parent for path in paths]))
    return {str(path.relative_to(common)): path for path in paths}


def read_log(run: Path) -> dict[str, Curve]:
    """Every logged name's steps and values; a step logged twice counts as last logged.

    A last line that a run is still writing is left out; NaN and infinity are gaps.
    """
    values: dict[str, dict[int, float]] = {}
    for line in (run / LOG).read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue  # only the last line of a running or killed run can be half written
        for name, value in entry.items():
            if name != "step" and isinstance(value, int | float):
                values.setdefault(name, {})[entry["step"]] = float(value)
    return {
        name: (np.array(sorted(each)), np.array([each[step] for step in sorted(each)]))
        for name, each in values.items()
    }


def draw_curves(runs: Mapping[str, Path], only: Sequence[str] = ()) -> Figure:
    """A panel for each logged name, with a line for each run; noise levels share a panel.

    Args:
        runs: label -> run folder.
        only: beginnings of the names to draw ("loss/", "validation/psnr"); none draws all.
    Raises:
        ValueError: if nothing of the kind is logged yet.
    """
    from matplotlib.lines import Line2D

    logs = {label: read_log(run) for label, run in runs.items()}
    names = sorted({name for log in logs.values() for name in log} - LEFT_OUT, key=_place)
    chosen = [name for name in names if not only or name.startswith(tuple(only))]
    if not chosen:
        known = f"; logged are {', '.join(names)}" if names else ""
        asked = f"no name that begins with {' or '.join(only)}" if names else "nothing"
        raise ValueError(f"{', '.join(map(str, runs.values()))}: {asked} is logged yet{known}")
    panels = dict.fromkeys(QUARTILE.sub(BY_LEVEL, name) for name in chosen)
    figure, axes = new_figure(-(-len(panels) // COLUMNS), min(COLUMNS, len(panels)))
    for panel, axis in zip(panels, axes, strict=False):
        axis.set_title(panel, loc="left")
        axis.set_xlabel("step")
        _draw_panel(axis, logs, [name for name in chosen if QUARTILE.sub(BY_LEVEL, name) == panel])
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    lines = [Line2D([], [], color=color) for color, _ in zip(itertools.cycle(COLORS), logs)]
    figure.legend(lines, list(logs), loc="outside upper left", ncols=COLUMNS)
    return figure


def _place(name: str) -> tuple[int, str]:
    return next(index for index, start in enumerate(ORDER) if name.startswith(start)), name


def _draw_panel(axis: Axes, logs: Mapping[str, dict[str, Curve]], members: list[str]) -> None:
    """One panel: colours tell the runs, line styles the noise levels."""
    for color, log in zip(itertools.cycle(COLORS), logs.values(), strict=False):
        for name in filter(log.__contains__, members):
            steps, values = log[name]
            level = QUARTILE.search(name)
            style: Any = {"color": color, "linewidth": 1.3}
            if level:
                style |= {"linestyle": STYLES[int(level[1]) % len(STYLES)], "label": f"q{level[1]}"}
            if len(steps) < SMOOTHED_FROM:
                axis.plot(steps, values, marker=".", **style)
            else:
                axis.plot(steps, values, color=color, linewidth=0.6, alpha=0.3)
                axis.plot(steps, _smoothed(values), **style)
    handles, labels = axis.get_legend_handles_labels()
    if first := dict(zip(labels, handles, strict=True)):
        axis.legend(first.values(), first.keys(), fontsize=7, title="noise, low to high")


def _smoothed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """An exponential mean that begins without bias; gaps stay out of it."""
    total, weight, means = 0.0, 0.0, []
    for value in values:
        if np.isfinite(value):
            total, weight = SMOOTHING * total + value, SMOOTHING * weight + 1
        means.append(total / weight if weight else np.nan)
    return np.array(means)


def sample_files(run: Path) -> dict[str, list[tuple[int, Path]]]:
    """Name -> (step, file) of the videos that a run made, in the order of their steps."""
    found: dict[str, list[tuple[int, Path]]] = {}
    folder = run / "videos"
    for path in sorted(folder.rglob("*")):
        if match := STEP.fullmatch(str(path.relative_to(folder))):
            found.setdefault(match.group(1), []).append((int(match.group(2)), path))
    return found


def sample_sheet(run: Path, path: Path) -> Path | None:
    """A contact sheet of a run's videos over time: a row for each step; None where it has none."""
    rows: dict[str, NDArray[np.uint8]] = {}
    for name, files in sample_files(run).items():
        chosen = np.linspace(0, len(files) - 1, min(SHEET_ROWS, len(files))).round().astype(int)
        for step, file in (files[index] for index in dict.fromkeys(chosen.tolist())):
            frames = [thumbnail(frame) for frame in iter_frames(file)]
            rows[f"{name.removeprefix('validation/')}  step {step}"] = np.stack(frames)
    # Rows of one sheet have equal lengths; what is shorter than the first is another kind.
    length = len(next(iter(rows.values()), []))
    rows = {label: frames for label, frames in rows.items() if len(frames) == length}
    return contact_sheet(rows, path, title=str(run)) if rows else None


def page_of(figure: Figure, runs: Mapping[str, Path]) -> str:
    """One HTML file that needs nothing beside it: curves, last values, and the newest videos."""
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg")
    svg = drawn.getvalue()
    parts = [svg[svg.index("<svg") :], *(_values_table(label, run) for label, run in runs.items())]
    parts += [part for label, run in runs.items() for part in _newest_videos(label, run)]
    title = html.escape(", ".join(runs))
    style = (
        "body{font:15px system-ui;margin:2em auto;max-width:75em}svg{max-width:100%;height:auto}"
    )
    style += "td{padding:0 1em 0 0}video{image-rendering:pixelated;width:12em}figure{float:left}"
    return (
        f'<!doctype html><meta charset="utf-8"><title>{title}</title><style>{style}</style>'
        f"<h1>{title}</h1>{''.join(parts)}"
    )


def _values_table(label: str, run: Path) -> str:
    log = read_log(run)
    cells = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{log[name][1][-1]:.5g}</td>"
        f"<td>step {log[name][0][-1]}</td></tr>"
        for name in sorted(log, key=_place)
    )
    told = f"<summary>{html.escape(label)}: last values</summary>"
    return f"<details>{told}<table>{cells}</table></details>"


def _newest_videos(label: str, run: Path) -> Iterator[str]:
    for name, files in sample_files(run).items():
        step, path = files[-1]
        data = base64.b64encode(path.read_bytes()).decode()
        told = html.escape(f"{label}: {name}, step {step}")
        kind: Any = ("img", "image/gif") if path.suffix == ".gif" else ("video", "video/mp4")
        tag = f'<{kind[0]} src="data:{kind[1]};base64,{data}" autoplay loop muted></{kind[0]}>'
        yield f"<figure>{tag}<figcaption>{told}</figcaption></figure>"
