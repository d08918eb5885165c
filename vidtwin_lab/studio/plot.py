"""Curves of one or several runs: losses, validation, loss by noise level, samples over time.

    vidtwin plot outputs/shapes
    vidtwin plot outputs/a outputs/b --only validation/ --output curves

Writes curves.png, curves.html (one file that needs nothing beside it) and, where runs made videos,
a sheet of them for each run. A run may be read while it is running.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from vidtwin.files import check_folder, written_whole
from vidtwin_lab import runtime


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = runtime.ArgumentParser(__doc__ or "")
    parser.prog = "vidtwin plot"
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder (repeatable)")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="(default: the first run)")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="NAME",
        help="names that begin so (repeatable)",
    )
    return parser.read(argv)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    output = arguments.output or arguments.runs[0]
    check_folder(output)
    for run in arguments.runs:
        if not run.is_dir():
            raise ValueError(f"expected a run folder, but {run} is not a folder")

    from vidtwin_lab.studio.curves import draw_curves, find_runs, labelled, page_of, sample_sheet

    runs = labelled(run for folder in arguments.runs for run in find_runs(folder))
    figure = draw_curves(runs, arguments.only)
    output.mkdir(parents=True, exist_ok=True)
    with written_whole(output / "curves.png") as partial:
        figure.savefig(partial, format="png", dpi=110)
    with written_whole(output / "curves.html") as partial:
        partial.write_text(page_of(figure, runs), encoding="utf-8")
    print(f"{output / 'curves.png'}  {output / 'curves.html'}")
    for index, run in enumerate(runs.values()):
        name = "samples.png" if len(runs) == 1 else f"samples_{index}.png"
        if sheet := sample_sheet(run, output / name):
            print(f"{sheet}  samples of {run}")
    return 0
