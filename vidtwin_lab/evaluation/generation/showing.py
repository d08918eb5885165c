"""A report's lines, its row of a table, and its figure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vidtwin_lab.evaluation.feature_sets import FeatureSet
from vidtwin_lab.evaluation.generation.collecting import Sampled
from vidtwin_lab.evaluation.generation.config import GenerationConfig
from vidtwin_lab.evaluation.report import COLORS, new_figure, rounded, save_figure

__all__ = ["drawer", "markdown_row", "table"]


def table(real: FeatureSet, sampled: Sampled) -> list[dict[str, Any]]:
    """The CSV: a line for each generated video, with the real one nearest to it in features.

    A model that repeats what it was trained on stands out by tiny distances.
    """
    rows = [dict(row) for row in sampled.rows]
    if real.features is None or sampled.set.features is None:
        return rows
    others = real.features.astype(np.float64)
    squares = np.square(others).sum(1)
    for row, own in zip(rows, sampled.set.features.astype(np.float64), strict=True):
        nearest = int(np.argmin(squares - 2 * others @ own))
        row["nearest_real"] = real.names[nearest]
        row["distance"] = float(np.linalg.norm(others[nearest] - own))
    return rows


def markdown_row(config: GenerationConfig, found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """One row of a table."""
    row = [
        ("generated", f"{config.generated.kind} {config.generated.path or ''}".strip()),
        ("real", f"{config.data.source} {config.data.part}"),
        ("n", f"{config.num_videos}"),
        ("video", f"{config.data.num_frames}x{config.data.height}x{config.data.width}"),
    ]
    for name, value in found.items():
        if name in ("by_number", "reencoded"):
            continue
        if name == "FVD per class":
            row.append((name, f"{value['mean']:.4g} (mean)"))
            continue
        text = f"{value['value']:.4g}"
        if "low" in value:
            text += f" ({value['low']:.4g} to {value['high']:.4g})"
        elif "deviation_of_splits" in value:
            text += f" ± {value['deviation_of_splits']:.2g}"
        row.append((name, text))
    return row


def drawer(
    real: FeatureSet, generated: FeatureSet, found: Mapping[str, Any]
) -> Callable[[Path], None] | None:
    """Draws the distance by the number of videos, and both sets on their first two axes."""
    if real.features is None or generated.features is None or not found.get("by_number"):
        return None
    steps = rounded(found["by_number"])
    mean = real.statistics.mean
    _, vectors = np.linalg.eigh(real.statistics.covariance + generated.statistics.covariance)
    axes = vectors[:, ::-1][:, :2]
    clouds = {
        "real": (real.features - mean) @ axes,
        "generated": (generated.features - mean) @ axes,
    }

    def draw(path: Path) -> None:
        figure, (left, right) = new_figure(1, 2)
        numbers = [step["n"] for step in steps]
        left.plot(numbers, [step["value"] for step in steps], "o-", color=COLORS[0])
        left.set_xlabel("videos of each side")
        left.set_ylabel("Fréchet distance")
        left.set_xscale("log", base=2)
        left.set_xticks(numbers, [str(number) for number in numbers])
        left.set_ylim(bottom=0)
        for color, (name, cloud) in zip(COLORS, clouds.items(), strict=False):
            second = cloud[:, 1] if cloud.shape[1] > 1 else np.zeros(len(cloud))
            right.scatter(cloud[:, 0], second, s=8, alpha=0.5, color=color, label=name)
        right.set_xlabel("first principal axis of the features")
        right.set_ylabel("second")
        right.legend()
        save_figure(figure, path)

    return draw
