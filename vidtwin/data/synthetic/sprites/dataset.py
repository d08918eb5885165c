"""Sprites: clips of characters drawn from sprite sheets, split by character.

The published protocol (Li and Mandt 2018, arXiv 1803.02991, and those who followed): 64 x 64
pixels, 8 frames, 9 motions (walk, spellcast, slash; front, left, right), 6 variants of each of 4
parts, 1,296 characters of which 1,000 are for training and 296 for testing.
Axes: C colour channels, T frames, H W pixels.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vidtwin.data.config import DataConfig
from vidtwin.data.dataset import Draws, Factors, VideoDataset
from vidtwin.data.file_sources import Clip
from vidtwin.data.splits import split_clips
from vidtwin.data.synthetic.sprites.config import (
    CELL,
    PUBLISHED_VARIANTS,
    SHEET_FOLDERS,
    SpritesOptions,
    caption,
)
from vidtwin.data.synthetic.sprites.sheets import (
    Sheet,
    compose,
    fit_pixels,
    list_sheets,
    read_sheet,
)
from vidtwin.media import from_uint8

__all__ = ["SpritesDataset"]

PUBLISHED_CHARACTERS = PUBLISHED_VARIANTS ** len(SHEET_FOLDERS)
PUBLISHED_TRAIN = 1000
PUBLISHED_SHOES = "1.png"  # the one sheet that every character of the published data wears
PUBLISHED_SEED = 423  # of the permutation in the published scripts
TEST_FRACTION = 1 - PUBLISHED_TRAIN / PUBLISHED_CHARACTERS

Character = tuple[int, ...]  # which sheet of each factor


def split_keys(keys: Sequence[str], name: str, fraction: float) -> list[list[str]]:
    """The keys in two, by digests of their own for each name of a split."""
    # With its name: the digests that fall below one fraction must not decide the other.
    clips = [Clip(path=key, name=f"{name}/{key}") for key in keys]
    sides = (split_clips(clips, part, fraction) for part in ("train", "validation"))
    return [[clip.path for clip in side] for side in sides]


class SpritesDataset(VideoDataset):
    """Every motion of every character of a part; labelled, captioned, and never unusable.

    A character comes with all its motions one after another; the order of the characters is mixed,
    so that the first clips show all there is.

    Raises:
        ValueError: for a folder or a sheet that can't be used, or a size that cells don't fit.
    """

    def __init__(self, config: DataConfig, options: SpritesOptions):
        assert config.path is not None
        for name in ("height", "width"):
            size = getattr(config, name)
            if size % CELL and CELL % size:
                raise ValueError(
                    f"data.{name} must be a multiple or a divisor of the sprites' {CELL} pixels, "
                    f"got {size}"
                )
        self.options = options
        self.motions = list(itertools.product(options.actions, options.directions))
        root = Path(config.path).expanduser()
        self.sheets = {
            factor: [
                read_sheet(file, factor, self.motions)
                for file in list_sheets(root, folder, options.variants)
            ]
            for factor, folder in SHEET_FOLDERS.items()
        }
        shoes = [root / "shoes" / PUBLISHED_SHOES] if options.shoes else []
        self.shoes = [read_sheet(file, "shoes", self.motions, may_be_empty=True) for file in shoes]
        self.characters = self._characters(config)
        total = len(self.characters) * len(self.motions)
        super().__init__(config, min(total, config.max_clips or total))
        labels = {"motion": [" ".join(motion) for motion in self.motions]}
        self.label_names = list((labels | self.factor_classes().all)[options.label])

    def key(self, character: Character) -> str:
        """The names of a character's sheets, such as "0-3-1-9": what splits go by."""
        return "-".join(sheet.stem for sheet in self.worn(character))

    def worn(self, character: Character) -> list[Sheet]:
        """The sheets of a character, in the order in which they are drawn."""
        return [sheets[n] for sheets, n in zip(self.sheets.values(), character, strict=True)]

    def _characters(self, config: DataConfig) -> list[Character]:
        """The characters of the config's part."""
        counts = [range(len(sheets)) for sheets in self.sheets.values()]
        by_key = {self.key(one): one for one in itertools.product(*counts)}
        # Mixed, so that the first characters show all there is; by names that never change.
        ordered = sorted(by_key, key=lambda key: hashlib.sha256(key.encode()).digest())
        if config.part == "all":
            return [by_key[key] for key in ordered]
        if self.options.split == "published":
            sides = self.published_sides()
            train, test = ([self.key(one) for one in side] for side in sides)
        else:
            train, test = split_keys(ordered, "test", TEST_FRACTION)
        validation: list[str] = []
        if config.validation_fraction > 0:
            train, validation = split_keys(train, "validation", config.validation_fraction)
        chosen = {"train": train, "validation": validation, "test": test}[config.part]
        return [by_key[key] for key in chosen]

    def published_sides(self) -> tuple[list[Character], list[Character]]:
        """The 1,000 training and the 296 test characters of the published data, in their order.

        Raises:
            ValueError: if the six sheets of each part are not numbered 0 to 5.
        """
        numbers = tuple(str(number) for number in range(PUBLISHED_VARIANTS))
        for factor, sheets in self.sheets.items():
            stems, folder = tuple(sheet.stem for sheet in sheets), SHEET_FOLDERS[factor]
            if stems != numbers:
                raise ValueError(
                    f"data.sprites.split=published needs the sheets {folder}/0.png to "
                    f"{folder}/{PUBLISHED_VARIANTS - 1}.png, got {', '.join(stems)}"
                )
        order = np.random.RandomState(PUBLISHED_SEED).permutation(PUBLISHED_CHARACTERS)
        numbered = list(itertools.product(range(PUBLISHED_VARIANTS), repeat=len(SHEET_FOLDERS)))
        ordered = [numbered[number] for number in order]
        return ordered[:PUBLISHED_TRAIN], ordered[PUBLISHED_TRAIN:]

    def describe(self, index: int) -> tuple[Character, int]:
        """The character of a clip, and the number of its motion."""
        character, motion = divmod(index, len(self.motions))
        return self.characters[character], motion

    def draw(self, character: Character, number: int) -> torch.Tensor:
        """(3, T, H, W) in [-1, 1]: a character in a motion, given by its number."""
        sheets = self.worn(character) + self.shoes
        frames = compose(sheets, self.motions[number], self.config.num_frames)
        return from_uint8(fit_pixels(frames, self.config.height, self.config.width))

    def load(self, index: int, draws: Draws) -> dict[str, Any]:
        """The drawn clip, the same whatever the draws."""
        character, number = self.describe(index)
        labels = {**self.factors(index), "motion": number}
        return {
            "video": self.draw(character, number),
            "caption": self.captions(index, 1)[0],
            "label": labels[self.options.label],
            "path": f"sprites/{self.key(character)}/{'-'.join(self.motions[number])}",
        }

    def draw_pair(self, change: str, index: int, rng: np.random.Generator) -> torch.Tensor:
        """A character of the same part in the same motion, or the same one in any motion."""
        character, number = self.describe(index)
        if change == "appearance_swap":
            character = self.characters[rng.integers(len(self.characters))]
        else:
            number = int(rng.integers(len(self.motions)))
        return self.draw(character, number)

    def captions(self, index: int, count: int) -> list[str]:
        """The one caption of a clip, true of its pixels."""
        character, number = self.describe(index)
        worn = zip(self.sheets, self.worn(character), strict=True)
        names = {factor: sheet.name for factor, sheet in worn}
        return [caption(names, *self.motions[number])]

    def factor_classes(self) -> Factors:
        """Content: what the character is and wears; motion: action and direction."""
        sheets = self.sheets.items()
        return Factors(
            content={factor: tuple(sheet.name for sheet in some) for factor, some in sheets},
            motion={"action": self.options.actions, "direction": self.options.directions},
        )

    def factors(self, index: int) -> dict[str, int]:
        """What the character is and wears, what it does and in which direction."""
        character, number = self.describe(index)
        action, direction = divmod(number, len(self.options.directions))
        worn = dict(zip(SHEET_FOLDERS, character, strict=True))
        return {**worn, "action": action, "direction": direction}

    def label_factors(self, label: int) -> dict[str, int]:
        """Action and direction, or the one factor that `data.sprites.label` names."""
        if label < 0:
            return {}
        if self.options.label != "motion":
            return {self.options.label: label}
        action, direction = divmod(label, len(self.options.directions))
        return {"action": action, "direction": direction}
