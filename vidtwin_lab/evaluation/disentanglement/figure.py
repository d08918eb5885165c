"""The scorecard as one picture: a bar for each number, and some of the swapped videos.

Axes: T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vidtwin.media import to_uint8
from vidtwin_lab.evaluation.report import COLORS, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Line", "draw_scorecard"]

FRAMES_SHOWN = 4
GAP = 4  # pixels between frames
WIDE_GAP = 16  # pixels between clips


@dataclass(frozen=True)
class Line:
    """One number of the scorecard.

    Args:
        name: what it is.
        value: {"value", "low", "high", "n"}.
        chance: the value without any information, None if unknown.
        ceiling: the value of a perfect split with this autoencoder and judge, None for 1.
        wanted: whether more is better; leakage should be near chance.
    """

    name: str
    value: Mapping[str, Any]
    chance: float | None
    ceiling: float | None
    wanted: bool

    def as_dict(self) -> dict[str, Any]:
        """For the JSON."""
        return {
            **self.value,
            "chance": self.chance,
            "ceiling": self.ceiling,
            "better": "higher" if self.wanted else "near chance",
        }

    def as_text(self) -> str:
        """For a table, in percent: value, and in brackets chance and ceiling."""
        value = self.value["value"]
        if value is None:
            return "-"
        notes = [
            f"{word} {100 * number:.1f}"
            for word, number in (("chance", self.chance), ("at most", self.ceiling))
            if number is not None
        ]
        return f"{100 * value:.1f}" + (f" ({', '.join(notes)})" if notes else "")


def draw_scorecard(
    lines: Sequence[Line],
    originals: Sequence[tuple[Tensor, Tensor]],
    swapped: Sequence[NDArray[np.uint8]],
    path: Path,
) -> None:
    """Draws the figure into a PNG file.

    Args:
        lines: the bars, from above.
        originals: (A, B) of each example, (3, T, H, W) in [-1, 1] each.
        swapped: structure of A with dynamics of B, (T, H, W, 3) uint8 each.
        path: of the file.
    """
    height = max(3.2, 0.3 * len(lines) + 1.2)
    figure, panels = new_figure(1, 2 if swapped else 1, size=(6.4, height))
    _draw_bars(panels[0], lines)
    if swapped:
        _draw_examples(panels[1], originals, swapped)
    save_figure(figure, path)


def _draw_bars(axes: Axes, lines: Sequence[Line]) -> None:
    for place, line in enumerate(lines):
        value = line.value["value"]
        if value is None:
            continue
        color = COLORS[0] if line.wanted else COLORS[1]
        axes.barh(place, value, height=0.62, color=color, alpha=0.85)
        if line.value["low"] is not None:
            axes.plot([line.value["low"], line.value["high"]], [place, place], "k-", linewidth=1)
        for mark, style in ((line.chance, ":"), (line.ceiling, "-")):
            if mark is not None:
                axes.plot([mark, mark], [place - 0.4, place + 0.4], f"k{style}", linewidth=1.5)
    axes.set_yticks(range(len(lines)), [line.name for line in lines])
    axes.invert_yaxis()
    least = [line.value["value"] or 0.0 for line in lines] + [line.chance or 0.0 for line in lines]
    axes.set_xlim(min(0.0, *least) * 1.2, 1.02)
    axes.grid(axis="y", visible=False)
    axes.set_title("blue: more is better; orange: leakage, at best chance", fontsize=9, loc="left")
    axes.set_xlabel("dotted: chance   solid mark: ceiling   thin line: 95 % interval")


def _draw_examples(
    axes: Axes, originals: Sequence[tuple[Tensor, Tensor]], swapped: Sequence[NDArray[np.uint8]]
) -> None:
    rows = [
        [to_uint8(one), to_uint8(other), video]
        for (one, other), video in zip(originals, swapped, strict=True)
    ]
    image, centers = mosaic(rows)
    axes.imshow(image, interpolation="nearest")
    titles = ("A: structure", "B: dynamics", "structure of A,\ndynamics of B")
    axes.set_xticks(centers, titles)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.set_yticks([])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def mosaic(rows: Sequence[Sequence[NDArray[np.uint8]]]) -> tuple[NDArray[np.uint8], list[float]]:
    """Evenly spaced frames of the videos of each row, side by side on white.

    Args:
        rows: of videos (T, H, W, 3), all of one size.
    Returns:
        (H', W', 3) uint8, and the middle of each column of videos in pixels.
    """
    frames, height, width, _ = rows[0][0].shape
    shown = np.linspace(0, frames - 1, min(FRAMES_SHOWN, frames)).round().astype(int)
    clip_width = len(shown) * (width + GAP) - GAP
    columns = len(rows[0])
    starts = [column * (clip_width + WIDE_GAP) for column in range(columns)]
    image = np.full((len(rows) * (height + GAP) - GAP, starts[-1] + clip_width, 3), 255, np.uint8)
    for row, videos in enumerate(rows):
        top = row * (height + GAP)
        for start, video in zip(starts, videos, strict=True):
            for number, frame in enumerate(shown):
                left = start + number * (width + GAP)
                image[top : top + height, left : left + width] = video[frame]
    return image, [start + clip_width / 2 for start in starts]
