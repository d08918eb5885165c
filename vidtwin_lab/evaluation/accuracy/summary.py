"""The numbers of all factors, and of their combinations, and what shows them.

Axes: K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vidtwin.data import Factors
from vidtwin_lab.evaluation.accuracy.config import AccuracyConfig
from vidtwin_lab.evaluation.accuracy.entropies import Array, sprites_measures
from vidtwin_lab.evaluation.accuracy.labels import Labels
from vidtwin_lab.evaluation.classifier import UNKNOWN, accuracies, flat_row, percent
from vidtwin_lab.evaluation.report import COLORS, Report, new_figure, save_figure

__all__ = ["joint_class", "joint_probabilities", "make_report"]

SYMBOLS = {  # of the literature
    "inter_entropy": "H(y)",
    "intra_entropy": "H(y|x)",
    "inception_score": "IS",
}


def joint_probabilities(row: Mapping[str, Sequence[float]], names: Sequence[str]) -> Array:
    """(K,) probabilities of all combinations of some factors' classes, the last the fastest.

    The product of the classifier's heads, which decide independently of each other given the
    video. The published judge has one head for the nine motions instead.
    """
    joint = np.ones(1)
    for name in names:
        joint = np.outer(joint, row[name]).ravel()
    return joint / joint.sum()


def joint_class(labels: Labels, names: Sequence[str], classes: Mapping[str, Sequence[str]]) -> int:
    """The place of a combination in `joint_probabilities`; UNKNOWN if a factor is not known."""
    place = 0
    for name in names:
        if labels[name] == UNKNOWN:
            return UNKNOWN
        place = place * len(classes[name]) + labels[name]
    return place


def measures_of(rows: Sequence[Mapping[str, Any]], factors: Factors) -> dict[str, Any]:
    """`sprites_measures` of each factor, and of the combinations of all motion factors."""
    groups: dict[str, tuple[str, ...]] = {name: (name,) for name in factors.all}
    if len(factors.motion) > 1:
        groups["all motion"] = tuple(factors.motion)
    found = {}
    for group, names in groups.items():
        table = np.stack([joint_probabilities(row["probabilities"], names) for row in rows])
        labels = [joint_class(row["labels"], names, factors.all) for row in rows]
        found[group] = sprites_measures(table, labels)
    return found


def make_report(
    config: AccuracyConfig,
    factors: Factors,
    rows: Sequence[Mapping[str, Any]],
    skipped: list[dict[str, str]],
    protocol: dict[str, Any],
) -> Report:
    """The report of judged videos."""
    shares = accuracies(rows, factors)
    measures = measures_of(rows, factors)
    motion = "all motion" if "all motion" in measures else next(iter(factors.motion), None)
    columns = [("videos", config.videos), ("n", str(len(rows)))]
    columns += [(name, percent(share)) for name, share in shares.items()]
    if motion is not None:
        columns += [
            (f"{symbol} of motion", f"{measures[motion][name]:.3f}")
            for name, symbol in SYMBOLS.items()
        ]
    return Report(
        name="accuracy",
        protocol=protocol,
        found={"accuracy": shares, "measures": measures},
        rows=[
            {"index": row["index"], "asked": row["asked"]} | flat_row(row, factors) for row in rows
        ],
        skipped=skipped,
        markdown=columns,
        draw=lambda path: draw_accuracies(path, shares, factors, config.videos),
    )


def draw_accuracies(
    path: Path, shares: Mapping[str, Mapping[str, Any]], factors: Factors, title: str
) -> None:
    """A bar for each factor with its interval, and the line that chance would reach."""
    known = {name: share for name, share in shares.items() if share["value"] is not None}
    figure, (panel,) = new_figure(size=(5.0, 0.8 + 0.32 * max(1, len(known))))
    for place, (name, share) in enumerate(known.items()):
        kind = COLORS[0] if name in factors.content or name == "all content" else COLORS[1]
        panel.barh(place, share["value"], color=COLORS[2] if name == "all" else kind, height=0.6)
        panel.hlines(place, share["low"], share["high"], color="black", linewidth=1.2)
        if name in factors.all:
            panel.plot([1 / len(factors.all[name])] * 2, [place - 0.4, place + 0.4], "k:", lw=1)
    panel.set_yticks(range(len(known)), list(known))
    panel.invert_yaxis()
    panel.set_xlim(0, 1)
    panel.set_xlabel("share of the videos; dotted: one class of as many")
    panel.set_title(title)
    save_figure(figure, path)
