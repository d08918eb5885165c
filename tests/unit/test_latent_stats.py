"""Statistics of latents against formulas written down once more, in float64."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from diffusion import LatentStats, LatentStatsAccumulator
from vidtwin import DiagonalGaussian, VidTwinLatents, VidTwinPosterior

NAMES = ("structure", "dynamics_x", "dynamics_y")
SHAPES = ((4, 3, 2, 5), (2, 6, 5), (2, 6, 2))


def random_latents(batch: int = 7, seed: int = 0, offset: float = 100.0) -> VidTwinLatents:
    """Channel c has mean around offset * c and deviation around c + 1."""
    generator = torch.Generator().manual_seed(seed)
    tensors = []
    for shape in SHAPES:
        channel = torch.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1))
        noise = torch.randn(batch, *shape, generator=generator)
        tensors.append(noise * (channel + 1) + offset * channel)
    return VidTwinLatents(*tensors)


def random_posterior(batch: int = 7, seed: int = 0) -> VidTwinPosterior:
    means, logvars = random_latents(batch, seed), random_latents(batch, seed + 1, 0.5)
    pairs = zip(means.tensors(), logvars.tensors(), strict=True)
    return VidTwinPosterior(*(DiagonalGaussian(mean, logvar) for mean, logvar in pairs))


def moved_to_channels(value: torch.Tensor) -> np.ndarray:
    return np.moveaxis(value.double().numpy(), 1, 0).reshape(value.shape[1], -1)


def test_a_new_one_changes_nothing():
    latents = random_latents()
    stats = LatentStats(4, 2)
    for expected, came in zip(latents.tensors(), stats.scale(latents).tensors(), strict=True):
        assert torch.equal(expected, came)


def test_equals_the_formulas_for_latents():
    latents = random_latents()
    stats = LatentStats.measure([latents[:2], latents[2:3], latents[3:]])
    for name, value in zip(NAMES, latents.tensors(), strict=True):
        rows = moved_to_channels(value)
        mean, std = getattr(stats, f"{name}_mean"), getattr(stats, f"{name}_std")
        assert mean.dtype == std.dtype == torch.float32
        assert np.allclose(mean, rows.mean(1), rtol=1e-6, atol=1e-6)
        assert np.allclose(std, rows.std(1), rtol=1e-6)


def test_of_posteriors_are_those_of_their_samples():
    posterior = random_posterior(batch=2)
    stats = LatentStats.measure([posterior])
    for name, part in zip(NAMES, posterior.parts(), strict=True):
        rows = moved_to_channels(part.mean)
        variance = rows.var(1) + np.exp(moved_to_channels(part.logvar)).mean(1)
        assert np.allclose(getattr(stats, f"{name}_std"), np.sqrt(variance), rtol=1e-6)
    many = VidTwinPosterior(
        *(
            DiagonalGaussian(*(torch.cat([value] * 1000) for value in (part.mean, part.logvar)))
            for part in posterior.parts()
        )
    )
    drawn = LatentStats.measure([many.sample(torch.Generator().manual_seed(3))])
    for key, value in stats.state_dict().items():
        assert torch.allclose(value, drawn.state_dict()[key], rtol=0.03, atol=0.3), key


def test_a_large_mean_costs_no_precision():
    latents = VidTwinLatents(
        *(t + 1e6 for t in random_latents(offset=0.0).to(dtype=torch.float64).tensors())
    )
    stats = LatentStats.measure([latents])
    for name, value in zip(NAMES, latents.tensors(), strict=True):
        assert np.allclose(
            getattr(stats, f"{name}_std"), moved_to_channels(value).std(1), rtol=1e-6
        )


def test_scaled_latents_are_white_and_come_back():
    latents = random_latents(50)
    stats = LatentStats.measure([latents])
    scaled = stats.scale(latents)
    for value in scaled.tensors():
        rows = moved_to_channels(value)
        assert np.allclose(rows.mean(1), 0, atol=1e-5)
        assert np.allclose(rows.std(1), 1, rtol=1e-5)
    for expected, came in zip(latents.tensors(), stats.unscale(scaled).tensors(), strict=True):
        assert torch.allclose(expected, came, rtol=1e-5, atol=1e-4)


def test_keeps_the_dtype_of_the_latents():
    latents = random_latents().to(dtype=torch.bfloat16)
    for value in LatentStats(4, 2).scale(latents).tensors():
        assert value.dtype == torch.bfloat16


def test_merging_equals_adding_and_survives_json():
    batches = [random_posterior(2, seed) for seed in range(4)]
    whole, parts = LatentStatsAccumulator(), LatentStatsAccumulator()
    for batch in batches:
        whole.add(batch)
        part = LatentStatsAccumulator()
        part.add(batch)
        state = json.loads(json.dumps(part.state_dict()))
        assert LatentStatsAccumulator.from_state(state).state_dict() == part.state_dict()
        parts.merge(LatentStatsAccumulator.from_state(state))
    assert whole.state_dict() == parts.state_dict()


def test_a_dead_channel_is_not_blown_up():
    latents = random_latents()
    latents.structure[:, 1] = 3.0
    latents.dynamics_x[:] = 2.0
    stats = LatentStats.measure([latents])
    scaled = stats.scale(VidTwinLatents(latents.structure + 1e-4, *latents.tensors()[1:]))
    assert float(scaled.structure[:, 1].abs().max()) < 0.1
    assert stats.dynamics_x_std.tolist() == [1.0, 1.0]


def test_save_and_load(tmp_path):
    stats = LatentStats.measure([random_latents()])
    stats.save_pretrained(tmp_path)
    loaded = LatentStats.from_pretrained(tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.suffix in (".bin", ".pt", ".pkl")]
    assert loaded.state_dict().keys() == stats.state_dict().keys()
    for key, value in stats.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[key])


class TestRefuses:
    @pytest.fixture
    def saved(self, tmp_path):
        LatentStats(4, 2).save_pretrained(tmp_path)
        return tmp_path / "diffusion_pytorch_model.safetensors"

    def change(self, file, **tensors):
        weights = {
            key: value for key, value in (load_file(file) | tensors).items() if value is not None
        }
        save_file(weights, file, metadata={"format": "pt"})

    @pytest.mark.parametrize(
        ("tensors", "message"),
        [
            ({"structure_std": None}, "missing: structure_std"),
            ({"other": torch.ones(1)}, "unexpected: other"),
            ({"dynamics_x_mean": torch.ones(3)}, "dynamics_x_mean"),
            ({"dynamics_y_std": torch.zeros(2)}, "`dynamics_y_std` .* above 0"),
            ({"structure_mean": torch.full((4,), torch.nan)}, "`structure_mean` .* finite"),
        ],
    )
    @pytest.mark.parametrize("low_memory", [True, False])
    def test_files_that_do_not_fit(self, saved, tensors, message, low_memory):
        self.change(saved, **tensors)
        with pytest.raises(ValueError, match=message):
            LatentStats.from_pretrained(saved.parent, low_cpu_mem_usage=low_memory)

    def test_a_missing_file(self, saved):
        saved.unlink()
        with pytest.raises(OSError, match="diffusion_pytorch_model"):
            LatentStats.from_pretrained(saved.parent)

    def test_pickles(self, saved):
        with pytest.raises(ValueError, match="safetensors"):
            LatentStats.from_pretrained(saved.parent, use_safetensors=False)

    def test_latents_of_another_autoencoder(self):
        with pytest.raises(ValueError, match="`structure` with 8 channels on axis 1"):
            LatentStats(8, 2).scale(random_latents())
        accumulator = LatentStatsAccumulator()
        accumulator.add(random_latents())
        other = VidTwinLatents(*(t[:, :1] for t in random_latents().tensors()))
        before = accumulator.state_dict()
        with pytest.raises(ValueError, match="`structure` with 4 channels, got 1"):
            accumulator.add(other)
        assert accumulator.state_dict() == before

    def test_values_that_are_not_finite(self):
        latents = random_latents()
        latents.dynamics_y[0, 0, 0, 0] = torch.inf
        with pytest.raises(ValueError, match="`dynamics_y` holds values that are not finite"):
            LatentStats.measure([latents])

    def test_nothing_at_all(self):
        with pytest.raises(ValueError, match="no latents were counted"):
            LatentStats.measure([])

    def test_no_channels(self):
        with pytest.raises(ValueError, match="at least 1, got 0 and 2"):
            LatentStats(0, 2)
