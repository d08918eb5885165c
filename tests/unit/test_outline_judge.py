"""The judge of outlines: right on renders, and not on what only looks right from afar."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from vidtwin.data.synthetic.shapes import (
    SHAPES,
    MovingShapes,
    ShapesAttributes,
    ShapesConfig,
    ShapesObject,
    render_attributes,
)
from vidtwin_lab.evaluation.judges.outline_judge import MIN_OVERLAP, MIN_ROUNDNESS, judge_outlines
from vidtwin_lab.evaluation.judges.outlines import fit_outlines
from vidtwin_lab.evaluation.judges.shapes_judge import find_objects, judge_video

WORLD = {"split": "all", "textured_fraction": 0.3, "sized_fraction": 0.4, "paced_fraction": 0.4}


def clip_of(shape: str, motion: str = "moving left", seed: int = 3, **extent) -> np.ndarray:
    item = ShapesObject(shape, "red", motion, **extent)
    return render_attributes(ShapesAttributes((item,), "navy"), seed=seed)


def polygon(sides: int, frames: int = 16) -> np.ndarray:
    """(T, 64, 64, 3): a red regular polygon on navy, antialiased as the renderer does it."""
    y, x = np.mgrid[0:64, 0:64] + 0.5 - 32.0
    angles = np.arange(sides) * 2 * np.pi / sides
    distance = np.max([x * np.cos(a) + y * np.sin(a) for a in angles], axis=0) - 13.0
    opacity = np.clip(0.5 - distance / 1.5, 0, 1)[..., None]
    frame = (1 - opacity) * np.array([18, 26, 84]) + opacity * np.array([215, 30, 35])
    return np.repeat(np.rint(frame).astype(np.uint8)[None], frames, axis=0)


def test_rendered_clips_are_judged_right() -> None:
    clips = list(MovingShapes(ShapesConfig(size=12, max_objects=1, seed=21, **WORLD)))
    for clip in clips:
        seen = judge_outlines(clip.video, 1)
        (asked,) = clip.attributes.objects
        assert all(seen.against(clip.attributes).values()), (asked, seen)
        assert seen.objects[0].size == asked.size
        assert asked.speed in (None, seen.objects[0].speed)
        assert seen.objects[0].flicker < 0.03 and seen.objects[0].distance < 0.15


def test_two_objects_are_judged_each_by_itself() -> None:
    clips = list(MovingShapes(ShapesConfig(size=4, two_object_fraction=1.0, seed=5, **WORLD)))
    for clip in clips:
        assert all(judge_outlines(clip.video, 2).against(clip.attributes).values())
    one, other = clips[0].attributes.objects
    wrong = dataclasses.replace(
        clips[0].attributes,
        objects=(one, dataclasses.replace(other, motion="growing", speed=None)),
    )
    assert other.motion != "growing"
    pairs = judge_outlines(clips[0].video, 2).paired(wrong)
    assert [asked.motion == seen.motion for asked, seen in pairs] == [True, False]
    assert all(asked.shape == seen.shape for asked, seen in pairs)


@pytest.mark.parametrize("shape", SHAPES)
def test_thresholds_stand_between_a_shape_and_the_others(shape) -> None:
    """On renders of usual and of small size: nothing here was made by a model."""
    for size in (None, "small"):
        (found,) = find_objects(clip_of(shape, size=size), 1)[1]
        fits = {name: fit_outlines(name, found.opacity, found.track) for name in SHAPES}
        own = fits.pop(shape)
        assert own.overlap.min() > MIN_OVERLAP[shape] + 0.05
        assert own.roundness.min() > MIN_ROUNDNESS
        for name, other in fits.items():
            assert other.overlap.max() < MIN_OVERLAP[name] - 0.03, name


def test_a_polygon_is_no_circle() -> None:
    """What the judge of pixels, whose templates are soft, takes for one."""
    assert judge_video(polygon(6), 1).objects[0].shape == "circle"
    assert judge_outlines(polygon(6), 1).objects[0].shape is None
    assert judge_outlines(polygon(40), 1).objects[0].shape == "circle"


@pytest.mark.parametrize("shape", ["star", "cross", "square"])
def test_a_blurred_outline_has_lost_its_corners(shape) -> None:
    video = clip_of(shape, "staying still").astype(np.float32)
    for _ in range(40):
        video = (np.roll(video, 1, 1) + video + np.roll(video, -1, 1)) / 3
        video = (np.roll(video, 1, 2) + video + np.roll(video, -1, 2)) / 3
    before = judge_outlines(clip_of(shape, "staying still"), 1).objects[0]
    after = judge_outlines(np.rint(video).astype(np.uint8), 1).objects[0]
    assert after.shape != shape
    assert after.distance > 3 * before.distance and after.overlap < before.overlap


def test_an_outline_that_changes_from_frame_to_frame_flickers() -> None:
    steady = clip_of("cross", "staying still")
    changing = steady.copy()
    changing[::2] = clip_of("square", "staying still")[::2]
    assert judge_outlines(steady, 1).objects[0].flicker < 0.005
    seen = judge_outlines(changing, 1).objects[0]
    assert seen.shape is None and seen.flicker > 0.2
    # Moving and turning are no flicker.
    for motion in ("moving down", "turning clockwise"):
        assert judge_outlines(clip_of("cross", motion), 1).objects[0].flicker < 0.04


def test_a_frame_without_an_object_is_judged_without_complaint() -> None:
    video = clip_of("circle", "staying still")
    video[6:] = video[0, 0, 0]
    rng = np.random.default_rng(0)
    with np.errstate(all="raise"):
        assert judge_outlines(video, 1).objects[0].motion is None
        assert judge_outlines(np.full_like(video, 16), 1).objects[0].shape is None
        for shape in ((16, 64, 64, 3), (4, 16, 16, 3)):
            assert len(judge_outlines(rng.integers(0, 256, shape, np.uint8), 2).objects) == 2
