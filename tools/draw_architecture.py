"""Draws docs/images/architecture.png from the imports in the sources: which part stands on which.

    python tools/draw_architecture.py

Every box is a file or subpackage with its lines of code; every arrow points from what imports to
what is imported, with the number of imports. An arrow that points up would break the import laws
(tests/unit/test_imports.py) and is drawn in red.
"""

from __future__ import annotations

import ast
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "images" / "architecture.png"
# From the top of the picture to its bottom; each may import those below it.
BANDS = {
    "scripts": "the stages, each with its loop in sight",
    "vidtwin_lab": "the workshop: runs, evaluation, language models, the command",
    "diffusion": "the transformer over both latents, and its pipeline",
    "vidtwin": "the autoencoder, its data and its files",
}
COLORS = {
    "scripts": "#f4f4f4",
    "vidtwin_lab": "#e3efdf",
    "diffusion": "#dfe9f5",
    "vidtwin": "#f7ead9",
}
BOXES_IN_A_ROW = 8


def sources() -> list[Path]:
    """The files of the scripts and packages, but for what only lists names."""
    packages = (path for name in list(BANDS)[1:] for path in (ROOT / name).rglob("*.py"))
    found = [*sorted(ROOT.glob("*.py")), *sorted(packages)]
    return [path for path in found if path.name != "__init__.py"]


def band_of(path: Path) -> str:
    """The band of a file."""
    first = path.relative_to(ROOT).parts[0]
    return first if first in BANDS else "scripts"


def box_of(path: Path) -> str:
    """The box of a file: the file itself, or the subpackage of its band that it lies in."""
    parts = path.relative_to(ROOT).parts
    if band_of(path) == "scripts":
        return parts[0]
    return f"{parts[1]}/" if len(parts) > 2 else parts[1]


def imported_bands(path: Path) -> Counter[str]:
    """How often a file imports from each band."""
    found: Counter[str] = Counter()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        modules: list[str] = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            modules = [node.module]
        found.update(m.split(".")[0] for m in modules if m.split(".")[0] in BANDS)
    return found


def draw(boxes: dict[str, Counter[str]], arrows: Counter[tuple[str, str]]) -> None:
    """Writes the picture.

    Args:
        boxes: band -> box -> lines.
        arrows: (band that imports, band that is imported) -> number of imports.
    """
    rows = {band: -(-len(found) // BOXES_IN_A_ROW) for band, found in boxes.items()}
    figure, axes = plt.subplots(figsize=(14, 1.6 + 0.62 * sum(rows.values()) + 0.8 * len(rows)))
    top, places = 0.0, {}
    for band, found in boxes.items():
        height = 0.75 + 0.8 * rows[band]
        style: Any = {"boxstyle": "round,pad=0.02,rounding_size=0.08", "ec": "#777777", "lw": 0.8}
        axes.add_patch(FancyBboxPatch((0, top - height), 14, height, fc=COLORS[band], **style))
        title = f"{band}: {BANDS[band]} ({sum(found.values()):,} lines)"
        axes.text(0.15, top - 0.32, title, fontsize=11, weight="bold", va="center")
        for place, (name, lines) in enumerate(sorted(found.items())):
            x = 0.15 + (place % BOXES_IN_A_ROW) * 1.72
            y = top - 1.25 - 0.8 * (place // BOXES_IN_A_ROW)
            axes.add_patch(FancyBboxPatch((x, y), 1.6, 0.62, fc="white", **style))
            label = "\n".join(textwrap.wrap(name.removesuffix(".py"), 19, break_long_words=True))
            axes.text(x + 0.8, y + 0.38, label, fontsize=8, ha="center", va="center")
            axes.text(x + 0.8, y + 0.1, f"{lines:,}", fontsize=6.5, ha="center", color="#666666")
        places[band] = (top, top - height)
        top -= height + 0.55
    order = list(boxes)
    for number, ((above, below), count) in enumerate(sorted(arrows.items())):
        down = order.index(above) < order.index(below)
        start, end = (places[above][1], places[below][0]) if down else places[above]
        x = 14.25 + 0.42 * number
        axes.annotate(
            "",
            xy=(x, end if down else places[below][1]),
            xytext=(x, start),
            arrowprops={"arrowstyle": "->", "lw": 1.6, "color": "#444444" if down else "#cc0000"},
        )
        axes.text(x + 0.05, (start + end) / 2, str(count), fontsize=9, va="center")
    axes.set_xlim(-0.1, 14.3 + 0.42 * len(arrows))
    axes.set_ylim(top + 0.4, 0.15)
    axes.axis("off")
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, dpi=110, bbox_inches="tight")


def main() -> None:
    """Counts, draws, and prints the counts."""
    boxes: dict[str, Counter[str]] = {band: Counter() for band in BANDS}
    arrows: Counter[tuple[str, str]] = Counter()
    for path in sources():
        band = band_of(path)
        boxes[band][box_of(path)] += len(path.read_text(encoding="utf-8").splitlines())
        for other, count in imported_bands(path).items():
            if other != band:
                arrows[band, other] += count
    draw(boxes, arrows)
    for band, found in boxes.items():
        files = sum(band_of(path) == band for path in sources())
        print(f"{band}: {sum(found.values()):,} lines in {files} files")
    print(PICTURE.relative_to(ROOT))


if __name__ == "__main__":
    main()
