"""Compares scorecards of `evaluate.py disentanglement` in one table.

    python tools/compare_scorecards.py queries=outputs/q1 kl=outputs/kl --output study.md

Each argument is NAME=FOLDER, a folder with a disentanglement.json. The table has a row for each
number and a column for each scorecard, with its 95 % interval, the chance level and the most that
this autoencoder and judge can reach. Scorecards measured on other clips, pairs or with other judges
are refused, since their numbers can't be compared.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from vidtwin_lab import runtime
from vidtwin_lab.evaluation.report import markdown_table

# Keys of the protocol that may differ between compared scorecards.
FREE = ("checkpoint", "weights_digest", "sampling", "software", "device")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scorecards", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--output", type=Path, help="Markdown file; without it, print")
    return parser.parse_args()


def read(argument: str) -> tuple[str, dict[str, Any]]:
    """Name and content of one scorecard.

    Raises:
        ValueError: if the argument is not NAME=FOLDER, or the folder has no scorecard.
    """
    name, equals, folder = argument.partition("=")
    if not name or not equals or not folder:
        raise ValueError(f"expected NAME=FOLDER, got {argument!r}")
    path = Path(folder) / "disentanglement.json"
    try:
        return name, json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} is no scorecard of evaluate.py disentanglement: {error}"
        ) from error


def check_comparable(cards: dict[str, dict[str, Any]]) -> None:
    """Raises ValueError unless all were measured the same way."""
    (first, card), *others = cards.items()
    expected = {k: v for k, v in card["protocol"].items() if k not in FREE}
    for name, other in others:
        differing = [key for key, value in expected.items() if other["protocol"].get(key) != value]
        if differing:
            raise ValueError(
                f"{first} and {name} differ in {', '.join(differing)}; measure them the same way"
            )


def table(cards: dict[str, dict[str, Any]]) -> str:
    """Markdown: one row for each number of the scorecards, in percent."""
    names = list(dict.fromkeys(line for card in cards.values() for line in scores(card)))
    rows = []
    for line in names:
        cells = {name: scores(card).get(line) for name, card in cards.items()}
        known = next(cell for cell in cells.values() if cell is not None)
        row = [("measured, %", line), ("better", known["better"])]
        rows.append([*row, *((name, text_of(cell)) for name, cell in cells.items())])
    return markdown_table(rows)


def scores(card: dict[str, Any]) -> dict[str, Any]:
    """Name -> number of a scorecard."""
    found: dict[str, Any] = card["found"]["scorecard"]
    return found


def text_of(cell: dict[str, Any] | None) -> str:
    """Value, interval, chance and ceiling."""
    if cell is None or cell["value"] is None:
        return "-"
    text = f"{100 * cell['value']:.1f}"
    if cell["low"] is not None:
        text += f" ({100 * cell['low']:.1f} to {100 * cell['high']:.1f})"
    for word, key in (("chance", "chance"), ("at most", "ceiling")):
        if cell[key] is not None:
            text += f", {word} {100 * cell[key]:.1f}"
    return text


def main() -> None:
    arguments = parse_arguments()
    cards = dict(read(argument) for argument in arguments.scorecards)
    if len(cards) < len(arguments.scorecards):
        raise ValueError("two scorecards have the same name; give each its own")
    check_comparable(cards)
    text = table(cards)
    if arguments.output is None:
        print(text, end="")
    else:
        arguments.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    runtime.run_main(main)
