"""Moving shapes: a procedural data set of captioned clips that needs no download.

Attributes (which shapes, colours, motions, background) are drawn first; the pixels and the caption
follow from them, so that a caption is always true of its clip.
Axes: T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from vidtwin.data.synthetic.shapes.attributes import (
    LABELS,
    SPLITS,
    ShapesAttributes,
    draw_attributes,
    swap_appearance,
    swap_motion,
)
from vidtwin.data.synthetic.shapes.captions import caption
from vidtwin.data.synthetic.shapes.config import ShapesConfig
from vidtwin.data.synthetic.shapes.rendering import (
    ATTRIBUTES_STREAM,
    CAPTION_STREAM,
    render_attributes,
    stream,
)


@dataclass(frozen=True, eq=False)
class ShapesClip:
    """One clip: (T, H, W, 3) uint8 video, its caption and attributes.

    `label` indexes LABELS; `render_attributes(attributes, seed, ...)` gives the video again.
    """

    video: np.ndarray
    caption: str
    attributes: ShapesAttributes
    label: int
    seed: int


class MovingShapes:
    """The data set: clip i depends on (config.seed, config.split, i) and nothing drawn before it.

    Args:
        config: which clips; ShapesConfig() if none is given.
    """

    def __init__(self, config: ShapesConfig | None = None) -> None:
        self.config = config or ShapesConfig()

    def __len__(self) -> int:
        return self.config.size

    def _describe(self, index: int) -> tuple[int, ShapesAttributes]:
        if not 0 <= index < len(self):
            raise IndexError(f"clip {index} of a data set of {len(self)} clips")
        config = self.config
        entropy = np.random.SeedSequence([config.seed, SPLITS.index(config.split), index])
        seed = int(entropy.generate_state(1, np.uint64)[0])
        attributes = draw_attributes(
            stream(seed, ATTRIBUTES_STREAM),
            config.split,
            config.two_object_fraction if config.max_objects == 2 else 0.0,
            config.textured_fraction,
            config.motions,
            config.sized_fraction,
            config.paced_fraction,
        )
        return seed, attributes

    def attributes(self, index: int) -> ShapesAttributes:
        """What clip `index` shows, without rendering it."""
        return self._describe(index)[1]

    def captions(self, index: int, count: int) -> list[str]:
        """The captions of clip `index` in epochs 0 to count - 1, without rendering it."""
        seed, attributes = self._describe(index)
        return [self._caption(attributes, seed, epoch) for epoch in range(count)]

    def _caption(self, attributes: ShapesAttributes, seed: int, epoch: int) -> str:
        config = self.config
        rng = stream(seed, CAPTION_STREAM + epoch)
        return caption(attributes, rng, config.wordings, config.without_background_fraction)

    def clip(self, index: int, epoch: int = 0) -> ShapesClip:
        """Clip `index`; another epoch words its caption otherwise and changes nothing else."""
        seed, attributes = self._describe(index)
        config = self.config
        return ShapesClip(
            video=render_attributes(
                attributes, seed, config.num_frames, config.height, config.width
            ),
            caption=self._caption(attributes, seed, epoch),
            attributes=attributes,
            label=LABELS.index(attributes.objects[0].motion),
            seed=seed,
        )

    def appearance_swap(self, index: int, rng: np.random.Generator) -> np.ndarray:
        """(T, H, W, 3) uint8: the movement of clip `index` by other objects in another scene.

        Places, sizes and speeds are the clip's own; what turns turns by the same part of what its
        shape repeats after.

        Args:
            index: of the clip.
            rng: draws the other look.
        """
        seed, attributes = self._describe(index)
        config = self.config
        other = swap_appearance(rng, attributes, config.split)
        return render_attributes(other, seed, config.num_frames, config.height, config.width)

    def motion_swap(self, index: int, rng: np.random.Generator) -> np.ndarray:
        """(T, H, W, 3) uint8: the objects and the scene of clip `index` in another movement.

        Args:
            index: of the clip.
            rng: draws the other movement, with its places and sizes.
        """
        seed, attributes = self._describe(index)
        config = self.config
        other = swap_motion(rng, attributes, config.split, config.motions)
        size = (config.num_frames, config.height, config.width)
        return render_attributes(other, seed, *size, paths_rng=rng)

    def __getitem__(self, index: int) -> ShapesClip:
        return self.clip(index)

    def __iter__(self) -> Iterator[ShapesClip]:
        return (self.clip(index) for index in range(len(self)))


def unseen_clip(num_frames: int = 16, height: int = 64, width: int = 64) -> ShapesClip:
    """A plain clip of one object in a combination that no training split shows."""
    config = ShapesConfig(
        num_frames=num_frames,
        height=height,
        width=width,
        seed=1,
        size=1,
        split="test",
        max_objects=1,
        textured_fraction=0.0,
    )
    return MovingShapes(config).clip(0)
