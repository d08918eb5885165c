"""The objective as mathematics: Gaussian data, whose best prediction is known in closed form."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor
from torch.testing import assert_close

from diffusion import FlowConfig, FlowObjective, LevelConfig
from diffusion.conditions import ClassCondition, Conditions, TextCondition
from diffusion.config import GuidanceScales
from diffusion.flow import NUM_UNIFORMS, Levels, draw_uniforms, quantile
from diffusion.flow_config import PREDICTIONS
from diffusion.guidance import guidance_terms, guided_prediction
from diffusion.schedulers import LatentSolver, build_sampling_scheduler, sampling_prediction
from vidtwin import VidTwinLatents

# What is predicted; x0 with either way to mix in noise.
KINDS = (*PREDICTIONS, "x0 ddpm")
BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2")
# Mean and deviation of the Gaussian data of structure, dynamics_x and dynamics_y.
MEANS, STDS = (0.7, -0.4, 0.2), (0.5, 1.5, 1.0)
SHAPES = ((2, 3, 2, 2), (2, 4, 2), (2, 4, 3))


def objective_of(kind: str = "velocity", **options: Any) -> FlowObjective:
    prediction, _, process = kind.partition(" ")
    return FlowObjective(FlowConfig(prediction=prediction, process=process or None, **options))


def draw(batch: int, seed: int = 0, shapes: tuple[tuple[int, ...], ...] = SHAPES) -> VidTwinLatents:
    generator = torch.Generator().manual_seed(seed)
    return VidTwinLatents(*(torch.randn(batch, *shape, generator=generator) for shape in shapes))


def gaussian(batch: int, seed: int = 0) -> VidTwinLatents:
    """Samples of the data."""
    return as_data(draw(batch, seed))


def as_data(noise: VidTwinLatents) -> VidTwinLatents:
    return VidTwinLatents(*(m + s * x for m, s, x in zip(MEANS, STDS, noise.tensors())))


def triples(*latents: VidTwinLatents) -> zip:
    """The tensors of several batches, latent by latent."""
    return zip(*(each.tensors() for each in latents), strict=True)


def levels_of(batch: int, seed: int = 0) -> Levels:
    drawn = torch.rand(2, batch, generator=torch.Generator().manual_seed(seed + 100))
    return Levels(*(0.02 + 0.96 * drawn))


def best_prediction(
    objective: FlowObjective, noised: Tensor, sigma: Tensor, mean: Any, std: Any
) -> Tensor:
    """E[target | noised] for data N(mean, std^2), from the definition of the noised latents."""
    kept, share = (
        value.reshape(-1, *[1] * (noised.ndim - 1)) for value in objective.coefficients(sigma)
    )
    variance = kept**2 * std**2 + share**2
    centered = noised - kept * mean
    clean = mean + kept * std**2 / variance * centered
    noise = share / variance * centered
    return {
        "velocity": noise - clean,
        "epsilon": noise,
        "v": kept * noise - share * clean,
        "x0": clean,
    }[objective.config.prediction]


def best_predictions(
    objective: FlowObjective, noised: VidTwinLatents, levels: Levels
) -> VidTwinLatents:
    sigmas = (levels.structure, levels.dynamics, levels.dynamics)
    return VidTwinLatents(
        *(
            best_prediction(objective, *arguments)
            for arguments in zip(noised.tensors(), sigmas, MEANS, STDS, strict=True)
        )
    )


def sampling_error(prediction: str, betas: str, steps: int, factor: float = 1.0) -> float:
    """How far samples made with `factor` times the best predictions lie from where they should."""
    objective = objective_of(prediction, beta_schedule=betas)
    config = objective.config
    solver = LatentSolver(
        build_sampling_scheduler(config),
        steps,
        torch.device("cpu"),
        torch.Generator(),
        sampling_prediction(config),
    )
    # Rows: noise. Columns: the data of each latent.
    noise = torch.tensor([0.0, 1.0, -1.0])[:, None].expand(3, 3)
    mean, std = torch.tensor(MEANS), torch.tensor(STDS)
    sample = noise
    for index, timestep in enumerate(solver.timesteps):
        # The level whose timestep this is, which is what the model would be told.
        level = timestep / 1000 if config.is_flow else (timestep + 0.5) / 1000
        sigma = level.float().expand(3)
        told = objective.timesteps(Levels(sigma, sigma))[0]
        assert_close(told, timestep.float().expand(3), rtol=0, atol=1e-3)
        predicted = factor * best_prediction(objective, sample, sigma, mean, std)
        sample = solver.step(predicted, sample, index)
    return float((sample - (mean + std * noise)).abs().max())


class TestGaussianData:
    @pytest.mark.parametrize("prediction", KINDS)
    def test_least_squares_finds_the_exact_prediction(self, prediction) -> None:
        """The target's regression on the noised latent is a line that theory knows."""
        objective = objective_of(prediction)
        count = 40_000
        shapes = ((1, 1, 1, 1), (1, 1, 1), (1, 1, 1))
        latents = as_data(draw(count, 1, shapes))
        noise = draw(count, 2, shapes)
        for level in (0.1, 0.5, 0.9):
            # Unlike for structure and dynamics, so that a mix-up shows.
            levels = Levels(torch.full((count,), level), torch.full((count,), 1 - level / 2))
            noised = objective.add_noise(latents, noise, levels)
            targets = objective.targets(latents, noise, levels)
            for name, x, target in zip("sxy", noised.tensors(), targets.tensors(), strict=True):
                rows = torch.stack([torch.ones(count), x.flatten()], dim=1).double()
                found = torch.linalg.lstsq(rows, target.reshape(-1, 1).double()).solution[:, 0]
                place = "sxy".index(name)
                ends = torch.tensor([0.0, 1.0]).reshape(2, *[1] * (x.ndim - 1))
                sigma = (levels.structure if name == "s" else levels.dynamics)[:2]
                at_0, at_1 = best_prediction(
                    objective, ends, sigma, MEANS[place], STDS[place]
                ).flatten()
                expected = torch.stack([at_0, at_1 - at_0]).double()
                assert_close(found, expected, rtol=0, atol=0.05)

    @pytest.mark.parametrize(
        ("prediction", "options"),
        [
            *((kind, {}) for kind in KINDS),
            *((kind, {"min_snr_gamma": 5.0}) for kind in KINDS if kind != "velocity"),
            *((kind, {"loss": "velocity"}) for kind in KINDS if kind.startswith("x0")),
        ],
    )
    def test_the_exact_prediction_has_the_lowest_loss(self, prediction, options) -> None:
        objective = objective_of(prediction, **options)
        latents, noise, levels = gaussian(2000), draw(2000, 1), levels_of(2000)
        noised = objective.add_noise(latents, noise, levels)
        best = best_predictions(objective, noised, levels)
        lowest = objective.losses(best, latents, noise, levels)
        for change in (lambda p: p + 0.1, lambda p: 0.9 * p, lambda p: 1.1 * p):
            other = objective.losses(best.map(change), latents, noise, levels)
            assert other.structure.mean() > lowest.structure.mean()
            assert other.dynamics.mean() > lowest.dynamics.mean()
            assert other.total.mean() > lowest.total.mean()

    @pytest.mark.parametrize(
        ("prediction", "betas"), [("velocity", "linear"), ("epsilon", "linear"), ("v", "linear"),
                                  ("v", "squaredcos_cap_v2"), ("x0", "linear"),
                                  ("x0 ddpm", "linear"), ("x0 ddpm", "squaredcos_cap_v2")]
    )  # fmt: skip
    def test_a_perfect_model_samples_the_data(self, prediction, betas) -> None:
        """diffusers' scheduler, told nothing but our predictions, maps noise to the data.

        For Gaussian data that map is a line: noise 0 becomes the mean, noise +-1 the mean +- std.
        """
        assert sampling_error(prediction, betas, steps=250) < 0.02

    @pytest.mark.parametrize("betas", BETAS)
    @pytest.mark.parametrize("prediction", KINDS)
    def test_small_errors_stay_small(self, prediction, betas) -> None:
        """Whatever is set: predictions that are 2 % too large, in as many steps as one takes."""
        assert sampling_error(prediction, betas, steps=30, factor=1.02) < 0.3


class TestAgreesWithDiffusers:
    def test_velocity(self) -> None:
        scheduler = FlowMatchEulerDiscreteScheduler(1000)
        objective, latents, noise = objective_of(), gaussian(4), draw(4, 1)
        timesteps = scheduler.timesteps[[0, 10, 500, 999]]
        levels = Levels(timesteps / 1000, timesteps / 1000)
        noised = objective.add_noise(latents, noise, levels)
        for latent, eps, x in triples(latents, noise, noised):
            assert_close(x, scheduler.scale_noise(latent, timesteps, eps), rtol=1e-5, atol=1e-5)
        for told in objective.timesteps(levels):
            assert_close(told, timesteps)

    @pytest.mark.parametrize("betas", BETAS)
    def test_epsilon_and_v(self, betas) -> None:
        scheduler = DDPMScheduler(1000, beta_schedule=betas)
        latents, noise = gaussian(5), draw(5, 1)
        steps = torch.tensor([0, 1, 500, 998, 999])
        levels = Levels((steps + 0.5) / 1000, (steps + 0.5) / 1000)
        for prediction in ("epsilon", "v"):
            objective = objective_of(prediction, beta_schedule=betas)
            assert_close(objective.timesteps(levels)[1], steps.float())
            noised = objective.add_noise(latents, noise, levels)
            targets = objective.targets(latents, noise, levels)
            for latent, eps, x, target in triples(latents, noise, noised, targets):
                assert_close(x, scheduler.add_noise(latent, eps, steps), rtol=1e-5, atol=1e-5)
                expected = eps if prediction == "epsilon" else None
                if expected is None:
                    expected = scheduler.get_velocity(latent, eps, steps)
                assert_close(target, expected, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("prediction", KINDS)
    def test_the_sampler_is_of_the_same_objective(self, prediction) -> None:
        config = objective_of(prediction, beta_schedule="linear").config
        scheduler = build_sampling_scheduler(config)
        kind = getattr(scheduler.config, "prediction_type", "velocity")
        names = {"v": "v_prediction", "x0": "velocity", "x0 ddpm": "sample"}
        assert kind == names.get(prediction, prediction)
        assert getattr(scheduler.config, "beta_schedule", "linear") == "linear"
        scheduler.set_timesteps(7)
        assert scheduler.timesteps[0] == (1000 if config.is_flow else 999)


class TestPredictions:
    @pytest.mark.parametrize("prediction", KINDS)
    def test_exact_predictions_give_the_clean_latents(self, prediction) -> None:
        objective = objective_of(prediction)
        latents, noise = gaussian(6), draw(6, 1)
        sigmas = torch.tensor([0.0, 0.01, 0.3, 0.5, 0.7, 0.9])
        levels = Levels(sigmas, sigmas.flip(0))
        noised = objective.add_noise(latents, noise, levels)
        targets = objective.targets(latents, noise, levels)
        found = objective.clean_latents(targets, noised, levels)
        for latent, came in triples(latents, found):
            assert_close(came, latent, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("prediction", KINDS)
    def test_the_ends_are_clean_and_noise(self, prediction) -> None:
        objective = objective_of(prediction)
        latents, noise = gaussian(3), draw(3, 1)
        clean = objective.add_noise(latents, noise, Levels(torch.zeros(3), torch.zeros(3)))
        assert all(torch.equal(a, b) for a, b in triples(clean, latents))
        lost = objective.add_noise(latents, noise, Levels(torch.ones(3), torch.ones(3)))
        for came, eps in triples(lost, noise):
            assert_close(came, eps, rtol=0, atol=1e-3)
        assert not objective.timesteps(Levels(torch.zeros(3), torch.zeros(3)))[0].any()

    @pytest.mark.parametrize("prediction", ["epsilon", "v"])
    def test_signal_and_noise_keep_the_variance(self, prediction) -> None:
        kept, share = objective_of(prediction).coefficients(torch.linspace(0, 1, 50))
        assert_close(kept**2 + share**2, torch.ones(50))
        assert (kept.diff() <= 0).all()

    def test_each_latent_has_its_own_level(self) -> None:
        objective = objective_of()
        latents, noise = gaussian(2), draw(2, 1)
        noised = objective.add_noise(latents, noise, Levels(torch.zeros(2), torch.ones(2)))
        assert torch.equal(noised.structure, latents.structure)
        assert torch.equal(noised.dynamics_x, noise.dynamics_x)
        assert torch.equal(noised.dynamics_y, noise.dynamics_y)


class TestLosses:
    def losses(self, objective: FlowObjective, batch: slice = slice(None), **changes: Any) -> Any:
        latents, noise, predictions = gaussian(8), draw(8, 1), draw(8, 2)
        levels = changes.get("levels", levels_of(8))
        return objective.losses(
            *(group.map(lambda x: x[batch]) for group in (predictions, latents, noise)),
            Levels(*(level[batch] for level in levels)),
        )

    @pytest.mark.parametrize("prediction", KINDS)
    def test_exact_predictions_cost_nothing(self, prediction) -> None:
        objective = objective_of(prediction)
        latents, noise, levels = gaussian(4), draw(4, 1), levels_of(4)
        targets = objective.targets(latents, noise, levels)
        for loss in objective.losses(targets, latents, noise, levels):
            assert torch.equal(loss, torch.zeros(4))

    def test_a_loss_is_the_mean_over_the_values_of_a_latent(self) -> None:
        objective = objective_of(structure_weight=0.5, dynamics_weight=3.0)
        latents, noise, levels = gaussian(4), draw(4, 1), levels_of(4)
        targets = objective.targets(latents, noise, levels).tensors()
        errors = (2.0, 1.0, 3.0)
        wrong = VidTwinLatents(*(t + error for t, error in zip(targets, errors, strict=True)))
        losses = objective.losses(wrong, latents, noise, levels)
        # 16 values of dynamics_x are 1 off, 24 of dynamics_y 3.
        dynamics = (16 * 1.0 + 24 * 9.0) / 40
        assert_close(losses.structure, torch.full((4,), 4.0))
        assert_close(losses.dynamics, torch.full((4,), dynamics))
        assert_close(losses.total, torch.full((4,), 0.5 * 4.0 + 3.0 * dynamics))

    @pytest.mark.parametrize("options", [{}, {"prediction": "v", "min_snr_gamma": 5.0}])
    def test_a_sample_does_not_depend_on_its_batch(self, options) -> None:
        objective = FlowObjective(FlowConfig(**options))
        together = self.losses(objective)
        order = torch.tensor([5, 2, 7, 0, 1, 6, 3, 4])
        for parts in ([slice(0, 4), slice(4, 8)], [slice(i, i + 1) for i in range(8)]):
            for name in ("structure", "dynamics", "total"):
                apart = torch.cat([getattr(self.losses(objective, part), name) for part in parts])
                assert_close(apart, getattr(together, name), rtol=1e-6, atol=0)
        shuffled = self.losses(objective, order)
        assert_close(shuffled.total, together.total[order], rtol=1e-6, atol=0)

    @pytest.mark.parametrize("prediction", KINDS)
    def test_clean_latents_cost_nothing(self, prediction) -> None:
        levels = Levels(torch.tensor([0.0, 0.5] * 4), torch.tensor([0.5, 0.0] * 4))
        losses = self.losses(objective_of(prediction), levels=levels)
        assert losses.structure.gt(0).tolist() == [False, True] * 4
        assert losses.dynamics.gt(0).tolist() == [True, False] * 4

    @pytest.mark.parametrize("prediction", ["epsilon", "v", "x0 ddpm"])
    def test_min_snr_weights(self, prediction) -> None:
        gamma = 5.0
        plain = self.losses(objective_of(prediction))
        weighted = self.losses(objective_of(prediction, min_snr_gamma=gamma))
        scheduler = DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2")
        for name in ("structure", "dynamics"):
            step = (getattr(levels_of(8), name) * 1000).long()
            signal = scheduler.alphas_cumprod[step]
            ratio = signal / (1 - signal)
            # Hang et al.: min(SNR, gamma) on the error of x0, in the units of the prediction.
            units = {"epsilon": ratio, "v": ratio + 1, "x0 ddpm": torch.ones(8)}[prediction]
            expected = ratio.clamp(max=gamma) / units
            assert 0 < expected.min() < expected.max() <= (gamma if "x0" in prediction else 1)
            found = getattr(weighted, name) / getattr(plain, name)
            assert_close(found, expected, rtol=1e-3, atol=0)

    @pytest.mark.parametrize(("kind", "implied"), [("x0", "velocity"), ("x0 ddpm", "v")])
    def test_the_velocity_loss_of_x0_is_that_of_the_velocity_it_implies(
        self, kind, implied
    ) -> None:
        objective, other = objective_of(kind, loss="velocity"), objective_of(implied)
        latents, noise, predicted = gaussian(4), draw(4, 1), draw(4, 2)
        levels = Levels(torch.tensor([0.06, 0.3, 0.7, 1.0]), torch.tensor([1.0, 0.5, 0.9, 0.1]))
        noised = objective.add_noise(latents, noise, levels)
        sigmas = VidTwinLatents(levels.structure, levels.dynamics, levels.dynamics)

        def velocity(x: Tensor, clean: Tensor, sigma: Tensor) -> Tensor:
            kept, share = (
                value.reshape(-1, *[1] * (x.ndim - 1)) for value in other.coefficients(sigma)
            )
            return ((x - clean) if implied == "velocity" else (kept * x - clean)) / share

        velocities = VidTwinLatents.combine(velocity, noised, predicted, sigmas)
        expected = other.losses(velocities, latents, noise, levels)
        for found, wanted in zip(
            objective.losses(predicted, latents, noise, levels), expected, strict=True
        ):
            assert_close(found, wanted, rtol=1e-3, atol=0)
        # Below a share of noise of 0.05 the error is divided by that.
        low = Levels(torch.full((4,), 0.001), torch.full((4,), 0.001))
        clipped = objective.losses(predicted, latents, noise, low).structure
        plain = objective_of(kind).losses(predicted, latents, noise, low).structure
        assert_close(clipped, 400 * plain)

    def test_half_precision_predictions_are_measured_in_float32(self) -> None:
        objective = objective_of()
        latents, noise, levels = gaussian(2), draw(2, 1), levels_of(2)
        halves = draw(2, 2).to(dtype=torch.bfloat16)
        assert objective.losses(halves, latents, noise, levels).total.dtype == torch.float32


class TestLevels:
    @pytest.fixture(scope="class")
    def uniforms(self) -> Tensor:
        return torch.rand(40_000, NUM_UNIFORMS, generator=torch.Generator().manual_seed(0))

    @pytest.mark.parametrize("distribution", ["uniform", "logit_normal"])
    @pytest.mark.parametrize("shift", [0.3, 1.0, 3.0])
    def test_the_quantile_function_rises_from_0_to_1(self, distribution, shift) -> None:
        config = LevelConfig(distribution=distribution, mean=0.4, std=0.8, shift=shift)
        sigma = quantile(config, torch.linspace(1e-6, 1 - 1e-6, 999, dtype=torch.float64))
        assert (sigma.diff() > 0).all()
        assert sigma.min() >= 0
        assert sigma.max() <= 1
        # The median, moved by the shift of Esser et al.
        middle = torch.sigmoid(torch.tensor(0.4)) if distribution == "logit_normal" else 0.5
        assert float(sigma[499]) == pytest.approx(shift * middle / (1 + (shift - 1) * middle))

    def test_a_shift_above_one_is_towards_noise(self) -> None:
        middle = torch.tensor(0.5)
        low, high = (quantile(LevelConfig(shift=shift), middle) for shift in (0.5, 2.0))
        assert low < 0.5 < high

    def test_logit_normal_moments(self, uniforms) -> None:
        levels = LevelConfig(mean=-0.5, std=1.4)
        objective = objective_of(
            structure_levels=levels, independent=1.0, structure_clean=0.0, dynamics_clean=0.0
        )
        drawn = objective.draw_levels(uniforms)
        for sigma, mean, std in ((drawn.structure, -0.5, 1.4), (drawn.dynamics, 0.0, 1.0)):
            assert float(sigma.logit().mean()) == pytest.approx(mean, abs=0.03)
            assert float(sigma.logit().std()) == pytest.approx(std, abs=0.03)
        assert abs(torch.corrcoef(torch.stack(list(drawn)))[0, 1]) < 0.02

    def test_shares_of_the_kinds(self, uniforms) -> None:
        shares = {
            "independent": 0.25, "structure_clean": 0.1, "dynamics_clean": 0.15,
            "structure_noise": 0.05, "dynamics_noise": 0.08,
        }  # fmt: skip
        structure, dynamics = objective_of(**shares).draw_levels(uniforms)
        found = {
            "structure_clean": structure == 0,
            "dynamics_clean": dynamics == 0,
            "structure_noise": structure == 1,
            "dynamics_noise": dynamics == 1,
        }
        special = torch.stack(list(found.values())).any(0)
        found["independent"] = ~special & (structure != dynamics)
        for name, share in shares.items():
            assert float(found[name].float().mean()) == pytest.approx(share, abs=0.01), name
        assert torch.stack(list(found.values())).sum(0).max() == 1
        # The other latent of a clean or lost one is drawn as always.
        other = dynamics[found["structure_clean"]]
        assert float(other.logit().std()) == pytest.approx(1.0, abs=0.05)

    def test_equal_levels_come_from_either_distribution(self, uniforms) -> None:
        objective = objective_of(
            structure_levels=LevelConfig(mean=-6.0, std=0.1),
            dynamics_levels=LevelConfig(mean=6.0, std=0.1),
            independent=0.0, structure_clean=0.0, dynamics_clean=0.0,
        )  # fmt: skip
        structure, dynamics = objective.draw_levels(uniforms)
        assert torch.equal(structure, dynamics)
        assert float((structure < 0.5).float().mean()) == pytest.approx(0.5, abs=0.01)

    @pytest.mark.parametrize("value", [0.0, 1.0])
    def test_the_ends_of_the_uniform_numbers_are_finite(self, value) -> None:
        for prediction in KINDS:
            levels = objective_of(prediction).draw_levels(torch.full((2, NUM_UNIFORMS), value))
            for sigma in levels:
                assert ((sigma >= 0) & (sigma <= 1)).all()

    def test_uniforms_follow_from_seed_and_stream_alone(self) -> None:
        rows = draw_uniforms([5, 2**62, 5], 3, stream=1)
        assert torch.equal(rows[0], rows[2])
        assert torch.equal(draw_uniforms([2**62], 3, stream=1)[0], rows[1])
        assert not torch.equal(draw_uniforms([5], 3, stream=2)[0], rows[0])
        many = draw_uniforms(range(5000), 2, stream=1)
        assert many.min() >= 0
        assert many.max() < 1
        assert float(many.mean()) == pytest.approx(0.5, abs=0.02)
        assert float(many.std()) == pytest.approx(math.sqrt(1 / 12), abs=0.01)


class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"prediction": "x"}, "`prediction` must be one of velocity, epsilon, v, x0; got 'x'"),
            ({"process": "ddpm"}, "must be null or flow for prediction=velocity; got 'ddpm'"),
            ({"prediction": "v", "process": "flow"}, "must be null or ddpm for prediction=v"),
            ({"prediction": "x0", "process": "vp"}, "null or flow or ddpm for prediction=x0"),
            ({"loss": "x0"}, "`loss` must be one of prediction, velocity; got 'x0'"),
            ({"loss": "velocity"}, "`loss`=velocity belongs to prediction=x0, got"),
            (
                {"prediction": "x0", "loss": "velocity", "min_snr_gamma": 5.0},
                "with loss=prediction, got prediction=x0, loss=velocity; set min_snr_gamma=null",
            ),
            ({"independent": 0.9}, "sum to at most 1, got independent=0.9, structure_clean=0.1"),
            ({"independent": -0.1}, r"must lie in \[0, 1\]"),
            ({"structure_noise": math.nan}, r"must lie in \[0, 1\]"),
            ({"structure_weight": -1.0}, "`structure_weight` and `dynamics_weight`"),
            ({"structure_weight": 0.0, "dynamics_weight": 0.0}, "not both 0"),
            ({"dynamics_weight": math.inf}, "must be finite"),
            ({"min_snr_gamma": 5.0}, "belongs to prediction=epsilon, v or x0"),
            ({"min_snr_gamma": 0.0, "prediction": "v"}, "`min_snr_gamma` must be positive"),
            ({"beta_schedule": "sigmoid"}, '`beta_schedule` must be "linear"'),
        ],
    )
    def test_objective(self, options, message) -> None:
        with pytest.raises(ValueError, match=message):
            FlowConfig(**options)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"distribution": "normal"}, "`distribution` must be one of logit_normal, uniform"),
            ({"mean": math.inf}, "`mean` must be finite"),
            ({"std": 0.0}, "`std` must be positive, got 0.0"),
            ({"shift": math.nan}, "`shift` must be positive, got nan"),
        ],
    )
    def test_levels(self, options, message) -> None:
        with pytest.raises(ValueError, match=message):
            LevelConfig(**options)


def test_guidance_by_a_given_latent_needs_training_for_either() -> None:
    assert FlowConfig().given_guidance_scale == 1.0
    assert FlowConfig(structure_noise=0.1).given_guidance_scale == 1.0
    assert FlowConfig(structure_noise=0.1, dynamics_noise=0.1).given_guidance_scale == 2.0


@pytest.mark.parametrize("kind", KINDS)
def test_guidance_is_the_same_whatever_is_predicted(kind) -> None:
    """The clean latents that a guided prediction implies are the guided clean latents."""
    objective = objective_of(kind)
    conditions = Conditions([TextCondition(torch.zeros(4, 1, 1), torch.ones(4, 1).bool()),
                             ClassCondition(torch.zeros(4, dtype=torch.int64), 3)])  # fmt: skip
    scales = GuidanceScales(5.0, 2.0, dynamics=3.0)
    terms = guidance_terms(conditions, scales, has_given=False)
    levels, x = levels_of(4), draw(4, 1)
    shifts = torch.tensor([3.0, 1.0, -2.0]).repeat_interleave(4)  # what each variant knows

    def guided(as_predicted: Any) -> VidTwinLatents:
        def predict(_conditions: Conditions, _known: Any) -> VidTwinLatents:
            def clean(latent: Tensor, sigma: Tensor) -> Tensor:
                rows = latent.repeat(3, *[1] * (latent.ndim - 1))
                shift = shifts.reshape(-1, *[1] * (latent.ndim - 1))
                return as_predicted(rows, 0.3 * rows + shift, sigma.repeat(3))

            return VidTwinLatents.combine(clean, x, levels.of_latents())

        return guided_prediction(predict, conditions, terms)

    def target(rows: Tensor, clean: Tensor, sigma: Tensor) -> Tensor:
        kept, share = (v.reshape(-1, *[1] * (rows.ndim - 1)) for v in objective.coefficients(sigma))
        noise = (rows - kept * clean) / share
        return {"velocity": noise - clean, "epsilon": noise, "v": kept * noise - share * clean,
                "x0": clean}[objective.config.prediction]  # fmt: skip

    expected = guided(lambda rows, clean, sigma: clean)
    found = objective.clean_latents(guided(target), x, levels)
    for one, other in triples(found, expected):
        assert_close(one, other, rtol=1e-3, atol=1e-2)
