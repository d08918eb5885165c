"""The pixels of moving shapes: random paths, then antialiased shapes on a background.

Axes: T frames, H W pixels, b side of an object's box. x points right and y points down, in pixels;
a pixel's centre is at +0.5. Angles are in radians and grow clockwise on the screen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vidtwin.data.synthetic.shapes.attributes import (
    BACKGROUNDS,
    COLORS,
    SHAPES,
    ShapesAttributes,
    ShapesObject,
)

__all__ = [
    "EDGE_WIDTH",
    "GROWN_RADII",
    "MIN_TRAVEL",
    "RADII",
    "RADIUS_OF_CROSSING",
    "SHRUNK_RATIO",
    "SHRUNK_RATIOS",
    "TRAVELS",
    "TURNS_OF_PERIOD",
    "TURN_OF_PERIOD",
    "check_size",
    "signed_distance",
]

MIN_SIDE = 16
MIN_FRAMES = 4

# Lengths below are fractions: radii of the frame's shorter side, travel of the side it runs along.
RADIUS = (0.19, 0.24)
GROWN_RADIUS = (0.22, 0.27)
RADIUS_OF_TWO = (0.17, 0.215)  # in lanes side by side
RADIUS_OF_CROSSING = (0.15, 0.165)  # where one runs along x and the other along y
MARGIN = 0.02  # to the frame and between two lanes, of the shorter side
SHRUNK_RATIO = (0.45, 0.55)
MIN_TRAVEL = 0.26
MAX_TRAVEL = 0.55
# Below half of the symmetry's period, so that the last frame alone, compared with the first,
# still tells which way the shape turned.
TURN_OF_PERIOD = (0.38, 0.46)
# By size and by speed, None being the usual one.
RADII = {None: RADIUS, "small": (0.1, 0.125), "large": (0.29, 0.34)}
GROWN_RADII = {None: GROWN_RADIUS, "small": (0.14, 0.165), "large": (0.33, 0.39)}
TRAVELS = {None: (MIN_TRAVEL, MAX_TRAVEL), "slow": (0.16, 0.2), "fast": (0.5, 0.7)}
SHRUNK_RATIOS = {None: SHRUNK_RATIO, "slow": (0.62, 0.7), "fast": (0.3, 0.36)}
TURNS_OF_PERIOD = {None: TURN_OF_PERIOD, "slow": (0.22, 0.27), "fast": (0.49, 0.54)}
EDGE_WIDTH = 1.5  # pixels from outside to inside: soft enough for a small autoencoder
TEXTURE_AMPLITUDE = 11.0  # of 255: nameable, and far from the next background's colour

_AXIS_OF_MOTION = {
    "moving left": (0, -1),
    "moving right": (0, 1),
    "moving up": (1, -1),
    "moving down": (1, 1),
    "bouncing left and right": (0, 0),
    "bouncing up and down": (1, 0),
}


@dataclass(frozen=True, eq=False)
class ObjectPath:
    """Centre, circumscribed radius (pixels) and angle (radians) of an object, each (T,) float32."""

    x: np.ndarray
    y: np.ndarray
    radius: np.ndarray
    angle: np.ndarray


def _draw_radii(
    rng: np.random.Generator, objects: Sequence[ShapesObject], shorter: int
) -> list[float]:
    """Per object its largest circumscribed radius in pixels, such that all of them have room."""
    radii = [GROWN_RADII if one.motion in ("growing", "shrinking") else RADII for one in objects]
    limits = [table[one.size] for table, one in zip(radii, objects, strict=True)]
    if len(objects) == 2:
        axes = {_AXIS_OF_MOTION[one.motion][0] for one in objects if one.motion in _AXIS_OF_MOTION}
        of_two = RADIUS_OF_CROSSING if len(axes) == 2 else RADIUS_OF_TWO
        limits = [
            of_two if one.size is None else limit
            for limit, one in zip(limits, objects, strict=True)
        ]
    elif objects[0].speed == "fast" and objects[0].motion in _AXIS_OF_MOTION:
        widest = (1 - TRAVELS["fast"][0]) / 2 - MARGIN  # that has room to go far
        limits = [(low, min(high, widest)) for low, high in limits]
    return [shorter * rng.uniform(*limit) for limit in limits]


def _draw_lanes(
    rng: np.random.Generator,
    objects: Sequence[ShapesObject],
    radii: Sequence[float],
    sides: tuple[int, int],
    margin: float,
) -> list[list[tuple[float, float]]]:
    """Per object and axis (x, y) the interval it may cover; two objects never share a pixel."""
    whole = [(margin, side - margin) for side in sides]
    if len(objects) == 1:
        return [whole]
    needs = [[2 * radius, 2 * radius] for radius in radii]
    for need, item in zip(needs, objects, strict=True):
        if item.motion in _AXIS_OF_MOTION:
            axis = _AXIS_OF_MOTION[item.motion][0]
            need[axis] += MIN_TRAVEL * sides[axis]
    slacks = [sides[axis] - 3 * margin - needs[0][axis] - needs[1][axis] for axis in (0, 1)]
    fitting = [axis for axis in (0, 1) if slacks[axis] >= 0]
    assert fitting, "the radii of two objects are chosen so that one of the two cuts always fits"
    axis = fitting[rng.integers(len(fitting))]
    first = int(rng.integers(2))  # the object on the left, or on top
    cut = margin + needs[first][axis] + slacks[axis] * rng.random()
    lanes = [list(whole), list(whole)]
    lanes[first][axis] = (margin, cut)
    lanes[1 - first][axis] = (cut + margin, sides[axis] - margin)
    return lanes


def _draw_offset(
    rng: np.random.Generator,
    item: ShapesObject,
    axis: int,
    room: float,
    side: int,
    progress: np.ndarray,
) -> np.ndarray:
    """(T,) how far along an axis the object is, within [0, room] pixels."""
    moving_axis, direction = _AXIS_OF_MOTION.get(item.motion, (None, 0))
    if axis != moving_axis:
        return np.full_like(progress, room * rng.random())
    if direction == 0:  # there and back once, from anywhere on the way
        phase = (progress + np.float32(rng.random())) % 1
        return room * (1 - np.abs(2 * phase - 1))
    shortest, longest = TRAVELS[item.speed]
    travel = side * rng.uniform(shortest, min(longest, room / side))
    start = rng.uniform(0, room - travel)
    return start + travel * (progress if direction > 0 else 1 - progress)


def draw_paths(
    attributes: ShapesAttributes,
    rng: np.random.Generator,
    num_frames: int = 16,
    height: int = 64,
    width: int = 64,
) -> tuple[ObjectPath, ...]:
    """Random paths on which every object does what its motion says and stays in the frame.

    Args:
        attributes: the clip's attributes.
        rng: the only source of randomness.
        num_frames, height, width: size of the clip, in frames and pixels.
    Returns:
        One ObjectPath per object, in the order of `attributes.objects`.
    """
    sides = (width, height)
    shorter = min(sides)
    radii = _draw_radii(rng, attributes.objects, shorter)
    lanes = _draw_lanes(rng, attributes.objects, radii, sides, MARGIN * shorter)
    progress = np.linspace(0.0, 1.0, num_frames, dtype=np.float32)
    paths = []
    for item, radius, lane in zip(attributes.objects, radii, lanes, strict=True):
        x, y = (
            low
            + radius
            + _draw_offset(rng, item, axis, high - low - 2 * radius, sides[axis], progress)
            for axis, (low, high) in enumerate(lane)
        )
        scale, angle = np.ones(num_frames, np.float32), np.zeros(num_frames, np.float32)
        if item.motion in ("growing", "shrinking"):
            ratio = rng.uniform(*SHRUNK_RATIOS[item.speed])
            grown = progress if item.motion == "growing" else progress[::-1]
            scale = (ratio + (1 - ratio) * grown).astype(np.float32)
        elif item.motion.startswith("turning"):
            part = rng.uniform(*TURNS_OF_PERIOD[item.speed])
            turn = math.radians(SHAPES[item.shape] or 0.0) * part
            sign = 1 if item.motion == "turning clockwise" else -1
            angle = (sign * turn * progress).astype(np.float32)
        paths.append(
            ObjectPath(
                x.astype(np.float32), y.astype(np.float32), np.float32(radius) * scale, angle
            )
        )
    return tuple(paths)


def signed_distance(shape: str, x: np.ndarray, y: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Signed distance in pixels to the outline, negative inside, of an upright shape at (0, 0)."""
    if shape == "circle":
        return np.sqrt(x * x + y * y) - 0.85 * radius
    if shape == "ring":
        return np.abs(np.sqrt(x * x + y * y) - 0.7 * radius) - 0.22 * radius
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.7 * radius
    if shape == "cross":
        x, y = np.abs(x), np.abs(y)
        return np.maximum(np.maximum(x, y) - 0.9 * radius, np.minimum(x, y) - 0.3 * radius)
    if shape == "triangle":
        slanted = np.abs(x) * np.float32(math.sqrt(0.75)) - 0.5 * y
        return np.maximum(slanted, y) - 0.5 * radius
    # A five-pointed star is what lies behind at least four of the five lines through its tips,
    # so its distance is the second largest of the distances to them.
    tips = [math.radians(90 + 72 * k) for k in range(5)]
    lines = [x * np.float32(math.cos(tip)) + y * np.float32(math.sin(tip)) for tip in tips]
    largest = np.maximum(lines[0], lines[1])
    second = np.minimum(lines[0], lines[1])
    for line in lines[2:]:
        second = np.maximum(second, np.minimum(largest, line))
        largest = np.maximum(largest, line)
    return second - np.float32(math.cos(math.radians(72))) * radius


def _draw_background(
    attributes: ShapesAttributes, rng: np.random.Generator, height: int, width: int
) -> np.ndarray:
    """(H, W, 3) uint8: the plain colour, with a faint smooth texture where one is asked for."""
    color = np.asarray(BACKGROUNDS[attributes.background], np.float32)
    # Drawn for plain ones too: a clip's layout is then the same on any texture.
    period = min(height, width) * rng.uniform(0.19, 0.27)
    offset_x, offset_y, slant = rng.random(3)
    if attributes.texture == "plain":
        return np.broadcast_to(color.astype(np.uint8), (height, width, 3))
    x = (np.arange(width, dtype=np.float32) / np.float32(period) + np.float32(offset_x))[None, :]
    y = (np.arange(height, dtype=np.float32) / np.float32(period) + np.float32(offset_y))[:, None]
    tau = np.float32(2 * math.pi)
    if attributes.texture == "striped":
        angle = math.pi / 4 * int(4 * slant)
        along = x * np.float32(math.cos(angle)) + y * np.float32(math.sin(angle))
        pattern = np.sin(tau * along)
    elif attributes.texture == "checkered":
        pattern = np.tanh(2.5 * np.sin(tau / 2 * x) * np.sin(tau / 2 * y))
    elif attributes.texture == "dotted":
        pattern = 2 * np.exp(1.5 * (np.cos(tau * x) + np.cos(tau * y) - 2)) - 0.2
    else:
        ramp_x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
        ramp_y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
        angle = 2 * math.pi * slant
        ramp = ramp_x * np.float32(math.cos(angle)) + ramp_y * np.float32(math.sin(angle))
        pattern = ramp * np.float32(1.3 / (abs(math.cos(angle)) + abs(math.sin(angle))))
    image = color + np.float32(TEXTURE_AMPLITUDE) * np.broadcast_to(
        pattern[..., None], (height, width, 1)
    )
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def _paint(video: np.ndarray, item: ShapesObject, path: ObjectPath) -> None:
    """Paints one object over (T, H, W, 3) uint8, in place; touches only a box around it."""
    num_frames, height, width, _ = video.shape
    half = math.ceil(float(path.radius.max())) + 2
    side = min(2 * half + 1, height, width)
    left = np.clip(np.rint(path.x).astype(int) - half, 0, width - side)
    top = np.clip(np.rint(path.y).astype(int) - half, 0, height - side)
    pixels = np.arange(side, dtype=np.float32) + np.float32(0.5)
    x = (left.astype(np.float32) - path.x)[:, None, None] + pixels[None, None, :]  # (T, 1, b)
    y = (top.astype(np.float32) - path.y)[:, None, None] + pixels[None, :, None]  # (T, b, 1)
    if path.angle.any():
        cos, sin = np.cos(path.angle)[:, None, None], np.sin(path.angle)[:, None, None]
        x, y = x * cos + y * sin, y * cos - x * sin
    distance = signed_distance(item.shape, x, y, path.radius[:, None, None])  # (T, b, b)
    coverage = np.clip(0.5 - distance / np.float32(EDGE_WIDTH), 0, 1)[..., None]
    boxes = np.empty((num_frames, side, side, 3), np.float32)
    for t in range(num_frames):
        boxes[t] = video[t, top[t] : top[t] + side, left[t] : left[t] + side]
    boxes += coverage * (np.asarray(COLORS[item.color], np.float32) - boxes)
    boxes += np.float32(0.5)  # the cast below then rounds
    painted = boxes.astype(np.uint8)
    for t in range(num_frames):
        video[t, top[t] : top[t] + side, left[t] : left[t] + side] = painted[t]


def check_size(num_frames: int, height: int, width: int) -> None:
    """Raises a ValueError for a clip too short or too small to show anything."""
    if num_frames < MIN_FRAMES:
        raise ValueError(
            f"`num_frames` must be at least {MIN_FRAMES} to show a motion, got {num_frames}"
        )
    for name, side in (("height", height), ("width", width)):
        if side < MIN_SIDE:
            raise ValueError(f"`{name}` must be at least {MIN_SIDE} to show a shape, got {side}")


# Attributes, layout and wording each have a stream of their own, so that one can change alone.
ATTRIBUTES_STREAM, LAYOUT_STREAM, CAPTION_STREAM = 0, 1, 2


def stream(seed: int, purpose: int) -> np.random.Generator:
    """One of the independent random streams of a clip's seed."""
    return np.random.default_rng(np.random.SeedSequence([seed, purpose]))


def render_attributes(
    attributes: ShapesAttributes,
    seed: int,
    num_frames: int = 16,
    height: int = 64,
    width: int = 64,
    paths_rng: np.random.Generator | None = None,
) -> np.ndarray:
    """A clip that shows the given attributes.

    Args:
        attributes: what the clip shows.
        seed: picks positions, sizes and speeds; the seed of a ShapesClip gives that clip again.
        num_frames, height, width: size of the clip, in frames and pixels.
        paths_rng: picks them instead; the background's pattern stays the seed's.
    Returns:
        (T, H, W, 3) uint8.
    Raises:
        ValueError: for a clip too short or too small to show anything.
    """
    check_size(num_frames, height, width)
    rng = stream(seed, LAYOUT_STREAM)
    background = _draw_background(attributes, rng, height, width)
    paths = draw_paths(attributes, paths_rng or rng, num_frames, height, width)
    video = np.empty((num_frames, height, width, 3), np.uint8)
    video[:] = background
    for item, path in zip(attributes.objects, paths, strict=True):
        _paint(video, item, path)
    return video
