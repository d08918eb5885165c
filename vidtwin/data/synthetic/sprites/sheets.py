"""The sprite sheets of a folder, and clips drawn from them.

Axes: T frames, H W pixels.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from einops import rearrange, reduce, repeat
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from vidtwin.data.synthetic.sprites.config import (
    ACTIONS,
    CELL,
    DIRECTIONS,
    NUM_FRAMES,
    SHEET_COLUMNS,
    SHEET_FOLDERS,
    SHEET_NAMES,
    SHEET_ROWS,
)

SHEET_SIZE = (SHEET_COLUMNS * CELL, SHEET_ROWS * CELL)


@dataclass(frozen=True, eq=False)
class Sheet:
    """One sheet, cut into the clips that are asked for.

    `strips` holds, for every (action, direction), the eight frames side by side.
    """

    stem: str
    name: str
    strips: dict[tuple[str, str], Image.Image]


def list_sheets(folder: Path, part: str, variants: int | None) -> list[Path]:
    """The sheets of a part, numbers first and in their order.

    Args:
        variants: take the first n alone; None for all that are there.
    Raises:
        ValueError: if there is no such folder, no PNG file in it, or fewer than `variants`.
    """
    expected = (
        f"data.path must name a folder with {', '.join(SHEET_FOLDERS.values())}, each full of PNGs"
    )
    if not folder.is_dir():
        raise ValueError(f"{expected}, but {str(folder)!r} is not a folder")
    files = sorted(
        (file for file in (folder / part).glob("*.png") if not file.name.startswith(".")),
        key=lambda file: (not file.stem.isdecimal(), file.stem.zfill(12)),
    )
    if not files:
        raise ValueError(f"{expected}, but {str(folder / part)!r} has no PNG file")
    if variants is not None and len(files) < variants:
        raise ValueError(
            f"data.sprites.variants={variants} needs as many sheets, but {str(folder / part)!r} "
            f"has {len(files)}"
        )
    return files[:variants]


def read_sheet(
    file: Path, factor: str, motions: Sequence[tuple[str, str]], may_be_empty: bool = False
) -> Sheet:
    """One sheet, decoded and cut; kept in memory, since all parts of a data set share them.

    Args:
        factor: of `SHEET_FOLDERS`, for the name of a sheet that is not known.
        motions: (action, direction) of the clips to cut out.
        may_be_empty: whether it is fine that the sheet draws nothing in some clip.
    Raises:
        ValueError: naming the file, if it can't be read, has another size, or draws nothing where
            a clip needs it.
    """
    try:
        state = file.stat()
    except OSError as error:
        raise ValueError(f"sprite sheet {file} can't be read: {error}") from error
    version = (state.st_mtime_ns, state.st_size)
    return _read_sheet(file, version, factor, tuple(motions), may_be_empty)


@functools.lru_cache(maxsize=256)
def _read_sheet(
    file: Path,
    version: tuple[int, int],
    factor: str,
    motions: tuple[tuple[str, str], ...],
    may_be_empty: bool,
) -> Sheet:
    try:
        with Image.open(file) as image:
            if image.size != SHEET_SIZE:
                raise ValueError(
                    f"sprite sheet {file} must be {SHEET_SIZE[0]} x {SHEET_SIZE[1]} pixels "
                    f"({SHEET_COLUMNS} x {SHEET_ROWS} cells of {CELL}), got "
                    f"{image.size[0]} x {image.size[1]}"
                )
            sheet = image.convert("RGBA")
    except (OSError, SyntaxError, UnidentifiedImageError) as error:
        raise ValueError(f"sprite sheet {file} can't be read: {error}") from error
    digest = hashlib.sha256(np.asarray(sheet).tobytes()).hexdigest()[:12]
    strips = {}
    for action, direction in motions:
        strip = Image.new("RGBA", (NUM_FRAMES * CELL, CELL))
        top = (ACTIONS[action].row + DIRECTIONS[direction]) * CELL
        for place, column in enumerate(ACTIONS[action].columns):
            box = (column * CELL, top, (column + 1) * CELL, top + CELL)
            strip.paste(sheet.crop(box), (place * CELL, 0))
        if strip.getchannel("A").getextrema()[1] == 0 and not may_be_empty:
            raise ValueError(
                f"sprite sheet {file} draws nothing for {action} {direction}; leave the action, "
                "the direction or the sheet out"
            )
        strips[action, direction] = strip
    return Sheet(file.stem, SHEET_NAMES.get(digest, f"{factor} {file.stem}"), strips)


def fit_pixels(frames: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """(T, height, width, 3) uint8: pixels repeated, or averaged over equal blocks."""
    for axis, size in (("h", height), ("w", width)):
        before, after = ("t (h k) w c", "t h w c") if axis == "h" else ("t h (w k) c", "t h w c")
        if size < CELL:
            means = reduce(
                frames.astype(np.float32), f"{before} -> {after}", "mean", k=CELL // size
            )
            frames = np.rint(means).astype(np.uint8)
        else:
            frames = repeat(frames, f"{after} -> {before}", k=size // CELL)
    return frames


def compose(sheets: Sequence[Sheet], motion: tuple[str, str], num_frames: int) -> NDArray[np.uint8]:
    """(T, 64, 64, 3) uint8: sheets over each other on black; after eight frames all repeats."""
    picture = Image.new("RGBA", (NUM_FRAMES * CELL, CELL), "black")
    for sheet in sheets:
        picture = Image.alpha_composite(picture, sheet.strips[motion])
    frames = rearrange(np.asarray(picture.convert("RGB")), "h (t w) c -> t h w c", w=CELL)
    return frames[np.arange(num_frames) % NUM_FRAMES]
