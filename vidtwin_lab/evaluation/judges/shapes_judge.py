"""Says what a video of moving shapes shows, by measuring its pixels; nothing is learned.

Meant for what a model made: blurred outlines, colours somewhat off, faint ghosts, some flicker.
What is too far from anything that the data set shows is called None, which no attribute equals.

This finds colours and objects; shape_and_motion names the shape and the motion of each object.

Axes: T frames, H W pixels, N core pixels. x points right, y points down.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vidtwin.data.synthetic.shapes.attributes import (
    BACKGROUNDS,
    COLORS,
    ShapesAttributes,
    ShapesObject,
)
from vidtwin.data.synthetic.shapes.rendering import check_size
from vidtwin_lab.evaluation.judges.shape_and_motion import Track, judge_object

__all__ = ["FoundObject", "JudgedObject", "Judgement", "find_objects", "judge_video"]

Array = NDArray[np.float32]
OBJECT_ATTRIBUTES = ("color", "shape", "motion")
# Colours, in levels of 255.
FARTHEST_BACKGROUND = 60.0  # from a named background, before it is called None
FARTHEST_COLOR = 75.0  # from a named colour
TEXTURE_SPREAD = 9.0  # of a background along gray, which textures move on
PIXEL_SPREAD = 6.0  # of a background in any direction
MIN_CONTRAST = 36.0  # of an object's pixel to the background
CORE_SHARE = 0.8  # of the largest contrast around a pixel: inside an outline, not on it
MIN_BLEND = 0.6  # a small blurred object may nowhere reach its colour
MIN_OBJECT = 0.002  # of the frame's pixels, in the mean over frames
GHOST = 0.12  # opacity that is taken for the background
MIN_SECOND = 0.1  # share of the core pixels that makes a second object
MIN_EXPECTED = 0.02  # the same, if told to expect it: a small star beside a disc
MIN_SEPARATION = 0.2  # of the shorter side, between the centres of two objects


@dataclass(frozen=True)
class JudgedObject:
    """What an object was seen to be and to do; None where it is like nothing known."""

    color: str | None = None
    shape: str | None = None
    motion: str | None = None


@dataclass(frozen=True)
class Judgement:
    """What a video was seen to show."""

    background: str | None
    objects: tuple[JudgedObject, ...]

    def against(
        self, attributes: ShapesAttributes, match_by: Sequence[str] = OBJECT_ATTRIBUTES
    ) -> dict[str, bool]:
        """Which of the asked attributes were seen.

        Args:
            attributes: what was asked for; its texture is not judged.
            match_by: what decides which of two objects is compared with which: the pairing that
                gets most of these right.
        Returns:
            "color", "shape", "motion" (right for every object) and "background".
        """
        best = self.paired(attributes, match_by)
        verdict = {
            name: all(getattr(asked, name) == getattr(found, name) for asked, found in best)
            for name in OBJECT_ATTRIBUTES
        }
        return verdict | {"background": self.background == attributes.background}

    def paired(
        self, attributes: ShapesAttributes, match_by: Sequence[str] = OBJECT_ATTRIBUTES
    ) -> list[tuple[ShapesObject, JudgedObject]]:
        """Each object that was asked for with the one that is compared with it, as in `against`."""
        seen = self.objects + (JudgedObject(),) * (len(attributes.objects) - len(self.objects))
        pairings = [
            list(zip(attributes.objects, order, strict=True))
            for order in itertools.permutations(seen, len(attributes.objects))
        ]
        return max(
            pairings,
            key=lambda pairing: sum(
                getattr(asked, name) == getattr(found, name)
                for name in match_by
                for asked, found in pairing
            ),
        )


def judge_video(video: np.ndarray, num_objects: int | None = None) -> Judgement:
    """What a video shows.

    Args:
        video: (T, H, W, 3), uint8, or float in [0, 1].
        num_objects: how many objects to look for, 1 or 2; None counts them (0, 1 or 2).
    Returns:
        Judgement: with `num_objects` objects, the largest first; one that is not there is None in
            all it has.
    Raises:
        ValueError: for what is no video of at least 4 frames of 16 x 16 pixels.
    """
    background, found = find_objects(video, num_objects)
    objects = [JudgedObject(item.color, *judge_object(item.opacity, item.track)) for item in found]
    objects += [JudgedObject()] * ((num_objects or 0) - len(objects))
    return Judgement(background, tuple(objects))


@dataclass(frozen=True, eq=False)
class FoundObject:
    """An object of a video: the name of its colour, if it has one, its (T, H, W) opacity, below 0
    and above 1 where noise is, and where it is."""

    color: str | None
    opacity: Array
    track: Track


def find_objects(
    video: np.ndarray, num_objects: int | None = None
) -> tuple[str | None, list[FoundObject]]:
    """The name of the background's colour, and the objects, the largest first; see `judge_video`.

    Raises:
        ValueError: as `judge_video`.
    """
    if num_objects not in (None, 1, 2):
        raise ValueError(f"`num_objects` must be 1, 2 or None, got {num_objects!r}")
    levels = _to_levels(video)
    background = _background_color(levels)
    difference = levels - background
    contrast = _contrast(difference)
    core = _core(contrast)
    least = MIN_SECOND if num_objects is None else MIN_EXPECTED
    colors = _object_colors(levels[core], background, num_objects or 2, least)
    opacities = [_opacity(difference, color - background) for _, color in colors]
    if len(opacities) == 2:
        opacities = _share_out(opacities, levels, core, [color for _, color in colors])
    found = []
    for (name, _), opacity in zip(colors, opacities, strict=True):
        track = _follow(_without_ghosts(opacity))
        if track.mass.mean() >= MIN_OBJECT * opacity[0].size:
            found.append(FoundObject(name, opacity, track))
    found.sort(key=lambda item: -float(item.track.mass.sum()))
    counted = num_objects is None and len(found) == 2
    if counted and not _are_two(found[0].track, found[1].track, levels):
        found = found[:1]
    return _nearest(background, BACKGROUNDS, FARTHEST_BACKGROUND), found


def _to_levels(video: np.ndarray) -> Array:
    """(T, H, W, 3) float32 in [0, 255]."""
    if not isinstance(video, np.ndarray) or video.ndim != 4 or video.shape[-1] != 3:
        shape = getattr(video, "shape", type(video).__name__)
        raise ValueError(f"`video` must be an array (T, H, W, 3), got {shape}")
    check_size(*video.shape[:3])
    if video.dtype == np.uint8:
        return video.astype(np.float32)
    if not np.issubdtype(video.dtype, np.floating):
        raise ValueError(f"`video` must be uint8 or float in [0, 1], got {video.dtype}")
    low, high = float(video.min()), float(video.max())
    if not (low >= -0.01 and high <= 1.01):  # also false for NaN
        raise ValueError(f"a float `video` must lie in [0, 1], got values from {low} to {high}")
    return np.clip(video.astype(np.float32), 0, 1) * np.float32(255)


def _nearest(
    color: np.ndarray, names: dict[str, tuple[int, int, int]], farthest: float
) -> str | None:
    distances = {
        name: float(np.linalg.norm(color - np.asarray(value))) for name, value in names.items()
    }
    name = min(distances, key=lambda one: distances[one])
    return name if distances[name] <= farthest else None


def _background_color(levels: Array) -> Array:
    """(3,): median of the frame's border, which objects never touch."""
    edge = max(1, min(levels.shape[1:3]) // 32)
    inner = np.zeros(levels.shape[1:3], bool)
    inner[edge:-edge, edge:-edge] = True
    return np.median(levels[:, ~inner], axis=(0, 1)).astype(np.float32)


def _weights(vectors: np.ndarray) -> np.ndarray:
    """`vectors` (..., 3) times the inverse covariance of a background's pixels, scaled such that a
    difference without gray in it stays what it is."""
    gray = vectors.mean(-1, keepdims=True)
    kept = PIXEL_SPREAD**2 / (PIXEL_SPREAD**2 + 3 * TEXTURE_SPREAD**2)
    return vectors - (1 - kept) * gray


def _contrast(difference: Array) -> Array:
    """(T, H, W): how far from the background, where a texture's shades of gray count little."""
    return np.sqrt(np.einsum("thwc,thwc->thw", difference, _weights(difference)))


def _largest_around(values: Array, reach: int) -> Array:
    """(T, H, W): the largest value of the square around each pixel."""
    for axis in (1, 2):
        padding = [(0, 0)] * 3
        padding[axis] = (reach, reach)
        padded = np.pad(values, padding)
        length = values.shape[axis]
        values = np.maximum.reduce(
            [padded.take(range(i, i + length), axis) for i in range(2 * reach + 1)]
        )
    return values


def _core(contrast: Array) -> NDArray[np.bool_]:
    """(T, H, W): pixels inside an object, not on its outline, where colours are mixed."""
    reach = max(1, round(min(contrast.shape[1:]) / 32))
    around = _largest_around(contrast, reach)
    return (contrast >= MIN_CONTRAST) & (contrast >= CORE_SHARE * around)


def _object_colors(
    pixels: Array, background: Array, at_most: int, least: float
) -> list[tuple[str | None, Array]]:
    """The named and the measured colour of each object, from the core pixels (N, 3)."""
    if len(pixels) == 0:
        return []
    names = list(COLORS)
    targets = np.asarray([COLORS[name] for name in names], np.float32) - background  # (colours, 3)
    squares = np.square(targets).sum(1)
    difference = pixels - background
    blend = np.clip(difference @ targets.T / squares, MIN_BLEND, 1.0)  # (N, colours)
    rest = difference[:, None] - blend[..., None] * targets  # (N, colours, 3)
    costs = np.square(rest).sum(-1) + np.square(0.5 * (1 - blend)) * squares
    labels = costs.argmin(1)
    counts = np.bincount(labels, minlength=len(names))
    found: list[tuple[str | None, Array]] = []
    for label in np.argsort(-counts, kind="stable")[:at_most]:
        if counts[label] < least * counts.max():
            break
        own = labels == label
        cost = float(np.median(costs[own, label]))
        name = names[label] if cost <= FARTHEST_COLOR**2 else None
        found.append((name, np.median(pixels[own], axis=0).astype(np.float32)))
    return found


def _opacity(difference: Array, color: Array) -> Array:
    """(T, H, W): how much of a pixel is the object's colour, given relative to the background.

    A least-squares fit in which the background's texture counts little. Below 0 and above 1 where
    the pixels are: cut off, noise would no longer vanish in the mean over frames.
    """
    weights = _weights(color).astype(np.float32)
    opacity = difference @ weights / np.float32(weights @ color)
    # What is neither background nor that colour is no part of it: another object, or its ghost.
    rest = difference - np.clip(opacity, 0, 1)[..., None] * color
    own = _contrast(rest) < 0.5 * math.sqrt(float(color @ weights))
    return np.clip(opacity, -0.3, 1.2) * own


def _without_ghosts(opacity: Array) -> Array:
    return np.clip((opacity - GHOST) / np.float32(1 - GHOST), 0, 1)


def _blur(values: Array, reach: int) -> Array:
    """(T, H, W): mean over the square around each pixel, three times, near to a Gaussian."""
    for axis in (1, 2) * 3:
        length = values.shape[axis]
        total = np.cumsum(values, axis=axis, dtype=np.float64)
        padding = [(0, 0)] * 3
        padding[axis] = (reach + 1, reach)
        total = np.pad(total, padding, mode="edge")
        first = [slice(None)] * 3
        first[axis] = slice(0, reach + 1)
        total[tuple(first)] = 0
        upper = total.take(range(2 * reach + 1, 2 * reach + 1 + length), axis)
        values = (upper - total.take(range(length), axis)).astype(np.float32)
    return values


def _share_out(
    opacities: Sequence[Array], levels: Array, core: NDArray[np.bool_], colors: Sequence[Array]
) -> list[Array]:
    """The opacities of two objects, each pixel given to the object whose core is near it."""
    distances = [np.square(levels - color).sum(-1) for color in colors]
    reach = max(1, round(min(levels.shape[1:3]) / 32))
    votes = []
    for own, other in (distances, distances[::-1]):
        core_of_own = (core & (own < other)).astype(np.float32)
        votes.append(_blur(core_of_own, reach))
    return [opacities[0] * (votes[0] >= votes[1]), opacities[1] * (votes[1] > votes[0])]


def _follow(mask: Array) -> Track:
    """The centre and size of the heaviest spot of each frame."""
    num_frames, height, width = mask.shape
    coarse = _blur(mask, max(1, round(0.1 * min(height, width))))
    flat = coarse.reshape(num_frames, -1).argmax(1)  # (T, H, W) -> (T, H W)
    y, x = (index.astype(np.float32) + 0.5 for index in np.unravel_index(flat, (height, width)))
    rows = np.arange(height, dtype=np.float32)[None, :, None] + np.float32(0.5)
    columns = np.arange(width, dtype=np.float32)[None, None, :] + np.float32(0.5)
    reach = np.full(num_frames, 0.3 * min(height, width), np.float32)
    for _ in range(5):
        square = np.square(rows - y[:, None, None]) + np.square(columns - x[:, None, None])
        inside = mask * (square <= np.square(reach)[:, None, None])
        mass = inside.sum((1, 2))
        weight = np.maximum(mass, 1e-6)
        x = np.where(mass > 0, (inside * columns).sum((1, 2)) / weight, x)
        y = np.where(mass > 0, (inside * rows).sum((1, 2)) / weight, y)
        size = np.sqrt(mass)
        reach = 1.15 * size + 2
    return Track(x, y, size, mass)


def _are_two(one: Track, other: Track, levels: Array) -> bool:
    distance = np.median(np.hypot(one.x - other.x, one.y - other.y))
    return bool(distance >= MIN_SEPARATION * min(levels.shape[1:3]))
