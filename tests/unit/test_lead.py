"""One latent ahead of the other: whatever the lead, an exact model samples the data."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor
from torch.testing import assert_close
from tqdm import tqdm

from diffusion import FlowConfig, FlowObjective, LevelConfig
from diffusion.conditions import Conditions
from diffusion.config import GuidanceScales
from diffusion.flow import NUM_UNIFORMS
from diffusion.inputs import check_lead, lead_steps
from diffusion.sampling import LatentSampler
from diffusion.schedulers import build_sampling_scheduler, build_scheduler
from vidtwin import VidTwinLatents

# Structure of two values, one of each dynamics, all of them correlated.
SHAPES = ((1, 1, 1, 2), (1, 1, 1), (1, 1, 1))
MEAN = torch.tensor([0.7, -0.4, 0.2, 1.0], dtype=torch.float64)
ROOT = torch.tensor(
    [[0.8, 0, 0, 0], [0.3, 0.6, 0, 0], [0.6, -0.4, 0.5, 0], [-0.5, 0.5, 0.3, 0.9]],
    dtype=torch.float64,
)
COVARIANCE = ROOT @ ROOT.T


class ExactModel:
    """The best prediction for correlated Gaussian latents, each at its own noise level."""

    dtype = torch.float32
    sizes = SimpleNamespace(
        structure_shape=SHAPES[0], dynamics_x_shape=SHAPES[1], dynamics_y_shape=SHAPES[2]
    )

    def __init__(self, config: FlowConfig) -> None:
        self.objective = FlowObjective(config)
        self.seen: list[tuple[float, float]] = []

    def __call__(self, s: Tensor, x: Tensor, y: Tensor, told_s: Tensor, told_d: Tensor) -> Any:
        noised = VidTwinLatents(s, x, y)
        self.seen.append((float(told_s[0]), float(told_d[0])))
        is_flow = self.objective.config.is_flow
        # A schedule of betas is told whole steps, whose level is that of the step's middle.
        levels = [t[0] / 1000 if is_flow else (t[0] + 0.5) / 1000 for t in (told_s, told_d)]
        levels = [torch.where(t[0] == 0, 0 * v, v) for t, v in zip((told_s, told_d), levels)]
        kept, share = self.objective.coefficients(torch.stack(levels).double())
        kept, share = (v[[0, 0, 1, 1]].double() for v in (kept, share))
        rows = kept[:, None] * COVARIANCE * kept + torch.diag(share**2)
        centered = noised.pack().double() - kept * MEAN
        weighted = torch.linalg.solve(rows, centered.T).T
        clean, noise = MEAN + weighted * kept @ COVARIANCE, share * weighted
        found = {"velocity": noise - clean, "v": kept * noise - share * clean, "x0": clean}
        return VidTwinLatents.unpack(found[self.objective.config.prediction], noised).tensors()


def sampler_of(config: FlowConfig, lead: float, steps: int, name: str) -> LatentSampler:
    like = build_sampling_scheduler(config)
    own = {"velocity": None, "v": None, "x0": "flow_sample"}[config.prediction]
    return LatentSampler(
        transformer=ExactModel(config),  # type: ignore[arg-type]
        scheduler=build_scheduler(name, like),
        num_inference_steps=steps,
        generators=torch.Generator(),
        device=torch.device("cpu"),
        conditions=Conditions(),
        negative=None,
        scales=GuidanceScales(),
        given=VidTwinLatents(*(torch.zeros(5, *shape) for shape in SHAPES)),
        given_names=frozenset(),
        after_step=None,
        interrupted=lambda: False,
        progress_bar=lambda total: tqdm(total=total, disable=True),
        structure_lead=lead,
        prediction=own,
    )


@pytest.mark.parametrize(
    ("prediction", "name", "own"),
    [("velocity", "euler", 160), ("velocity", "heun", 40), ("velocity", "dpm++", 60),
     ("velocity", "unipc", 60), ("x0", "euler", 160), ("v", "ddim", 250)],
)  # fmt: skip
@pytest.mark.parametrize("lead", [-0.4, 0.3, 1.0])
def test_an_exact_model_samples_the_data(prediction, name, own, lead) -> None:
    """Noise goes to the data by an affine map, found from five samples: its covariance is right."""
    steps = round(own * (1 + abs(lead)))  # diffusers' DDIM needs a divisor of 1000 for each latent
    sampler = sampler_of(FlowConfig(prediction=prediction), lead, steps, name)
    rows = torch.cat([torch.zeros(1, 4), torch.eye(4)])
    noise = VidTwinLatents.unpack(rows, sampler.given)
    made = sampler.sample_window(noise).pack().double()
    mean, matrix = made[0], (made[1:] - made[0]).T
    assert_close(mean, MEAN, rtol=0, atol=0.03)
    assert_close(matrix @ matrix.T, COVARIANCE, rtol=0, atol=0.03)
    # The cost is that of the steps asked for, whatever the lead.
    assert len(sampler.transformer.seen) <= (2 * steps if name == "heun" else steps)


@pytest.mark.parametrize(
    ("lead", "steps", "places"),
    [(0.0, 3, [(0, 0), (1, 1), (2, 2)]), (0.5, 4, [(0, 0), (1, 0), (2, 1), (3, 2)]),
     (1.0, 6, [(0, 0), (1, 0), (2, 0), (3, 0), (3, 1), (3, 2)]),
     (-0.5, 4, [(0, 0), (0, 1), (1, 2), (2, 3)])],
)  # fmt: skip
def test_the_levels_that_the_model_sees(lead, steps, places) -> None:
    """Each latent has the schedule of three steps; before it there is noise, behind it none."""
    sampler = sampler_of(FlowConfig(), lead, steps, "euler")
    sampler.sample_window(sampler.given)
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(3)
    levels = [*scheduler.timesteps.tolist(), 0.0]
    expected = [(levels[structure], levels[dynamics]) for structure, dynamics in places]
    assert_close(torch.tensor(sampler.transformer.seen), torch.tensor(expected))


@pytest.mark.parametrize("steps", [2, 5, 8, 30])
@pytest.mark.parametrize("lead", [0.5, 0.77, 1.0])
def test_no_step_is_idle(steps, lead) -> None:
    for sign in (1, -1):
        own, delay = lead_steps(sign * lead, steps)
        assert own + abs(delay) == steps
        assert 0 < sign * delay <= own


def test_training_draws_the_levels_of_sampling() -> None:
    config = FlowConfig(
        independent=0,
        structure_clean=0.25,
        dynamics_clean=0,
        lead=0.5,
        structure_lead=0.3,
        structure_levels=LevelConfig(distribution="uniform"),
    )
    objective = FlowObjective(config)
    uniforms = torch.rand(20_000, NUM_UNIFORMS, generator=torch.Generator().manual_seed(0))
    levels, leads = objective.draw_levels(uniforms), objective.leads(uniforms)
    assert float(leads.float().mean()) == pytest.approx(0.5, abs=0.01)
    structure, dynamics = (level[leads] for level in levels)
    # As in SFD: the time of the structure is uniform in [0, 1.3], that of the dynamics 0.3 less,
    # and both are cut to [0, 1]; sigma is 1 - time.
    time = 1.3 * (1 - uniforms[leads, 2].double())
    assert_close(structure.double(), (1 - time).clamp(0, 1), rtol=0, atol=1e-5)
    assert_close(dynamics.double(), (1.3 - time).clamp(0, 1), rtol=0, atol=1e-5)
    assert float((structure == 0).float().mean()) == pytest.approx(0.3 / 1.3, abs=0.01)
    others = FlowObjective(replace(config, lead=0.0, structure_lead=0.0))
    for one, other in zip(levels, others.draw_levels(uniforms)):
        assert torch.equal(one[~leads], other[~leads])  # the other kinds stay what they were


@pytest.mark.parametrize(
    ("lead", "steps", "reason"),
    [(1.5, 30, "lie in"), (float("nan"), 30, "lie in"), (0.05, 8, "less than half of one"),
     (0.5, 1, "less than half of one")],
)  # fmt: skip
def test_leads_that_can_not_be(lead, steps, reason) -> None:
    with pytest.raises(ValueError, match=reason):
        check_lead(lead, steps)


def test_the_pipeline(build_pipeline) -> None:
    pipeline = build_pipeline()
    options: dict[str, Any] = {"num_inference_steps": 4, "seed": 5, "output_type": "latent"}
    plain = pipeline("a star", **options).latents
    none = pipeline("a star", structure_lead=0.0, **options).latents
    led = pipeline("a star", structure_lead=0.5, num_frames=12, **options).latents
    for name, one in plain.items():
        assert torch.equal(one, getattr(none, name))
        assert not torch.equal(one, getattr(led, name)[:, :, : one.shape[2]])
    own = build_pipeline(structure_lead=0.5)
    made = own("a star", num_frames=12, **options).latents
    assert all(torch.equal(one, getattr(led, name)) for name, one in made.items())
    own("a star", **options | {"num_inference_steps": 1})  # too few to lead by
    own(structure=plain, **options)  # its own lead is of what it samples whole
    with pytest.raises(ValueError, match="none to lead"):
        own(structure=plain, structure_lead=0.5, **options)
