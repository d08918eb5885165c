"""What a clip of moving shapes shows: the names, the attributes, and how they are drawn."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from vidtwin.data.registry import check_choice

__all__ = [
    "BACKGROUNDS",
    "COLORS",
    "MOTIONS",
    "SHAPES",
    "SIZES",
    "SPEEDS",
    "ShapesAttributes",
    "ShapesObject",
    "check_choice",
    "draw_attributes",
]

# Shape -> the angle in degrees after which it looks the same (None: turning it shows nothing).
SHAPES: dict[str, float | None] = {
    "circle": None,
    "square": 90.0,
    "triangle": 120.0,
    "star": 72.0,
    "cross": 90.0,
    "ring": None,
}
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (215, 30, 35),
    "orange": (245, 125, 20),
    "yellow": (250, 230, 60),
    "green": (45, 185, 65),
    "cyan": (45, 210, 220),
    "blue": (45, 95, 235),
    "purple": (150, 55, 205),
    "pink": (250, 135, 195),
    "white": (245, 245, 245),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "black": (16, 16, 18),
    "navy": (18, 26, 84),
    "gray": (100, 100, 106),
    "dark green": (18, 66, 36),
    "maroon": (90, 18, 34),
    "tan": (178, 160, 130),
}
TEXTURES: tuple[str, ...] = ("plain", "striped", "checkered", "dotted", "gradient")
MOTIONS: tuple[str, ...] = (
    "moving left",
    "moving right",
    "moving up",
    "moving down",
    "turning clockwise",
    "turning counterclockwise",
    "growing",
    "shrinking",
    "bouncing up and down",
    "bouncing left and right",
    "staying still",
)
# Of what is neither, a caption says nothing of size or speed.
SIZES: tuple[str, ...] = ("small", "large")
SPEEDS: tuple[str, ...] = ("slow", "fast")
LABELS: list[str] = list(MOTIONS)  # a clip's class is the motion of its first object

SPLITS = ("train", "test", "all")


def speeds_of(motion: str, size: str | None = None) -> tuple[str, ...]:
    """The speeds that a motion can have besides the usual one, of an object of some size."""
    if motion == "staying still" or motion.startswith("bouncing"):
        return ()
    # What is large has not the room to go far.
    return ("slow",) if size == "large" and motion.startswith("moving") else SPEEDS


@dataclass(frozen=True)
class ShapesObject:
    """One object of a clip: what it is and what it does; None: of the usual size or speed."""

    shape: str
    color: str
    motion: str
    size: str | None = None
    speed: str | None = None

    def __post_init__(self) -> None:
        if self.size is not None:
            check_choice("size", self.size, SIZES)
        if self.speed is not None:
            check_choice("speed", self.speed, SPEEDS)
            if self.speed not in speeds_of(self.motion, self.size):
                raise ValueError(
                    f"`speed` can't be {self.speed!r} of what is {self.size or 'usual'} in size "
                    f"and {self.motion}: there is no room for it, or nothing to see; leave it out"
                )
        check_choice("shape", self.shape, SHAPES)
        check_choice("color", self.color, COLORS)
        check_choice("motion", self.motion, MOTIONS)
        if self.motion.startswith("turning") and SHAPES[self.shape] is None:
            turnable = [shape for shape, period in SHAPES.items() if period is not None]
            raise ValueError(
                f"a {self.shape} looks the same when it turns, so `motion` can't be "
                f"{self.motion!r}; choose another motion, or a shape of {', '.join(turnable)}"
            )


@dataclass(frozen=True)
class ShapesAttributes:
    """Everything that a caption may say about a clip."""

    objects: tuple[ShapesObject, ...]
    background: str
    texture: str = "plain"

    def __post_init__(self) -> None:
        if len(self.objects) not in (1, 2):
            raise ValueError(f"`objects` must hold 1 or 2 objects, got {len(self.objects)}")
        if len(self.objects) > 1:
            wide = [item for item in self.objects if item.size == "large" or item.speed == "fast"]
            if wide:
                raise ValueError(
                    "two objects leave no room for one that is large or fast; give it another "
                    "size and speed"
                )
        if len({item.color for item in self.objects}) < len(self.objects):
            raise ValueError(
                f"two objects must differ in color, both are {self.objects[0].color}; "
                "give one another color"
            )
        check_choice("background", self.background, BACKGROUNDS)
        check_choice("texture", self.texture, TEXTURES)


def is_held_out(item: ShapesObject) -> bool:
    """True for the tenth of the (color, shape, motion) combinations that only "test" shows.

    The rule leaves every pair of two of the three attributes in "train".
    """
    color = list(COLORS).index(item.color)
    shape = list(SHAPES).index(item.shape)
    return (color + 3 * shape + 7 * MOTIONS.index(item.motion)) % 10 == 0


@functools.cache
def _objects_of(split: str, motion: str) -> tuple[ShapesObject, ...]:
    found = []
    for shape, period in SHAPES.items():
        if motion.startswith("turning") and period is None:
            continue
        for color in COLORS:
            item = ShapesObject(shape, color, motion)
            if split == "all" or is_held_out(item) == (split == "test"):
                found.append(item)
    return tuple(found)


def _draw_object(rng: np.random.Generator, split: str, motions: Sequence[str]) -> ShapesObject:
    # The motion first: the classes of the data set are then balanced.
    pool = _objects_of(split, motions[int(rng.integers(len(motions)))])
    return pool[rng.integers(len(pool))]


def swap_appearance(
    rng: np.random.Generator, attributes: ShapesAttributes, split: str = "all"
) -> ShapesAttributes:
    """Other objects that do the same, on another background.

    Args:
        rng: the only source of randomness.
        attributes: whose motions are kept, and the texture.
        split: of the objects that are drawn, as in `draw_attributes`.
    """
    objects: list[ShapesObject] = []
    for item in attributes.objects:
        pool = _objects_of(split, item.motion)
        free = [other for other in pool if other.color not in [each.color for each in objects]]
        objects.append(replace(free[rng.integers(len(free))], size=item.size, speed=item.speed))
    background = tuple(BACKGROUNDS)[rng.integers(len(BACKGROUNDS))]
    return ShapesAttributes(tuple(objects), background, attributes.texture)


def swap_motion(
    rng: np.random.Generator,
    attributes: ShapesAttributes,
    split: str = "all",
    motions: Sequence[str] = MOTIONS,
) -> ShapesAttributes:
    """The same objects on the same background, doing something else.

    Args:
        rng: the only source of randomness.
        attributes: whose look is kept.
        split, motions: what objects may do, as in `draw_attributes`.
    """
    objects = []
    for item in attributes.objects:
        free = [
            other
            for motion in motions
            for other in _objects_of(split, motion)
            if (other.shape, other.color) == (item.shape, item.color)
        ]
        if free:
            item = replace(free[rng.integers(len(free))], size=item.size)
        objects.append(item)
    return replace(attributes, objects=tuple(objects))


def draw_attributes(
    rng: np.random.Generator,
    split: str = "all",
    two_object_fraction: float = 0.25,
    textured_fraction: float = 0.35,
    motions: Sequence[str] = MOTIONS,
    sized_fraction: float = 0.0,
    paced_fraction: float = 0.0,
) -> ShapesAttributes:
    """Random attributes of one clip.

    Args:
        rng: the only source of randomness.
        split: "train" or "test" draw objects that are not, or are, held out; "all" draws any.
        two_object_fraction: probability of a second object.
        textured_fraction: probability of a background that is not plain.
        motions: each object does one of these; what is named twice is drawn twice as often.
        sized_fraction: probability that an object is small or large.
        paced_fraction: probability that what moves, turns or grows is slow or fast.
    Returns:
        ShapesAttributes: the given motions, colours and backgrounds are balanced.
    """
    objects = [_draw_object(rng, split, motions)]
    if rng.random() < two_object_fraction:
        other = _draw_object(rng, split, motions)
        while other.color == objects[0].color:
            other = _draw_object(rng, split, motions)
        objects.append(other)
    background = tuple(BACKGROUNDS)[rng.integers(len(BACKGROUNDS))]
    textured = rng.random() < textured_fraction
    texture = TEXTURES[rng.integers(1, len(TEXTURES))] if textured else "plain"
    # Drawn last, and only where asked for: all else stays what it is.
    if sized_fraction or paced_fraction:
        alone = len(objects) == 1
        objects = [
            _sized_and_paced(rng, one, sized_fraction, paced_fraction, alone) for one in objects
        ]
    return ShapesAttributes(tuple(objects), background, texture)


def _sized_and_paced(
    rng: np.random.Generator, item: ShapesObject, sized: float, paced: float, alone: bool
) -> ShapesObject:
    """The object, perhaps of another size or speed; two have no room to be large or fast."""
    sizes = SIZES if alone else ("small",)
    size = sizes[rng.integers(len(sizes))] if rng.random() < sized else None
    speeds = [one for one in speeds_of(item.motion, size) if alone or one == "slow"]
    speed = None
    if speeds and rng.random() < paced:
        speed = speeds[rng.integers(len(speeds))]
    return replace(item, size=size, speed=speed)
