"""Sprites: clips of characters drawn from sprite sheets, split by character.

The published protocol (Li and Mandt 2018, arXiv 1803.02991, and those who followed): 64 x 64
pixels, 8 frames, 9 motions (walk, spellcast, slash; front, left, right), 6 variants of each of 4
parts, 1,296 characters of which 1,000 are for training and 296 for testing.
Axes: T frames, H W pixels.
"""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vidtwin.data.synthetic.sprites.attributes import (
    ACTIONS,
    CELL,
    DIRECTIONS,
    NUM_FRAMES,
    PARTS,
    PUBLISHED_ACTIONS,
    PUBLISHED_DIRECTIONS,
    PUBLISHED_VARIANTS,
    caption,
    check_choices,
)
from vidtwin.data.synthetic.sprites.sheets import SpriteSheets, fit_pixels

SPLITS = ("digest", "published")
LABELS = ("motion", "action", "direction", *PARTS)
PUBLISHED_CHARACTERS = PUBLISHED_VARIANTS ** len(PARTS)
PUBLISHED_TRAIN = 1000
PUBLISHED_SEED = 423  # of the permutation in the published scripts
TEST_FRACTION = 1 - PUBLISHED_TRAIN / PUBLISHED_CHARACTERS

Character = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class SpritesConfig:
    """Which clips the data set holds, and how they are drawn.

    Args:
        num_frames: T; the published clips have 8, after which an action repeats.
        height, width: in pixels; multiples or divisors of 64.
        actions: of walk, spellcast, slash, thrust and shoot.
        directions: of front, left, right and back.
        variants: take the first n sheets of each part alone (6 in the publication); None for all.
        split: "digest" puts a character on a side by a digest of its sheets' names; "published"
            takes the published test characters, which needs variants=6.
        shoes: draw shoes/1.png over every character, as the published data do.
    """

    num_frames: int = NUM_FRAMES
    height: int = CELL
    width: int = CELL
    actions: tuple[str, ...] = PUBLISHED_ACTIONS
    directions: tuple[str, ...] = PUBLISHED_DIRECTIONS
    variants: int | None = None
    split: str = "digest"
    shoes: bool = False

    def __post_init__(self) -> None:
        check_choices("data.sprites_actions", self.actions, tuple(ACTIONS))
        check_choices("data.sprites_directions", self.directions, tuple(DIRECTIONS))
        check_choices("data.sprites_split", (self.split,), SPLITS)
        for name in ("height", "width"):
            size = getattr(self, name)
            if size % CELL and CELL % size:
                raise ValueError(
                    f"data.{name} must be a multiple or a divisor of the sprites' {CELL} pixels, "
                    f"got {size}"
                )
        if self.variants is not None and self.variants < 1:
            raise ValueError(
                f"data.sprites_variants must be at least 1 or null, got {self.variants}"
            )
        if self.split == "published" and self.variants != PUBLISHED_VARIANTS:
            raise ValueError(
                "data.sprites_split=published is a split of six variants of each part, got "
                f"data.sprites_variants={self.variants}; set it to {PUBLISHED_VARIANTS}"
            )


class Sprites:
    """Characters and motions of a folder of sheets; nothing in it is random.

    Args:
        folder: of the sheets, see `SpriteSheets`.
        config: which clips; SpritesConfig() if none is given.
    Raises:
        ValueError: for a folder or a sheet that can't be used.
    """

    def __init__(self, folder: str, config: SpritesConfig | None = None) -> None:
        self.config = config or SpritesConfig()
        self.motions = list(itertools.product(self.config.actions, self.config.directions))
        self.sheets = SpriteSheets(folder, self.motions, self.config.variants, self.config.shoes)
        counts = [range(len(self.sheets.names(factor))) for factor in PARTS]
        # Mixed, so that the first characters show all there is; by names that never change.
        self.characters: list[Character] = sorted(
            itertools.product(*counts),
            key=lambda character: hashlib.sha256(self.key(character).encode()).digest(),
        )

    def key(self, character: Character) -> str:
        """The names of a character's sheets, such as "0-3-1-9": what splits go by."""
        stems = (self.sheets.stems(factor) for factor in PARTS)
        return "-".join(names[index] for names, index in zip(stems, character, strict=True))

    def names(self, character: Character) -> dict[str, str]:
        """Factor -> what is seen of it."""
        return {
            factor: self.sheets.names(factor)[index]
            for factor, index in zip(PARTS, character, strict=True)
        }

    def caption(self, character: Character, motion: tuple[str, str]) -> str:
        """The one caption of a clip, true of its pixels."""
        return caption(self.names(character), *motion)

    def clip(self, character: Character, motion: tuple[str, str]) -> NDArray[np.uint8]:
        """(T, H, W, 3) uint8."""
        frames = self.sheets.render(character, motion, self.config.num_frames)
        return fit_pixels(frames, self.config.height, self.config.width)

    def published_sides(self) -> tuple[list[Character], list[Character]]:
        """The 1,000 training and the 296 test characters of the published data, in their order.

        Raises:
            ValueError: if the six sheets of each part are not numbered 0 to 5.
        """
        numbers = tuple(str(number) for number in range(PUBLISHED_VARIANTS))
        for factor, part in PARTS.items():
            if self.sheets.stems(factor) != numbers:
                raise ValueError(
                    f"data.sprites_split=published needs the sheets {part}/0.png to "
                    f"{part}/{PUBLISHED_VARIANTS - 1}.png, got "
                    f"{', '.join(self.sheets.stems(factor))}"
                )
        order = np.random.RandomState(PUBLISHED_SEED).permutation(PUBLISHED_CHARACTERS)
        numbered = list(itertools.product(range(PUBLISHED_VARIANTS), repeat=len(PARTS)))
        ordered = [numbered[number] for number in order]
        return ordered[:PUBLISHED_TRAIN], ordered[PUBLISHED_TRAIN:]
