"""What a training step and a validation see: the same for a sample, however batches are cut."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from diffusion import FlowConfig, FlowObjective
from diffusion.conditions import ClassEmbedder, TextEmbedder
from diffusion.flow import quantile
from diffusion.latent_sources import CachedLatents, EncodedClips, LatentSource
from diffusion.text_encoder import TextEncoding
from diffusion.training import (
    QUANTILES,
    TrainingBatch,
    TrainingInputs,
    losses_of,
    measure_losses,
)
from vidtwin import VidTwinAutoencoder, VidTwinLatents, draw_noise, noise_seed_for

CLASSES, BATCH = 5, 8
CAPTIONS = [" ".join(["word"] * (1 + index % 3)) + f" {index}" for index in range(BATCH)]


class Captions:
    """A text encoder whose states tell the caption: one token for each of its characters."""

    hidden_size = 2

    def digest(self) -> str:
        return "captions"

    def __call__(self, prompts: list[str]) -> TextEncoding:
        longest = max(map(len, prompts))
        states = torch.zeros(len(prompts), longest, 2)
        mask = torch.zeros(len(prompts), longest, dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            states[row, : len(prompt), 0] = torch.tensor([float(ord(c)) for c in prompt])
            mask[row, : len(prompt)] = True
        return TextEncoding(states, mask, [None] * len(prompts))


@pytest.fixture(scope="module")
def autoencoder(build_tiny) -> VidTwinAutoencoder:
    return build_tiny()


def source_of(kind: type[LatentSource], autoencoder: VidTwinAutoencoder) -> LatentSource:
    """A source without clips: its batches come from the test."""
    source = kind.__new__(kind)
    source.autoencoder = autoencoder
    source.autocast, source.posterior = nullcontext, "sample"
    source.digests = lambda: {"autoencoder": None, "cache": None}
    return source


@pytest.fixture(scope="module")
def build_inputs(autoencoder) -> Callable[..., TrainingInputs]:
    def build(
        *,
        encodes: bool = False,
        text: bool = True,
        classes: bool = True,
        class_dropout: float = 0.1,
        text_dropout: float = 0.1,
        **options: Any,
    ) -> TrainingInputs:
        embedders = [ClassEmbedder(CLASSES, dropout=class_dropout)] if classes else []
        if text:
            embedders.append(TextEmbedder(Captions(), dropout=text_dropout))
        source = source_of(EncodedClips if encodes else CachedLatents, autoencoder)
        objective = options.pop("objective", FlowObjective(FlowConfig()))
        inputs = TrainingInputs(source, objective, embedders, **options)
        inputs.stats.structure_mean += 0.5
        inputs.stats.dynamics_x_std *= 3.0
        return inputs

    return build


@pytest.fixture(scope="module")
def batch(autoencoder) -> dict[str, Any]:
    """As a loader of a cache gives it."""
    latents = draw_noise(autoencoder.sizes, range(BATCH))
    return {
        **dict(latents.items()),
        "caption": CAPTIONS,
        "label": torch.tensor([0, 1, 2, 3, 4, -1, -1, 0]),
        "index": torch.arange(BATCH),
        "noise_seed": torch.tensor([noise_seed_for(0, 0, index) for index in range(BATCH)]),
    }


def rows(read: TrainingBatch) -> list[list[Tensor]]:
    """Everything about each sample; of the text, what is not padding."""
    asked = read.conditions.arguments()
    found = []
    for index in range(len(read.levels.structure)):
        values = (*read.latents.tensors(), *read.noise.tensors(), *read.levels)
        parts = [value[index] for value in values]
        if "class_labels" in asked:
            parts.append(asked["class_labels"][index])
        if "encoder_hidden_states" in asked:
            mask = asked["encoder_attention_mask"][index]
            parts.append(asked["encoder_hidden_states"][index][mask])
        found.append(parts)
    return found


def assert_same_samples(one: list[list[Tensor]], other: list[list[Tensor]], exact: bool) -> None:
    assert len(one) == len(other)
    for first, second in zip(one, other, strict=True):
        for a, b in zip(first, second, strict=True):
            assert_close(a, b, rtol=0 if exact else 1e-5, atol=0 if exact else 1e-5)


class TestReading:
    @pytest.mark.parametrize("size", [1, 2, 4])
    def test_a_batch_in_parts_has_the_same_samples(self, build_inputs, batch, size) -> None:
        inputs = build_inputs(class_dropout=0.4, text_dropout=0.4)
        whole = rows(inputs.read(batch))
        parts = [inputs.read(batch, slice(i, i + size)) for i in range(0, BATCH, size)]
        assert_same_samples(whole, [row for part in parts for row in rows(part)], exact=True)
        # The same on another rank, which holds another part of the global batch.
        share = {name: value[4:] for name, value in batch.items()}
        assert_same_samples(whole[4:], rows(inputs.read(share)), exact=True)

    def test_a_batch_of_videos_in_parts(self, build_inputs, batch, autoencoder, random_video):
        inputs = build_inputs(encodes=True)
        videos = {**batch, "video": random_video(autoencoder, BATCH)}
        whole = rows(inputs.read(videos))
        halves = [inputs.read(videos, slice(i, i + 4)) for i in (0, 4)]
        assert_same_samples(whole, [row for part in halves for row in rows(part)], exact=False)

    def test_videos_are_what_a_cache_of_their_posterior_gives(
        self, build_inputs, batch, autoencoder, random_video
    ) -> None:
        """Scaled, and drawn from the posterior by the sample's own seed."""
        inputs = build_inputs(encodes=True)
        video = random_video(autoencoder, BATCH)
        with torch.no_grad():
            posterior = autoencoder.encode(video)
        noise = draw_noise(autoencoder.sizes, batch["noise_seed"].tolist())
        drawn = posterior.sample(noise=noise)
        assert not torch.allclose(drawn.structure, posterior.mode().structure)
        cached = {**batch, **dict(drawn.items())}
        expected = build_inputs().read(cached).latents
        came = inputs.read({**batch, "video": video}).latents
        for a, b in zip(expected.tensors(), came.tensors(), strict=True):
            assert_close(a, b, rtol=1e-5, atol=1e-5)
            assert not b.requires_grad
        assert_close(expected.structure, drawn.structure - 0.5)
        assert_close(expected.dynamics_x, drawn.dynamics_x / 3)

    def test_the_noise_is_not_the_posteriors(self, build_inputs, batch, autoencoder) -> None:
        """Nor another sample's, nor that of the seeds which sampling starts from."""
        inputs = build_inputs()
        seeds = batch["noise_seed"].tolist()
        noise = inputs.read(batch).noise
        others = [*draw_noise(autoencoder.sizes, [*seeds, *range(100)]).structure]
        others += [noise.structure[index] for index in range(1, BATCH)]
        first = noise.structure[0].flatten()
        for other in others:
            correlation = torch.corrcoef(torch.stack([first, other.flatten()]))
            assert correlation[0, 1] < 0.9
        values = torch.cat([part.flatten() for part in inputs.noise(range(200)).tensors()])
        assert abs(values.mean()) < 0.02
        assert abs(values.std() - 1) < 0.02

    def test_another_epoch_draws_everything_anew(self, build_inputs, batch) -> None:
        inputs = build_inputs()
        later = {**batch, "noise_seed": torch.tensor([noise_seed_for(0, 1, i) for i in range(8)])}
        first, second = inputs.read(batch), inputs.read(later)
        assert not torch.isclose(first.levels.structure, second.levels.structure).all()
        assert not torch.isclose(first.noise.structure, second.noise.structure).any(0).all()

    def test_no_label_is_the_null_class(self, build_inputs, batch) -> None:
        conditions = build_inputs().conditions(batch).arguments()
        assert conditions["class_labels"].tolist() == [0, 1, 2, 3, 4, CLASSES, CLASSES, 0]

    def test_a_model_without_conditions_gets_none(self, build_inputs, batch) -> None:
        inputs = build_inputs(text=False, classes=False)
        assert not inputs.read(batch).conditions.arguments()

    @pytest.mark.parametrize(("share", "kept"), [(0.0, True), (1.0, False)])
    def test_dropout(self, build_inputs, batch, share, kept) -> None:
        objective = FlowObjective(FlowConfig(structure_clean=0.0, dynamics_clean=0.0))
        inputs = build_inputs(class_dropout=share, text_dropout=share, objective=objective)
        conditions = inputs.read(batch).conditions.arguments()
        texts = conditions["encoder_attention_mask"].any(1)
        assert texts.tolist() == [kept] * BATCH
        labelled = batch["label"] >= 0
        assert ((conditions["class_labels"] < CLASSES) & labelled).tolist() == (
            (labelled & kept).tolist()
        )
        # Validation asks for all conditions, whatever training leaves out.
        assert inputs.conditions(batch).arguments()["encoder_attention_mask"].any(1).all()

    def test_given_latents_have_a_dropout_of_their_own(self, build_inputs, batch) -> None:
        seeds = torch.arange(300)
        many = {
            name: [value[i % BATCH] for i in range(300)] if isinstance(value, list)
            else value[torch.arange(300) % BATCH]
            for name, value in batch.items()
        }  # fmt: skip
        many["noise_seed"] = seeds
        objective = FlowObjective(FlowConfig(structure_clean=0.3, dynamics_clean=0.3))
        inputs = build_inputs(
            class_dropout=0.0, text_dropout=0.0, given_dropout=1.0, objective=objective
        )
        read = inputs.read(many)
        given = (read.levels.structure == 0) | (read.levels.dynamics == 0)
        assert 100 < given.sum() < 250
        mask = read.conditions.arguments()["encoder_attention_mask"]
        assert torch.equal(mask.any(1), ~given)


class Recorder(torch.nn.Module):
    """A model that predicts zero, and remembers what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[dict[str, Tensor]] = []

    def forward(self, *inputs: Tensor, **conditions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        assert not self.training
        names = (*VidTwinLatents.names, "structure_timestep", "dynamics_timestep")
        self.told.append(dict(zip(names, inputs, strict=True)) | conditions)
        return tuple(torch.zeros_like(latent) for latent in inputs[:3])


class TestValidation:
    def measure(self, inputs: TrainingInputs, batch: dict[str, Any], size: int) -> tuple[Any, Any]:
        model = Recorder().train()
        batches = [
            {name: value[i : i + size] for name, value in batch.items()}
            for i in range(0, BATCH, size)
        ]
        return measure_losses(model, inputs, batches), model

    def test_a_sample_does_not_depend_on_its_batch(self, build_inputs, batch) -> None:
        inputs = build_inputs()
        whole, model = self.measure(inputs, batch, BATCH)
        parts, _ = self.measure(inputs, batch, 2)
        again, _ = self.measure(inputs, batch, BATCH)
        assert [index for index, _ in whole] == list(range(BATCH))
        assert whole == again
        for (_, one), (_, other) in zip(whole, parts, strict=True):
            assert one == pytest.approx(other, rel=1e-5)
        assert model.training  # as it was before

    @pytest.mark.parametrize("prediction", ["velocity", "epsilon"])
    def test_the_levels_are_the_middles_of_the_quartiles(
        self, build_inputs, batch, prediction
    ) -> None:
        objective = FlowObjective(FlowConfig(prediction=prediction))
        inputs = build_inputs(objective=objective, class_dropout=1.0, text_dropout=1.0)
        rows, model = self.measure(inputs, batch, BATCH)
        middles = torch.tensor([0.125, 0.375, 0.625, 0.875])
        levels = quantile(objective.config.structure_levels, middles)
        for level, told in zip(levels, model.told, strict=True):
            tolerance = 1e-3 if prediction == "velocity" else 1.0
            for name in ("structure_timestep", "dynamics_timestep"):
                assert_close(told[name], 1000 * level.expand(BATCH), rtol=0, atol=tolerance)
            # With every condition, and the same noise at all levels.
            assert told["encoder_attention_mask"].any(1).all()
            assert (told["class_labels"] < CLASSES).sum() == 6
        for _, measures in rows:
            assert set(measures) == {
                f"{name}{quarter}"
                for name in ("structure", "dynamics")
                for quarter in ("", *(f"_q{n}" for n in range(1, QUANTILES + 1)))
            }
            for name in ("structure", "dynamics"):
                quarters = [measures[f"{name}_q{n}"] for n in range(1, QUANTILES + 1)]
                assert measures[name] == pytest.approx(sum(quarters) / QUANTILES)

    def test_the_loss_of_a_model_that_predicts_zero(self, build_inputs, batch) -> None:
        inputs = build_inputs()
        rows, _ = self.measure(inputs, batch, 4)
        latents, noise = inputs.latents(batch), inputs.noise(batch["noise_seed"].tolist())
        for index, measures in rows:
            target = noise.structure[index] - latents.structure[index]
            expected = float(target.square().mean())
            for quarter in range(1, QUANTILES + 1):  # the velocity is the same at all levels
                assert measures[f"structure_q{quarter}"] == pytest.approx(expected, rel=1e-5)

    @pytest.mark.parametrize("process", ["flow", "ddpm"])
    def test_the_losses_of_predicted_latents_by_level(self, build_inputs, batch, process) -> None:
        """Of a model that predicts zero: the scaled latents' square, over that of the noise."""
        found = []
        for loss in ("prediction", "velocity"):
            config = FlowConfig(prediction="x0", process=process, loss=loss)
            inputs = build_inputs(objective=FlowObjective(config))
            found.append([measures for _, measures in self.measure(inputs, batch, 4)[0]])
        middles = torch.tensor([0.125, 0.375, 0.625, 0.875])
        _, share = inputs.objective.coefficients(quantile(config.structure_levels, middles))
        structure = inputs.latents(batch).structure
        for square, plain, velocity in zip(structure.square().flatten(1).mean(1), *found):
            for quarter in range(QUANTILES):
                name = f"structure_q{quarter + 1}"
                assert plain[name] == pytest.approx(float(square), rel=1e-5)
                assert velocity[name] == pytest.approx(
                    float(square / share[quarter] ** 2), rel=1e-4
                )

    def test_no_batch_is_no_row(self, build_inputs) -> None:
        assert measure_losses(Recorder(), build_inputs(), []) == []


def test_the_losses_are_of_the_models_predictions(build_inputs, batch) -> None:
    """A model that knows the noise by heart has no loss."""
    inputs = build_inputs(text=False, classes=False)
    read = inputs.read(batch)
    latents, noise = read.latents.tensors(), read.noise.tensors()

    class Knowing(torch.nn.Module):
        def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
            sigmas = (inputs[3], inputs[4], inputs[4])
            for latent, eps, x, sigma in zip(latents, noise, inputs, sigmas, strict=False):
                level = (sigma / 1000).reshape(-1, *[1] * (x.ndim - 1))
                assert_close(x, (1 - level) * latent + level * eps)
            return tuple(e - x for e, x in zip(noise, latents, strict=True))

    for loss in losses_of(Knowing(), inputs.objective, read):
        assert_close(loss, torch.zeros(BATCH))
