"""Branch dropout, and the structure encoded from shuffled or single frames."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from vidtwin.branches import branch_weights, shuffle_frames
from vidtwin.building import build_models
from vidtwin.config import BranchDropout, DiscriminatorConfig, FrameShuffle, LossConfig


def numbered(batch: int, frames: int) -> torch.Tensor:
    """Videos whose pixels are the number of their frame."""
    return torch.arange(frames).float().expand(batch, 3, 2, 2, frames).movedim(-1, 2)


def test_branch_dropout_drops_the_given_shares_of_each_branch():
    assert branch_weights(BranchDropout(), [0, 1]) is None
    weights = branch_weights(BranchDropout(structure=0.25, dynamics=0.5), range(1000))
    assert weights.shape == (1000, 2) and set(weights.flatten().tolist()) == {0.0, 1.0}
    assert weights.sum(1).min() == 1
    assert torch.allclose(1 - weights.mean(0), torch.tensor([0.25, 0.5]), atol=0.05)
    alone = branch_weights(BranchDropout(structure=0.25, dynamics=0.5), [7])
    assert torch.equal(alone[0], weights[7])
    with pytest.raises(ValueError, match="sum to at most 1"):
        BranchDropout(structure=0.6, dynamics=0.5)


def test_off_by_default_and_then_nothing_is_made():
    assert shuffle_frames(numbered(2, 4), FrameShuffle(), [0, 1]) is None


def test_every_clip_keeps_its_frames_and_changes_their_order():
    video = numbered(8, 16)
    shuffled = shuffle_frames(video, FrameShuffle(share=1.0), range(8))
    assert torch.equal(shuffled.sort(dim=2).values, video)
    orders = {tuple(clip[0, :, 0, 0].tolist()) for clip in shuffled}
    assert len(orders) == 8 and tuple(range(16)) not in orders


def test_a_clip_s_order_follows_from_its_own_seed_alone():
    video, shuffle = numbered(4, 16), FrameShuffle(share=0.5)
    together = shuffle_frames(video, shuffle, [5, 6, 7, 8])
    for place, seed in enumerate([5, 6, 7, 8]):
        assert torch.equal(shuffle_frames(video[:1], shuffle, [seed])[0], together[place])


def test_about_the_asked_share_is_shuffled():
    video = numbered(400, 8)
    shuffled = shuffle_frames(video, FrameShuffle(share=0.25), range(400))
    changed = (shuffled != video).flatten(1).any(1).float().mean()
    assert 0.17 < float(changed) < 0.33


def test_some_frames_are_repeated_to_the_clip_s_length():
    video = numbered(64, 8)
    mixed = shuffle_frames(video, FrameShuffle(share=0.75, frames=1), range(64))
    assert mixed.shape == video.shape
    singles = [clip for clip in mixed if torch.equal(clip, clip[:, :1].expand_as(clip))]
    assert 32 < len(singles) < 64
    threes = shuffle_frames(video, FrameShuffle(share=0.999999, frames=3), range(64))
    assert {len(clip.unique()) for clip in threes} == {3}


def test_where_every_clip_keeps_as_few_frames_they_are_not_repeated():
    video = numbered(64, 8)
    singles = shuffle_frames(video, FrameShuffle(share=1.0, frames=1), range(64))
    assert singles.shape[2] == 1 and set(singles.flatten().tolist()) == set(range(8))
    assert shuffle_frames(video, FrameShuffle(share=1.0, frames=3), range(64)).shape[2] == 3
    every = shuffle_frames(video, FrameShuffle(share=1.0, frames=8), range(64))
    assert torch.equal(every, shuffle_frames(video, FrameShuffle(share=1.0), range(64)))


def test_at_least_one_frame_is_kept():
    with pytest.raises(ValueError, match=r"frame_shuffle\.frames must be at least 1 or null"):
        FrameShuffle(share=1.0, frames=0)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_is_a_share(share):
    with pytest.raises(ValueError, match=r"frame_shuffle\.share"):
        FrameShuffle(share=share)


@torch.no_grad()
def test_the_dynamics_are_read_off_the_video_itself(build_tiny, random_video):
    model = build_tiny()
    video = random_video(model)
    other = video.flip(2)
    mixed, usual, turned = model.encode(video, other), model.encode(video), model.encode(other)
    assert torch.equal(mixed.structure.mean, turned.structure.mean)
    assert torch.equal(mixed.dynamics_x.mean, usual.dynamics_x.mean)
    assert torch.equal(mixed.dynamics_y.mean, usual.dynamics_y.mean)
    assert not torch.allclose(mixed.structure.mean, usual.structure.mean)
    output = model(video, structure_video=other)
    assert torch.equal(output.reconstruction, model.decode(mixed.mode()))


@torch.no_grad()
def test_shuffling_the_encoder_s_features_would_change_nothing(build_tiny, random_video):
    """Why frames are shuffled and not features, as the released code's `shuffle_content` does."""
    model = build_tiny().double()
    features = model.features(random_video(model).double())
    order = torch.tensor([2, 0, 1])
    one, other = (model.structure_encoder(each) for each in (features, features[:, :, order]))
    assert float((one - other).abs().max()) <= 1e-12 * float(one.abs().max())


@torch.no_grad()
def test_a_structure_read_off_one_frame_knows_nothing_of_the_others(build_tiny, random_video):
    model = build_tiny(structure_frame=1)
    video = random_video(model)
    other = video.clone()
    other[:, :, 2:] = -other[:, :, 2:]
    found, changed = model.encode(video), model.encode(other)
    assert torch.equal(found.structure.mean, changed.structure.mean)
    assert not torch.allclose(found.dynamics_x.mean, changed.dynamics_x.mean)
    frame = video[:, :, 1:2]
    assert torch.equal(found.structure.mean, model.encode(video, frame).structure.mean)
    assert not torch.allclose(
        found.structure.mean, model.encode(video, structure_video=video).structure.mean
    )


def test_weights_go_on_with_their_structure_read_off_one_frame(build_tiny, tmp_path):
    build_tiny().save_pretrained(tmp_path)
    config = dataclasses.replace(build_tiny().sizes, structure_frame=2)
    losses = LossConfig(discriminator_weight=0.0, perceptual_weight=0.0)
    model, *_ = build_models(config, DiscriminatorConfig(), losses, str(tmp_path))
    assert model.sizes == config and model.config.structure_frame == 2


def test_a_structure_video_of_another_size_is_refused(build_tiny, random_video):
    model = build_tiny()
    video = random_video(model)
    for other in (video[..., :2], video[:, :, :0], torch.cat([video, video], dim=2)):
        with pytest.raises(ValueError, match="expected a video of shape"):
            model.encode(video, other)
