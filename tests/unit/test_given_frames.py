"""Frames that are given: what the model is told of them, in training and in the pipeline."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from diffusion import FlowConfig, FlowObjective, TwinDiT, VidTwinPipeline
from diffusion.config import GivenFramesConfig, InputsConfig
from diffusion.given_frames import FramesEmbedder, filled_video, known_dynamics
from diffusion.training import TrainingInputs, build_transformer
from vidtwin import VidTwinLatents
from vidtwin.data.given_frames import read_image, read_last_frames
from vidtwin.media import write_video

SHAPE = (3, 8, 16, 24)


@pytest.fixture(scope="module")
def pipeline(build_pipeline) -> VidTwinPipeline:
    """With weights for given frames that are not zero."""
    pipe = build_pipeline()
    sizes = vars(pipe.transformer.sizes) | {"given_frames": True}
    model = TwinDiT(**sizes).eval()
    torch.manual_seed(3)
    for weight in model.given.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    given = {k: v for k, v in model.state_dict().items() if k.startswith("given.")}
    model.load_state_dict(pipe.transformer.state_dict() | given)
    pipe.register_modules(transformer=model)
    return pipe


def video(rows: int = 1, frames: int = 8, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, 3, frames, 16, 24, generator=generator) * 2 - 1


def ask(pipeline: VidTwinPipeline, **changes: Any) -> Any:
    return pipeline(**{"prompt": "a star", "num_inference_steps": 3, "seed": 5} | changes)


def distance(one: VidTwinLatents, other: VidTwinLatents) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(one.tensors(), other.tensors()))


def test_every_frame_becomes_the_nearest_given_one() -> None:
    clip = torch.arange(8.0).reshape(1, 1, 8, 1, 1).expand(4, 3, 8, 2, 2)
    frames = torch.zeros(4, 8, dtype=torch.bool)
    frames[0, 0] = frames[1, 7] = True
    frames[2, [0, 7]] = True
    frames[3, :3] = True
    filled = filled_video(clip, frames)[:, 0, :, 0, 0].tolist()
    assert filled[:2] == [[0] * 8, [7] * 8]
    assert filled[2] == [0, 0, 0, 0, 7, 7, 7, 7]
    assert filled[3] == [0, 1, 2, 2, 2, 2, 2, 2]
    assert [known_dynamics(row) for row in frames] == [0, 0, 0, 2]


def test_the_dynamics_of_a_prefix_are_those_of_the_whole_clip(pipeline) -> None:
    """Which is why the sampler may fix them: the encoder is causal in time, but for one frame."""
    clip = video()
    frames = torch.arange(8)[None] < 4
    known = pipeline.autoencoder.encode(filled_video(clip, frames)).mode()
    whole = pipeline.autoencoder.encode(clip).mode()
    assert_close(known.dynamics_x[:, :, :3], whole.dynamics_x[:, :, :3])
    assert not torch.allclose(known.dynamics_x[:, :, 3:], whole.dynamics_x[:, :, 3:])


class TestModel:
    def test_nothing_given_adds_nothing(self, pipeline) -> None:
        model, plain = pipeline.transformer, pipeline.transformer
        latents = pipeline.autoencoder.encode(video(2)).mode().tensors()
        level = torch.full((2,), 400.0)
        given = dict(zip(("given_structure", "given_dynamics_x", "given_dynamics_y"), latents))
        none = torch.zeros(2, 8, dtype=torch.bool)
        without = plain(*latents, level, level)
        told = model(*latents, level, level, given_frames=none, **given)
        for one, other in zip(without, told):
            assert torch.equal(one, other)
        some = none.clone()
        some[1, 2] = True
        told = model(*latents, level, level, given_frames=some, **given)
        assert torch.equal(told.structure[0], without.structure[0])
        assert not torch.allclose(told.structure[1], without.structure[1])

    def test_only_what_is_given_counts(self, pipeline) -> None:
        latents = pipeline.autoencoder.encode(video(1)).mode().tensors()
        other = [latents[0], *(tensor.clone() for tensor in latents[1:])]
        other[1][:, :, 3:] = 7
        level, frames = torch.full((1,), 400.0), torch.arange(8)[None] < 3
        names = ("given_structure", "given_dynamics_x", "given_dynamics_y")
        one, two = (
            pipeline.transformer(
                *latents, level, level, given_frames=frames, **dict(zip(names, known))
            )
            for known in (latents, other)
        )
        assert torch.equal(one.structure, two.structure)

    def test_training_on_begins_as_the_saved_one(self, build_pipeline, tmp_path) -> None:
        saved = build_pipeline().transformer
        saved.save_pretrained(tmp_path)
        sizes = type(saved.sizes)(**vars(saved.sizes) | {"given_frames": True})
        model = build_transformer(sizes, str(tmp_path))
        assert model.sizes.given_frames
        for name, value in saved.state_dict().items():
            assert torch.equal(model.state_dict()[name], value)
        assert all(not weight.any() for weight in model.given.parameters())


class TestTraining:
    def test_shares(self) -> None:
        shares = {"first": 0.2, "last": 0.1, "ends": 0.15, "prefix": 0.25}
        embedder = FramesEmbedder(GivenFramesConfig(**shares), 8)
        uniforms = torch.rand(20_000, 2, generator=torch.Generator().manual_seed(0))
        frames = embedder.draw(uniforms)
        assert float(frames.any(1).float().mean()) == pytest.approx(0.7, abs=0.01)
        ends = frames[:, 0] & frames[:, 7] & ~frames[:, 1]
        assert float(ends.float().mean()) == pytest.approx(0.15, abs=0.01)
        last = frames[:, 7] & ~frames[:, 0]
        assert float(last.float().mean()) == pytest.approx(0.1, abs=0.01)
        lengths = frames.sum(1)[frames[:, 0] & ~frames[:, 7]]
        for count in range(2, 8):  # the first frame alone is one kind more
            assert float((lengths == count).float().mean()) == pytest.approx(
                0.25 / 7 / 0.45, abs=0.01
            )
        assert int(lengths.max()) == 7

    def test_a_batch(self, build_autoencoder) -> None:
        """Each sample is told of its own frames, scaled; those without are told of none."""
        from diffusion.latent_sources import EncodedClips

        source = EncodedClips.__new__(EncodedClips)
        source.autoencoder, source.autocast = build_autoencoder(), torch.no_grad
        source.posterior = "sample"
        objective = FlowObjective(FlowConfig())
        embedder = FramesEmbedder(GivenFramesConfig(first=0.5, prefix=0.3), 8)
        inputs = TrainingInputs(source, objective, [embedder])
        inputs.stats.structure_mean += 1
        seeds = torch.arange(12)
        batch = {"video": video(12), "index": seeds, "noise_seed": seeds}
        condition = next(iter(inputs.read(batch).conditions))
        kinds = condition.given_frames.sum(1)
        assert set(kinds.tolist()) >= {0, 1}
        place = int((kinds == 1).nonzero()[0])
        still = batch["video"][place : place + 1, :, :1].expand(-1, -1, 8, -1, -1)
        expected = source.autoencoder.encode(still).mode().structure - 1
        assert_close(condition.given_structure[place : place + 1], expected, rtol=1e-4, atol=1e-4)
        alone = inputs.read({name: values[place : place + 1] for name, values in batch.items()})
        assert torch.equal(
            next(iter(alone.conditions)).given_frames, condition.given_frames[place : place + 1]
        )
        assert not next(iter(inputs.conditions(batch))).given_frames.any()  # to validate

    @pytest.mark.parametrize(
        ("config", "reason"),
        [(lambda: GivenFramesConfig(first=0.7, prefix=0.4), "sum to at most 1"),
         (lambda: GivenFramesConfig(last=-0.1), r"lie in \[0, 1\]"),
         (lambda: InputsConfig(cache="x", given=GivenFramesConfig(first=0.1)), "set cache=null")],
    )  # fmt: skip
    def test_what_can_not_be(self, config, reason) -> None:
        with pytest.raises(ValueError, match=reason):
            config()


class TestPipeline:
    def test_they_come_out_as_they_are(self, pipeline) -> None:
        clip = video(2)
        made = ask(pipeline, first_frame=clip[:, :, 0], last_frame=clip[:, :, 7]).videos
        assert_close(2 * made[:, :, 0] - 1, clip[:, :, 0], rtol=0, atol=1e-6)
        assert_close(2 * made[:, :, 7] - 1, clip[:, :, 7], rtol=0, atol=1e-6)
        assert not torch.allclose(2 * made[:, :, 1] - 1, clip[:, :, 0], atol=0.01)
        made = ask(pipeline, prefix=clip[0, :, :5], num_frames=14).videos
        assert made.shape == (1, 3, 14, 16, 24)
        assert_close(2 * made[:, :, :5] - 1, clip[:1, :, :5], rtol=0, atol=1e-6)

    @pytest.mark.parametrize("lead", [0.0, 0.5])
    def test_the_dynamics_of_a_prefix_are_fixed(self, pipeline, lead) -> None:
        clip = video()
        made = ask(pipeline, prefix=clip[:, :, :4], structure_lead=lead).latents
        whole = pipeline.autoencoder.encode(clip).mode()
        assert_close(made.dynamics_x[:, :, :3], whole.dynamics_x[:, :, :3], rtol=1e-4, atol=1e-4)
        assert not torch.allclose(made.dynamics_x[:, :, 3:], whole.dynamics_x[:, :, 3:], atol=0.01)

    def test_the_model_is_told_and_guidance_does_not_hide_it(self, pipeline) -> None:
        told: list[torch.Tensor] = []
        hook = pipeline.transformer.register_forward_pre_hook(
            lambda module, inputs, keywords: told.append(keywords["given_frames"]),
            with_kwargs=True,
        )
        ask(pipeline, last_frame=video()[:, :, 0], guidance_scale=3.0)
        first_window = len(told)
        ask(pipeline, first_frame=video()[:, :, 0], num_frames=14, overlap_frames=2)
        hook.remove()
        for frames in told[:first_window]:
            assert bool(frames[:, 7].all())
            assert not frames[:, :7].any()
        assert len(told[0]) == 2  # with and without the prompt
        # Later windows are told of what they share with the one before.
        assert told[-1][0].tolist() == [True, True] + [False] * 6

    def test_a_long_video_goes_on_from_its_last_frames(self, pipeline) -> None:
        """Each window has a structure of its own, and starts with the frames before, decoded."""
        told: list[dict[str, Any]] = []
        hook = pipeline.transformer.register_forward_pre_hook(
            lambda module, inputs, keywords: told.append(keywords), with_kwargs=True
        )
        made = ask(pipeline, num_frames=14, overlap_frames=2, guidance_scale=1.0)
        hook.remove()
        assert "given_frames" not in told[0]  # as an ordinary call
        sizes, latents = pipeline.autoencoder.sizes, made.latents
        assert latents.structure.shape[2] == 2 * sizes.num_queries
        first = ask(pipeline, guidance_scale=1.0)
        assert torch.equal(latents.structure[:, :, : sizes.num_queries], first.latents.structure)
        last = 2 * first.videos[:, :, -2:] - 1
        filled = torch.cat([last, last[:, :, -1:].expand(-1, -1, 6, -1, -1)], dim=2)
        known = pipeline.latent_stats.scale(pipeline.autoencoder.encode(filled).mode())
        assert_close(told[-1]["given_structure"], known.structure, rtol=1e-3, atol=1e-3)
        held = ask(pipeline, num_frames=14, structure=first.latents).latents.structure
        assert held.shape[2] == sizes.num_queries  # what is given is kept

    def test_same_alone_and_in_a_batch(self, pipeline) -> None:
        clip = video(2)
        both = ask(pipeline, first_frame=clip[:, :, 0]).latents
        alone = ask(pipeline, first_frame=clip[1:, :, 0], seed=6).latents
        assert distance(both[1:2], alone) < 1e-4
        other = ask(pipeline, first_frame=clip[:1, :, 0], seed=6).latents
        assert distance(other, alone) > 1e-3

    @pytest.mark.parametrize(
        ("options", "reason"),
        [({"first_frame": video()[:, :, 0], "prefix": video(1, 3)}, "first of `prefix`"),
         ({"prefix": video(1, 8)}, "1 to 7 frames"),
         ({"first_frame": video()[0, :, 0, :8]}, r"16 x 24 pixels, got \(1, 3, 8, 24\)"),
         ({"first_frame": "cat.png"}, "float tensor .* got str"),
         ({"first_frame": video()[:, :, 0] * float("nan")}, "not finite"),
         ({"first_frame": video(2)[:, :, 0], "last_frame": video(3)[:, :, 0]}, "as many first"),
         ({"last_frame": video()[:, :, 0], "num_frames": 12}, "leave out `num_frames`"),
         ({"first_frame": video()[:, :, 0], "dynamics": video()}, "both given")],
    )  # fmt: skip
    def test_what_is_refused(self, pipeline, options, reason) -> None:
        with pytest.raises(ValueError, match=reason):
            ask(pipeline, **options)

    def test_a_pipeline_without(self, build_pipeline) -> None:
        with pytest.raises(ValueError, match="not trained with given frames"):
            ask(build_pipeline(), first_frame=video()[:, :, 0])


class TestFiles:
    def test_image(self, tmp_path) -> None:
        levels = np.zeros((20, 40, 3), np.uint8)
        levels[:, :20] = 255
        Image.fromarray(levels).save(tmp_path / "wide.png")
        image = read_image(tmp_path / "wide.png", 16, 16)
        assert image.shape == (3, 16, 16)
        assert_close(image[:, :, :6], torch.ones(3, 16, 6))
        assert_close(image[:, :, 10:], -torch.ones(3, 16, 6))
        (tmp_path / "none.png").write_text("no image")
        with pytest.raises(ValueError, match=r"none\.png is no image"):
            read_image(tmp_path / "none.png", 16, 16)

    def test_last_frames(self, tmp_path) -> None:
        levels = np.arange(12, dtype=np.uint8)[:, None, None, None] * 20
        frames = np.broadcast_to(levels, (12, 16, 16, 3)).copy()
        write_video(tmp_path / "clip.mp4", frames, 8)
        path = tmp_path / "clip.mp4"
        for fps, expected in (
            (None, [180, 200, 220]),
            (8.0, [180, 200, 220]),
            (4.0, [140, 180, 220]),
        ):
            last = read_last_frames(path, 3, 16, 16, fps)
            found = (last.mean((0, 2, 3)) + 1) * 127.5
            assert_close(found, torch.tensor(expected).float(), rtol=0, atol=4)
        with pytest.raises(ValueError, match="too short: 13 frames"):
            read_last_frames(path, 13, 16, 16)
        with pytest.raises(ValueError, match="too short: 8 frames at 4"):
            read_last_frames(path, 8, 16, 16, 4.0)
