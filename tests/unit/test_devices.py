"""The pipeline on a pretend device: no mix-up of devices, and what the CPU makes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch.testing import assert_close

from diffusion import VidTwinPipeline
from diffusion.scheduler_names import is_flow, scheduler_names
from diffusion.schedulers import build_scheduler
from vidtwin_lab.runtime import mean_over_processes

sys.path.insert(0, str(Path(__file__).parents[1]))
from pretend_device import DeviceMixupError, pretend_accelerator, pretend_device

PROMPTS = ["a red circle", "a blue square turns left"]
KINDS = ("velocity", "epsilon", "v_prediction")
CHOICES = [(kind, name) for kind in KINDS for name in scheduler_names(kind)]
CHOICES += [("sample", "ddim"), ("flow_sample", "heun")]


def assert_equal_on_device(pipeline: VidTwinPipeline, **asked: Any) -> None:
    """What is asked comes out the same on the CPU and on the device."""
    asked = {"num_inference_steps": 2, "seed": 1} | asked
    expected = pipeline(**asked)
    with pretend_device():
        pipeline.to("gpu")
        found = pipeline(**asked)
        pairs = [(found.videos, expected.videos)]
        pairs += zip(found.latents.tensors(), expected.latents.tensors(), strict=True)
        for one, other in pairs:
            assert one.device.type == "gpu"
            # Attention takes another path there, and a few steps from noise enlarge its rounding.
            assert_close(one.cpu(), other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("kind", "name"), CHOICES)
@pytest.mark.parametrize("num_frames", [8, 14])
def test_every_scheduler(build_pipeline, kind: str, name: str, num_frames: int) -> None:
    like: Any = FlowMatchEulerDiscreteScheduler()
    if not is_flow(kind):
        like = DDIMScheduler(clip_sample=False, prediction_type=kind)
    pipeline = build_pipeline(scheduler=like, prediction=kind)
    pipeline.scheduler = build_scheduler(name, like)
    assert_equal_on_device(pipeline, prompt=PROMPTS, num_frames=num_frames)


def given_video() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, 3, 8, 16, 24, generator=generator) * 2 - 1


@pytest.mark.parametrize(
    ("built", "asked"),
    [
        ({"text": False}, dict),
        ({"text": False, "classes": True}, lambda: {"class_labels": [0, "wave"]}),
        (
            {"classes": True},
            lambda: {
                "prompt": PROMPTS,
                "class_labels": [0, "wave"],
                "negative_prompt": "a star",
                "class_guidance_scale": 2.0,
            },
        ),
        (
            {"given_guidance_scale": 2.0},
            lambda: {
                "prompt": PROMPTS,
                "structure": given_video(),
                "negative_prompt": "a star",
                "guidance_scale": 1.0,
            },
        ),
        (
            {"given_guidance_scale": 2.0},
            lambda: {"prompt": PROMPTS, "dynamics": given_video()},
        ),
        (
            {},
            lambda: {
                "prompt": PROMPTS,
                "structure": given_video(),
                "num_frames": 14,
                "motion_scale": 1.5,
            },
        ),
        ({}, lambda: {"prompt": PROMPTS, "num_videos_per_prompt": 2}),
        (
            {},
            lambda: {"prompt": PROMPTS, "callback_on_step_end": lambda pipe, step, time, now: now},
        ),
    ],
    ids=[
        "nothing", "class", "prompt and class", "structure", "dynamics", "long video of structure",
        "several", "callback",
    ],
)  # fmt: skip
def test_every_mode(build_pipeline, built: dict[str, Any], asked: Callable[[], Any]) -> None:
    assert_equal_on_device(build_pipeline(**built), **asked())


@pytest.mark.parametrize("value", [0.5, 3, torch.tensor(2.0)])
def test_numbers_are_averaged_on_the_device(monkeypatch, value: Any) -> None:
    with pretend_accelerator(monkeypatch):
        accelerator = Accelerator()
        mean = mean_over_processes(accelerator)(value)
        assert mean.device.type == "gpu"
        assert float(mean) == float(value)


class TestTheDevice:
    """It finds what it is for."""

    def test_mixed_operands(self) -> None:
        with pretend_device(), pytest.raises(DeviceMixupError, match="beside device tensors"):
            torch.ones(2, device="gpu") + torch.ones(2)

    def test_a_generator_of_the_cpu(self) -> None:
        with pretend_device(), pytest.raises(DeviceMixupError, match="CPU generator"):
            torch.randn(2, device="gpu", generator=torch.Generator())

    def test_a_collective_of_a_cpu_tensor(self, monkeypatch) -> None:
        with pretend_accelerator(monkeypatch):
            accelerator = Accelerator()
            with pytest.raises(DeviceMixupError, match="`reduce` needs tensors on gpu"):
                accelerator.reduce(torch.ones(1))

    def test_what_is_allowed(self) -> None:
        with pretend_device():
            values = torch.arange(4.0, device="gpu")
            assert (values * torch.tensor(2.0))[torch.tensor([3])].tolist() == [6.0]

    def test_waits_have_their_line(self) -> None:
        with pretend_device() as device:
            values = torch.arange(4.0, device="gpu")
            float(values[0])
            values.cpu()
            values[values > 1]
        name = "tests/unit/test_devices.py:test_waits_have_their_line"
        assert device.waits_by_function() == {name: 3}
        assert len(device.waits_by_line()) == 3

    def test_a_training_step(self) -> None:
        """Parameters stay themselves, and change as on the CPU."""
        results = []
        for place in ("cpu", "gpu"):
            torch.manual_seed(0)
            model = torch.nn.Sequential(
                # No bias: a batch norm takes its gradient to zero, and Adam would divide rounding.
                torch.nn.Conv2d(3, 4, 3, bias=False), torch.nn.BatchNorm2d(4), torch.nn.Flatten(),
                torch.nn.Linear(4 * 16, 2), torch.nn.Dropout(0.5),
            )  # fmt: skip
            weight, video = model[0].weight, torch.randn(2, 3, 6, 6)
            with pretend_device():
                model.to(place)
                assert model[0].weight is weight
                optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
                model(video.to(place)).square().mean().backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
                optimizer.step()
                results.append([parameter.detach().cpu() for parameter in model.parameters()])
        for one, other in zip(*results, strict=True):
            assert_close(one, other)
