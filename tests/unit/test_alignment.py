"""Autoencoders made to be generated from: latent noise, and alignment with an image encoder."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import (
    ConvNextConfig,
    ConvNextModel,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
)

from vidtwin.alignment import StructureAlignment, as_grid, spatial_norm
from vidtwin.branches import latent_noise
from vidtwin.config import AlignmentConfig, LossConfig
from vidtwin.latents import VidTwinLatents
from vidtwin.losses import AutoencoderLoss

PREPARATION = {
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.2, 0.3],
    "crop_size": {"height": 16, "width": 16},
}


@pytest.fixture(scope="module", params=["transformer", "convolutional"])
def encoder(request, tmp_path_factory) -> str:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "transformer":
        sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = Dinov2WithRegistersConfig(image_size=16, patch_size=4, **sizes)
        Dinov2WithRegistersModel(config).save_pretrained(folder)
    else:
        config = ConvNextConfig(patch_size=2, hidden_sizes=[4, 8], depths=[1, 1], num_stages=2)
        ConvNextModel(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPARATION))
    return str(folder)


def test_spatial_norm_leaves_only_what_differs_between_positions() -> None:
    features = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    normed = spatial_norm(features)
    assert torch.allclose(normed.mean((2, 3)), torch.zeros(2, 3).double(), atol=1e-9)
    assert torch.allclose(normed.std((2, 3)), torch.ones(2, 3).double(), atol=1e-4)
    shifted = 3 * features + torch.randn(2, 3, 1, 1, dtype=torch.float64)
    assert torch.allclose(spatial_norm(shifted), normed, atol=1e-4)


def test_patches_come_after_what_stands_for_the_whole_image() -> None:
    tokens = torch.arange(9.0)[None, :, None]  # a class token, four registers, 2 x 2 patches
    assert as_grid(tokens, (8, 8), 4)[0, 0].tolist() == [[5, 6], [7, 8]]
    merged = torch.arange(4.0)[None, :, None]  # of patches that were merged on the way
    assert as_grid(merged, (16, 16), 4)[0, 0].tolist() == [[0, 1], [2, 3]]


def test_the_projection_learns_and_the_encoder_does_not(encoder) -> None:
    alignment = StructureAlignment(AlignmentConfig(encoder=encoder), (2, 3, 2, 2))
    assert set(alignment.state_dict()) == {"projection.weight", "projection.bias"}
    video, structure = torch.rand(4, 3, 5, 24, 24) * 2 - 1, torch.randn(4, 2, 3, 2, 2)
    structure.requires_grad_(True)
    before = alignment.targets(video)
    assert before.shape == (4, 8, 2, 2)
    optimizer = torch.optim.Adam([*alignment.parameters(), structure], lr=0.1)
    losses = []
    for _ in range(40):
        loss = alignment(video, structure)
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.5 * losses[0]
    assert torch.equal(alignment.train().targets(video), before)


def test_the_target_sees_the_frames_it_is_told_to(encoder) -> None:
    video = torch.rand(1, 3, 6, 24, 24) * 2 - 1
    middle = StructureAlignment(AlignmentConfig(encoder=encoder, frames=1), (1, 1, 2, 2))
    changed = video.clone()
    changed[:, :, [0, 1, 2, 4, 5]] = 0
    assert torch.equal(middle.targets(video), middle.targets(changed))
    every = StructureAlignment(AlignmentConfig(encoder=encoder, frames=99), (1, 1, 2, 2))
    assert not torch.allclose(every.targets(video), every.targets(changed))
    assert torch.equal(every.targets(video[:, :, 3:4]), middle.targets(video))


def test_the_objective_adds_it_on_the_scale_of_the_mean_error(
    encoder, build_tiny, random_video
) -> None:
    model = build_tiny()
    video, shape = random_video(model), model.sizes.structure_shape
    output = model(video)
    losses = {"perceptual_weight": 0.0, "discriminator_weight": 0.0}
    aligned = LossConfig(alignment=AlignmentConfig(encoder=encoder, weight=0.25), **losses)
    objective = AutoencoderLoss(aligned, structure_shape=shape)
    total, logs = objective.generator_loss(video, output.reconstruction, output.posterior, step=0)
    plain, others = AutoencoderLoss(LossConfig(**losses)).generator_loss(
        video, output.reconstruction, output.posterior, step=0
    )
    assert "alignment" not in others
    expected = plain + 0.25 * video[0, :, 0].numel() * logs["alignment"]
    assert torch.allclose(total, expected)
    doubled: list[torch.Tensor] = []
    objective.generator_loss(
        video, output.reconstruction, output.posterior, step=0,
        reduce_gradient=lambda gradient: doubled.append(gradient) or gradient,
    )[0].backward()  # fmt: skip
    assert {tuple(each.shape) for each in doubled} >= {
        tuple(p.shape) for p in objective.alignment.parameters()
    }


def test_what_is_no_image_encoder_is_refused(tmp_path) -> None:
    config = LossConfig(perceptual_weight=0, alignment=AlignmentConfig(encoder=str(tmp_path)))
    with pytest.raises(ValueError, match=r"loss\.alignment\.encoder must be the folder"):
        AutoencoderLoss(config, structure_shape=(1, 1, 2, 2))
    with pytest.raises(ValueError, match=r"loss\.alignment\.weight must be positive"):
        AlignmentConfig(weight=0)


def test_latent_noise_has_its_deviation_and_follows_from_the_seed_alone(build_tiny) -> None:
    sizes = build_tiny().sizes
    noise = latent_noise(sizes, 0.5, range(64))
    assert float(noise.pack().std()) == pytest.approx(0.5, abs=0.02)
    alone = latent_noise(sizes, 0.5, [7])
    assert torch.equal(alone.structure[0], noise.structure[7])


@torch.no_grad()
def test_latent_noise_reaches_the_decoder_and_not_the_posterior(build_tiny, random_video) -> None:
    model = build_tiny()
    video = random_video(model)
    usual = model(video)
    noise = latent_noise(model.sizes, 0.5, [0, 1])
    noisy = model(video, latent_noise=noise)
    assert torch.equal(noisy.posterior.kl(), usual.posterior.kl())
    off = VidTwinLatents.combine(torch.add, usual.latents, noise)
    assert torch.equal(noisy.reconstruction, model.decode(off))
    assert not torch.allclose(noisy.reconstruction, usual.reconstruction)
