"""The judge names what rendered clips show, also when they are soft, and says no when it is so."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable

import numpy as np
import pytest

from vidtwin.data.synthetic.shapes import (
    SHAPES,
    MovingShapes,
    ShapesAttributes,
    ShapesClip,
    ShapesConfig,
    ShapesObject,
    render_attributes,
)
from vidtwin.data.synthetic.shapes.rendering import signed_distance
from vidtwin_lab.evaluation.judges.shape_and_motion import UNIT_AREAS
from vidtwin_lab.evaluation.judges.shapes_judge import (
    JudgedObject,
    Judgement,
    judge_video,
)

NAMES = ("color", "shape", "motion", "background")
NUM_CLIPS = 400
NUM_SOFT = 200


def judge_against(video: np.ndarray, attributes: ShapesAttributes) -> dict[str, bool]:
    """Which of the asked attributes a video shows, by a judge that knows how many objects."""
    return judge_video(video, len(attributes.objects)).against(attributes)


@pytest.fixture(scope="module")
def single_clips() -> list[ShapesClip]:
    config = ShapesConfig(size=NUM_CLIPS, max_objects=1, split="all", textured_fraction=0.5, seed=2)
    return list(MovingShapes(config))


def blurred(video: np.ndarray, sigma: float) -> np.ndarray:
    reach = round(4 * sigma)
    kernel = np.exp(-np.square(np.arange(-reach, reach + 1) / sigma) / 2)
    for axis in (1, 2):
        padding = [(reach, reach) if axis == one else (0, 0) for one in range(4)]
        padded = np.pad(video, padding, mode="edge")
        shifted = [padded.take(range(i, i + video.shape[axis]), axis) for i in range(len(kernel))]
        video = np.tensordot(kernel / kernel.sum(), shifted, axes=1)
    return video


def softened(video: np.ndarray, seed: int) -> np.ndarray:
    """What a small model may make of a clip: blur, a tint, flicker, noise, and a faint ghost."""
    rng = np.random.default_rng(seed)
    soft = blurred(video.astype(np.float32), 1.0)
    ghost = np.roll(soft, (5, 9), axis=(1, 2))
    soft = 0.9 * soft + 0.1 * ghost
    soft += rng.uniform(-20, 20, 3) + rng.normal(0, 3, (len(soft), 1, 1, 1))
    soft += rng.normal(0, 4, soft.shape)
    return np.clip(soft / 255, 0, 1).astype(np.float32)


def shares(pairs: Iterable[tuple[np.ndarray, ShapesAttributes]]) -> dict[str, float]:
    right: Counter[str] = Counter()
    number = 0
    for video, attributes in pairs:
        right.update({name: int(is_so) for name, is_so in judge_against(video, attributes).items()})
        number += 1
    return {name: right[name] / number for name in NAMES}


def seen(video: np.ndarray) -> JudgedObject:
    (found,) = judge_video(video, 1).objects
    return found


def test_rendered_clips_are_judged_right(single_clips):
    found = shares((clip.video, clip.attributes) for clip in single_clips)
    assert min(found.values()) >= 0.995, found


def test_soft_clips_are_judged_right(single_clips):
    soft = single_clips[:NUM_SOFT]
    found = shares((softened(clip.video, i), clip.attributes) for i, clip in enumerate(soft))
    assert min(found.values()) >= 0.97, found


def test_two_objects_are_judged_right_and_counted(single_clips):
    config = ShapesConfig(size=40, two_object_fraction=1.0, split="all", seed=4)
    clips = list(MovingShapes(config))
    found = shares((clip.video, clip.attributes) for clip in clips)
    assert min(found.values()) >= 0.98, found
    assert all(len(judge_video(clip.video).objects) == 2 for clip in clips[:10])
    assert all(len(judge_video(clip.video).objects) == 1 for clip in single_clips[:10])


def test_two_objects_are_paired_by_what_suits_them_best():
    red = ShapesObject("circle", "red", "moving left")
    blue = ShapesObject("star", "blue", "growing")
    asked = ShapesAttributes((red, blue), "navy")
    judged = [JudgedObject(item.color, item.shape, item.motion) for item in (blue, red)]
    assert all(Judgement("navy", tuple(judged)).against(asked).values())
    judged[0] = JudgedObject("blue", "circle", "growing")
    assert Judgement("tan", tuple(judged)).against(asked) == {
        "color": True,
        "shape": False,
        "motion": True,
        "background": False,
    }
    # By motion alone, whatever the colours are.
    recolored = (JudgedObject("pink", "star", "growing"), JudgedObject("blue", None, "moving left"))
    verdict = Judgement("navy", recolored).against(asked, match_by=("motion",))
    assert verdict["motion"] and not verdict["color"]
    # An object that is missing is wrong in everything.
    assert not any(
        value
        for name, value in Judgement("navy", tuple(judged[1:2])).against(asked).items()
        if name != "background"
    )


@pytest.mark.parametrize(
    "change",
    [
        {"color": "orange"},
        {"shape": "cross"},
        {"motion": "moving right"},
        {"motion": "bouncing left and right"},
        {"motion": "turning clockwise"},
        {"motion": "staying still"},
    ],
)
def test_what_was_not_asked_for_is_told(change):
    item = ShapesObject("square", "red", "moving left")
    video = render_attributes(ShapesAttributes((item,), "navy", "striped"), seed=7)
    asked = dataclasses.replace(item, **change)
    verdict = judge_against(video, ShapesAttributes((asked,), "navy"))
    assert verdict == {name: name not in change for name in NAMES}
    assert not judge_against(video, ShapesAttributes((item,), "black"))["background"]


MIRRORED = {
    "moving left": "moving right",
    "turning clockwise": "turning counterclockwise",
}
REVERSED = MIRRORED | {"moving up": "moving down", "growing": "shrinking"}


@pytest.mark.parametrize(("change", "others"), [("mirror", MIRRORED), ("reverse", REVERSED)])
def test_a_changed_video_shows_the_changed_motion(change, others, single_clips):
    others = others | {value: key for key, value in others.items()}
    for clip in single_clips[:30]:
        video = clip.video[:, :, ::-1] if change == "mirror" else clip.video[::-1]
        (item,) = clip.attributes.objects
        found = seen(np.ascontiguousarray(video))
        assert found.motion == others.get(item.motion, item.motion), item
        assert (found.color, found.shape) == (item.color, item.shape)


def test_frames_in_disorder_are_no_motion():
    for motion in ("moving left", "moving down", "bouncing up and down"):
        item = ShapesObject("circle", "yellow", motion)
        video = render_attributes(ShapesAttributes((item,), "navy"), seed=3)
        order = np.random.default_rng(0).permutation(len(video))
        assert seen(video[order]) == JudgedObject("yellow", "circle", None)


def test_an_object_that_vanishes_has_no_motion():
    item = ShapesObject("circle", "yellow", "staying still")
    video = render_attributes(ShapesAttributes((item,), "navy"), seed=3)
    video[6:] = video[0, 0, 0]
    assert seen(video) == JudgedObject("yellow", "circle", None)


def test_what_is_no_known_shape_or_color_is_none():
    video = np.full((16, 64, 64, 3), 16, np.uint8)
    video[:, 20:44, 8:12] = video[:, 20:44, 50:54] = (128, 128, 128)
    found = seen(video)
    assert found.shape is None
    assert found.color is None


def test_videos_that_show_nothing():
    nothing = JudgedObject(None, None, None)
    for value, background in ((16, "black"), (100, "gray"), (255, None)):
        video = np.full((16, 64, 64, 3), value, np.uint8)
        assert judge_video(video) == Judgement(background, ())
        assert judge_video(video, 1) == Judgement(background, (nothing,))
        assert judge_video(video, 2) == Judgement(background, (nothing, nothing))
    asked = ShapesAttributes((ShapesObject("ring", "red", "staying still"),), "black")
    verdict = judge_against(np.zeros((16, 64, 64, 3), np.float32), asked)
    assert verdict == {"color": False, "shape": False, "motion": False, "background": True}


def test_noise_is_judged_without_complaint():
    rng = np.random.default_rng(0)
    with np.errstate(all="raise"):
        for shape in ((16, 64, 64, 3), (4, 16, 16, 3), (5, 17, 40, 3)):
            for video in (rng.integers(0, 256, shape, np.uint8), rng.random(shape)):
                for number in (None, 1, 2):
                    judged = judge_video(video, number)
                    assert number is None or len(judged.objects) == number


def test_float_and_uint8_say_the_same(single_clips):
    for clip in single_clips[:10]:
        assert judge_video(clip.video / np.float32(255)) == judge_video(clip.video)


@pytest.mark.parametrize("size", [(4, 16, 16), (8, 128, 96), (9, 48, 80)])
def test_other_sizes(size):
    frames, height, width = size
    config = ShapesConfig(
        num_frames=frames, height=height, width=width, size=20, max_objects=1, split="all"
    )
    found = shares((clip.video, clip.attributes) for clip in MovingShapes(config))
    assert min(found.values()) >= 0.95, found


@pytest.mark.parametrize("shape", SHAPES)
def test_areas_are_those_of_the_drawn_shapes(shape):
    along = np.linspace(-1, 1, 1001, dtype=np.float32)
    y, x = np.meshgrid(along, along, indexing="ij")
    inside = signed_distance(shape, x, y, np.float32(1)) < 0
    assert inside.mean() * 4 == pytest.approx(UNIT_AREAS[shape], rel=0.01)


@pytest.mark.parametrize(
    ("video", "number", "message"),
    [
        (np.zeros((16, 64, 64), np.uint8), 1, r"must be an array \(T, H, W, 3\), got \(16, 64, 64"),
        ([1, 2], 1, "must be an array .* got list"),
        (np.zeros((2, 64, 64, 3), np.uint8), 1, "`num_frames` must be at least 4"),
        (np.zeros((8, 64, 64, 3), np.int64), 1, "must be uint8 or float in .* got int64"),
        (np.full((8, 64, 64, 3), 255.0), 1, "must lie in .* from 255.0 to 255.0"),
        (np.full((8, 64, 64, 3), np.nan), 1, "must lie in .* from nan"),
        (np.zeros((8, 64, 64, 3), np.uint8), 3, "`num_objects` must be 1, 2 or None, got 3"),
    ],
)
def test_bad_input(video, number, message):
    with pytest.raises(ValueError, match=message):
        judge_video(video, number)
