"""Gradient checkpointing, low precision and torch.compile change the cost, not the result."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from vidtwin import VidTwinAutoencoder
from vidtwin.latents import draw_noise


def relative_error(ours: torch.Tensor, reference: torch.Tensor) -> float:
    return ((ours.double() - reference.double()).abs().max() / reference.abs().max()).item()


class TestGradientCheckpointing:
    def step(self, model: VidTwinAutoencoder, video: torch.Tensor) -> tuple[float, dict]:
        """Loss and gradients; dropout and noise as the seed has them."""
        torch.manual_seed(0)
        model.zero_grad()
        out = model(video, sample_posterior=True)
        loss = (out.reconstruction - video).square().mean() + 1e-3 * out.posterior.kl().mean()
        loss.backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        return loss.item(), gradients

    @pytest.mark.parametrize("dropout", [0.0, 0.1])
    def test_same_loss_and_gradients(self, build_tiny, random_video, dropout) -> None:
        model = build_tiny(query_dropout=dropout).train()
        video = random_video(model)
        loss, gradients = self.step(model, video)
        model.enable_gradient_checkpointing()
        assert model.is_gradient_checkpointing
        again, recomputed = self.step(model, video)
        assert again == loss
        assert recomputed.keys() == gradients.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(recomputed[name], gradient, msg=name)

    def test_recomputes_every_block_and_layer(self, build_tiny, random_video) -> None:
        model = build_tiny().train()
        layers = model.structure_encoder.temporal.qformer.encoder.layer
        # Inside the recomputed modules: hooks of the layers themselves stay outside.
        watched = {
            "encoder": [block.spatial_attention for block in model.encoder.blocks],
            "query former": [layer.attention for layer in layers],
            "decoder": [block.spatial_attention for block in model.decoder.blocks],
        }
        calls: Counter[tuple[str, int]] = Counter()
        for part, modules in watched.items():
            for index, module in enumerate(modules):
                place = (part, index)
                module.register_forward_pre_hook(lambda *_, place=place: calls.update([place]))
        places = {(part, index) for part in watched for index in (0, 1)}
        for enable, count in ((False, 1), (True, 2), (False, 1)):
            if enable:
                model.enable_gradient_checkpointing()
            else:
                model.disable_gradient_checkpointing()
            calls.clear()
            self.step(model, random_video(model))
            assert calls == dict.fromkeys(places, count)

    def test_keeps_less(self, build_tiny, random_video) -> None:
        """What the graph holds on to between forward and backward."""
        model = build_tiny(encoder_depth=4, decoder_depth=4, query_layers=4).train()
        video, kept = random_video(model), []
        for enable in (False, True):
            if enable:
                model.enable_gradient_checkpointing()
            sizes: dict[int, int] = {}

            def note(tensor, sizes=sizes):
                storage = tensor.untyped_storage()
                sizes[storage.data_ptr()] = storage.nbytes()
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
                out = model(video)
            kept.append(sum(sizes.values()))
            del out
        assert kept[1] < 0.5 * kept[0]

    @torch.no_grad()
    def test_is_idle_without_gradients(self, build_tiny, random_video) -> None:
        model = build_tiny()
        video = random_video(model)
        expected = model(video).reconstruction
        model.enable_gradient_checkpointing()
        assert torch.equal(model(video).reconstruction, expected)


class TestPrecision:
    @torch.no_grad()
    def test_autocast_is_close(self, build_tiny, random_video) -> None:
        model = build_tiny(jitter=0.05)
        video = random_video(model)
        exact = model(video)
        with torch.autocast("cpu", torch.bfloat16):
            out = model(video)
        assert relative_error(out.reconstruction, exact.reconstruction) < 0.05
        for ours, theirs in zip(out.latents.tensors(), exact.latents.tensors(), strict=True):
            assert relative_error(ours, theirs) < 0.05
        assert out.posterior.structure.mean.dtype == torch.bfloat16
        assert out.posterior.kl().dtype == torch.float32
        torch.testing.assert_close(out.posterior.kl(), exact.posterior.kl(), rtol=0.02, atol=0)

    def test_autocast_gives_gradients_to_every_parameter(self, build_tiny, random_video) -> None:
        model = build_tiny().train()
        model.enable_gradient_checkpointing()
        noise = draw_noise(model.sizes, [0, 1])
        with torch.autocast("cpu", torch.bfloat16):
            out = model(random_video(model), sample_posterior=True, noise=noise)
        (out.reconstruction.float().square().mean() + out.posterior.kl().mean()).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
            assert parameter.grad.dtype == torch.float32

    @torch.no_grad()
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
    def test_the_whole_model_in_another_dtype(self, build_tiny, random_video, dtype) -> None:
        model = build_tiny(jitter=0.05)
        video = random_video(model)
        exact = model(video).reconstruction
        model.to(dtype)
        generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
        out = model(video.to(dtype))
        drawn = model(video.to(dtype), sample_posterior=True, generator=generators)
        assert out.reconstruction.dtype == drawn.reconstruction.dtype == dtype
        assert {tensor.dtype for tensor in drawn.latents.tensors()} == {dtype}
        assert relative_error(out.reconstruction, exact) < (
            0.1 if dtype == torch.bfloat16 else 1e-5
        )
        assert drawn.reconstruction.isfinite().all()


class TestCompile:
    """`fullgraph` makes a graph break an error; the eager backend keeps it quick."""

    @pytest.fixture(autouse=True)
    def fresh_compiler(self):
        torch._dynamo.reset()
        yield
        torch._dynamo.reset()

    def build(self, build_tiny) -> VidTwinAutoencoder:
        return build_tiny(encoder_depth=1, decoder_depth=1, query_layers=1)

    @torch.no_grad()
    def test_evaluation_at_the_mode(self, build_tiny, random_video) -> None:
        model = self.build(build_tiny)
        video = random_video(model)
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        out, expected = compiled(video), model(video)
        torch.testing.assert_close(out.reconstruction, expected.reconstruction)
        torch.testing.assert_close(out.posterior.kl(), expected.posterior.kl())

    def test_training_with_noise(self, build_tiny, random_video) -> None:
        model = self.build(build_tiny).train()
        model.enable_gradient_checkpointing()
        noise = draw_noise(model.sizes, [0, 1])
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        out = compiled(random_video(model), sample_posterior=True, noise=noise)
        (out.reconstruction.square().mean() + out.posterior.kl().mean()).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name


def test_a_frozen_encoder_stays_in_evaluation_mode(build_tiny, random_video) -> None:
    """The Q-Former's dropout would otherwise move the latents that its decoder learns from."""
    model = build_tiny(query_dropout=0.5)
    video = random_video(model)
    expected = model.encode(video).mode()
    model.freeze_encoder()
    for _ in range(2):  # whatever is called, and however often
        model.eval()
        assert model.train() is model
        assert model.decoder.training
        for part in model.encoder_parts().values():
            assert not any(module.training for module in part.modules())
        for name, value in model.encode(video).mode().items():
            assert torch.equal(value, getattr(expected, name))
    torch.nn.Sequential(model).train()
    assert not model.structure_encoder.training
    assert build_tiny(query_dropout=0.5).train().structure_encoder.training
