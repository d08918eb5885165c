"""What varies between the clips of a data set: factors of content and of motion, with classes.

Any data set that knows them tells them in the same way:

    factors = factor_labels(dataset)     # Factors: content and motion, name -> names of its classes
    dataset.factors(index)               # name -> class of clip `index`, -1 where it is not known

Classes are the same in every part of a data set. Where they come from:
    shapes      content color, shape, background; motion: of the one object (shapes_max_objects=1)
    sprites     content skin, bottomwear, topwear, hair; motion action, direction
    classes, ucf101     the class, as motion "class" or content "class" (data.motion_factors,
                data.content_factors; motion if neither is set)
    csv         the columns that data.content_factors and data.motion_factors name
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vidtwin.data.video_dataset import VideoDataset


@dataclass(frozen=True, kw_only=True)
class Factors:
    """The factors of a data set, in a fixed order.

    Args:
        content: what stays the same during a clip: name -> names of its classes.
        motion: what happens in it, likewise.
    """

    content: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    motion: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def all(self) -> dict[str, tuple[str, ...]]:
        """Content, then motion: name -> names of its classes."""
        return {**self.content, **self.motion}


def factor_labels(dataset: VideoDataset) -> Factors:
    """The factors of a data set; `dataset.factors(index)` gives those of a clip.

    Raises:
        ValueError: if the data set knows none, saying how to name some.
    """
    factors = dataset.factor_classes()
    if not factors.all:
        raise ValueError(
            f"data.source={dataset.config.source} has no labels of content or motion here; take "
            "shapes, sprites or classes, or a csv and name its columns in data.content_factors "
            "and data.motion_factors"
        )
    return factors
