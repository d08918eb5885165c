"""Every config of diffusion and encoding describes itself where nothing is trained or encoded."""

from __future__ import annotations

from pathlib import Path

import pytest
from script_runs import ROOT, run

from vidtwin.files import root_folder

# The autoencoders that a fresh clone lacks: the config's own output -> the config of its training.
AUTOENCODERS = {
    "outputs/official": "configs/ae/official.yaml",
    "outputs/paper": "configs/ae/paper.yaml",
    "outputs/clips_64": "configs/ae/clips_64.yaml",
    "outputs/default/ae_3_decay/autoencoder_ema": "configs/ae/default_3_decay.yaml",
    "outputs/sprites_paired/autoencoder_ema": "configs/ae/sprites_paired.yaml",
}


def describe(script: str, config: Path, folder: Path) -> str:
    """The dry run of a config, from a folder without outputs."""
    text = config.read_text(encoding="utf-8")
    named = [ae for trained, ae in AUTOENCODERS.items() if f"autoencoder: {trained}\n" in text]
    words = [f"autoencoder={ae}" for ae in named]
    return run(script, "--config", config, *words, "--dry-run", folder=folder).done()


def configs(name: str) -> list[Path]:
    return sorted((root_folder() / "configs" / name).glob("*.yaml"))


@pytest.mark.parametrize("config", configs("diffusion"), ids=lambda path: path.stem)
def test_diffusion(config, tmp_path) -> None:
    out = describe("train_diffusion", config, tmp_path)
    assert " parameters\n" in out
    assert " tokens: structure " in out
    if config.stem.startswith("physics"):
        pytest.importorskip("mujoco", reason="MuJoCo is not installed")
    # These take the clips as they come.
    as_they_come = ("shapes_frames", "shapes_few_steps", "physics")
    there = config.stem.endswith("_debug") or config.stem.startswith(as_they_come)
    assert ("the data can't be read" in out) != there
    assert ("\nclips: " in out) == there
    assert not list(tmp_path.iterdir())


def test_what_can_not_be_read_is_left_out_of_the_sizes(tmp_path) -> None:
    large = describe("train_diffusion", ROOT / "configs/diffusion/clips_224.yaml", tmp_path)
    assert "1,008 tokens: structure 784, dynamics_x 112, dynamics_y 112" in large
    assert "can't be read, so these sizes are without classes: outputs/clips_224_latents" in large
    text = describe("train_diffusion", ROOT / "configs/diffusion/shapes.yaml", tmp_path)
    assert "so these sizes are without text: no text encoder in outputs/" in text


def test_what_does_not_fit_is_still_refused(tmp_path) -> None:
    config = ("train_diffusion", "--config", ROOT / "configs/diffusion/shapes_debug.yaml")
    words = ("autoencoder=configs/ae/official.yaml", "--dry-run")
    told = run(*config, "data.height=99", *words, folder=tmp_path).refused()
    assert "data.height=99 differs from model.height=224" in told
    told = run(*config, "model.structure_patch_size=2", *words, folder=tmp_path).refused()
    assert "`structure_patch_size`=2 must divide" in told
    told = run(*config, words[0], folder=tmp_path).refused()
    assert "which only --dry-run takes" in told


@pytest.mark.parametrize("config", configs("encode"), ids=lambda path: path.stem)
def test_encode(config, tmp_path) -> None:
    out = describe("encode", config, tmp_path)
    assert "'structure': [" in out
    absent = config.stem in ("clips", "sprites", "ucf101")
    assert ("the data can't be read: data.path must name" in out) == absent
    assert ("shards to do" in out) != absent
    assert not list(tmp_path.iterdir())
