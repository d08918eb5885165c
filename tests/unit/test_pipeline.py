"""The pipeline: what it makes follows from what it is asked, saved or not, alone or in a batch."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from torch.testing import assert_close

from diffusion import LatentStats, VidTwinPipeline
from diffusion.pipeline_files import find_pipeline, pipeline_folder
from diffusion.sampling import generators_of
from diffusion.scheduler_names import SCHEDULER_NAMES, is_flow, scheduler_names
from diffusion.schedulers import LatentSolver, build_scheduler
from diffusion.training_files import find_transformer
from vidtwin import VidTwinLatents, draw_noise, standard_normal_latents, weights_digest
from vidtwin.files import root_folder
from vidtwin.model_paths import find_autoencoder
from vidtwin_lab.evaluation.config import VideosConfig, autoencoder_path, model_sizes

PROMPTS = ["a red circle", "a blue square turns left"]
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
SCHEDULERS: dict[str, Callable[[], Any]] = {
    "flow euler": FlowMatchEulerDiscreteScheduler,
    "flow heun": FlowMatchHeunDiscreteScheduler,
    "flow dpm": lambda: DPMSolverMultistepScheduler(**FLOW),
    "flow unipc": lambda: UniPCMultistepScheduler(**FLOW),
    "flow sde": lambda: DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", **FLOW),
    "ddim": lambda: DDIMScheduler(clip_sample=False),
    "ddim v": lambda: DDIMScheduler(clip_sample=False, prediction_type="v_prediction"),
    "ddpm": lambda: DDPMScheduler(clip_sample=False),
    "dpm": DPMSolverMultistepScheduler,
    "euler": EulerDiscreteScheduler,
}


@pytest.fixture(scope="module")
def text_pipeline(build_pipeline) -> VidTwinPipeline:
    return build_pipeline()


@pytest.fixture(scope="module")
def class_pipeline(build_pipeline) -> VidTwinPipeline:
    return build_pipeline(text=False, classes=True)


def ask(pipeline: VidTwinPipeline, **changes: Any) -> Any:
    """Few steps, latents alone."""
    options: dict[str, Any] = {"num_inference_steps": 3, "seed": 5, "output_type": "latent"}
    return pipeline(**options | changes)


def assert_same(one: VidTwinLatents, other: VidTwinLatents, tolerance: float = 0.0) -> None:
    for a, b in zip(one.tensors(), other.tensors(), strict=True):
        assert_close(a, b, rtol=tolerance, atol=tolerance)


class CountedRows:
    """Counts the rows that the transformer is given."""

    def __init__(self, pipeline: VidTwinPipeline) -> None:
        self.calls: list[int] = []
        self.levels: list[tuple[float, float]] = []
        self.hook = pipeline.transformer.register_forward_pre_hook(self.count)

    def count(self, module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        self.calls.append(len(inputs[0]))
        self.levels.append((float(inputs[3][0]), float(inputs[4][0])))

    def __enter__(self) -> CountedRows:
        return self

    def __exit__(self, *error: object) -> None:
        self.hook.remove()


class TestWhatComesOut:
    def test_pt(self, text_pipeline) -> None:
        out = text_pipeline(PROMPTS, num_inference_steps=2, seed=0, num_videos_per_prompt=2)
        assert out.videos.shape == (4, 3, 8, 16, 24)
        assert out.videos.dtype == torch.float32
        assert 0 <= out.videos.min() < out.videos.max() <= 1
        sizes = text_pipeline.autoencoder.sizes
        for name, tensor in out.latents.items():
            assert tensor.shape == (4, *getattr(sizes, f"{name}_shape"))
        decoded = text_pipeline.autoencoder.decode(out.latents).detach()
        assert_close(out.videos, ((decoded + 1) / 2).clamp(0, 1), rtol=0, atol=1e-5)

    def test_the_other_types_show_the_same(self, text_pipeline) -> None:
        made = {
            kind: text_pipeline(PROMPTS[0], num_inference_steps=2, seed=0, output_type=kind)
            for kind in ("pt", "np", "pil", "latent")
        }
        frames = made["pt"].videos.permute(0, 2, 3, 4, 1).numpy()
        assert np.array_equal(made["np"].videos, frames)
        pictures = made["pil"].videos
        assert (len(pictures), len(pictures[0]), pictures[0][0].size) == (1, 8, (24, 16))
        assert np.array_equal(np.asarray(pictures[0][3]), (frames[0, 3] * 255).round())
        assert made["latent"].videos is None
        assert_same(made["latent"].latents, made["pt"].latents)

    def test_a_tuple(self, text_pipeline) -> None:
        videos, latents = text_pipeline(num_inference_steps=1, seed=0, return_dict=False)
        assert videos.shape[0] == latents.batch_size == 1

    def test_half_precision_is_close(self, build_pipeline, text_pipeline) -> None:
        half = build_pipeline().to(torch.bfloat16)
        made = half(PROMPTS[0], num_inference_steps=2, seed=0)
        assert made.videos.dtype == made.latents.structure.dtype == torch.float32
        exact = text_pipeline(PROMPTS[0], num_inference_steps=2, seed=0)
        assert (made.videos - exact.videos).abs().mean() < 0.05


class TestSeeds:
    def test_noise_is_each_samples_own(self, text_pipeline) -> None:
        sizes = text_pipeline.autoencoder.sizes
        device = torch.device("cpu")
        drawn = standard_normal_latents(sizes, 3, generators_of(7, None, 3), device)
        expected = draw_noise(sizes, [7, 8, 9])
        for name, tensor in drawn.items():
            assert torch.equal(tensor, getattr(expected, name))

    @pytest.mark.parametrize("name", SCHEDULERS)
    def test_a_sample_is_the_same_alone_and_in_a_batch(self, build_pipeline, name) -> None:
        pipeline = build_pipeline(scheduler=SCHEDULERS[name]())
        prompts = [*PROMPTS, "a star"]
        batch = ask(pipeline, prompt=prompts, seed=[3, 9, 4], num_inference_steps=4)
        alone = ask(pipeline, prompt=prompts[1], seed=9, num_inference_steps=4)
        assert_same(batch.latents[1:2], alone.latents, tolerance=1e-4)
        assert all(bool(tensor.isfinite().all()) for tensor in batch.latents.tensors())
        assert not torch.allclose(batch.latents.structure[:1], batch.latents.structure[1:2])

    def test_counts_on(self, text_pipeline) -> None:
        counted = ask(text_pipeline, prompt=PROMPTS, seed=4)
        listed = ask(text_pipeline, prompt=PROMPTS, seed=[4, 5])
        assert_same(counted.latents, listed.latents)

    def test_generators(self, text_pipeline) -> None:
        own = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
        made = ask(text_pipeline, prompt=PROMPTS, seed=None, generator=own)
        assert_same(made.latents, ask(text_pipeline, prompt=PROMPTS, seed=5).latents)
        one = torch.Generator().manual_seed(5)
        again = torch.Generator().manual_seed(5)
        first = ask(text_pipeline, prompt=PROMPTS, seed=None, generator=one)
        assert_same(
            first.latents, ask(text_pipeline, prompt=PROMPTS, seed=None, generator=again).latents
        )

    def test_without_a_seed_torch_decides(self, text_pipeline) -> None:
        torch.manual_seed(1)
        first, second = (ask(text_pipeline, seed=None).latents for _ in range(2))
        assert not torch.equal(first.structure, second.structure)
        torch.manual_seed(1)
        assert_same(ask(text_pipeline, seed=None).latents, first)


class TestSchedulers:
    @pytest.mark.parametrize(
        "kind", ["velocity", "epsilon", "v_prediction", "sample", "flow_sample"]
    )
    @pytest.mark.parametrize("name", SCHEDULER_NAMES)
    def test_the_exact_model_of_a_gaussian_samples_it(self, name, kind) -> None:
        """Latents N(3, 0.5^2) have a known best prediction; noise eps must become 3 + 0.5 eps."""
        like: Any = FlowMatchEulerDiscreteScheduler()
        if not is_flow(kind):
            betas = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": kind}
            like = DDPMScheduler(clip_sample=False, **betas)
        if name not in scheduler_names(kind):
            with pytest.raises(ValueError, match=f"got '{name}'".replace("+", r"\+")):
                build_scheduler(name, like)
            return
        generator = torch.Generator().manual_seed(0)
        scheduler = build_scheduler(name, like)
        solver = LatentSolver(scheduler, 100, torch.device("cpu"), generator, kind)
        noise = torch.randn(1, 2000, generator=generator)
        sample = solver.start(noise)
        for index in range(len(solver)):
            seen = solver.model_input(sample, index)
            if is_flow(kind):
                share = float(solver.timestep(index)) / 1000
                signal = 1 - share
            else:
                step = torch.tensor(float(solver.timestep(index)))
                levels = like.alphas_cumprod
                low, high = levels[int(step)], levels[min(int(step) + 1, 999)]
                level = float(torch.lerp(low, high, step - step.floor()))
                signal, share = level**0.5, (1 - level) ** 0.5
            variance = signal**2 * 0.25 + share**2
            latents = 3 + signal * 0.25 / variance * (seen - signal * 3)
            eps = (seen - signal * latents) / share
            prediction = {
                "velocity": eps - latents,
                "epsilon": eps,
                "v_prediction": signal * eps - share * latents,
                "sample": latents,
                "flow_sample": latents,
            }[kind]
            sample = solver.step(prediction, sample, index)
        if name == "ddpm":
            assert abs(float(sample.mean()) - 3) < 0.05
            assert abs(float(sample.std()) - 0.5) < 0.05
        else:
            assert float((sample - 3 - 0.5 * noise).abs().mean()) < 0.02

    @pytest.mark.parametrize("name", scheduler_names("velocity"))
    def test_predicted_latents_are_as_good_as_velocities(self, build_pipeline, name) -> None:
        """The same model told in either way makes the same videos: guided, long, some given."""
        like = FlowMatchEulerDiscreteScheduler(shift=2.0)
        velocity, clean = (
            build_pipeline(scheduler=build_scheduler(name, like), prediction=prediction)
            for prediction in ("velocity", "flow_sample")
        )
        predict = clean.transformer.forward

        def forward(*inputs: Any, **conditions: Any) -> Any:
            *latents, structure, dynamics = inputs
            velocities = predict(*inputs, **conditions)
            sigmas = (structure / 1000, dynamics / 1000, dynamics / 1000)
            return tuple(
                x - sigma.reshape(-1, *[1] * (x.ndim - 1)) * v
                for x, v, sigma in zip(latents, velocities, sigmas, strict=True)
            )

        clean.transformer.forward = forward
        given = draw_noise(velocity.autoencoder.sizes, [1])
        for asked in (
            {"num_frames": 12},
            {"structure": given, "given_guidance_scale": 2.0},
        ):
            asked |= {"prompt": PROMPTS[0], "negative_prompt": "a star", "guidance_scale": 5.0}
            first, second = ask(velocity, **asked).latents, ask(clean, **asked).latents
            assert_same(first, second, tolerance=2e-3)

    @pytest.mark.parametrize(
        ("kind", "name"),
        [(kind, name) for kind in ("sample", "flow_sample") for name in scheduler_names(kind)],
    )
    def test_a_model_that_knows_the_scaled_latents_gives_the_raw_ones(
        self, build_pipeline, name, kind
    ) -> None:
        like: Any = FlowMatchEulerDiscreteScheduler()
        if not is_flow(kind):
            like = DDIMScheduler(clip_sample=False, prediction_type=kind)
        pipeline = build_pipeline(scheduler=build_scheduler(name, like), prediction=kind)
        raw = draw_noise(pipeline.autoencoder.sizes, [3])
        scaled = pipeline.latent_stats.scale(raw).tensors()
        pipeline.transformer.forward = lambda *_, **__: scaled
        assert_same(ask(pipeline, guidance_scale=1.0).latents, raw, tolerance=0.02)

    def test_a_prediction_of_flow_stays_with_schedulers_of_flow(self, build_pipeline) -> None:
        pipeline = build_pipeline(prediction="flow_sample")
        pipeline.scheduler = DDIMScheduler(clip_sample=False, prediction_type="sample")
        with pytest.raises(ValueError, match="predicts flow_sample, and the scheduler DDIMSch"):
            ask(pipeline)

    def test_a_shift_is_kept(self) -> None:
        like = FlowMatchEulerDiscreteScheduler(shift=3.0)
        assert build_scheduler("heun", like).config.shift == 3.0
        unipc = build_scheduler("unipc", like)
        assert unipc.config.flow_shift == 3.0
        assert build_scheduler("euler", unipc).config.shift == 3.0

    def test_a_used_scheduler_starts_anew(self, build_pipeline) -> None:
        pipeline = build_pipeline(scheduler=FlowMatchHeunDiscreteScheduler())

        def stop(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            pipe._interrupt = step == 1
            return {}

        first = ask(pipeline, prompt=PROMPTS[0])
        ask(pipeline, prompt=PROMPTS[0], callback_on_step_end=stop)
        assert_same(ask(pipeline, prompt=PROMPTS[0]).latents, first.latents)

    @pytest.mark.parametrize(
        ("scheduler", "reason"),
        [
            (DDIMScheduler(clip_sample=False), "predicts velocity"),
            (DDPMScheduler(), "clip_sample"),
            (DDIMScheduler.from_config(FLOW), "steps no flows; take one of euler, heun"),
            (FlowMatchEulerDiscreteScheduler(stochastic_sampling=True), "stochastic_sampling"),
            (FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), "use_dynamic_shifting"),
            (UniPCMultistepScheduler(prediction_type="flow_prediction"), "use_flow_sigmas"),
            (UniPCMultistepScheduler(prediction_type="sample"), "predicts velocity"),
            (UniPCMultistepScheduler(**FLOW | {"prediction_type": "sample"}), "prediction_type"),
        ],
    )
    def test_one_that_does_not_fit(self, build_pipeline, scheduler, reason) -> None:
        pipeline = build_pipeline()
        pipeline.scheduler = scheduler
        with pytest.raises(ValueError, match=reason):
            ask(pipeline)

    def test_an_unknown_name(self) -> None:
        with pytest.raises(ValueError, match=r"euler, heun, dpm\+\+, unipc for .* got 'ddim'"):
            build_scheduler("ddim", FlowMatchEulerDiscreteScheduler())


class TestGuidance:
    def test_one_is_off(self, text_pipeline) -> None:
        with CountedRows(text_pipeline) as off:
            plain = ask(text_pipeline, prompt=PROMPTS, guidance_scale=1.0)
        with CountedRows(text_pipeline) as on:
            guided = ask(text_pipeline, prompt=PROMPTS, guidance_scale=2.0)
        assert (off.calls, on.calls) == ([2] * 3, [4] * 3)
        assert not torch.allclose(plain.latents.structure, guided.latents.structure)

    def test_nothing_to_be_guided_by(self, text_pipeline) -> None:
        with CountedRows(text_pipeline) as counted:
            ask(text_pipeline, guidance_scale=5.0)
        assert counted.calls == [1] * 3

    @pytest.mark.parametrize("nothing", ["", [""], ["", ""]])
    def test_a_negative_prompt_that_says_nothing_is_none(self, text_pipeline, nothing) -> None:
        asked = {"prompt": PROMPTS, "guidance_scale": 2.0}
        said = ask(text_pipeline, **asked, negative_prompt=nothing).latents
        assert_same(said, ask(text_pipeline, **asked).latents)

    def test_a_negative_prompt_takes_the_place_of_none(self, text_pipeline) -> None:
        asked = {"prompt": PROMPTS[0], "guidance_scale": 3.0}
        plain = ask(text_pipeline, **asked).latents
        steered = ask(text_pipeline, **asked, negative_prompt="two green stars").latents
        assert not torch.allclose(plain.structure, steered.structure)
        # Away from what is asked for and towards it at once: guidance without effect.
        itself = ask(text_pipeline, **asked, negative_prompt=PROMPTS[0]).latents
        off = ask(text_pipeline, prompt=PROMPTS[0], guidance_scale=1.0).latents
        assert_same(itself, off, tolerance=1e-4)

    def test_of_each_latent(self, text_pipeline) -> None:
        """One step from noise: what is not guided comes out as without guidance."""
        asked = {"prompt": PROMPTS[0], "num_inference_steps": 1}
        off = ask(text_pipeline, **asked, guidance_scale=1.0).latents
        on = ask(text_pipeline, **asked, guidance_scale=4.0).latents
        mixed = ask(
            text_pipeline, **asked, guidance_scale=1.0, structure_guidance_scale=4.0
        ).latents
        assert_close(mixed.structure, on.structure, rtol=1e-4, atol=1e-4)
        assert_close(mixed.dynamics_x, off.dynamics_x, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(off.structure, on.structure, atol=1e-3)

    @pytest.mark.parametrize("held", ["structure", "dynamics"])
    def test_by_what_is_given(self, text_pipeline, held) -> None:
        """One step from noise: as the formula says, from the model's own predictions."""
        given = ask(text_pipeline, seed=5).latents
        asked = {held: given, "num_inference_steps": 1, "output_type": "latent", "seed": 3}
        with CountedRows(text_pipeline) as counted:
            off, on = (
                ask(text_pipeline, **asked, given_guidance_scale=scale).latents
                for scale in (1.0, 3.0)
            )
        assert counted.calls == [1, 2]
        sampled = "dynamics_x" if held == "structure" else "structure"
        kept = "structure" if held == "structure" else "dynamics_x"
        assert torch.equal(getattr(on, kept), getattr(given, kept))
        # What it would be without knowing what is held: both latents start from the same noise,
        # and one step's prediction of a latent does not depend on the step of the other.
        apart = ask(text_pipeline, num_inference_steps=1, output_type="latent", seed=3).latents
        expected = getattr(apart, sampled) + 3 * (getattr(off, sampled) - getattr(apart, sampled))
        assert_close(getattr(on, sampled), expected, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(getattr(on, sampled), getattr(off, sampled), atol=1e-3)

    def test_by_what_is_given_and_a_prompt(self, text_pipeline) -> None:
        given = ask(text_pipeline, seed=5).latents
        asked = {"prompt": PROMPTS[0], "structure": given, "given_guidance_scale": 2.0}
        with CountedRows(text_pipeline) as counted:
            ask(text_pipeline, **asked, guidance_scale=3.0)
            ask(text_pipeline, prompt=PROMPTS[0], given_guidance_scale=2.0, guidance_scale=3.0)
        assert counted.calls == [3] * 3 + [2] * 3

    def test_by_what_is_given_is_off_unless_the_pipeline_was_trained_for_it(
        self, build_pipeline, text_pipeline
    ) -> None:
        given = draw_noise(text_pipeline.autoencoder.sizes, [1])
        trained = build_pipeline(given_guidance_scale=2.0)
        for pipeline, scale, rows in ((text_pipeline, 1.0, 1), (trained, 2.0, 2)):
            with CountedRows(pipeline) as counted:
                made = ask(pipeline, structure=given).latents
                ask(pipeline, num_frames=12)
            assert counted.calls == [rows] * 3 + [1] * 3 + [rows] * 3
            assert_same(made, ask(pipeline, structure=given, given_guidance_scale=scale).latents)

    @pytest.mark.parametrize(
        "asked",
        [
            {"structure": True, "given_guidance_scale": 2.0},
            {"dynamics": True, "given_guidance_scale": 2.0},
            {"num_frames": 12, "given_guidance_scale": 2.0},
            {"dynamics_guidance_scale": 3.0},
            {"structure": True, "guidance_scale": 2.0, "given_guidance_scale": 1.0},
        ],
    )
    def test_a_negative_prompt_is_taken_where_it_acts(self, text_pipeline, asked) -> None:
        given = draw_noise(text_pipeline.autoencoder.sizes, [1])
        asked = {"prompt": PROMPTS[0], "guidance_scale": 1.0} | asked
        asked |= {name: given for name in ("structure", "dynamics") if asked.get(name)}
        plain = ask(text_pipeline, **asked).latents
        steered = ask(text_pipeline, **asked, negative_prompt="two green stars").latents
        assert not torch.equal(plain.pack(), steered.pack())

    @pytest.mark.parametrize(
        "asked",
        [
            {"given_guidance_scale": 2.0},  # nothing is given
            {"structure": True, "given_guidance_scale": 1.0},
            {"structure": True, "guidance_scale": 2.0, "given_guidance_scale": 2.0},
            {"structure": True, "structure_guidance_scale": 3.0, "given_guidance_scale": 1.0},
        ],
    )
    def test_a_negative_prompt_is_refused_where_it_does_nothing(self, text_pipeline, asked) -> None:
        asked = {"prompt": PROMPTS[0], "guidance_scale": 1.0} | asked
        if "structure" in asked:
            asked["structure"] = draw_noise(text_pipeline.autoencoder.sizes, [1])
        with pytest.raises(ValueError, match="a `negative_prompt` does nothing"):
            ask(text_pipeline, **asked, negative_prompt="two green stars")

    def test_by_class(self, class_pipeline) -> None:
        with CountedRows(class_pipeline) as counted:
            by_number = ask(class_pipeline, class_labels=[0, 2], guidance_scale=2.0)
        assert counted.calls == [4] * 3
        by_name = ask(class_pipeline, class_labels=["bend", "wave"], guidance_scale=2.0)
        assert_same(by_number.latents, by_name.latents)
        for labels in (["bend", "2"], torch.tensor([0, 2]), np.array([0, 2])):
            other = ask(class_pipeline, class_labels=labels, guidance_scale=2.0)
            assert_same(by_number.latents, other.latents)
        null = ask(class_pipeline, num_videos_per_prompt=2)
        assert not torch.allclose(null.latents.structure, by_number.latents.structure)

    def test_by_both(self, build_pipeline) -> None:
        pipeline = build_pipeline(classes=True)
        with CountedRows(pipeline) as counted:
            ask(pipeline, prompt=PROMPTS[0], class_labels=1, guidance_scale=2.0)
            ask(pipeline, prompt=PROMPTS, class_labels=1, class_guidance_scale=1.0)
        # With one strength for both, nothing is asked for the text alone.
        assert counted.calls == [2] * 3 + [6] * 3


class TestGiven:
    def test_structure_stays_exactly(self, text_pipeline) -> None:
        video = torch.rand(1, 3, 8, 16, 24) * 2 - 1
        given = text_pipeline.autoencoder.encode(video).mode()
        with CountedRows(text_pipeline) as counted:
            made = ask(text_pipeline, prompt=PROMPTS, structure=given).latents
        assert torch.equal(made.structure, given.structure.expand_as(made.structure))
        assert not torch.allclose(made.dynamics_x[:1], made.dynamics_x[1:])
        assert [structure for structure, _ in counted.levels] == [0.0] * 3
        assert counted.levels[0][1] == 1000.0
        from_video = ask(text_pipeline, prompt=PROMPTS, structure=video).latents
        assert_same(from_video, made)
        assert_same(ask(text_pipeline, prompt=PROMPTS, structure=video[0]).latents, made)

    def test_dynamics_stay_exactly(self, text_pipeline) -> None:
        given = draw_noise(text_pipeline.autoencoder.sizes, [1, 2])
        made = ask(text_pipeline, dynamics=given, num_videos_per_prompt=2).latents
        for name in ("dynamics_x", "dynamics_y"):
            value = getattr(given, name)
            assert torch.equal(getattr(made, name), value.repeat_interleave(2, dim=0))
        assert not torch.allclose(made.structure[:1], made.structure[1:2])

    def test_what_is_given_is_seen_scaled(self, text_pipeline) -> None:
        seen: list[torch.Tensor] = []
        hook = text_pipeline.transformer.register_forward_pre_hook(
            lambda module, inputs: seen.append(inputs[0].clone())
        )
        given = draw_noise(text_pipeline.autoencoder.sizes, [1])
        ask(text_pipeline, structure=given, given_guidance_scale=1.0)
        hook.remove()
        assert_close(seen[0], given.structure - 0.5)  # the mean that the fixture sets

    @pytest.mark.parametrize(
        ("held", "reason"),
        [
            ({"structure": torch.zeros(1, 3, 4, 16, 24)}, "expected a video of shape"),
            ({"structure": torch.zeros(1, 3, 8, 16, 24, dtype=torch.uint8)}, "float video"),
            ({"dynamics": torch.full((1, 3, 8, 16, 24), torch.nan)}, "not finite"),
            ({"structure": torch.zeros(3, 3, 8, 16, 24)}, "as many of each"),
            (dict.fromkeys(("structure", "dynamics"), torch.zeros(3, 8, 16, 24)), "both given"),
        ],
    )
    def test_what_can_not_be_given(self, text_pipeline, held, reason) -> None:
        with pytest.raises(ValueError, match=reason):
            ask(text_pipeline, prompt=PROMPTS, **held)


class TestLongVideos:
    def test_length_structure_and_overlap(self, text_pipeline) -> None:
        made = text_pipeline(PROMPTS, num_inference_steps=3, seed=5, num_frames=19)
        assert made.videos.shape == (2, 3, 19, 16, 24)
        assert made.latents.dynamics_x.shape == (2, 2, 19, 3)
        first = ask(text_pipeline, prompt=PROMPTS).latents
        assert torch.equal(made.latents.structure, first.structure)
        assert_close(made.latents.dynamics_x[:, :, :8], first.dynamics_x)
        assert bool(made.videos.isfinite().all())
        start = text_pipeline(PROMPTS, num_inference_steps=3, seed=5).videos
        assert_close(made.videos[:, :, :6], start[:, :, :6], rtol=0, atol=1e-5)

    @pytest.mark.parametrize("name", ["flow euler", "flow heun", "flow dpm", "ddim", "euler"])
    def test_later_frames_follow_from_the_overlap(self, build_pipeline, name) -> None:
        """The known frames are at the level of the others when the model sees them."""
        pipeline = build_pipeline(scheduler=SCHEDULERS[name]())
        seen: list[torch.Tensor] = []
        hook = pipeline.transformer.register_forward_pre_hook(
            lambda module, inputs: seen.append(inputs[1].clone())
        )
        made = ask(pipeline, num_frames=14, overlap_frames=2, num_inference_steps=8).latents
        hook.remove()
        last = len(seen) // 2
        known = made.dynamics_x[:, :, 6:8] / 2  # the deviation that the fixture sets
        errors = [(frames[:, :, :2] - known).abs().mean() for frames in seen[last:]]
        assert errors[-1] < 0.5 * errors[0]
        assert made.dynamics_x.shape[2] == 14

    def test_given_structure(self, text_pipeline) -> None:
        given = draw_noise(text_pipeline.autoencoder.sizes, [1])
        made = ask(text_pipeline, structure=given, num_frames=12).latents
        assert torch.equal(made.structure, given.structure)

    def test_same_alone_and_in_a_batch(self, text_pipeline) -> None:
        batch = ask(text_pipeline, prompt=PROMPTS, num_frames=12).latents
        alone = ask(text_pipeline, prompt=PROMPTS[1], num_frames=12, seed=6).latents
        assert_same(batch[1:2], alone, tolerance=1e-4)

    @pytest.mark.parametrize(
        ("options", "reason"),
        [
            ({"num_frames": 7}, "at least 8"),
            ({"num_frames": 12, "overlap_frames": 8}, "from 0 to 7"),
            ({"num_frames": 12, "dynamics": torch.zeros(3, 8, 16, 24)}, "8 frames of motion"),
            ({"num_frames": 12.5}, "whole number"),
        ],
    )
    def test_what_can_not_be_long(self, text_pipeline, options, reason) -> None:
        with pytest.raises(ValueError, match=reason):
            ask(text_pipeline, **options)


def test_motion_scale(text_pipeline) -> None:
    plain = ask(text_pipeline, num_frames=12).latents
    more = ask(text_pipeline, num_frames=12, motion_scale=3.0).latents
    assert torch.equal(more.structure, plain.structure)
    for name in ("dynamics_x", "dynamics_y"):
        one, other = getattr(plain, name), getattr(more, name)
        assert_close(one.mean(2), other.mean(2))
        assert_close(3 * one.std(2), other.std(2))
    still = ask(text_pipeline, motion_scale=0.0).latents
    assert_close(still.dynamics_x.std(2), torch.zeros(1, 2, 3))


class TestCallback:
    def test_sees_every_step_and_changes_it(self, text_pipeline) -> None:
        steps: list[tuple[int, float]] = []

        def freeze(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            assert pipe is text_pipeline
            assert set(tensors) == {"structure"}
            steps.append((step, float(timestep)))
            return {"structure": torch.zeros_like(tensors["structure"])}

        made = ask(
            text_pipeline,
            callback_on_step_end=freeze,
            callback_on_step_end_tensor_inputs=["structure"],
        )
        assert [step for step, _ in steps] == [0, 1, 2]
        assert steps[0][1] == 1000
        assert_close(made.latents.structure, torch.full_like(made.latents.structure, 0.5))

    def test_may_return_nothing(self, text_pipeline) -> None:
        made = ask(text_pipeline, callback_on_step_end=lambda *arguments: None)
        assert_same(made.latents, ask(text_pipeline).latents)

    @pytest.mark.parametrize(("at", "calls", "frames"), [(0, 1, 8), (4, 5, 14)])
    def test_interrupt(self, text_pipeline, at, calls, frames) -> None:
        """The window at hand is the last one."""

        def stop(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            pipe._interrupt = step == at
            return tensors

        with CountedRows(text_pipeline) as counted:
            made = text_pipeline(
                num_inference_steps=3, seed=0, num_frames=20, callback_on_step_end=stop
            )
        assert len(counted.calls) == calls
        assert made.videos.shape[2] == made.latents.dynamics_x.shape[2] == frames
        assert ask(text_pipeline).latents.dynamics_x.shape[2] == 8  # and not the next call

    def test_those_of_diffusers_count_its_steps(self, text_pipeline) -> None:
        counted: list[int] = []

        class Half(PipelineCallback):
            @property
            def tensor_inputs(self) -> list[str]:
                return ["structure"]

            def callback_fn(self, pipeline, step_index, timestep, callback_kwargs) -> Any:
                if step_index == int(pipeline.num_timesteps * self.config.cutoff_step_ratio):
                    counted.append(step_index)
                return callback_kwargs

        callback = MultiPipelineCallbacks([Half(cutoff_step_ratio=0.5)])
        ask(text_pipeline, num_inference_steps=4, callback_on_step_end=callback)
        assert text_pipeline.num_timesteps == 4
        assert counted == [2]

    @pytest.mark.parametrize(
        ("returned", "reason"),
        [
            (
                {"structure": torch.zeros(1, 2)},
                "`structure` of shape \\(1, 2\\), expected \\(1, 2, 2",
            ),
            ({"prompt_embeds": torch.zeros(1)}, "`prompt_embeds`, which is not sampled here"),
        ],
    )
    def test_what_it_may_not_return(self, text_pipeline, returned, reason) -> None:
        with pytest.raises(ValueError, match=reason):
            ask(text_pipeline, callback_on_step_end=lambda *arguments: returned)

    def test_what_is_given_is_not_its_to_change(self, text_pipeline) -> None:
        held = ask(text_pipeline).latents
        options = {"structure": held, "callback_on_step_end_tensor_inputs": ["structure"]}
        made = ask(text_pipeline, callback_on_step_end=lambda *given: given[-1], **options)
        assert torch.equal(made.latents.structure, held.structure)
        with pytest.raises(ValueError, match="may change dynamics_x, dynamics_y"):
            ask(
                text_pipeline,
                callback_on_step_end=lambda *given: {"structure": given[-1]["structure"] + 1},
                **options,
            )

    def test_unknown_tensors(self, text_pipeline) -> None:
        with pytest.raises(ValueError, match="got noise"):
            ask(
                text_pipeline,
                callback_on_step_end=lambda *arguments: {},
                callback_on_step_end_tensor_inputs=["noise"],
            )


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"prompt": ""}, "says something"),
        ({"prompt": ["a star", "  "]}, "says something"),
        ({"prompt": []}, "empty list"),
        ({"prompt": 3}, "says something|not iterable"),
        ({"prompt": PROMPTS, "negative_prompt": ["a", "b", "c"]}, "as many of each"),
        ({"negative_prompt": "a star"}, "needs a `prompt`"),
        (
            {"prompt": "a star", "negative_prompt": "a ring", "guidance_scale": 1.0},
            "does nothing while every guidance scale is 1.0",
        ),
        ({"prompt": "a star", "class_guidance_scale": 2.0}, "no class labels to guide by"),
        ({"structure": "clip.mp4"}, "`structure` must be latents or a video as a tensor"),
        ({"dynamics": np.zeros((3, 8, 16, 24))}, "`dynamics` must be latents .* got ndarray"),
        ({"prompt": PROMPTS, "seed": 2**63 - 1}, "for 2 samples that count on from it"),
        ({"class_labels": 0}, "not trained with classes"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"num_inference_steps": 2.5}, "num_inference_steps"),
        ({"num_videos_per_prompt": 0}, "num_videos_per_prompt"),
        ({"guidance_scale": 0.5}, "guidance_scale"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"structure_guidance_scale": 0.0}, "structure_guidance_scale"),
        ({"given_guidance_scale": 0.5}, "given_guidance_scale"),
        ({"motion_scale": float("nan")}, "motion_scale"),
        ({"output_type": "gif"}, "output_type"),
        ({"seed": [1, 2]}, "each of the 1 videos"),
        ({"seed": -1}, "whole number from 0"),
        ({"seed": 1.5}, "whole number from 0"),
        ({"seed": ["a"]}, "whole number from 0"),
        ({"generator": torch.Generator()}, "got both"),
        ({"seed": None, "generator": [torch.Generator()] * 2}, "each of the 1 videos"),
        ({"seed": None, "generator": 5}, "`generator` must be a torch.Generator.* got 5"),
        ({"seed": None, "generator": [5]}, "`generator` must be .* a number is a `seed`"),
        ({"guidance_scale": 0}, "`guidance_scale` must be at least 1.0"),
        ({"guidance_scale": "3"}, "`guidance_scale` must be at least 1.0 .*got '3'"),
        ({"prompt": PROMPTS, "negative_prompt": ["a ring", ""]}, "`negative_prompt` .*got ''"),
    ],
)
def test_what_it_refuses(text_pipeline, options, reason) -> None:
    with pytest.raises(ValueError, match=reason):
        ask(text_pipeline, **options)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"prompt": "a star"}, "not trained with text"),
        ({"class_labels": "wive"}, "nearest names are wave"),
        ({"class_labels": 3}, "0 to 2"),
        ({"class_labels": -1}, "0 to 2"),
        ({"class_labels": []}, "empty list"),
        ({"class_labels": [0, 1, 2], "seed": [1]}, "each of the 3 videos"),
    ],
)
def test_what_a_model_of_classes_refuses(class_pipeline, options, reason) -> None:
    with pytest.raises(ValueError, match=reason):
        ask(class_pipeline, **options)


def test_a_long_prompt_is_cut_and_says_so(text_pipeline, caplog) -> None:
    ask(text_pipeline, prompt="a red circle moves left " * 5 + "stars")
    assert "stars" in caplog.text


class TestFiles:
    @pytest.mark.parametrize("kind", ["text", "classes", "none"])
    def test_saved_and_loaded_makes_the_same(self, build_pipeline, tmp_path, kind) -> None:
        pipeline = build_pipeline(text=kind == "text", classes=kind == "classes")
        asked: dict[str, Any] = {
            "text": {"prompt": PROMPTS},
            "classes": {"class_labels": "wave"},
            "none": {},
        }
        first = pipeline(**asked[kind], num_inference_steps=3, seed=1)
        pipeline.save_pretrained(tmp_path)
        loaded = VidTwinPipeline.from_pretrained(tmp_path)
        loaded.set_progress_bar_config(disable=True)
        again = loaded(**asked[kind], num_inference_steps=3, seed=1)
        assert torch.equal(first.videos, again.videos)
        assert_same(first.latents, again.latents)
        assert loaded.config["fps"] == 8.0
        assert not list(tmp_path.rglob("*.bin"))
        loaded.save_pretrained(tmp_path / "again")
        files = {"model_index.json", "transformer/config.json"}
        for name in files:
            assert _without_origin(tmp_path / name) == _without_origin(tmp_path / "again" / name)

    def test_in_a_run_folder(self, class_pipeline, tmp_path) -> None:
        run, inside = tmp_path / "run", tmp_path / "run" / "pipeline"
        class_pipeline.save_pretrained(inside)
        assert pipeline_folder(run) == find_pipeline(run) == pipeline_folder(inside) == inside
        loaded = VidTwinPipeline.from_pretrained(run)
        assert weights_digest(loaded.transformer) == weights_digest(class_pipeline.transformer)
        assert find_transformer(str(run)) == find_transformer(str(inside)) == inside / "transformer"
        assert find_transformer(str(inside / "transformer")) == inside / "transformer"
        assert find_autoencoder(run) == autoencoder_path(run) == inside / "autoencoder"
        VideosConfig(path=str(run)).check_files()
        sizes = class_pipeline.autoencoder.sizes
        assert model_sizes(VideosConfig(path=str(run))) == sizes.video_shape[1:]

    def test_a_shipped_one_from_any_folder(self, tmp_path, monkeypatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert find_pipeline("checkpoints/shapes") == root_folder() / "checkpoints/shapes"

    def test_its_own_defaults(self, build_pipeline, tmp_path) -> None:
        own = {"num_inference_steps": 2, "guidance_scale": 3.0, "given_guidance_scale": 2.0}
        build_pipeline(**own).save_pretrained(tmp_path)
        loaded = VidTwinPipeline.from_pretrained(tmp_path)
        loaded.set_progress_bar_config(disable=True)
        assert own.items() <= loaded.config.items()
        asked = {"prompt": PROMPTS, "structure": draw_noise(loaded.autoencoder.sizes, [1])}
        made = loaded(**asked, seed=1, output_type="latent").latents
        assert_same(made, loaded(**asked, **own, seed=1, output_type="latent").latents)
        # Folders from before say nothing: they are not known to be trained for a given latent.
        index = json.loads((tmp_path / "model_index.json").read_text())
        (tmp_path / "model_index.json").write_text(
            json.dumps({name: value for name, value in index.items() if name not in own})
        )
        old = VidTwinPipeline.from_pretrained(tmp_path).config
        assert (old["given_guidance_scale"], old["guidance_scale"]) == (1.0, 6.0)
        assert old["num_inference_steps"] == 30

    @pytest.mark.parametrize("name", ["num_inference_steps", "guidance_scale"])
    def test_defaults_out_of_range(self, build_pipeline, name) -> None:
        with pytest.raises(ValueError, match=f"`{name}` must be"):
            build_pipeline(**{name: 0})

    def test_variants(self, build_pipeline, tmp_path) -> None:
        build_pipeline().save_pretrained(tmp_path, variant="fp16")
        assert (tmp_path / "text_encoder" / "model.fp16.safetensors").is_file()
        loaded = VidTwinPipeline.from_pretrained(tmp_path, variant="fp16")
        assert_same(ask(loaded).latents, ask(build_pipeline()).latents)
        with pytest.raises(ValueError, match="no text encoder in"):
            VidTwinPipeline.from_pretrained(tmp_path)

    def test_from_pipe_shares_the_parts(self, build_pipeline) -> None:
        pipeline = build_pipeline()
        again = VidTwinPipeline.from_pipe(pipeline)
        assert again.transformer is pipeline.transformer
        assert again.config["fps"] == pipeline.config["fps"]
        assert_same(ask(again).latents, ask(pipeline).latents)

    def test_an_exchanged_scheduler_travels(self, build_pipeline, tmp_path) -> None:
        pipeline = build_pipeline()
        pipeline.scheduler = build_scheduler("unipc", pipeline.scheduler)
        pipeline.save_pretrained(tmp_path)
        loaded = VidTwinPipeline.from_pretrained(tmp_path)
        assert isinstance(loaded.scheduler, UniPCMultistepScheduler)
        assert_same(ask(loaded).latents, ask(pipeline).latents)

    @pytest.mark.parametrize(
        "dtype", ["bfloat16", 16, {"transformer": "auto"}, {"transformer": "float16"}]
    )
    def test_a_dtype_that_is_none_is_named(self, dtype, tmp_path) -> None:
        for keyword in ("torch_dtype", "dtype"):
            with pytest.raises(ValueError, match=f"`{keyword}` must be a dtype of torch"):
                VidTwinPipeline.from_pretrained(tmp_path, **{keyword: dtype})

    def test_stored_in_half_loads_as_float(self, build_pipeline, tmp_path) -> None:
        pipeline = build_pipeline()
        pipeline.latent_stats.structure_mean.fill_(0.3)
        expected = {k: v.clone() for k, v in pipeline.latent_stats.state_dict().items()}
        pipeline.to(torch.float16).save_pretrained(tmp_path)
        loaded = VidTwinPipeline.from_pretrained(tmp_path)
        half = VidTwinPipeline.from_pretrained(tmp_path, torch_dtype=torch.float16)
        for name in ("autoencoder", "transformer", "text_encoder", "latent_stats"):
            assert {t.dtype for t in getattr(loaded, name).state_dict().values()} <= {
                torch.float32,
                torch.int64,
            }
        for pipeline in (half, loaded.to(torch.bfloat16)):  # they are never rounded
            stats = pipeline.latent_stats.state_dict()
            assert stats.keys() == expected.keys()
            for name, value in expected.items():
                assert stats[name].dtype == torch.float32
                assert torch.equal(stats[name], value)
        assert half.transformer.dtype == half.text_encoder.dtype == torch.float16

    @pytest.mark.parametrize(
        "part",
        ["model_index.json", "autoencoder", "transformer", "scheduler", "latent_stats"]
        + ["text_encoder", "tokenizer"],
    )
    def test_a_missing_part_is_named(self, saved, part) -> None:
        lost = saved / part
        shutil.rmtree(lost) if lost.is_dir() else lost.unlink()
        with pytest.raises(ValueError, match=part):
            VidTwinPipeline.from_pretrained(saved)

    @pytest.mark.parametrize("part", ["autoencoder", "transformer", "text_encoder", "latent_stats"])
    @pytest.mark.parametrize("file", ["config.json", "weights", "cut"])
    def test_a_missing_or_cut_file(self, saved, part, file) -> None:
        weights = next((saved / part).glob("*.safetensors"))
        lost = saved / part / "config.json" if file == "config.json" else weights
        if file == "cut":
            lost.write_bytes(lost.read_bytes()[:-10])
        else:
            lost.unlink()
        with pytest.raises(ValueError, match=part):
            VidTwinPipeline.from_pretrained(saved)

    @pytest.mark.parametrize(
        ("part", "entry"),
        [
            ("transformer", ["os", "system"]),
            ("scheduler", ["evil", "Scheduler"]),
            ("text_encoder", ["diffusion.dit", "TwinDiT"]),
            ("latent_stats", [None, None]),
            ("_class_name", "StableDiffusionPipeline"),
        ],
    )
    def test_a_foreign_class_is_refused(self, saved, part, entry) -> None:
        index = json.loads((saved / "model_index.json").read_text())
        (saved / "model_index.json").write_text(json.dumps(index | {part: entry}))
        with pytest.raises(ValueError, match=r"must be|has no|another pipeline"):
            VidTwinPipeline.from_pretrained(saved)

    def test_loading_warns_of_nothing(self, saved) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error", FutureWarning)
            VidTwinPipeline.from_pretrained(saved)

    def test_code_in_a_folder_is_refused(self, saved) -> None:
        (saved / "scheduler" / "diffusers.py").write_text("raise SystemExit('ran')")
        with pytest.raises(ValueError, match="code in its folder"):
            VidTwinPipeline.from_pretrained(saved)

    def test_no_such_folder(self, tmp_path) -> None:
        with pytest.raises(ValueError, match="does not exist"):
            VidTwinPipeline.from_pretrained(tmp_path / "nothing")

    @pytest.fixture
    def saved(self, build_pipeline, tmp_path):
        build_pipeline().save_pretrained(tmp_path)
        return tmp_path


def _without_origin(path: Any) -> dict[str, Any]:
    return {
        name: value
        for name, value in json.loads(path.read_text()).items()
        if name != "_name_or_path"
    }


class TestParts:
    def test_must_belong_together(self, build_pipeline) -> None:
        parts = build_pipeline().components
        with pytest.raises(ValueError, match="statistics are of 3 and 2"):
            VidTwinPipeline(**parts | {"latent_stats": LatentStats(3, 2)})
        with pytest.raises(ValueError, match="one for each of the None classes"):
            VidTwinPipeline(**parts, class_names=["one"])
        with pytest.raises(ValueError, match="predicts epsilon"):
            VidTwinPipeline(**parts, prediction="epsilon")
        transformer = build_pipeline(text=False).transformer
        with pytest.raises(ValueError, match="width None"):
            VidTwinPipeline(**parts | {"transformer": transformer})

    def test_without_a_reader(self, build_pipeline) -> None:
        parts = build_pipeline().components
        pipeline = VidTwinPipeline(**parts | {"text_encoder": None, "tokenizer": None})
        with pytest.raises(ValueError, match="no text encoder"):
            ask(pipeline, prompt="a star")

    def test_offloading_layer_by_layer(self, build_pipeline) -> None:
        with pytest.raises(ValueError, match="enable_model_cpu_offload"):
            build_pipeline().enable_sequential_cpu_offload()

    @pytest.mark.parametrize("device", ["cpu", "cuda"])
    def test_offloading(self, build_pipeline, device) -> None:
        """To the CPU itself, which only shows that the hooks are met, or an accelerator."""
        if device == "cuda" and not torch.cuda.is_available():
            pytest.skip("offloading needs an accelerator")
        pipeline = build_pipeline()
        given = torch.zeros(3, 8, 16, 24)
        asked = {"prompt": PROMPTS, "num_inference_steps": 2, "seed": 0, "structure": given}
        expected = build_pipeline()(**asked).videos
        pipeline.enable_model_cpu_offload(device=device)
        for _ in range(2):
            assert_close(pipeline(**asked).videos.cpu(), expected, rtol=0, atol=1e-3)
        assert pipeline.transformer.device.type == "cpu"
