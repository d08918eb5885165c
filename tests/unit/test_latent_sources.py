"""Clips that are encoded as they come: statistics on any number of processes, and precision."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from diffusion.config import InputsConfig
from diffusion.latent_sources import CachedLatents, EncodedClips, encode_clips
from vidtwin import DataConfig, VidTwinAutoencoder

BF16 = partial(torch.autocast, "cpu", torch.bfloat16)


@pytest.fixture(scope="module")
def autoencoder(build_autoencoder) -> VidTwinAutoencoder:
    return build_autoencoder(jitter=0.2)


def shapes(autoencoder: VidTwinAutoencoder, **options: Any) -> EncodedClips:
    data = DataConfig.from_dict({"source": "shapes", "shapes": {"size": 11}})
    return EncodedClips(autoencoder, data, validates=False, **options)


def measured(source: EncodedClips, world_size: int, num_clips: int = 11) -> dict[str, Any]:
    """The statistics on each of so many processes, which must be the same."""
    parts: list[list[Any]] = [[] for _ in range(world_size)]

    def keep(rank: int, items: list[Any]) -> list[Any]:
        parts[rank] = items
        return items

    for rank in range(min(world_size, 4)):
        shared = {"rank": rank, "world_size": world_size}
        source.stats(num_clips, 2, **shared, gather=partial(keep, rank))
    everything = [item for part in parts for item in part]
    return source.stats(
        num_clips, 2, rank=0, world_size=world_size, gather=lambda items: everything
    ).state_dict()


@pytest.mark.parametrize("world_size", [2, 3])
def test_statistics_do_not_depend_on_the_number_of_processes(autoencoder, world_size) -> None:
    """Bit for bit, and each process encodes its share alone."""
    calls = []
    source = shapes(autoencoder)
    encode = autoencoder.encode
    alone = source.stats(11, 2).state_dict()
    try:
        autoencoder.encode = lambda video: calls.append(len(video)) or encode(video)
        together = measured(source, world_size)
    finally:
        del autoencoder.encode
    for name, value in alone.items():
        assert torch.equal(together[name], value), name
    # Six batches, and those of the first process once more.
    assert len(calls) == 6 + 6 // world_size


def test_encoding_with_and_without_a_cache_is_of_one_precision(autoencoder) -> None:
    """In the run's autocast; what comes out is float32 for the noise and the statistics."""
    source = shapes(autoencoder, autocast=BF16)
    batch = next(iter(source.train_batches(batch_size=2, seed=0)))
    found = source.latents(batch)
    posterior = encode_clips(autoencoder, batch["video"], BF16)
    with torch.no_grad(), BF16():
        raw = autoencoder.encode(batch["video"])
    for part, expected in zip(posterior.parts(), raw.parts(), strict=True):
        assert part.mean.dtype == part.logvar.dtype == torch.float32
        assert torch.equal(part.mean, expected.mean.float())
    exact = shapes(autoencoder).latents(batch)
    for name, value in found.items():
        assert value.dtype == torch.float32
        assert not torch.equal(value, getattr(exact, name))
        torch.testing.assert_close(value, getattr(exact, name), rtol=0.1, atol=0.1)


def test_modes_or_samples_of_the_posteriors(autoencoder) -> None:
    batch = next(iter(shapes(autoencoder).train_batches(batch_size=2, seed=0)))
    mode = encode_clips(autoencoder, batch["video"]).mode()
    drawn = shapes(autoencoder).latents(batch)
    for name, value in shapes(autoencoder, posterior="mode").latents(batch).items():
        assert torch.equal(value, getattr(mode, name))
        assert not torch.equal(value, getattr(drawn, name))
    with pytest.raises(ValueError, match="`posterior` must be sample or mode, got 'mean'"):
        InputsConfig(posterior="mean")
    with pytest.raises(ValueError, match=r"set posterior=sample, got mode and cache=latents"):
        InputsConfig(posterior="mode", cache="latents")


@pytest.mark.parametrize("config", ["lora", "shapes_frames"])
def test_what_goes_on_from_the_shipped_transformer_learns_the_same(config) -> None:
    """It fits the modes, at a tenth of the loss of samples."""
    path = Path(__file__).parents[2] / "configs" / "diffusion" / f"{config}.yaml"
    found = yaml.safe_load(path.read_text())
    assert (found["posterior"], found["cache"]) == ("mode", None)
    assert found["init_from"] == "checkpoints/shapes/transformer"


def test_a_cache_of_another_place_is_told(autoencoder, tmp_path, monkeypatch, caplog) -> None:
    """Clips may have moved, so that it is no error; both places are named."""

    class Cache:
        """As `LatentCache`, of clips in a folder."""

        manifest: Any = {"data": {"source": "folder", "path": str(tmp_path / "here")}}  # noqa: RUF012
        label_names = ()

        def __init__(self, *_: Any, **__: Any) -> None: ...

        def check(self, *_: Any, **__: Any) -> None: ...

    monkeypatch.setattr("diffusion.latent_sources.LatentCache", Cache)
    monkeypatch.chdir(tmp_path)
    for path, told in ((None, False), ("here", False), (str(tmp_path / "there"), True)):
        caplog.clear()
        source = "shapes" if path is None else "folder"
        with caplog.at_level(logging.WARNING):
            CachedLatents("cache", autoencoder, DataConfig(source=source, path=path))
        assert (
            f"of the clips in {Path('here').absolute()}, not of those in" in caplog.text
        ) == told
        assert (f"data.path={path}" in caplog.text) == told
