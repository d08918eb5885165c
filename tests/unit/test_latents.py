"""Laws of the latents and their posterior."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from vidtwin import AutoencoderConfig, DiagonalGaussian, VidTwinLatents, VidTwinPosterior
from vidtwin.latents import draw_noise

CONFIG = AutoencoderConfig(num_frames=3, height=48, width=80, num_queries=5, structure_channels=2)
SHAPES = (CONFIG.structure_shape, CONFIG.dynamics_x_shape, CONFIG.dynamics_y_shape)


def random_latents(batch: int = 4, seed: int = 0) -> VidTwinLatents:
    generator = torch.Generator().manual_seed(seed)
    return VidTwinLatents(*(torch.randn(batch, *shape, generator=generator) for shape in SHAPES))


def random_posterior(batch: int = 4, dtype: torch.dtype = torch.float32) -> VidTwinPosterior:
    mean, logvar = (
        random_latents(batch, 1).to(dtype=dtype),
        random_latents(batch, 2).to(dtype=dtype),
    )
    return VidTwinPosterior(*map(DiagonalGaussian, mean.tensors(), logvar.tensors()))


def standard_posterior(batch: int, dtype: torch.dtype = torch.float32) -> VidTwinPosterior:
    zeros = [torch.zeros(batch, *shape, dtype=dtype) for shape in SHAPES]
    return VidTwinPosterior(*map(DiagonalGaussian, zeros, zeros))


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def equal(first: VidTwinLatents, second: VidTwinLatents) -> bool:
    return all(map(torch.equal, first.tensors(), second.tensors()))


class TestLatents:
    def test_counts(self) -> None:
        latents = random_latents(4)
        assert latents.numel_per_clip == CONFIG.numel_per_clip
        assert latents[:1].numel_per_clip == CONFIG.numel_per_clip
        assert latents.batch_size == len(latents) == 4

    def test_to(self) -> None:
        latents = random_latents()
        wide = latents.to("cpu", torch.float64)
        assert {tensor.dtype for tensor in wide.tensors()} == {torch.float64}
        assert equal(wide.to(dtype=torch.float32), latents)
        assert equal(latents.to("cpu"), latents)
        assert {tensor.device.type for tensor in latents.to("meta").tensors()} == {"meta"}

    def test_names(self) -> None:
        latents = random_latents()
        assert VidTwinLatents.names == ("structure", "dynamics_x", "dynamics_y")
        assert [name for name, _ in latents.items()] == list(VidTwinLatents.names)
        assert all(getattr(latents, name) is tensor for name, tensor in latents.items())

    def test_functions_of_each_latent(self) -> None:
        first, second = random_latents(seed=0), random_latents(seed=1)
        assert equal(first.map(torch.neg), VidTwinLatents(*(-t for t in first.tensors())))
        mixed = VidTwinLatents.combine(lambda a, b: a + 2 * b, first, second)
        assert torch.equal(mixed.structure, first.structure + 2 * second.structure)
        assert torch.equal(mixed.dynamics_x, first.dynamics_x + 2 * second.dynamics_x)
        assert torch.equal(mixed.dynamics_y, first.dynamics_y + 2 * second.dynamics_y)

    def test_packing(self) -> None:
        latents, other = random_latents(seed=0), random_latents(seed=1)
        flat = latents.pack()
        assert flat.shape == (4, CONFIG.numel_per_clip)
        assert torch.equal(flat[:, : latents.structure[0].numel()], latents.structure.flatten(1))
        assert equal(VidTwinLatents.unpack(flat, other), latents)
        # Some of them: the others are those of `like`, and the order is that of the names.
        some = {"dynamics_y", "dynamics_x"}
        mixed = VidTwinLatents.unpack(latents.pack(some), other, some)
        assert equal(mixed, latents.with_structure(other))

    def test_slices_are_batches(self) -> None:
        latents = random_latents(4)
        part = latents[1:3]
        assert part.structure.shape == (2, *CONFIG.structure_shape)
        assert torch.equal(part.dynamics_y, latents.dynamics_y[1:3])
        assert len(latents[4:]) == 0

    def test_an_index_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"take a slice such as \[i:i\+1\], got 1"):
            random_latents()[1]  # type: ignore[index]

    def test_iteration_and_cat_are_inverse(self) -> None:
        latents = random_latents(3)
        clips = list(latents)
        assert [len(clip) for clip in clips] == [1, 1, 1]
        assert equal(VidTwinLatents.cat(clips), latents)

    def test_with_structure(self) -> None:
        ours, theirs = random_latents(seed=3), random_latents(seed=4)
        mixed = ours.with_structure(theirs)
        assert mixed.structure is theirs.structure
        assert mixed.dynamics_x is ours.dynamics_x
        assert mixed.dynamics_y is ours.dynamics_y
        assert equal(mixed.with_structure(ours), ours)


class TestGaussian:
    def test_moments_are_split_on_channels_and_clamped(self) -> None:
        moments = torch.tensor([[1.0, 2.0, -100.0, 100.0], [3.0, 4.0, -29.0, 19.0]])
        gaussian = DiagonalGaussian.from_moments(moments[:, :, None])
        assert gaussian.mean.squeeze(-1).tolist() == [[1, 2], [3, 4]]
        assert gaussian.logvar.squeeze(-1).tolist() == [[-30, 20], [-29, 19]]
        assert gaussian.sample().isfinite().all()
        assert gaussian.kl().isfinite().all()

    @pytest.mark.parametrize("shape", [(3, 2, 4, 5, 6), (3, 2, 7, 5), (3, 2)])
    def test_kl_is_that_of_torch(self, shape: tuple[int, ...]) -> None:
        """Whatever the number of axes, one value per sample."""
        generator = torch.Generator().manual_seed(0)
        mean, logvar = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
        expected = kl_divergence(Normal(mean, (logvar / 2).exp()), Normal(0.0, 1.0)).flatten(1)
        kl = DiagonalGaussian(mean, logvar).kl()
        assert kl.shape == (3,)
        torch.testing.assert_close(kl, expected.sum(1), rtol=1e-12, atol=0)

    def test_kl_is_summed_in_float32_at_least(self) -> None:
        for dtype, wanted in (
            (torch.bfloat16, torch.float32),
            (torch.float32, torch.float32),
            (torch.float64, torch.float64),
        ):
            posterior = random_posterior(dtype=dtype)
            exact = VidTwinPosterior(
                *(DiagonalGaussian(p.mean.double(), p.logvar.double()) for p in posterior.parts())
            )
            assert posterior.kl().dtype == wanted
            torch.testing.assert_close(posterior.kl().double(), exact.kl(), rtol=1e-5, atol=0)

    def test_sample_is_mean_plus_deviation_times_noise(self) -> None:
        gaussian = random_posterior().structure
        noise = torch.randn(gaussian.mean.shape)
        deviations = (gaussian.sample(noise=noise) - gaussian.mean) / noise
        torch.testing.assert_close(deviations.square().log(), gaussian.logvar, rtol=0, atol=0.01)
        assert torch.equal(gaussian.sample(noise=torch.zeros_like(noise)), gaussian.mode())

    def test_samples_have_the_moments(self) -> None:
        mean, logvar = torch.full((1, 100_000), 2.0), torch.full((1, 100_000), -1.0)
        sample = DiagonalGaussian(mean, logvar).sample(generators(0)[0])
        assert sample.mean().item() == pytest.approx(2.0, abs=0.01)
        assert sample.var().log().item() == pytest.approx(-1.0, abs=0.02)

    def test_noise_of_another_shape_is_refused(self) -> None:
        """Broadcast, it would give every sample the same noise."""
        gaussian = random_posterior(4).dynamics_x
        with pytest.raises(ValueError, match=r"expected noise of shape \(4, 8, 3, 3\), got \(1, "):
            gaussian.sample(noise=torch.zeros(1, 8, 3, 3))


class TestPosterior:
    def test_mode_and_kl_are_those_of_the_parts(self) -> None:
        posterior = random_posterior()
        assert equal(posterior.mode(), VidTwinLatents(*(p.mean for p in posterior.parts())))
        total = sum(part.kl() for part in posterior.parts())
        assert posterior.kl().shape == (4,)
        assert torch.equal(posterior.kl(), torch.as_tensor(total))

    def test_the_standard_normal_has_no_divergence(self) -> None:
        assert standard_posterior(2).kl().tolist() == [0.0, 0.0]

    def test_a_list_of_generators_draws_the_noise_of_their_seeds(self) -> None:
        seeds = (5, 2**63 + 1, 7)
        sample = standard_posterior(3).sample(generators(*seeds))
        assert equal(sample, draw_noise(CONFIG, seeds))
        posterior = random_posterior(3)
        assert equal(
            posterior.sample(generators(*seeds)),
            posterior.sample(noise=draw_noise(CONFIG, seeds)),
        )

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    def test_the_noise_does_not_depend_on_the_precision(self, dtype: torch.dtype) -> None:
        sample = standard_posterior(2, dtype).sample(generators(0, 1))
        assert equal(sample, draw_noise(CONFIG, [0, 1]).to(dtype=dtype))

    def test_a_sample_is_the_same_in_any_batch(self) -> None:
        posterior, alone = random_posterior(3), []
        for index, seed in enumerate((3, 1, 2)):
            parts = (
                DiagonalGaussian(p.mean[index : index + 1], p.logvar[index : index + 1])
                for p in posterior.parts()
            )
            alone.append(VidTwinPosterior(*parts).sample(generators(seed)))
        assert equal(posterior.sample(generators(3, 1, 2)), VidTwinLatents.cat(alone))
        noise = draw_noise(CONFIG, [3, 1, 2])
        assert equal(noise[1:2], draw_noise(CONFIG, [1]))

    def test_one_generator_serves_the_batch(self) -> None:
        posterior = standard_posterior(2)
        first, again = (posterior.sample(generators(0)[0]) for _ in range(2))
        assert equal(first, again)
        assert not torch.equal(first.structure[0], first.structure[1])

    def test_without_a_generator_the_global_one_draws(self) -> None:
        torch.manual_seed(0)
        first = standard_posterior(2).sample()
        torch.manual_seed(0)
        assert equal(first, standard_posterior(2).sample())
        assert not equal(first, standard_posterior(2).sample())

    @pytest.mark.parametrize("count", [0, 1, 3])
    def test_a_list_of_another_length_is_refused(self, count: int) -> None:
        with pytest.raises(ValueError, match=rf"one generator per sample \(2\), got {count}"):
            standard_posterior(2).sample(generators(*range(count)))
