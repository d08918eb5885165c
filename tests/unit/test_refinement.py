"""Laws of the convolutional head: it is an option, starts at nothing, and sees over seams alone."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from vidtwin import VidTwinAutoencoder
from vidtwin.building import build_models
from vidtwin.config import DiscriminatorConfig, LossConfig
from vidtwin.latents import draw_noise

LOSSES = LossConfig(discriminator_weight=0.0, perceptual_weight=0.0)
HEAD = {"patch_overlap": True, "refinement_channels": 6, "refinement_layers": 3}


def test_released_weights_know_nothing_of_it(build_tiny):
    plain, refined = build_tiny().state_dict(), build_tiny(**HEAD).state_dict()
    added = set(refined) - set(plain)
    assert set(plain) < set(refined)
    assert {name.split(".")[0] for name in added} == {"overlap", "refinement"}


@pytest.mark.parametrize("stride", [1, 2])
@torch.no_grad()
def test_a_new_one_changes_nothing(build_tiny, random_video, stride):
    model = build_tiny()
    options = {"refinement_channels": 8, "refinement_layers": 2, "refinement_stride": stride}
    refined = model.with_mended_seams(**options, patch_overlap=True)
    assert refined.sizes.refinement_stride == stride and not refined.training
    video = random_video(model)
    assert torch.equal(refined(video).reconstruction, model(video).reconstruction)
    with pytest.raises(ValueError, match="has parts that mend seams already"):
        refined.with_mended_seams(**options)


@torch.no_grad()
def test_each_frame_is_refined_by_itself(build_tiny):
    """So a causal decoder stays causal, and long videos are tiled as before."""
    model = build_tiny(**HEAD)
    video, tokens = torch.randn(1, 3, 3, 10, 14), torch.randn(1, 3, 35, 16)
    for part in (model.overlap, model.refinement):
        whole = part(video, tokens)
        for frame in range(3):
            alone = part(video[:, :, [frame]], tokens[:, [frame]])
            torch.testing.assert_close(alone, whole[:, :, [frame]])


@torch.no_grad()
def test_it_sees_over_the_border_of_a_patch(build_tiny):
    model = build_tiny(**HEAD)
    video, tokens = torch.zeros(1, 3, 1, 10, 14), torch.zeros(1, 1, 35, 16)
    changed = video.clone()
    changed[..., 1, 1] = 1.0  # a corner of the first patch of 2 x 2
    moved = (model.refinement(changed, tokens) - model.refinement(video, tokens))[0, :, 0]
    assert moved[:, :2, 2].abs().max() > 1e-4 and moved[:, 2, :2].abs().max() > 1e-4
    assert not moved[:, 6:].any()  # three convolutions reach three pixels


@torch.no_grad()
def test_overlapping_patches_reach_half_a_patch_beyond(build_tiny):
    model = build_tiny(**HEAD | {"patch_size": (1, 2, 2)})
    model.overlap.linear.bias.zero_()
    video, tokens = torch.zeros(1, 3, 1, 10, 14), torch.zeros(1, 1, 35, 16)
    tokens[:, :, 8] = torch.randn(16)  # the second patch of the second row
    drawn = model.overlap(video, tokens)[0, :, 0].abs().sum(0)
    assert drawn[1:5, 1:5].min() > 0
    drawn[1:5, 1:5] = 0
    assert not drawn.any()


@torch.no_grad()
def test_a_clip_of_the_models_size_is_the_same_through_tiles(build_tiny, random_video):
    model = build_tiny(**HEAD)
    video = random_video(model, 1)
    torch.testing.assert_close(model.reconstruct(video), model(video).reconstruction)
    long = torch.cat([video, video.flip(2)], dim=2)[..., 3:, :]
    assert model.reconstruct(long).shape == long.shape


def test_weights_without_it_are_continued_only_when_asked(build_tiny, random_video, tmp_path):
    before = build_tiny()
    before.save_pretrained(tmp_path)
    config = dataclasses.replace(before.sizes, **HEAD)
    discriminator = DiscriminatorConfig()
    with pytest.raises(ValueError, match="refinement_channels=None; mend_seams=true"):
        build_models(config, discriminator, LOSSES, str(tmp_path))
    with pytest.raises(ValueError, match="missing: overlap"):
        VidTwinAutoencoder.from_pretrained(tmp_path, **HEAD)
    model, *_ = build_models(
        config, discriminator, LOSSES, str(tmp_path), freeze_encoder=True, mend_seams=True
    )
    assert model.sizes == config
    video = random_video(model)
    torch.testing.assert_close(
        model(video).reconstruction, before(video).reconstruction, rtol=0, atol=0
    )


def test_training_it_leaves_cached_latents_valid(build_tiny, random_video):
    """With the encoder frozen, the decoder and a new refinement learn; the latents stay."""
    model = build_tiny().with_mended_seams(**HEAD).train()
    model.freeze_encoder()
    video = random_video(model)
    latents = model.encode(video).mode()
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=2e-3)
    losses = []
    for _ in range(6):
        loss = (model.decode(latents) - video).square().mean()
        losses.append(float(loss.detach()))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]
    assert model.refinement.to_colors.weight.abs().max() > 1e-3
    model.decode(latents).mean().backward()
    assert model.overlap.linear.weight.grad.abs().max() > 0
    assert model.refinement.features.weight.grad.abs().max() > 0
    again = model.encode(video).mode()
    assert all(map(torch.equal, again.tensors(), latents.tensors()))


def test_saved_and_loaded(build_tiny, tmp_path):
    model = build_tiny(**HEAD)
    model.save_pretrained(tmp_path)
    loaded = VidTwinAutoencoder.from_pretrained(tmp_path)
    latents = draw_noise(model.sizes, [0])
    assert loaded.sizes == model.sizes
    assert torch.equal(loaded.decode(latents), model.decode(latents))
