"""What is saved comes back exactly, and from_pretrained leaves no weight at random."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vidtwin import VidTwinAutoencoder

WEIGHTS = "diffusion_pytorch_model.safetensors"
NAME = "head.linear.weight"


@pytest.fixture(scope="module")
def model(build_tiny) -> VidTwinAutoencoder:
    return build_tiny()


@pytest.fixture
def folder(model, tmp_path) -> Path:
    model.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def edit_weights(folder: Path, **changes: torch.Tensor | None) -> None:
    weights = {**load_file(folder / WEIGHTS), **{k: v for k, v in changes.items() if v is not None}}
    kept = {key: value for key, value in weights.items() if changes.get(key, 0) is not None}
    save_file(kept, folder / WEIGHTS, metadata={"format": "pt"})


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def same_weights(first: VidTwinAutoencoder, second: VidTwinAutoencoder) -> bool:
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


class TestRoundTrip:
    @torch.no_grad()
    def test_is_exact(self, model, folder, random_video) -> None:
        loaded = VidTwinAutoencoder.from_pretrained(folder)
        assert sorted(path.name for path in folder.iterdir()) == ["config.json", WEIGHTS]
        assert same_weights(loaded, model)
        assert not loaded.training
        video = random_video(model)
        ours, theirs = model(video), loaded(video)
        assert torch.equal(ours.reconstruction, theirs.reconstruction)
        assert torch.equal(ours.posterior.kl(), theirs.posterior.kl())

    def test_of_the_config(self, model, folder) -> None:
        loaded = VidTwinAutoencoder.from_pretrained(folder)
        assert loaded.sizes == model.sizes
        assert loaded.config.patch_size == model.config.patch_size == (1, 2, 2)
        for name, value in dataclasses.asdict(model.sizes).items():
            assert loaded.config[name] == model.config[name] == value, name
        again = VidTwinAutoencoder.from_config(loaded.config)
        assert again.sizes == model.sizes

    def test_of_a_patch_size_in_a_list(self, tiny_sizes, model, tmp_path) -> None:
        listed = VidTwinAutoencoder(**tiny_sizes | {"patch_size": [1, 2, 2]})
        assert listed.config.patch_size == (1, 2, 2)
        listed.save_pretrained(tmp_path)
        assert VidTwinAutoencoder.from_pretrained(tmp_path).sizes == model.sizes

    def test_of_double_precision_weights(self, build_tiny, tmp_path) -> None:
        model = build_tiny().double()
        model.save_pretrained(tmp_path)
        loaded = VidTwinAutoencoder.from_pretrained(tmp_path, torch_dtype=torch.float64)
        assert same_weights(loaded, model)
        tables = (m.decoder.positions.spatial for m in (loaded, model))
        assert torch.equal(*tables)


class TestKeywordsOfDiffusers:
    def test_dtype(self, model, folder) -> None:
        loaded = VidTwinAutoencoder.from_pretrained(folder, torch_dtype=torch.bfloat16)
        assert {p.dtype for p in (*loaded.parameters(), *loaded.buffers())} == {torch.bfloat16}
        assert torch.equal(loaded.state_dict()[NAME], model.state_dict()[NAME].bfloat16())

    def test_subfolder(self, model, folder) -> None:
        loaded = VidTwinAutoencoder.from_pretrained(folder.parent, subfolder="saved")
        assert same_weights(loaded, model)

    def test_output_loading_info(self, model, folder) -> None:
        loaded, report = VidTwinAutoencoder.from_pretrained(folder, output_loading_info=True)
        assert same_weights(loaded, model)
        assert report["missing_keys"] == report["unexpected_keys"] == []

    @pytest.mark.parametrize(
        "keywords",
        [{"low_cpu_mem_usage": False}, {"use_safetensors": True}, {"use_safetensors": None}],
        ids=str,
    )
    def test_ways_of_loading(self, model, folder, keywords) -> None:
        assert same_weights(VidTwinAutoencoder.from_pretrained(folder, **keywords), model)

    def test_variant_and_shards(self, model, tmp_path) -> None:
        model.save_pretrained(tmp_path, variant="ema", max_shard_size="30KB")
        assert len(list(tmp_path.glob("*.safetensors"))) > 1
        assert same_weights(VidTwinAutoencoder.from_pretrained(tmp_path, variant="ema"), model)

    def test_config_overrides(self, model, folder) -> None:
        loaded = VidTwinAutoencoder.from_pretrained(folder, encoder_causal=False)
        assert loaded.sizes == dataclasses.replace(model.sizes, encoder_causal=False)

    def test_hub_id(self, model, folder, tmp_path) -> None:
        """From a cache laid out as the hub's client does: no network in tests."""
        repository = tmp_path / "cache" / "models--someone--tiny"
        commit = "0123456789" * 4
        shutil.copytree(folder, repository / "snapshots" / commit)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(commit)
        loaded = VidTwinAutoencoder.from_pretrained(
            "someone/tiny", cache_dir=tmp_path / "cache", local_files_only=True
        )
        assert same_weights(loaded, model)


class TestRefusals:
    def test_missing_and_unexpected_weights(self, folder) -> None:
        weight = load_file(folder / WEIGHTS)[NAME]
        edit_weights(folder, **{NAME: None, "head.hat.weight": weight})
        message = rf"saved does not fit.*; missing: {NAME}; unexpected: head\.hat\.weight$"
        with pytest.raises(ValueError, match=message):
            VidTwinAutoencoder.from_pretrained(folder)
        with pytest.raises(ValueError, match=message):
            VidTwinAutoencoder.from_pretrained(folder, low_cpu_mem_usage=False)

    def test_all_missing_weights_are_named(self, model, folder) -> None:
        save_file({}, folder / WEIGHTS, metadata={"format": "pt"})
        with pytest.raises(ValueError, match="does not fit this model; missing") as refusal:
            VidTwinAutoencoder.from_pretrained(folder, output_loading_info=True)
        assert all(name in str(refusal.value) for name in model.state_dict())

    def test_weights_of_another_shape(self, folder) -> None:
        edit_weights(folder, **{NAME: torch.zeros(5, 16)})
        with pytest.raises(ValueError, match=NAME):
            VidTwinAutoencoder.from_pretrained(folder)
        # diffusers' way of leaving them at random.
        keywords = {"low_cpu_mem_usage": False, "ignore_mismatched_sizes": True}
        with pytest.raises(ValueError, match=f"other shape: {NAME}$"):
            VidTwinAutoencoder.from_pretrained(folder, **keywords)

    def test_config_of_another_size(self, folder) -> None:
        with pytest.raises(ValueError, match=r"(to_moments|conv_in)\.(weight|bias) expected shape"):
            VidTwinAutoencoder.from_pretrained(folder, structure_channels=3)
        edit_config(folder, encoder_depth=3)
        with pytest.raises(ValueError, match=r"missing: encoder\.blocks\.2\.mlp\.fc1\.bias, "):
            VidTwinAutoencoder.from_pretrained(folder)

    def test_unknown_key_in_the_config(self, folder) -> None:
        edit_config(folder, encoder_casual=False)
        with pytest.raises(ValueError, match=r"unknown in config\.json: encoder_casual$"):
            VidTwinAutoencoder.from_pretrained(folder)

    def test_bad_value_in_the_config(self, folder) -> None:
        edit_config(folder, height=11)
        with pytest.raises(ValueError, match="`height` must be a multiple of the patch size 2"):
            VidTwinAutoencoder.from_pretrained(folder)

    def test_pickles_are_not_opened(self, model, tmp_path) -> None:
        model.save_pretrained(tmp_path, safe_serialization=False)
        assert (tmp_path / "diffusion_pytorch_model.bin").is_file()
        for keywords in ({}, {"use_safetensors": None}):
            with pytest.raises(OSError, match=rf"no file named {WEIGHTS}"):
                VidTwinAutoencoder.from_pretrained(tmp_path, **keywords)
        with pytest.raises(ValueError, match="read from safetensors files only"):
            VidTwinAutoencoder.from_pretrained(tmp_path, use_safetensors=False)

    def test_broken_file(self, folder) -> None:
        content = (folder / WEIGHTS).read_bytes()
        (folder / WEIGHTS).write_bytes(content[: len(content) // 2])
        with pytest.raises(OSError, match=WEIGHTS):
            VidTwinAutoencoder.from_pretrained(folder)

    def test_absent_folder(self, tmp_path) -> None:
        with pytest.raises(OSError, match="absent"):
            VidTwinAutoencoder.from_pretrained(tmp_path / "absent", local_files_only=True)
