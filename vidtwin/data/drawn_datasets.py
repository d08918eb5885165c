"""Clips that are drawn: the moving shapes and the sprites.

Axes: C colour channels, T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from vidtwin.data.config import DataConfig
from vidtwin.data.factors import Factors
from vidtwin.data.sources import Clip, split_clips
from vidtwin.data.synthetic.shapes import (
    BACKGROUNDS,
    COLORS,
    LABELS,
    MOTIONS,
    SHAPES,
    MovingShapes,
    ShapesConfig,
)
from vidtwin.data.synthetic.sprites import PARTS, TEST_FRACTION, Sprites
from vidtwin.data.video_dataset import Draws, VideoDataset
from vidtwin.media import from_uint8

__all__ = ["ShapesDataset", "SpritesDataset"]

VALIDATION_SEED = 1_000_003


class ShapesDataset(VideoDataset):
    """The moving shapes; every clip is finite, labelled and captioned, and can't be unusable."""

    def __init__(self, config: DataConfig):
        super().__init__(config, min(config.shapes_size, config.max_clips or config.shapes_size))
        self.label_names = list(LABELS)
        wordings = {"train": "train", "validation": "test", "all": "all"}[config.part]
        # With one split for all parts, only another seed keeps validation clips unseen.
        repeats = config.part == "validation" and config.shapes_split not in (None, "test")
        self.shapes = MovingShapes(
            ShapesConfig(
                num_frames=config.num_frames,
                height=config.height,
                width=config.width,
                size=config.shapes_size,
                seed=config.shapes_seed + repeats * VALIDATION_SEED,
                max_objects=config.shapes_max_objects,
                two_object_fraction=config.shapes_two_object_fraction,
                textured_fraction=config.shapes_textured_fraction,
                without_background_fraction=config.shapes_without_background_fraction,
                motions=config.shapes_motions,
                split=config.shapes_split or wordings,
                wordings=wordings,
            )
        )

    def load(self, index: int, draws: Draws) -> dict[str, Any]:
        """The rendered clip; of the draws the epoch alone counts, it words the caption."""
        clip = self.shapes.clip(index, draws.epoch)
        return {
            "video": from_uint8(clip.video),
            "caption": clip.caption,
            "label": clip.label,
            "index": index,
            "path": f"shapes/{self.shapes.config.split}/{self.config.shapes_seed}/{index}",
            "fps": self.config.fps or 8.0,
            "frame_indices": torch.arange(self.config.num_frames),
        }

    def draw_pair(self, twin: str, index: int, rng: np.random.Generator) -> torch.Tensor:
        """Other objects of the same part that move alike, or the same ones moving otherwise."""
        draw = {
            "appearance_swap": self.shapes.appearance_swap,
            "motion_swap": self.shapes.motion_swap,
        }[twin]
        return from_uint8(draw(index, rng))

    def captions(self, index: int, count: int) -> list[str]:
        """The wordings of a clip's caption in the first epochs, without rendering it."""
        return self.shapes.captions(index, count)

    def factor_classes(self) -> Factors:
        """Those of the one object.

        Raises:
            ValueError: if a clip may have two.
        """
        config = self.shapes.config
        if config.max_objects > 1 and config.two_object_fraction > 0:
            raise ValueError(
                "labels of content and motion are those of one object, but some clips of the "
                "shapes have two; set data.shapes_max_objects=1"
            )
        return Factors(
            content={
                "color": tuple(COLORS),
                "shape": tuple(SHAPES),
                "background": tuple(BACKGROUNDS),
            },
            motion={"motion": tuple(MOTIONS)},
        )

    def factors(self, index: int) -> dict[str, int]:
        """Those of the one object, and the background."""
        attributes = self.shapes.attributes(index)
        seen = {**vars(attributes.objects[0]), "background": attributes.background}
        classes = self.factor_classes().all
        return {name: names.index(seen[name]) for name, names in classes.items()}

    def label_factors(self, label: int) -> dict[str, int]:
        """The motion."""
        return {"motion": label} if label >= 0 else {}


class SpritesDataset(VideoDataset):
    """Every motion of every character of a part; labelled, captioned, and never unusable.

    A character comes with all its motions one after another; the order of the characters is mixed,
    so that the first clips show all there is.
    """

    def __init__(self, config: DataConfig):
        assert config.path is not None
        sizes = {name: getattr(config, name) for name in ("num_frames", "height", "width")}
        self.sprites = Sprites(config.path, replace(config.sprites_config(), **sizes))
        self.characters = self._characters(config)
        total = len(self.characters) * len(self.sprites.motions)
        super().__init__(config, min(total, config.max_clips or total))
        labels = {"motion": [" ".join(motion) for motion in self.sprites.motions]}
        self.label_names = list((labels | self.factor_classes().all)[config.sprites_label])

    def _characters(self, config: DataConfig) -> list[tuple[int, ...]]:
        """The characters of the config's part."""

        def split(keys: Sequence[str], name: str, fraction: float) -> list[list[str]]:
            # With its name: the digests that fall below one fraction must not decide the other.
            clips = [Clip(path=key, name=f"{name}/{key}") for key in keys]
            sides = (split_clips(clips, part, fraction) for part in ("train", "validation"))
            return [[clip.path for clip in side] for side in sides]

        by_key = {self.sprites.key(one): one for one in self.sprites.characters}
        if config.part == "all":
            return list(by_key.values())
        if config.sprites_split == "published":
            train, test = (
                [self.sprites.key(one) for one in side] for side in self.sprites.published_sides()
            )
        else:
            train, test = split(list(by_key), "test", TEST_FRACTION)
        validation: list[str] = []
        if config.validation_fraction > 0:
            train, validation = split(train, "validation", config.validation_fraction)
        chosen = {"train": train, "validation": validation, "test": test}[config.part]
        return [by_key[key] for key in chosen]

    def describe(self, index: int) -> tuple[tuple[int, ...], int]:
        """The character of a clip, and the number of its motion."""
        character, motion = divmod(index, len(self.sprites.motions))
        return self.characters[character], motion

    def load(self, index: int, draws: Draws) -> dict[str, Any]:
        """The drawn clip, the same whatever the draws."""
        character, number = self.describe(index)
        motion = self.sprites.motions[number]
        labels = {**self.factors(index), "motion": number}
        return {
            "video": from_uint8(self.sprites.clip(character, motion)),
            "caption": self.sprites.caption(character, motion),
            "label": labels[self.config.sprites_label],
            "index": index,
            "path": f"sprites/{self.sprites.key(character)}/{'-'.join(motion)}",
            "fps": self.config.fps or 8.0,
            "frame_indices": torch.arange(self.config.num_frames),
        }

    def draw_pair(self, twin: str, index: int, rng: np.random.Generator) -> torch.Tensor:
        """A character of the same part in the same motion, or the same one in any motion."""
        character, number = self.describe(index)
        if twin == "appearance_swap":
            character = self.characters[rng.integers(len(self.characters))]
        else:
            number = int(rng.integers(len(self.sprites.motions)))
        return from_uint8(self.sprites.clip(character, self.sprites.motions[number]))

    def captions(self, index: int, count: int) -> list[str]:
        """The one caption of a clip."""
        character, number = self.describe(index)
        return [self.sprites.caption(character, self.sprites.motions[number])]

    def factor_classes(self) -> Factors:
        """Content: what the character is and wears; motion: action and direction."""
        config = self.sprites.config
        return Factors(
            content={factor: self.sprites.sheets.names(factor) for factor in PARTS},
            motion={"action": config.actions, "direction": config.directions},
        )

    def factors(self, index: int) -> dict[str, int]:
        """What the character is and wears, what it does and in which direction."""
        character, number = self.describe(index)
        action, direction = divmod(number, len(self.sprites.config.directions))
        worn = dict(zip(PARTS, character, strict=True))
        return {**worn, "action": action, "direction": direction}

    def label_factors(self, label: int) -> dict[str, int]:
        """Action and direction, or the one factor that `sprites_label` names."""
        if label < 0:
            return {}
        if self.config.sprites_label != "motion":
            return {self.config.sprites_label: label}
        action, direction = divmod(label, len(self.sprites.config.directions))
        return {"action": action, "direction": direction}
