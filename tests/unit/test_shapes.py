"""The moving shapes: what the attributes and the caption say is true of the pixels."""

from __future__ import annotations

import dataclasses
import re
import time

import numpy as np
import pytest

from vidtwin.data.synthetic.shapes import (
    BACKGROUNDS,
    COLORS,
    LABELS,
    MOTIONS,
    SHAPES,
    TEXTURES,
    MovingShapes,
    ShapesAttributes,
    ShapesConfig,
    ShapesObject,
    canonical_caption,
    caption,
    is_held_out,
    render_attributes,
)
from vidtwin.data.synthetic.shapes.captions import (
    BACKGROUND_WORDS,
    COLOR_WORDS,
    HELD_OUT_MOTION_WORDS,
    MOTION_WORDS,
    SHAPE_WORDS,
    TEXTURE_WORDS,
)

NUM_CLIPS = 150
SYMMETRY = {"square": 4, "cross": 4, "triangle": 3, "star": 5}


def nearest(names: dict[str, tuple[int, int, int]], pixel: np.ndarray) -> str:
    return min(names, key=lambda name: float(np.square(pixel - np.array(names[name])).sum()))


def masks_of(video: np.ndarray, color: str) -> np.ndarray:
    """(T, H, W) bool: close to the colour; an object's blended edge may look like another one."""
    difference = video.astype(np.int32) - np.array(COLORS[color])
    return np.einsum("thwc,thwc->thw", difference, difference) < 50**2


def centroids(masks: np.ndarray) -> np.ndarray:
    """(T, 2) x and y."""
    return np.array([[columns.mean(), rows.mean()] for rows, columns in map(np.nonzero, masks)])


def measured_turn(masks: np.ndarray, fold: int) -> float:
    """Degrees that a shape of `fold`-fold symmetry turned from the first to the last frame."""
    phases = []
    for mask, center in zip(masks[[0, -1]], centroids(masks[[0, -1]])):
        rows, columns = np.nonzero(mask)
        moment = (((columns - center[0]) + 1j * (rows - center[1])) ** fold).sum()
        phases.append(np.angle(moment))
    return float(np.degrees(np.angle(np.exp(1j * (phases[1] - phases[0])))) / fold)


def measured_motion(masks: np.ndarray, shape: str) -> str:
    centers, areas = centroids(masks), masks.sum((1, 2))
    height, width = masks.shape[1:]
    span = np.ptp(centers, axis=0) / (width, height)
    travel = (centers[-1] - centers[0]) / (width, height)
    if span.max() > 0.2:
        axis = int(span.argmax())
        steps = np.sign(np.diff(centers[:, axis]))
        if (steps > 0).sum() > 1 and (steps < 0).sum() > 1:
            return ("bouncing left and right", "bouncing up and down")[axis]
        return (
            ("moving left", "moving right"),
            ("moving up", "moving down"),
        )[axis][int(travel[axis] > 0)]
    growth = areas[-1] / areas[0]
    if not 0.5 < growth < 2:
        return "growing" if growth > 1 else "shrinking"
    if shape in SYMMETRY and abs(turn := measured_turn(masks, SYMMETRY[shape])) > 15:
        return "turning clockwise" if turn > 0 else "turning counterclockwise"
    return "staying still"


def measured_shape(mask: np.ndarray) -> str:
    rows, columns = np.nonzero(mask)
    box = mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    if not box[box.shape[0] // 2, box.shape[1] // 2]:
        return "ring"
    if box.mean() > 0.7:
        return "square" if box.mean() > 0.9 else "circle"
    if box.mean() < 0.42:
        return "star"
    low = rows.mean() - rows.min() > 0.58 * box.shape[0]
    return "triangle" if low else "cross"


@pytest.fixture(scope="module")
def single_clips():
    config = ShapesConfig(size=NUM_CLIPS, max_objects=1, split="all", textured_fraction=0.5)
    return list(MovingShapes(config))


@pytest.fixture(scope="module")
def double_clips():
    return list(MovingShapes(ShapesConfig(size=60, two_object_fraction=1.0, split="all", seed=3)))


def test_single_objects_do_what_they_say(single_clips):
    for clip in single_clips:
        (item,) = clip.attributes.objects
        masks = masks_of(clip.video, item.color)
        assert measured_motion(masks, item.shape) == item.motion, clip.attributes
        assert LABELS[clip.label] == item.motion
        if not item.motion.startswith("turning"):
            largest = masks[masks.sum((1, 2)).argmax()]
            assert measured_shape(largest) == item.shape, clip.attributes


def test_two_objects_both_do_what_they_say_and_never_touch(double_clips):
    for clip in double_clips:
        masks = [masks_of(clip.video, item.color) for item in clip.attributes.objects]
        for item, mask in zip(clip.attributes.objects, masks):
            assert measured_motion(mask, item.shape) == item.motion, clip.attributes
        assert LABELS[clip.label] == clip.attributes.objects[0].motion


def test_backgrounds_are_named_by_the_nearest_color(single_clips):
    for clip in single_clips:
        border = np.concatenate(
            [clip.video[0, :1].reshape(-1, 3), clip.video[0, -1:].reshape(-1, 3)]
        )
        names = {nearest(BACKGROUNDS, pixel) for pixel in border.astype(np.float32)}
        assert names == {clip.attributes.background}, clip.attributes


@pytest.mark.parametrize("texture", TEXTURES)
def test_textures_are_faint_and_visible(texture):
    item = ShapesObject("circle", "red", "staying still")
    video = render_attributes(ShapesAttributes((item,), "gray", texture), seed=5)
    background = video[0][~masks_of(video, "red")[0]].astype(np.float32)
    deviation = np.abs(background - np.array(BACKGROUNDS["gray"])).max(-1)
    deviation = deviation[deviation < 40]  # without the object's soft edge
    assert (deviation.mean() > 1) == (texture != "plain")
    assert np.quantile(deviation, 0.97) < 24


def test_still_clips_are_still():
    item = ShapesObject("star", "yellow", "staying still")
    video = render_attributes(ShapesAttributes((item,), "navy", "striped"), seed=1)
    assert (video == video[:1]).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [(4, 16, 16), (8, 128, 96), (9, 17, 70), (16, 64, 64)])
def test_any_size_keeps_objects_in_the_frame(shape, size):
    frames, height, width = size
    for motion in MOTIONS:
        if motion.startswith("turning") and SHAPES[shape] is None:
            continue
        items = (ShapesObject(shape, "red", motion), ShapesObject("cross", "white", "moving up"))
        for objects in (items[:1], items):
            video = render_attributes(ShapesAttributes(objects, "black"), 2, frames, height, width)
            assert video.shape == (frames, height, width, 3)
            assert video.dtype == np.uint8
            # At 16 pixels a ring has no pixel that it covers fully, so reddish is enough.
            mask = video[..., 0].astype(int) - video[..., 1] > 60
            assert mask.any((1, 2)).all()
            if min(height, width) >= 64:  # below, the soft edge is wider than the margin
                assert not mask[:, [0, -1]].any()
                assert not mask[:, :, [0, -1]].any()


def test_a_clip_depends_on_seed_split_and_index_alone():
    config = ShapesConfig(size=20)
    forward = [MovingShapes(config).clip(index) for index in (3, 7)]
    data = MovingShapes(dataclasses.replace(config, size=1000, wordings="test"))
    backward = [data.clip(index) for index in (7, 3)][::-1]
    for one, other in zip(forward, backward):
        assert (one.video == other.video).all()
        assert one.attributes == other.attributes == data.attributes(3 if one is forward[0] else 7)
        assert one.caption != other.caption
        assert (one.video == render_attributes(one.attributes, one.seed)).all()
    assert MovingShapes(config).clip(3).caption == forward[0].caption
    others = (dataclasses.replace(config, seed=1), dataclasses.replace(config, split="all"))
    for other_config in others:
        assert MovingShapes(other_config).clip(3).seed != forward[0].seed


def test_an_epoch_changes_the_wording_alone():
    data = MovingShapes(ShapesConfig(size=10))
    clips = [data.clip(4, epoch) for epoch in range(4)]
    assert len({clip.caption for clip in clips}) > 1
    assert all((clip.video == clips[0].video).all() for clip in clips)


def test_first_clip_is_pinned():
    """A change here means that every cached latent and trained model saw another data set."""
    clip = MovingShapes(ShapesConfig()).clip(0)
    assert clip.seed == 15793235383387715774
    assert canonical_caption(clip.attributes) == (
        "a purple cross staying still and a pink triangle shrinking on a black background"
    )


def test_held_out_combinations_never_show_in_train():
    for split, expected in (("train", False), ("test", True)):
        data = MovingShapes(ShapesConfig(size=1500, split=split))
        items = [item for i in range(len(data)) for item in data.attributes(i).objects]
        assert all(is_held_out(item) == expected for item in items)
        # Every value of every attribute is shown by either split.
        assert {item.shape for item in items} == set(SHAPES)
        assert {item.color for item in items} == set(COLORS)
        assert {item.motion for item in items} == set(MOTIONS)


def test_held_out_share_and_pairs():
    every = [
        ShapesObject(shape, color, motion)
        for shape, period in SHAPES.items()
        for color in COLORS
        for motion in MOTIONS
        if period is not None or not motion.startswith("turning")
    ]
    kept = [item for item in every if not is_held_out(item)]
    assert 0.07 < 1 - len(kept) / len(every) < 0.13
    for pair in (("shape", "color"), ("shape", "motion"), ("color", "motion")):
        shown = {tuple(getattr(item, name) for name in pair) for item in kept}
        assert shown == {tuple(getattr(item, name) for name in pair) for item in every}


def test_the_share_of_second_objects_and_textures():
    data = MovingShapes(ShapesConfig(size=1500, two_object_fraction=0.3, textured_fraction=0.4))
    drawn = [data.attributes(index) for index in range(len(data))]
    assert abs(np.mean([len(item.objects) == 2 for item in drawn]) - 0.3) < 0.05
    assert abs(np.mean([item.texture != "plain" for item in drawn]) - 0.4) < 0.05
    assert all(a.objects[0].color != a.objects[-1].color for a in drawn if len(a.objects) == 2)
    counts = np.bincount([LABELS.index(item.objects[0].motion) for item in drawn])
    assert counts.min() > 0.6 * counts.mean()


def test_a_motion_named_twice_is_shown_twice_as_often():
    motions = ("growing", "turning clockwise", "turning clockwise")
    data = MovingShapes(ShapesConfig(size=1500, two_object_fraction=0.3, motions=motions))
    drawn = [item.motion for index in range(1500) for item in data.attributes(index).objects]
    assert set(drawn) == set(motions)
    assert abs(drawn.count("turning clockwise") / len(drawn) - 2 / 3) < 0.05


def contains(text: str, words: tuple[str, ...]) -> bool:
    return any(re.search(rf"\b{re.escape(word)}\b", text) for word in words)


@pytest.mark.parametrize("wordings", ["train", "test", "all"])
def test_captions_name_every_attribute(wordings, single_clips, double_clips):
    rng = np.random.default_rng(0)
    for clip in single_clips + double_clips:
        attributes = clip.attributes
        text = caption(attributes, rng, wordings).lower()
        assert contains(text, BACKGROUND_WORDS[attributes.background]), text
        if attributes.texture != "plain":
            assert contains(text, TEXTURE_WORDS[attributes.texture]), text
        for item in attributes.objects:
            motions = MOTION_WORDS[item.motion]
            if wordings != "train":
                motions += HELD_OUT_MOTION_WORDS[item.motion]
            assert contains(text, COLOR_WORDS[item.color]), text
            assert contains(text, SHAPE_WORDS[item.shape]), text
            assert contains(text, tuple(phrase for pair in motions for phrase in pair)), text
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]|  |[{}]", text), text


def test_captions_vary_and_the_test_wording_is_unseen():
    item = ShapesObject("circle", "red", "moving left")
    attributes = ShapesAttributes((item,), "navy")
    assert canonical_caption(attributes) == "a red circle moving left on a navy background"
    rng = np.random.default_rng(0)
    seen = {caption(attributes, rng) for _ in range(1500)}
    unseen = {caption(attributes, rng, "test") for _ in range(500)}
    assert len(seen) > 1200
    assert not seen & unseen


def test_a_share_of_the_captions_can_leave_the_background_out():
    words = tuple(word for names in BACKGROUND_WORDS.values() for word in names)
    full = MovingShapes(ShapesConfig(size=600))
    brief = MovingShapes(dataclasses.replace(full.config, without_background_fraction=0.5))
    named = [contains(brief.captions(index, 1)[0].lower(), words) for index in range(600)]
    assert 0.4 < sum(named) / 600 < 0.6
    assert all(contains(full.captions(index, 1)[0].lower(), words) for index in range(600))
    assert full.attributes(5) == brief.attributes(5)


def test_canonical_caption_of_two_objects():
    items = (
        ShapesObject("star", "orange", "growing"),
        ShapesObject("cross", "blue", "turning clockwise"),
    )
    assert canonical_caption(ShapesAttributes(items, "tan", "checkered")) == (
        "an orange star growing and a blue cross turning clockwise on a checkered tan background"
    )


def test_every_name_has_words():
    for names, words in (
        (COLORS, COLOR_WORDS),
        (SHAPES, SHAPE_WORDS),
        (BACKGROUNDS, BACKGROUND_WORDS),
        (TEXTURES, TEXTURE_WORDS),
        (MOTIONS, MOTION_WORDS),
        (MOTIONS, HELD_OUT_MOTION_WORDS),
    ):
        assert list(names) == list(words)
    # No word may name two things of one kind.
    for table in (COLOR_WORDS, SHAPE_WORDS, BACKGROUND_WORDS):
        every = [word for words in table.values() for word in words]
        assert len(every) == len(set(every))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": 8}, "`height` must be at least 16"),
        ({"width": 15}, "`width` must be at least 16"),
        ({"num_frames": 1}, "`num_frames` must be at least 4"),
        ({"size": 0}, "`size` must be at least 1"),
        ({"seed": -1}, "`seed` must not be negative"),
        ({"max_objects": 3}, "`max_objects` must be 1 or 2"),
        ({"two_object_fraction": 1.5}, "`two_object_fraction` must lie in"),
        ({"textured_fraction": float("nan")}, "`textured_fraction` must lie in"),
        ({"split": "valid"}, "`split` must be one of train, test, all; got 'valid'"),
        ({"wordings": "new"}, "`wordings` must be one of train, test, all"),
        ({"motions": ()}, "`motions` must name at least one motion"),
        ({"motions": ("flying",)}, "`motions` must be one of moving left"),
    ],
)
def test_bad_config(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ShapesConfig(**change)


def test_bad_attributes():
    good = ShapesObject("circle", "red", "growing")
    with pytest.raises(ValueError, match="`shape` must be one of circle"):
        ShapesObject("blob", "red", "growing")
    with pytest.raises(ValueError, match="looks the same when it turns"):
        ShapesObject("ring", "red", "turning clockwise")
    with pytest.raises(ValueError, match="must differ in color"):
        ShapesAttributes((good, good), "navy")
    with pytest.raises(ValueError, match="1 or 2 objects, got 0"):
        ShapesAttributes((), "navy")
    with pytest.raises(ValueError, match="`background` must be one of black"):
        ShapesAttributes((good,), "plaid")
    with pytest.raises(ValueError, match="`wordings` must be one of"):
        caption(ShapesAttributes((good,), "navy"), np.random.default_rng(0), "odd")
    with pytest.raises(ValueError, match="`width` must be at least 16"):
        render_attributes(ShapesAttributes((good,), "navy"), 0, width=4)
    with pytest.raises(IndexError):
        MovingShapes(ShapesConfig(size=3)).clip(3)


def test_speed():
    """Loose, for busy machines: an idle core makes more than 500 clips a second."""
    data = MovingShapes(ShapesConfig())
    data.clip(0)
    start = time.process_time()
    for index in range(60):
        data.clip(index)
    assert 60 / (time.process_time() - start) > 150


class TestSizesAndSpeeds:
    """Options that are off by default; on, a caption's "tiny" and "quickly" are true."""

    @pytest.fixture(scope="class")
    def worlds(self) -> tuple[MovingShapes, MovingShapes]:
        plain = ShapesConfig(size=400, max_objects=1, split="all", seed=6)
        return MovingShapes(plain), MovingShapes(
            dataclasses.replace(plain, sized_fraction=0.7, paced_fraction=0.7)
        )

    def test_all_else_of_a_clip_stays(self, worlds) -> None:
        plain, named = worlds
        same = 0
        for index in range(60):
            before, after = plain[index], named[index]
            item = after.attributes.objects[0]
            assert dataclasses.replace(item, size=None, speed=None) == before.attributes.objects[0]
            assert after.attributes.background == before.attributes.background
            if item.size is None and item.speed is None:
                same += 1
                assert (after.video == before.video).all() and after.caption == before.caption
        assert same > 5

    def test_what_is_said_is_so(self, worlds) -> None:
        areas: dict[str | None, list[float]] = {None: [], "small": [], "large": []}
        travels: dict[str | None, list[float]] = {None: [], "slow": [], "fast": []}
        for index in range(400):
            clip = worlds[1][index]
            item = clip.attributes.objects[0]
            masks = masks_of(clip.video, item.color)
            if item.shape == "square" and item.motion not in ("growing", "shrinking"):
                areas[item.size].append(masks[0].mean())
            if item.motion.startswith("moving") and item.color != clip.attributes.background:
                first, last = centroids(masks)[[0, -1]]
                travels[item.speed].append(float(np.abs(last - first).max()) / 64)
            said = clip.caption.lower()
            assert (item.size == "small") == bool(re.search(r"\b(small|tiny|little)\b", said))
            assert (item.size == "large") == bool(re.search(r"\b(large|huge|big)\b", said))
            assert (item.speed == "slow") == ("slowly" in said)
            assert (item.speed == "fast") == bool(re.search("quickly|rapidly|fast", said))
        assert max(areas["small"]) < 0.5 * min(areas[None])
        assert max(areas[None]) < 0.8 * min(areas["large"])
        assert max(travels["slow"]) < min(travels[None]) and max(travels["slow"]) < 0.22
        assert min(travels["fast"]) > 0.48
        assert min(map(len, (*areas.values(), *travels.values()))) >= 5

    def test_two_objects_have_room(self) -> None:
        options = {"sized_fraction": 0.6, "paced_fraction": 0.6, "two_object_fraction": 1.0}
        data = MovingShapes(ShapesConfig(size=60, split="all", seed=9, **options))
        for clip in data:
            border = np.concatenate([clip.video[:, 0], clip.video[:, -1], clip.video[:, :, 0]], 1)
            for item in clip.attributes.objects:
                assert item.size != "large" and item.speed != "fast"
                near = np.abs(border.astype(int) - np.array(COLORS[item.color])).sum(-1) < 30
                assert not near.any()  # in the frame

    def test_swaps_keep_the_size(self, worlds) -> None:
        rng = np.random.default_rng(0)
        index = next(i for i in range(400) if worlds[1].attributes(i).objects[0].size == "small")
        for swap in (worlds[1].appearance_swap, worlds[1].motion_swap):
            frame = swap(index, rng)[0].astype(int)
            changed = np.abs(frame - np.median(frame, axis=(0, 1))).sum(-1) > 60
            assert changed.mean() < 0.12

    def test_refusals(self) -> None:
        for size, speed, motion in (
            ("tiny", None, "growing"),
            (None, "quick", "growing"),
            ("large", "fast", "moving left"),
            (None, "slow", "staying still"),
        ):
            with pytest.raises(ValueError, match=r"size|speed"):
                ShapesObject("square", "red", motion, size, speed)
        large = ShapesObject("square", "red", "moving up", "large")
        with pytest.raises(ValueError, match="no room"):
            ShapesAttributes((large, ShapesObject("circle", "blue", "moving up")), "black")

    def test_the_plain_caption_says_both(self) -> None:
        item = ShapesObject("square", "red", "moving left", "small", "fast")
        shown = canonical_caption(ShapesAttributes((item,), "navy"))
        assert shown == "a small red square moving left quickly on a navy background"
