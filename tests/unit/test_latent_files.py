"""Latents of a whole video go to a file and come back the same."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from vidtwin.latents import VidTwinLatents
from vidtwin.reconstruction.latent_files import load_windows, save_windows
from vidtwin.tiling import LatentWindow


def make_windows(count: int = 3, batch: int = 1) -> list[LatentWindow]:
    return [
        LatentWindow(
            start=(4 * index, 0, 3),
            size=(4, 8, 8),
            latents=VidTwinLatents(
                torch.randn(batch, 2, 3, 4, 4),
                torch.randn(batch, 2, 4, 4),
                torch.randn(batch, 2, 4, 4),
            ),
        )
        for index in range(count)
    ]


def test_round_trip(tmp_path) -> None:
    windows = make_windows()
    path = save_windows(tmp_path / "new" / "latents.safetensors", windows, {"fps": "8"})
    loaded, metadata = load_windows(path)
    assert metadata == {"fps": "8"}
    assert [entry.name for entry in path.parent.iterdir()] == ["latents.safetensors"]
    for one, other in zip(windows, loaded, strict=True):
        assert (one.start, one.size) == (other.start, other.size)
        for tensor, again in zip(one.latents.tensors(), other.latents.tensors(), strict=True):
            assert torch.equal(tensor, again)


def test_bad_files(tmp_path) -> None:
    with pytest.raises(ValueError, match="a batch of 2"):
        save_windows(tmp_path / "x", make_windows(batch=2))
    with pytest.raises(ValueError, match="got none"):
        save_windows(tmp_path / "x", [])
    text = tmp_path / "text.safetensors"
    text.write_text("hello, I am no tensor at all")
    with pytest.raises(ValueError, match="is not a safetensors file"):
        load_windows(text)
    save_file({"weight": torch.zeros(1)}, str(tmp_path / "weights.safetensors"))
    with pytest.raises(ValueError, match="holds no latents: dynamics_x, dynamics_y"):
        load_windows(tmp_path / "weights.safetensors")
