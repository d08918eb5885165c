"""A condition that the project does not have, through the interface alone: trained and sampled.

docs/extending.md shows the same one as a change of the project.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn
from torch.testing import assert_close

from diffusion import FlowConfig, FlowObjective, TwinDiT
from diffusion.conditions import Condition, ConditionEmbedder, Conditions
from diffusion.config import GuidanceScales
from diffusion.latent_sources import CachedLatents
from diffusion.sampling import LatentSampler
from diffusion.training import TrainingInputs, losses_of
from vidtwin import VidTwinLatents, draw_noise

BATCH, AXES = 16, 3


@dataclass(frozen=True)
class CameraCondition(Condition):
    """How the camera moves: (B, 3), zero where nothing is said."""

    name = "camera"
    dropout_column = 2

    camera: Tensor

    def null(self) -> CameraCondition:
        return CameraCondition(torch.zeros_like(self.camera))


class CameraEmbedder(ConditionEmbedder):
    condition = CameraCondition
    column = "camera"

    def embed(self, values: Sequence[Sequence[float]] | Tensor) -> CameraCondition:
        return CameraCondition(torch.as_tensor(values, dtype=torch.float32))

    def sizes(self) -> dict[str, Any]:
        return {"camera_size": AXES}


@dataclass(frozen=True)
class CameraScales(GuidanceScales):
    camera: float = 1.0


class CameraDiT(nn.Module):
    """A TwinDiT whose structure tokens are moved by the camera."""

    dtype = torch.float32

    def __init__(self, transformer: TwinDiT) -> None:
        super().__init__()
        self.transformer, self.sizes = transformer, transformer.sizes
        self.camera = nn.Linear(AXES, self.sizes.structure_shape[0], bias=False)
        self.rows: list[Tensor] = []

    def forward(self, structure: Tensor, *inputs: Tensor, camera: Tensor) -> Any:
        self.rows.append(camera)
        moved = structure + self.camera(camera)[..., None, None, None]
        return self.transformer(moved, *inputs)


@pytest.fixture
def inputs(build_autoencoder) -> TrainingInputs:
    source = CachedLatents.__new__(CachedLatents)
    source.autoencoder = build_autoencoder()
    source.digests = lambda: {"autoencoder": None, "cache": None}
    embedders = [CameraEmbedder(dropout=0.25)]
    return TrainingInputs(source, FlowObjective(FlowConfig()), embedders, given_dropout=0.0)


@pytest.fixture
def model(inputs) -> CameraDiT:
    sizes = inputs.source.autoencoder.sizes
    shapes = {f"{name}_shape": getattr(sizes, f"{name}_shape") for name in VidTwinLatents.names}
    torch.manual_seed(0)
    transformer = TwinDiT(hidden_size=16, depth=1, num_heads=2, **shapes)
    with torch.no_grad():
        for parameter in transformer.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return CameraDiT(transformer)


@pytest.fixture
def batch(inputs) -> dict[str, Any]:
    latents = draw_noise(inputs.source.autoencoder.sizes, range(BATCH))
    return {
        **dict(latents.items()),
        "camera": torch.randn(BATCH, AXES, generator=torch.Generator().manual_seed(0)),
        "noise_seed": torch.arange(BATCH),
    }


def test_it_is_trained(inputs, model, batch) -> None:
    read = inputs.read(batch)
    cameras = read.conditions.arguments()["camera"]
    left_out = (cameras == 0).all(1)
    assert 0 < left_out.sum() < BATCH
    assert torch.equal(cameras[~left_out], batch["camera"][~left_out])
    # Its random numbers are its own, and a sample's do not depend on the batch around it.
    halves = [inputs.read(batch, slice(start, start + 8)).conditions for start in (0, 8)]
    assert torch.equal(Conditions.cat(halves).arguments()["camera"], cameras)

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        loss = losses_of(model, inputs.objective, read).total.mean()
        optimizer.zero_grad()
        loss.backward()
        assert model.camera.weight.grad is not None
        assert model.camera.weight.grad.abs().sum() > 0
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def sample(model: CameraDiT, camera: Tensor, scales: GuidanceScales) -> VidTwinLatents:
    """One step from noise: the sample is the noise minus the guided prediction."""
    with torch.no_grad():
        return LatentSampler(
            transformer=model,
            scheduler=FlowMatchEulerDiscreteScheduler(),
            num_inference_steps=1,
            generators=[torch.Generator().manual_seed(seed) for seed in range(len(camera))],
            device=torch.device("cpu"),
            conditions=Conditions([CameraCondition(camera)]),
            negative=None,
            scales=scales,
            given=draw_noise(model.sizes, range(len(camera))),
            given_names=frozenset(),
            after_step=None,
            interrupted=lambda: False,
            progress_bar=lambda total: nullcontext(SimpleNamespace(update=lambda: None)),
        ).sample([0], len(camera))[0]


def test_it_guides(model, batch) -> None:
    camera = batch["camera"][:2]
    null = sample(model, torch.zeros_like(camera), CameraScales())
    asked = sample(model, camera, CameraScales())
    assert not torch.allclose(null.structure, asked.structure, atol=1e-3)
    model.rows.clear()
    guided = sample(model, camera, CameraScales(camera=3.0))
    # Asked for and not, in one call of the model.
    assert torch.equal(model.rows[0], torch.cat([camera, torch.zeros_like(camera)]))
    expected = VidTwinLatents.combine(lambda n, a: n + 3 * (a - n), null, asked)
    for came, wanted in zip(guided.tensors(), expected.tensors(), strict=True):
        assert_close(came, wanted, rtol=1e-4, atol=1e-4)
