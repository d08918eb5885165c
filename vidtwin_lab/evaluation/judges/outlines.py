"""Outlines of moving shapes against the ideal ones: how well, where, and whether they hold still.

Every frame's object is compared with each shape as the renderer draws it, at the position, size and
angle that fit best. Nothing is learned and nothing was chosen on what a model made.

Axes: T frames, H W pixels; b side of the box around an object, n points along it, a angles.
Parameters are x, y (pixels, from the box's centre), radius (pixels) and angle (radians).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vidtwin.data.synthetic.shapes.attributes import SHAPES
from vidtwin.data.synthetic.shapes.rendering import EDGE_WIDTH, signed_distance
from vidtwin_lab.evaluation.judges.shape_and_motion import UNIT_AREAS, Track

__all__ = ["Outlines", "fit_outlines"]

Array = NDArray[np.float32]

ANGLES = 6  # per period, to start the fit from
STEPS = 8  # of the fit
DELTAS = (0.25, 0.25, 0.25)  # pixels: of the derivatives by x, y and the radius
RAYS = 72
FINE = 4  # points along a pixel, where an outline is compared
# A frame says no shape where its object is smaller: a render's own pixels can't tell it.
MIN_RADIUS = 4.5


@dataclass(frozen=True, eq=False)
class Outlines:
    """One object against one shape, frame by frame.

    Args:
        parameters: (T, 4) x, y, radius, angle; x and y in pixels of the frame.
        overlap: (T,) intersection over union of the object and the ideal shape.
        distance: (T,) mean distance between the two outlines in pixels: the area between them over
            the ideal outline's length.
        farthest: (T,) the largest distance of a point that only one of the two covers, pixels.
        roundness: (T,) least over greatest distance from the centre to the outer outline; 1 for a
            circle, and taken as 1 of shapes that aren't round.
        canonical: (T, n, n) bool, the object at unit size, upright, centred.
    """

    parameters: NDArray[np.float64]
    overlap: NDArray[np.float64]
    distance: NDArray[np.float64]
    farthest: NDArray[np.float64]
    roundness: NDArray[np.float64]
    canonical: NDArray[np.bool_]

    @property
    def readable(self) -> NDArray[np.bool_]:
        """(T,): frames in which the object is large enough to have a shape."""
        return self.parameters[:, 2] >= MIN_RADIUS

    @property
    def flicker(self) -> float:
        """Mean over neighbouring frames of 1 - IoU of the aligned outlines; NaN if none are."""
        both = self.readable[1:] & self.readable[:-1]
        one, other = self.canonical[1:], self.canonical[:-1]
        union = (one | other).sum((1, 2))
        shared = (one & other).sum((1, 2)) / np.maximum(union, 1)
        return float(np.mean(1 - shared[both])) if both.any() else math.nan


def _coverage(shape: str, parameters: np.ndarray, grid: Array) -> Array:
    """(..., b, b) opacity of a shape with (..., 4) parameters, as the renderer draws it."""
    distance = _distance(shape, parameters, grid)
    return np.clip(0.5 - distance / np.float32(EDGE_WIDTH), 0, 1)


def _distance(shape: str, parameters: np.ndarray, grid: Array) -> Array:
    """(..., b, b) signed distance; `grid` is (b,) pixels from the box's centre."""
    x0, y0, radius, angle = (parameters[..., i, None, None].astype(np.float32) for i in range(4))
    x, y = grid[None, :] - x0, grid[:, None] - y0
    if SHAPES[shape] is not None:
        cos, sin = np.cos(angle), np.sin(angle)
        x, y = x * cos + y * sin, y * cos - x * sin
    return signed_distance(shape, x, y, radius)


def _boxes(opacity: Array, track: Track) -> tuple[Array, Array, np.ndarray]:
    """(T, b, b) opacity in [0, 1] around the object, (b,) grid, and (T, 2) the boxes' centres."""
    half = math.ceil(float(track.size.max())) + 3
    padded = np.pad(np.clip(opacity, 0, 1), ((0, 0), (half, half), (half, half)))
    columns = np.clip(np.floor(track.x).astype(int), 0, opacity.shape[2] - 1)
    rows = np.clip(np.floor(track.y).astype(int), 0, opacity.shape[1] - 1)
    side = 2 * half + 1
    boxes = np.stack(
        [
            padded[t, row : row + side, column : column + side]
            for t, (row, column) in enumerate(zip(rows, columns, strict=True))
        ]
    )
    grid = np.arange(-half, half + 1, dtype=np.float32)
    return boxes, grid, np.stack([columns, rows], axis=1) + 0.5


def _fit(shape: str, boxes: Array, grid: Array, start: np.ndarray) -> np.ndarray:
    """(T, 4) parameters of the shape that is nearest to each box in squared opacity."""
    period = math.radians(SHAPES[shape] or 0.0)
    angles = np.arange(ANGLES if period else 1) * period / ANGLES
    guesses = np.repeat(start[:, None], len(angles), axis=1)  # (T, a, 4)
    guesses[..., 3] = angles
    errors = np.square(_coverage(shape, guesses, grid) - boxes[:, None]).sum((-1, -2))
    best = guesses[np.arange(len(boxes)), errors.argmin(1)]
    error = errors.min(1)
    damping = np.full(len(boxes), 1e-2)
    count = 4 if period else 3
    for _ in range(STEPS):
        drawn = _coverage(shape, best, grid)
        deltas = np.stack([*(np.full(len(best), d) for d in DELTAS), 0.25 / best[:, 2]], axis=1)
        slopes = []
        for index in range(count):
            moved = best.copy()
            moved[:, index] += deltas[:, index]
            slope = (_coverage(shape, moved, grid) - drawn) / deltas[:, index, None, None]
            slopes.append(slope.reshape(len(best), -1))
        jacobian = np.stack(slopes, axis=1).astype(np.float64)  # (T, count, b b)
        rest = (boxes - drawn).reshape(len(best), -1, 1)
        square = jacobian @ jacobian.transpose(0, 2, 1)
        diagonal = np.einsum("tii->ti", square)
        diagonal *= 1 + damping[:, None]
        diagonal += 1e-6
        step = np.linalg.solve(square, jacobian @ rest)[..., 0]
        tried = best.copy()
        tried[:, :count] += np.clip(step, -3, 3)
        tried[:, 2] = np.clip(tried[:, 2], 1.0, grid[-1] * 1.5)
        new_error = np.square(_coverage(shape, tried, grid) - boxes).sum((1, 2))
        better = new_error < error
        best[better], error = tried[better], np.where(better, new_error, error)
        damping = np.where(better, damping / 5, damping * 10)
    return best


def _at(boxes: Array, x: Array, y: Array) -> Array:
    """(T, n, n) bilinear values of (T, b, b) boxes at places counted from the boxes' centres."""
    half = boxes.shape[1] // 2
    limit = np.float32(2 * half - 1e-3)
    x, y = np.clip(x + half, 0, limit), np.clip(y + half, 0, limit)
    left, top = x.astype(int), y.astype(int)
    part_x, part_y = x - left, y - top
    frame = np.arange(len(boxes))[:, None, None]
    upper = boxes[frame, top, left] * (1 - part_x) + boxes[frame, top, left + 1] * part_x
    lower = boxes[frame, top + 1, left] * (1 - part_x) + boxes[frame, top + 1, left + 1] * part_x
    return upper * (1 - part_y) + lower * part_y


def fit_outlines(shape: str, opacity: Array, track: Track) -> Outlines:
    """An object against a shape at the position, size and angle that fit each frame best.

    Args:
        shape: one of `SHAPES`.
        opacity: (T, H, W) of the object, about 0 to 1.
        track: where it is.
    """
    boxes, grid, centers = _boxes(opacity, track)
    radius = np.maximum(track.size, 1.0) / math.sqrt(UNIT_AREAS[shape])
    offset = np.stack([track.x, track.y], axis=1) - centers
    start = np.column_stack([offset, radius, np.zeros(len(radius))])
    parameters = _fit(shape, boxes, grid, start)
    fine = np.arange(grid[0], grid[-1] + 1e-3, 1 / FINE, dtype=np.float32)
    everywhere = np.broadcast_to(fine, (len(boxes), len(fine), len(fine)))
    seen = _at(boxes, everywhere, everywhere.transpose(0, 2, 1)) > 0.5
    distance = _distance(shape, parameters, fine)
    ideal = distance < 0
    between = seen ^ ideal
    length = np.maximum((np.abs(distance) < 0.5).sum((1, 2)) / FINE**2, 1e-6)
    in_frame = parameters.copy()
    in_frame[:, :2] += centers
    return Outlines(
        parameters=in_frame,
        overlap=(seen & ideal).sum((1, 2)) / np.maximum((seen | ideal).sum((1, 2)), 1),
        distance=between.sum((1, 2)) / FINE**2 / length,
        farthest=np.where(between, np.abs(distance), 0).max((1, 2)).astype(np.float64),
        roundness=_roundness(boxes, parameters) if SHAPES[shape] is None else np.ones(len(boxes)),
        canonical=_aligned(boxes, parameters),
    )


def _roundness(boxes: Array, parameters: np.ndarray) -> NDArray[np.float64]:
    """(T,) least over greatest distance from the centre at which a ray leaves the object."""
    directions = np.arange(RAYS) * 2 * math.pi / RAYS
    along = np.arange(0, boxes.shape[1] // 2 - 1, 0.1)
    x, y = (
        (parameters[:, axis, None, None] + turn(directions)[:, None] * along).astype(np.float32)
        for axis, turn in enumerate((np.cos, np.sin))
    )
    last = np.where(_at(boxes, x, y) > 0.5, along, 0).max(-1)  # (T, rays)
    return last.min(1) / np.maximum(last.max(1), 1e-6)


def _aligned(boxes: Array, parameters: np.ndarray) -> NDArray[np.bool_]:
    """(T, n, n) where the object is, at unit size, upright and centred."""
    # No straight side of an ideal shape falls on a line of this grid, where it would flicker.
    unit = np.arange(-26, 27) * 0.04577
    x0, y0, radius, angle = (parameters[:, i, None, None] for i in range(4))
    x, y = unit[None, None, :] * radius, unit[None, :, None] * radius
    cos, sin = np.cos(angle), np.sin(angle)
    x, y = x0 + x * cos - y * sin, y0 + x * sin + y * cos
    return _at(boxes, x.astype(np.float32), y.astype(np.float32)) > 0.5
