"""The same movement in another look, the same look in another movement, and what a training reads
off them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vidtwin.branches import branch_videos, shuffle_frames
from vidtwin.building import build_models
from vidtwin.config import DiscriminatorConfig, FrameShuffle, LossConfig
from vidtwin.data import DataConfig, build_dataset, build_loader
from vidtwin.data.synthetic.shapes import SHAPES, MovingShapes, ShapesConfig
from vidtwin.data.synthetic.shapes.attributes import (
    is_held_out,
    swap_appearance,
    swap_motion,
)
from vidtwin.data.synthetic.shapes.rendering import LAYOUT_STREAM, draw_paths, stream
from vidtwin_lab.evaluation.judges.shapes_judge import judge_video

PAIRS = {"appearance_swap_fraction": "appearance_swap", "motion_swap_fraction": "motion_swap"}
SIZES = {"num_frames": 8, "height": 32, "width": 32}


def shapes(**options) -> DataConfig:
    return DataConfig(**({"source": "shapes"} | SIZES | options)).with_options(size=64)


def test_other_objects_do_the_same():
    data = MovingShapes(ShapesConfig(size=40, split="train", two_object_fraction=0.3))
    others = []
    for index in range(40):
        mine = data.attributes(index)
        other = swap_appearance(np.random.default_rng(index), mine, "train")
        assert [item.motion for item in other.objects] == [item.motion for item in mine.objects]
        assert len({item.color for item in other.objects}) == len(other.objects)
        assert not any(is_held_out(item) for item in other.objects)
        others += [
            (one.shape != two.shape, one.color != two.color)
            for one, two in zip(mine.objects, other.objects, strict=True)
        ]
    shape, color = np.mean(others, axis=0)
    assert 0.6 < shape < 1 and 0.7 < color < 1


def test_paths_stay_and_turns_keep_their_part_of_the_period():
    data = MovingShapes(ShapesConfig(size=60, two_object_fraction=0.3))
    turned = 0
    for index in range(60):
        clip = data.clip(index)
        other = swap_appearance(np.random.default_rng(index), clip.attributes, "train")
        pairs = zip(
            draw_paths(clip.attributes, stream(clip.seed, LAYOUT_STREAM)),
            draw_paths(other, stream(clip.seed, LAYOUT_STREAM)),
            clip.attributes.objects,
            other.objects,
            strict=True,
        )
        for path, new, item, cast in pairs:
            for name in ("x", "y", "radius"):
                np.testing.assert_array_equal(getattr(path, name), getattr(new, name))
            if item.motion.startswith("turning"):
                turned += 1
                parts = path.angle / SHAPES[item.shape], new.angle / SHAPES[cast.shape]
                np.testing.assert_allclose(*parts, rtol=1e-5)
    assert turned > 5


def test_a_appearance_swap_shows_the_movement_and_another_look():
    data = MovingShapes(ShapesConfig(size=24, max_objects=1, textured_fraction=0.0))
    same = []
    for index in range(24):
        item = data.attributes(index).objects[0]
        seen = judge_video(data.appearance_swap(index, np.random.default_rng(index))).objects[0]
        assert seen.motion == item.motion
        same.append((seen.color == item.color) and (seen.shape == item.shape))
    assert sum(same) < 6


def test_a_motion_swap_shows_the_look_and_another_movement():
    data = MovingShapes(ShapesConfig(size=24, max_objects=1, textured_fraction=0.3))
    same = []
    for index in range(24):
        mine = data.attributes(index)
        item = mine.objects[0]
        other = swap_motion(np.random.default_rng(index), mine, "train", ("growing",))
        assert (other.background, other.texture) == (mine.background, mine.texture)
        assert other.objects[0].motion in ("growing", item.motion)  # where growing is held out
        assert not is_held_out(other.objects[0])
        video = data.motion_swap(index, np.random.default_rng(index))
        seen = judge_video(video)
        assert seen.objects[0].color == item.color and seen.objects[0].shape == item.shape
        assert seen.background == mine.background
        same.append(seen.objects[0].motion == item.motion)
        corner = data.clip(index).video[0, :2, :2]  # behind no object: the pattern stays
        np.testing.assert_array_equal(video[0, :2, :2], corner)
    assert sum(same) < 8


def test_samples_bring_their_appearance_swap_along():
    plain, appearance_swap = (
        build_dataset(shapes(appearance_swap_fraction=share)) for share in (0.0, 1.0)
    )
    assert "appearance_swap" not in plain[0]
    sample, again, later = appearance_swap[0], appearance_swap[(0, 0)], appearance_swap[(1, 0)]
    assert torch.equal(sample["video"], plain[0]["video"])
    assert sample["appearance_swap"].shape == sample["video"].shape
    assert sample["appearance_swap"].min() >= -1 and sample["appearance_swap"].max() <= 1
    assert torch.equal(sample["appearance_swap"], again["appearance_swap"])
    assert not torch.equal(sample["appearance_swap"], later["appearance_swap"])
    assert not torch.equal(sample["appearance_swap"], sample["video"])
    assert sample["noise_seed"] == plain[0]["noise_seed"]


@pytest.mark.parametrize(("key", "name"), PAIRS.items())
def test_a_share_of_the_samples_has_a_pair(key, name):
    data = build_dataset(shapes(**{key: 0.5}).with_options(size=128))
    own = [torch.equal(data[i][name], data[i]["video"]) for i in range(128)]
    assert 40 < sum(own) < 90


@pytest.mark.parametrize(("key", "name"), PAIRS.items())
def test_batches_have_pairs_and_evaluation_has_none(key, name):
    config = shapes(**{key: 1.0})
    batch = next(iter(build_loader(build_dataset(config), batch_size=3, seed=0)))
    assert batch[name].shape == batch["video"].shape
    assert getattr(config.centered(), key) == 0
    assert set(batch) & set(PAIRS.values()) == {name}


@pytest.mark.parametrize("key", PAIRS)
@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_is_a_share(key, share):
    with pytest.raises(ValueError, match=rf"data\.{key} must be in \[0, 1\]"):
        shapes(**{key: share})


@pytest.mark.parametrize("key", PAIRS)
def test_clips_of_files_have_no_pairs(key, tmp_path):
    with pytest.raises(ValueError, match="needs clips that can be drawn again"):
        DataConfig(source="folder", path=str(tmp_path), **{key: 0.5})


def test_what_each_branch_is_shown():
    both = build_dataset(shapes(appearance_swap_fraction=1.0, motion_swap_fraction=1.0))
    batch = next(iter(build_loader(both, batch_size=4, seed=0)))
    part, still = slice(1, 3), FrameShuffle(share=1.0, frames=1)
    seeds, video = batch["noise_seed"][part].tolist(), batch["video"][part]
    paired = {name: batch[name][part] for name in PAIRS.values()}
    found = branch_videos(video, paired, seeds, FrameShuffle())
    assert torch.equal(found["structure_video"], batch["motion_swap"][part])
    assert torch.equal(found["dynamics_video"], batch["appearance_swap"][part])
    found = branch_videos(video, paired, seeds, still)
    expected = shuffle_frames(batch["motion_swap"][part], still, seeds)
    assert torch.equal(found["structure_video"], expected)
    assert set(branch_videos(video, {}, seeds, FrameShuffle()).values()) == {None}
    found = branch_videos(video, {}, seeds, still)
    assert torch.equal(found["structure_video"], shuffle_frames(batch["video"][part], still, seeds))
    assert found["dynamics_video"] is None


@torch.no_grad()
def test_the_dynamics_are_read_off_another_video(build_tiny, random_video):
    for model in (build_tiny(), build_tiny(structure_frame=1)):
        video = random_video(model)
        other = -video.flip(2)
        mixed = model.encode(video, dynamics_video=other)
        mine, its = model.encode(video), model.encode(other)
        assert torch.equal(mixed.structure.mean, mine.structure.mean)
        assert torch.equal(mixed.dynamics_x.mean, its.dynamics_x.mean)
        assert torch.equal(mixed.dynamics_y.mean, its.dynamics_y.mean)
        still = model.encode(video, structure_video=video[:, :, 2:3], dynamics_video=other)
        wanted = model.encode(video, structure_video=video[:, :, 2:3])
        assert torch.equal(still.structure.mean, wanted.structure.mean)
        assert torch.equal(still.dynamics_y.mean, its.dynamics_y.mean)
        output = model(video, dynamics_video=other)
        assert torch.equal(output.reconstruction, model.decode(mixed.mode()))
        with pytest.raises(ValueError, match="expected a video of shape"):
            model.encode(video, dynamics_video=other[:, :, :1])


def test_a_frozen_encoder_gets_no_gradient_and_the_decoder_all(build_tiny, random_video):
    losses = LossConfig(discriminator_weight=0.0, perceptual_weight=0.0)
    sizes = build_tiny().sizes
    model, *_ = build_models(sizes, DiscriminatorConfig(), losses, freeze_encoder=True)
    video = random_video(model)
    model(video).reconstruction.square().mean().backward()
    learns = {name for name, value in model.named_parameters() if value.grad is not None}
    parts = {name.partition(".")[0] for name in learns}
    assert parts == {"structure_decoder", "dynamics_decoder", "decoder", "head"}
    still = {name for name, _ in model.named_parameters()} - learns
    assert {name.partition(".")[0] for name in still} == {
        "patch_embedding", "encoder", "structure_encoder", "dynamics_encoder",
    }  # fmt: skip
