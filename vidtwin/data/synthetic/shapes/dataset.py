"""The moving shapes as a data set for training.

Axes: C colour channels, T frames, H W pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from vidtwin.data.config import DataConfig
from vidtwin.data.dataset import Draws, Factors, VideoDataset
from vidtwin.data.synthetic.shapes.attributes import BACKGROUNDS, COLORS, LABELS, MOTIONS, SHAPES
from vidtwin.data.synthetic.shapes.clips import MovingShapes
from vidtwin.data.synthetic.shapes.config import ShapesConfig, ShapesOptions
from vidtwin.media import from_uint8

__all__ = ["ShapesDataset"]

VALIDATION_SEED = 1_000_003


class ShapesDataset(VideoDataset):
    """The moving shapes; every clip is finite, labelled and captioned, and can't be unusable."""

    def __init__(self, config: DataConfig, options: ShapesOptions):
        super().__init__(config, min(options.size, config.max_clips or options.size))
        self.options = options
        self.label_names = list(LABELS)
        wordings = {"train": "train", "validation": "test", "all": "all"}[config.part]
        # With one split for all parts, only another seed keeps validation clips unseen.
        repeats = config.part == "validation" and options.split not in (None, "test")
        follows = {
            "num_frames": config.num_frames,
            "height": config.height,
            "width": config.width,
            "seed": options.seed + repeats * VALIDATION_SEED,
            "split": options.split or wordings,
            "wordings": wordings,
        }
        self.shapes = MovingShapes(ShapesConfig(**vars(options) | follows))

    def load(self, index: int, draws: Draws) -> dict[str, Any]:
        """The rendered clip; of the draws the epoch alone counts, it words the caption."""
        clip = self.shapes.clip(index, draws.epoch)
        return {
            "video": from_uint8(clip.video),
            "caption": clip.caption,
            "label": clip.label,
            "path": f"shapes/{self.shapes.config.split}/{self.options.seed}/{index}",
        }

    def draw_pair(self, change: str, index: int, rng: np.random.Generator) -> torch.Tensor:
        """Other objects of the same part that move alike, or the same ones moving otherwise."""
        assert change in ("appearance_swap", "motion_swap"), change
        swap = getattr(self.shapes, change)
        return from_uint8(swap(index, rng))

    def captions(self, index: int, count: int) -> list[str]:
        """The wordings of a clip's caption in the first epochs, without rendering it."""
        return self.shapes.captions(index, count)

    def factor_classes(self) -> Factors:
        """Those of the one object.

        Raises:
            ValueError: if a clip may have two.
        """
        if self.options.max_objects > 1 and self.options.two_object_fraction > 0:
            raise ValueError(
                "labels of content and motion are those of one object, but some clips of the "
                "shapes have two; set data.shapes.max_objects=1"
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
