"""Measures adherence to prompts under many settings of the sampler, and compares them.

    nice -n 10 python tools/sweep_adherence.py SETTINGS.yaml samples=200 --output FOLDER
    python tools/sweep_adherence.py SETTINGS.yaml --output FOLDER --print

SETTINGS.yaml has the overrides of each setting by its name:

    base: {guidance_scale: 6.0}
    lead +0.2: {structure_lead: 0.2}

Each is measured by `evaluate.py adherence` (--config, all settings' key=value overrides after the
file) into a folder of its own; what is there already is not measured again, so that a sweep goes
on where it was stopped. All settings have the same prompts and the same noise. The table has the
share of videos that show all that was asked for with its 95 % interval and, beside the first
setting that is measured, how many videos it makes right that the first makes wrong, the other way
round, and the two-sided exact probability of so uneven a split by chance (McNemar's test).
"""

from __future__ import annotations

import argparse
import csv
import json
import math
from pathlib import Path
from typing import Any

from vidtwin.files import check_folder
from vidtwin_lab import runtime
from vidtwin_lab.evaluation.measurement_configs import AdherenceConfig

REPORT = "adherence"


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("settings", type=Path, metavar="SETTINGS.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of all settings")
    parser.add_argument("--config", default="configs/evaluation/adherence.yaml", metavar="FILE")
    parser.add_argument("--output", type=Path, default=Path("outputs/evaluation/sweep"))
    parser.add_argument("--print", action="store_true", help="what is measured, nothing new")
    return parser.parse_args()


def configs_of(arguments: argparse.Namespace) -> dict[str, AdherenceConfig]:
    """The config of each setting, all checked before the first is measured."""
    configs = {}
    for name, changes in runtime.read_yaml(arguments.settings).items():
        if "/" in name or not isinstance(changes, dict):
            raise ValueError(
                f"{arguments.settings}: expected NAME: {{key: value}}, got {name!r}: {changes!r}"
            )
        folder = f"output={arguments.output / name.replace(' ', '_')}"
        own = [f"{key}={value}" for key, value in changes.items()]
        overrides = [*arguments.overrides, *own, folder]
        configs[name] = runtime.load_config(AdherenceConfig, arguments.config, overrides)
    return configs


def measure(config: AdherenceConfig) -> None:
    """Measures one setting and writes its report."""
    from vidtwin_lab.evaluation import adherence
    from vidtwin_lab.evaluation.report import Processes, write_report

    write_report(adherence.measure(config, Processes()), config.output)


def read(config: AdherenceConfig) -> tuple[dict[str, Any], dict[int, bool]]:
    """The report of one setting, and for each video by its index whether all was right."""
    folder = Path(config.output)
    report = json.loads((folder / f"{REPORT}.json").read_text(encoding="utf-8"))
    with (folder / f"{REPORT}.csv").open(encoding="utf-8", newline="") as file:
        rows = {int(row["index"]): row["all"] == "1" for row in csv.DictReader(file)}
    return report, rows


def table(configs: dict[str, AdherenceConfig]) -> str:
    """Markdown of what is measured."""
    from vidtwin_lab.evaluation.intervals import interval_text
    from vidtwin_lab.evaluation.report import markdown_table

    lines: list[list[tuple[str, str]]] = []
    first: dict[int, bool] = {}
    for name, config in configs.items():
        if not (Path(config.output) / f"{REPORT}.json").is_file():
            continue
        report, rows = read(config)
        first = first or rows
        shares = report["found"]["all_videos"]
        cells = [("setting", name), ("steps", str(report["protocol"]["steps"]))]
        cells += [("n", str(len(rows)))]
        cells += [("all", interval_text(shares["all"], scale=100))]
        for attribute in config.judged:
            cells.append((attribute, format(100 * shares[attribute]["value"], ".1f")))
        both = first.keys() & rows.keys()
        gained = sum(rows[index] and not first[index] for index in both)
        lost = sum(first[index] and not rows[index] for index in both)
        cells += [("gained", str(gained)), ("lost", str(lost))]
        cells += [("p", format(chance_of_split(gained, lost), ".2f"))]
        lines.append(cells)
    return markdown_table(lines) if lines else "nothing is measured yet\n"


def chance_of_split(one: int, other: int) -> float:
    """Probability of a split at least as uneven of as many fair coins."""
    number, least = one + other, min(one, other)
    tail = sum(math.comb(number, count) for count in range(least + 1)) / 2**number
    return min(1.0, 2 * tail)


def main() -> None:
    """Measures what is missing, and prints the table."""
    arguments = parse_arguments()
    configs = configs_of(arguments)
    check_folder(arguments.output)
    runtime.configure_logging()
    for config in configs.values():
        measured = (Path(config.output) / f"{REPORT}.json").is_file()
        if not measured and not arguments.print:
            measure(config)
            print(table(configs), flush=True)
    print(table(configs), end="")


if __name__ == "__main__":
    runtime.run_main(main)
