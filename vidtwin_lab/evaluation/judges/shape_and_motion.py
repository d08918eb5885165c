"""The shape and the motion of one object of a video of moving shapes, from its pixels.

Axes: T frames, H W pixels; p side of a patch that holds an object at a standard size; S shapes,
K sizes and outline widths of their templates, A angles. x points right, y points down; angles
grow clockwise on the screen.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vidtwin.data.synthetic.shapes.attributes import SHAPES
from vidtwin.data.synthetic.shapes.rendering import (
    EDGE_WIDTH,
    MIN_TRAVEL,
    SHRUNK_RATIO,
    TURN_OF_PERIOD,
    signed_distance,
)

__all__ = ["MIN_AMOUNT", "UNIT_AREAS", "Track", "judge_object", "judge_path"]

Array = NDArray[np.float32]

MAX_EMPTY_FRAMES = 0.25  # share of frames without the object, before its motion is called None
MAX_SCATTER = 0.06  # of the shorter side: root mean square error of the path that fits best
MIN_AMOUNT = 0.5  # of the least amount by which the data set's objects move, grow or turn
MIN_LIKENESS = 0.6  # correlation with the best template, before a shape is called None
PATCH_SIDE = 33
PATCH_REACH = 1.3  # half the side of a patch over the square root of the object's area
NUM_ANGLES = 24  # per period of a shape's symmetry
TURNS = np.linspace(-0.56, 0.56, 29)  # of a period, from the first to the last frame
SIZES = (0.9, 1.0, 1.1, 1.2, 1.3)  # of the radius that the area says
BLURS = (0.0, 0.12, 0.22, 0.32)  # of the square root of the area: standard deviations
NUM_PHASES = 32  # of a bounce
# Area over the squared radius, of the shapes that `signed_distance` draws.
UNIT_AREAS = {
    "circle": math.pi * 0.85**2,
    "square": 1.4**2,
    "triangle": 0.75 * math.sqrt(3),
    "star": 5
    * math.sin(math.radians(36))
    * math.cos(math.radians(72))
    / math.cos(math.radians(36)),
    "cross": 4 * 0.9 * 0.6 - 0.6**2,
    "ring": math.pi * (0.92**2 - 0.48**2),
}


@dataclass(frozen=True, eq=False)
class Track:
    """Where an object is: centre (pixels), square root of its area, and area, each (T,)."""

    x: np.ndarray
    y: np.ndarray
    size: np.ndarray
    mass: np.ndarray

    @property
    def seen(self) -> NDArray[np.bool_]:
        """(T,): frames that show the object."""
        return self.mass > 0.05 * self.mass.max()


def judge_object(opacity: Array, track: Track) -> tuple[str | None, str | None]:
    """Shape and motion of one object."""
    likeness, weights = _likeness(opacity, track), track.mass * track.seen
    motion, known = judge_path(track, opacity.shape[1:])
    may_turn = motion == "staying still"
    shape, turn = _judge_shape(likeness, weights / weights.sum(), may_turn)
    if known and may_turn and abs(turn) >= MIN_AMOUNT * TURN_OF_PERIOD[0]:
        motion = "turning clockwise" if turn > 0 else "turning counterclockwise"
    return shape, motion if known else None


def _fit(functions: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least squares of values (T,) on a constant and each function (..., T) by itself: the
    function's factor, and the squared error, both (...)."""
    functions = functions - functions.mean(-1, keepdims=True)
    values = values - values.mean()
    factors = functions @ values / np.maximum(np.square(functions).sum(-1), 1e-9)
    return factors, np.square(values - factors[..., None] * functions).sum(-1)


def _fit_axis(values: np.ndarray, progress: np.ndarray) -> tuple[str, float, float]:
    """How a coordinate moves: "line" or "bounce", pixels that it moves, squared error."""
    slope, line_error = _fit(progress, values)
    phases = np.arange(NUM_PHASES)[:, None] / NUM_PHASES
    heights, errors = _fit(1 - np.abs(2 * ((progress + phases) % 1) - 1), values)
    errors[heights <= 0] = math.inf
    best = int(errors.argmin())
    if errors[best] < line_error:
        return "bounce", float(heights[best]), float(errors[best])
    return "line", float(slope), float(line_error)


_MOVES = {
    ("line", 0): ("moving left", "moving right"),
    ("line", 1): ("moving up", "moving down"),
    ("bounce", 0): ("bouncing left and right",) * 2,
    ("bounce", 1): ("bouncing up and down",) * 2,
}


def judge_path(track: Track, sides: tuple[int, ...]) -> tuple[str, bool]:
    """The motion of centre and size, whichever is larger against the least of the data set; and
    whether the object is there and stays near a path that the data set could show."""
    seen = track.seen
    progress = np.linspace(0.0, 1.0, len(seen))[seen]
    if seen.mean() < 1 - MAX_EMPTY_FRAMES or len(progress) < 3:
        return "staying still", False
    fits = [_fit_axis(values[seen].astype(np.float64), progress) for values in (track.x, track.y)]
    amounts = [
        abs(fit[1]) / (MIN_TRAVEL * side) for fit, side in zip(fits, reversed(sides), strict=True)
    ]
    growth = float(_fit(progress, np.log(track.size[seen].astype(np.float64)))[0])
    amounts.append(abs(growth) / -math.log(SHRUNK_RATIO[1]))
    largest = int(np.argmax(amounts))
    # Only the axis that moves is explained by its path; the other one must stay where it is.
    errors = [fit[2] for fit in fits]
    for axis, values in enumerate((track.x, track.y)):
        if axis != largest or amounts[axis] < MIN_AMOUNT:
            errors[axis] = float(np.square(values[seen] - values[seen].mean()).sum())
    known = math.sqrt(sum(errors) / len(progress)) <= MAX_SCATTER * min(sides)
    if amounts[largest] < MIN_AMOUNT:
        return "staying still", known
    if largest == 2:
        return ("growing" if growth > 0 else "shrinking"), known
    kind, amount, _ = fits[largest]
    return _MOVES[kind, largest][int(amount > 0)], known


def _patch_grid() -> tuple[Array, Array]:
    """(p, p) x and y of a patch, in square roots of the object's area."""
    along = np.linspace(-PATCH_REACH, PATCH_REACH, PATCH_SIDE, dtype=np.float32)
    y, x = np.meshgrid(along, along, indexing="ij")
    return x, y


def _standardized(images: np.ndarray) -> Array:
    """(..., p p) with zero mean and unit norm, so that a product is a correlation."""
    images = images - images.mean(-1, keepdims=True)
    norm = np.linalg.norm(images, axis=-1, keepdims=True)
    return (images / np.maximum(norm, 1e-6)).astype(np.float32)


@functools.cache
def _templates() -> Array:
    """(S, K, A, p p): all shapes at about unit area, drawn as the renderer draws them, blurred."""
    x, y = _patch_grid()
    pixel = x[0, 1] - x[0, 0]
    drawn = []
    for shape, period in SHAPES.items():
        radius = np.float32(1 / math.sqrt(UNIT_AREAS[shape]))
        for size, k in itertools.product(SIZES, range(NUM_ANGLES)):
            angle = math.radians(period or 0.0) * k / NUM_ANGLES
            cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
            turned_x, turned_y = x * cos + y * sin, y * cos - x * sin
            distance = signed_distance(shape, turned_x, turned_y, size * radius)
            drawn.append(np.clip(0.5 - distance / (EDGE_WIDTH * pixel), 0, 1))
    sharp = np.stack(drawn).reshape(len(SHAPES), len(SIZES), NUM_ANGLES, PATCH_SIDE, PATCH_SIDE)
    blurred = [sharp]
    for blur in BLURS[1:]:
        spread = np.exp(-np.square((x[0][:, None] - x[0]) / blur) / 2)
        spread /= spread.sum(1).max()
        blurred.append(spread @ sharp @ spread.T)
    stacked = np.stack(blurred, axis=2)  # (S, sizes, blurs, A, p, p)
    return _standardized(stacked.reshape(len(SHAPES), -1, NUM_ANGLES, PATCH_SIDE**2))


def _patches(opacity: Array, track: Track) -> Array:
    """(T, p p): each frame's object at unit area, bilinearly."""
    num_frames, height, width = opacity.shape
    grid_x, grid_y = _patch_grid()
    size = np.maximum(track.size, 1.0)[:, None, None]
    x = track.x[:, None, None] + size * grid_x - np.float32(0.5)  # (T, p, p)
    y = track.y[:, None, None] + size * grid_y - np.float32(0.5)
    padded = np.pad(opacity, ((0, 0), (1, 1), (1, 1)))
    x, y = np.clip(x + 1, 0, width), np.clip(y + 1, 0, height)
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    part_x, part_y = x - left, y - top
    frame = np.arange(num_frames)[:, None, None]
    upper = padded[frame, top, left] * (1 - part_x) + padded[frame, top, left + 1] * part_x
    lower = padded[frame, top + 1, left] * (1 - part_x) + padded[frame, top + 1, left + 1] * part_x
    return (upper * (1 - part_y) + lower * part_y).reshape(num_frames, -1)


def _likeness(opacity: Array, track: Track) -> Array:
    """(S, K, A, T): correlation of every frame's object with every template."""
    templates = _templates()
    flat = templates.reshape(-1, templates.shape[-1]) @ _standardized(_patches(opacity, track)).T
    return flat.reshape(*templates.shape[:3], -1)


@functools.cache
def _turning_angles(num_frames: int) -> NDArray[np.int64]:
    """(starts, turns, T): index of the template's angle in each frame of a steady turn."""
    progress = np.linspace(0.0, 1.0, num_frames)
    starts = np.arange(NUM_ANGLES)[:, None, None]
    turned = TURNS[None, :, None] * progress * NUM_ANGLES
    return np.rint(starts + turned).astype(np.int64) % NUM_ANGLES


def _judge_shape(likeness: Array, weights: np.ndarray, may_turn: bool) -> tuple[str | None, float]:
    """The shape that all frames together are most like, and its turn in periods."""
    upright = np.einsum("skat,t->ska", likeness[:, :, [-1, 0, 1]], weights).max((1, 2))  # (S,)
    scores, turns = upright, np.zeros(len(SHAPES))
    if may_turn:
        angles = _turning_angles(likeness.shape[-1])
        frames = np.arange(likeness.shape[-1])
        scores = np.empty(len(SHAPES))
        for index in range(len(SHAPES)):
            # (K, starts, turns)
            steady = likeness[index][:, angles, frames] @ weights.astype(np.float32)
            best = np.unravel_index(steady.argmax(), steady.shape)
            scores[index], turns[index] = steady[best], TURNS[best[2]]
    index = int(scores.argmax())
    name = list(SHAPES)[index]
    if scores[index] < MIN_LIKENESS:
        return None, 0.0
    return name, float(turns[index]) if SHAPES[name] else 0.0
