"""A judge of moving shapes that soft or broken outlines don't flatter: it measures the outline.

It finds objects and colours as the judge of pixels does, and names a shape only where the object's
outline is nearer to that ideal shape than to any other, frame by frame. Its thresholds are set on
rendered clips alone: half way between the worst that a render's own shape fits, and the best that
another shape does (tests/unit/test_outline_judge.py measures both).

Axes: T frames, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vidtwin.data.synthetic.shapes.attributes import SHAPES
from vidtwin.data.synthetic.shapes.rendering import (
    GROWN_RADII,
    RADII,
    RADIUS_OF_CROSSING,
    SHRUNK_RATIOS,
    TRAVELS,
    TURN_OF_PERIOD,
    TURNS_OF_PERIOD,
)
from vidtwin_lab.evaluation.judges.outlines import Outlines, fit_outlines
from vidtwin_lab.evaluation.judges.shape_and_motion import MIN_AMOUNT, Track, judge_path
from vidtwin_lab.evaluation.judges.shapes_judge import (
    FoundObject,
    JudgedObject,
    Judgement,
    find_objects,
)

__all__ = ["MIN_OVERLAP", "MIN_ROUNDNESS", "OutlinedObject", "judge_outlines"]

# Intersection over union with the ideal shape, of a frame that shows it.
MIN_OVERLAP = {
    "circle": 0.91,
    "square": 0.9,
    "triangle": 0.83,
    "star": 0.78,
    "cross": 0.86,
    "ring": 0.85,
}
MIN_ROUNDNESS = 0.93  # half way between a circle, 1, and a regular hexagon, 0.866
MIN_RIGHT_FRAMES = 0.75  # of the frames whose object is large enough to have a shape


@dataclass(frozen=True)
class OutlinedObject(JudgedObject):
    """What an object was seen to be, and how well its outline was drawn.

    Args:
        size: "small", "large" or None, by its radius.
        speed: "slow", "fast" or None, by how far it went, turned or grew.
        overlap, distance, farthest, roundness: means over the frames, see `Outlines`.
        flicker: change of the aligned outline from frame to frame, 1 - IoU.
    """

    size: str | None = None
    speed: str | None = None
    overlap: float = 0.0
    distance: float = math.inf
    farthest: float = math.inf
    roundness: float = 0.0
    flicker: float = math.nan


def judge_outlines(video: np.ndarray, num_objects: int | None = None) -> Judgement:
    """What a video shows, by outlines.

    Args:
        video: (T, H, W, 3), uint8, or float in [0, 1].
        num_objects: as in `judge_video`.
    Returns:
        Judgement: of `OutlinedObject`.
    Raises:
        ValueError: as `judge_video`.
    """
    background, found = find_objects(video, num_objects)
    objects: list[JudgedObject] = [_judge(item) for item in found]
    objects += [OutlinedObject()] * ((num_objects or 0) - len(objects))
    return Judgement(background, tuple(objects))


def _judge(item: FoundObject) -> OutlinedObject:
    outlines = {shape: fit_outlines(shape, item.opacity, item.track) for shape in SHAPES}
    shape = _shape(outlines)
    nearest = shape or max(outlines, key=lambda one: float(outlines[one].overlap.mean()))
    best = outlines[nearest]
    seen = item.track.seen
    x, y, radius, angle = best.parameters.T
    fitted = Track(x, y, radius, item.track.mass)
    motion, known = judge_path(fitted, item.opacity.shape[1:])
    turned = _turned(angle[seen], SHAPES[nearest])
    if motion == "staying still" and abs(turned) >= MIN_AMOUNT * TURN_OF_PERIOD[0]:
        motion = "turning clockwise" if turned > 0 else "turning counterclockwise"
    sides = item.opacity.shape[1:]
    size = _size(float(radius[seen].max()) / min(sides), motion) if seen.any() else None
    return OutlinedObject(
        color=item.color,
        shape=shape,
        motion=motion if known else None,
        size=size,
        speed=_speed(motion, fitted, turned, sides) if known else None,
        flicker=best.flicker,
        **{
            name: float(getattr(best, name).mean())
            for name in ("overlap", "distance", "farthest", "roundness")
        },
    )


def _shape(outlines: Mapping[str, Outlines]) -> str | None:
    """The shape that most of the frames show, if enough of them do."""
    names = list(outlines)
    overlaps = np.stack([outlines[name].overlap for name in names])  # (shapes, T)
    nearest = overlaps.argmax(0)
    for index, name in enumerate(names):
        own = outlines[name]
        shown = (nearest == index) & (own.overlap >= MIN_OVERLAP[name])
        shown &= own.roundness >= MIN_ROUNDNESS
        readable = own.readable
        if readable.any() and shown[readable].mean() >= MIN_RIGHT_FRAMES:
            return name
    return None


def _turned(angle: np.ndarray, period: float | None) -> float:
    """By how much of its symmetry's period an object turned steadily from first to last frame."""
    if period is None or len(angle) < 3:
        return 0.0
    phase = np.unwrap(angle / math.radians(period) * 2 * math.pi) / (2 * math.pi)
    progress = np.linspace(0.0, 1.0, len(phase))
    return float(np.polyfit(progress, phase, 1)[0])


def _between(table: Mapping[str | None, tuple[float, float]], less: str | None) -> float:
    """Half way between the ranges of `less` and of the next larger."""
    above = min(limits for limits in table.values() if limits[0] > table[less][0])
    return (table[less][1] + above[0]) / 2


def _size(radius: float, motion: str) -> str | None:
    if motion in ("growing", "shrinking"):
        small, large = (_between(GROWN_RADII, less) for less in ("small", None))
    else:
        # Of two objects that cross, the usual size is less.
        small, large = (RADII["small"][1] + RADIUS_OF_CROSSING[0]) / 2, _between(RADII, None)
    return "small" if radius < small else "large" if radius > large else None


def _speed(motion: str, path: Track, turned: float, sides: tuple[int, ...]) -> str | None:
    """By the amount nearest to which a rendered object of that speed goes."""
    seen = path.seen
    first, last = np.flatnonzero(seen)[[0, -1]]
    if motion.startswith("moving"):
        axis = 1 if motion in ("moving left", "moving right") else 0
        values = (path.y, path.x)[axis]
        amount, table = abs(values[last] - values[first]) / sides[axis], TRAVELS
    elif motion.startswith("turning"):
        amount, table = abs(turned), TURNS_OF_PERIOD
    elif motion in ("growing", "shrinking"):
        ratio = path.size[first] / path.size[last]
        amount = -min(ratio, 1 / ratio)  # the smaller the ratio, the faster
        table = {name: (-high, -low) for name, (low, high) in SHRUNK_RATIOS.items()}
    else:
        return None
    if amount < _between(table, "slow"):
        return "slow"
    # The usual travel may be as long as what is called fast.
    fast = min(_between(table, None), table["fast"][0])
    return "fast" if amount >= fast else None
