"""The autoencoders of the paper's Tables 3, 4 and 8: what each can and can't know, and that every
config of them trains, saves and loads."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import yaml

from vidtwin import AutoencoderConfig, VidTwinAutoencoder
from vidtwin.config import DYNAMICS_EXTRACTORS, STRUCTURE_EXTRACTORS
from vidtwin.files import root_folder
from vidtwin.latents import draw_noise
from vidtwin.model_paths import read_model_section
from vidtwin_lab.runtime import load_config

CONFIGS = sorted((root_folder() / "configs" / "ae" / "ablations").glob("*.yaml"))
DEBUG = [path for path in CONFIGS if path.stem.endswith("_debug")]
PAPER = [path for path in CONFIGS if path not in DEBUG]
TABLE_3 = {"no_disentanglement", "dynamics_qformer", "structure_convolution", "joint_qformer"}


def sizes(path: Path) -> AutoencoderConfig:
    return read_model_section(path)


@pytest.mark.parametrize("path", DEBUG, ids=lambda path: path.stem)
def test_every_config_trains_saves_and_loads(path, tmp_path, random_video) -> None:
    torch.manual_seed(0)
    model = VidTwinAutoencoder(**dataclasses.asdict(sizes(path))).train()
    video = random_video(model, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(3):
        output = model(video, sample_posterior=True, noise=draw_noise(model.sizes, [0]))
        loss = (output.reconstruction - video).square().mean()
        losses.append(float(loss.detach()))
        (loss + 1e-6 * output.posterior.kl().mean()).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]
    model.eval().save_pretrained(tmp_path)
    loaded = VidTwinAutoencoder.from_pretrained(tmp_path)
    assert loaded.sizes == model.sizes
    with torch.no_grad():
        assert torch.equal(loaded(video).reconstruction, model(video).reconstruction)


def test_every_config_has_a_debug_form() -> None:
    assert {f"{path.stem}_debug" for path in PAPER} == {path.stem for path in DEBUG}
    assert TABLE_3 | {"small", "large", "latents_2", "latents_3"} == {p.stem for p in PAPER}


@pytest.mark.parametrize("path", [*PAPER, *DEBUG], ids=lambda path: path.stem)
def test_table_3_compares_latents_of_equal_size(path) -> None:
    whole = sizes(path.parent.parent / ("paper_debug.yaml" if path in DEBUG else "paper.yaml"))
    if path.stem.removesuffix("_debug") in TABLE_3:
        assert sizes(path).numel_per_clip == pytest.approx(whole.numel_per_clip, rel=0.01)


def test_the_latents_of_table_8_and_the_sizes_of_table_4() -> None:
    found = {path.stem: sizes(path) for path in PAPER}
    assert found["latents_2"].structure_shape == found["latents_3"].structure_shape[:1] + (16, 7, 7)
    assert found["latents_2"].dynamics_x_shape == (16, 16, 4)
    assert found["latents_3"].structure_shape == (4, 12, 7, 7)
    assert found["latents_3"].dynamics_x_shape == (8, 16, 7)
    table_4 = {"small": (12, 8, 512), "large": (16, 12, 1536)}
    for name, expected in table_4.items():
        own = found[name]
        assert (own.encoder_depth, own.encoder_heads, own.hidden_size) == expected
        assert (own.decoder_depth, own.decoder_heads) == expected[:2]


@torch.no_grad()
def test_without_dynamics_the_structure_is_the_one_latent(build_tiny, random_video) -> None:
    model = build_tiny(dynamics_channels=0)
    video = random_video(model)
    output = model(video)
    assert output.latents.numel_per_clip == output.latents.structure[0].numel()
    assert output.latents.numel_per_clip == model.sizes.numel_per_clip
    assert torch.equal(output.posterior.kl(), output.posterior.structure.kl())
    assert torch.equal(output.reconstruction, model.decode(output.latents, "structure"))
    assert not [name for name, _ in model.named_parameters() if name.startswith("dynamics")]


@torch.no_grad()
@pytest.mark.parametrize("extractor", STRUCTURE_EXTRACTORS)
def test_which_positions_reach_a_position_of_the_structure(build_tiny, extractor) -> None:
    """Space on the batch axis keeps positions apart; joint queries don't, and no convolution
    reaches from corner to corner."""
    extract = build_tiny(structure_extractor=extractor).structure_encoder.temporal
    features = torch.randn(1, 16, 3, 5, 7)
    changed = features.clone()
    changed[..., -1, -1] += 1
    before, after = (extract(each)[..., 0, 0] for each in (features, changed))
    assert torch.equal(before, after) == (extractor != "joint_qformer")


@torch.no_grad()
@pytest.mark.parametrize("extractor", DYNAMICS_EXTRACTORS)
def test_dynamics_of_a_frame_follow_from_that_frame(build_tiny, extractor) -> None:
    model = build_tiny(dynamics_extractor=extractor, dynamics_downsamples=0)
    features = torch.randn(2, 16, 3, 5, 7)
    columns, rows = model.dynamics_encoder(features)
    assert columns.shape == (2, 4, 3, 7) and rows.shape == (2, 4, 3, 5)
    changed = features.clone()
    changed[:, :, 2] += torch.randn(2, 16, 5, 7)
    for before, after in zip((columns, rows), model.dynamics_encoder(changed), strict=True):
        # The 3 x 3 convolution on the plane reaches one frame further.
        assert torch.equal(before[:, :, 0], after[:, :, 0])
        assert not torch.allclose(before[:, :, 2], after[:, :, 2])


def test_the_names_are_those_of_the_extractors() -> None:
    from vidtwin import extractors

    assert tuple(extractors.STRUCTURE_EXTRACTORS) == STRUCTURE_EXTRACTORS
    assert tuple(extractors.DYNAMICS_EXTRACTORS) == DYNAMICS_EXTRACTORS


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"structure_extractor": "mlp"}, "`structure_extractor` must be one of .*'convolution'"),
        ({"dynamics_extractor": "max"}, "`dynamics_extractor` must be one of .*'qformer'"),
        ({"structure_extractor": "convolution", "structure_frame": 0}, "`structure_frame` must be"),
        ({"dynamics_channels": -1}, "`dynamics_channels` must be positive"),
    ],
)
def test_what_does_not_fit_is_refused(wrong, told) -> None:
    with pytest.raises(ValueError, match=told):
        AutoencoderConfig(**wrong)


def test_a_convolution_over_time_needs_all_frames(build_tiny, random_video) -> None:
    model = build_tiny(structure_extractor="convolution")
    video = random_video(model)
    with pytest.raises(ValueError, match="expected a video of shape"):
        model.encode(video, video[:, :, :1])


def test_a_comparison_plans_every_seed_of_every_variant(tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(root_folder() / "tools")
    import compare_autoencoders as tool

    path = root_folder() / "configs" / "compare" / "ablations.yaml"
    config = load_config(tool.CompareConfig, path, [f"output={tmp_path}", "seeds=[0, 1]"])
    jobs = tool.Jobs(config.output, list(tool.plan(config)), root_folder())
    assert len(jobs.jobs) == 2 * 5 and next(iter(jobs.jobs)) == "train/full_seed0"
    for variant in config.variants:
        pairs = [setting.removeprefix("model.").split("=") for setting in variant.settings]
        changes = {key: yaml.safe_load(value) for key, value in pairs}
        own = dataclasses.replace(sizes(root_folder() / config.config), **changes)
        assert own.numel_per_clip == 512
    # Both variants' seeds as if they were done: the difference is paired by seed.
    for name, seed, psnr in (("full", 0, 20), ("full", 1, 30), ("joint_qformer", 0, 19),
                             ("joint_qformer", 1, 28)):  # fmt: skip
        run = tmp_path / "train" / f"{name}_seed{seed}"
        run.mkdir(parents=True)
        record = f'{{"validation/psnr": {psnr}, "validation/ssim": 0.5}}\n'
        (run / "metrics.jsonl").write_text('{"validation/psnr": 1}\n' + record)
        jobs._write(jobs.jobs[f"train/{run.name}"], 1.0, True)
    text = tool.write_table(config, jobs)
    assert "| space not moved to the batch axis | 23.50" in text and "| -1.50 (" in text
    assert "| one latent, no dynamics | - | - | - | - | 0 | 23.512 / 0.654 |" in text
