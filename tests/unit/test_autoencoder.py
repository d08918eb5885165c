"""Laws of the autoencoder: shapes, gradients, causality, independence, refusals."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from vidtwin import VidTwinAutoencoder, VidTwinLatents
from vidtwin.latents import draw_noise
from vidtwin.transformer import spatial_table, temporal_table

# Non-square and odd, square and odd, square and even.
GRIDS = {"5x7": (10, 14), "3x3": (6, 6), "4x4": (8, 8)}


def latents_like(model: VidTwinAutoencoder, batch: int = 2) -> VidTwinLatents:
    return draw_noise(model.sizes, range(batch))


class TestShapes:
    @pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
    @pytest.mark.parametrize("structure_downsamples", [0, 1, 2])
    @pytest.mark.parametrize("dynamics_downsamples", [0, 1, 2])
    @torch.no_grad()
    def test_follow_from_the_config(
        self, build_tiny, random_video, grid, structure_downsamples, dynamics_downsamples
    ) -> None:
        model = build_tiny(
            height=grid[0],
            width=grid[1],
            structure_downsamples=structure_downsamples,
            dynamics_downsamples=dynamics_downsamples,
        )
        video = random_video(model)
        out = model(video)
        h, w = (math.ceil(size / 2 / 2**structure_downsamples) for size in grid)
        assert out.latents.structure.shape == (2, 2, 4, h, w)
        h, w = (math.ceil(size / 2 / 2**dynamics_downsamples) for size in grid)
        assert out.latents.dynamics_x.shape == (2, 2, 3, w)
        assert out.latents.dynamics_y.shape == (2, 2, 3, h)
        for part in ("both", "structure", "dynamics"):
            decoded = model.decode(out.latents, part=part)
            assert decoded.shape == video.shape
            assert decoded.isfinite().all()
        assert out.posterior.kl().shape == (2,)
        assert out.latents.numel_per_clip == model.sizes.numel_per_clip
        assert model.compression_rate == out.latents.numel_per_clip / video[0].numel()

    @torch.no_grad()
    def test_one_pixel_patches_and_grey_videos(self, build_tiny, random_video) -> None:
        model = build_tiny(in_channels=1, height=3, width=2, patch_size=(1, 1, 1), num_frames=1)
        video = random_video(model, 1)
        assert model(video).reconstruction.shape == video.shape == (1, 1, 1, 3, 2)

    @torch.no_grad()
    def test_decoding_needs_no_encoder(self, build_tiny) -> None:
        """A model that never saw a video decodes latents, as a generator's user does."""
        model = build_tiny()
        del model.encoder, model.patch_embedding, model.structure_encoder, model.dynamics_encoder
        assert model.decode(latents_like(model, 1)).shape == (1, *model.sizes.video_shape)

    @torch.no_grad()
    @pytest.mark.parametrize("size", [(3, 10, 14), (7, 13, 29), (1, 5, 3)], ids=str)
    def test_reconstruct_keeps_any_size(self, build_tiny, size) -> None:
        video = torch.rand(1, 3, *size) * 2 - 1
        reconstruction = build_tiny().reconstruct(video)
        assert reconstruction.shape == video.shape
        assert reconstruction.isfinite().all()

    def test_released_size(self) -> None:
        with torch.device("meta"):
            model = VidTwinAutoencoder()
        assert sum(p.numel() for p in model.parameters()) == 312_701_490 - 1_182_720
        assert f"{model.compression_rate:.3%}" == "0.335%"
        assert model.decoder_last_weight is model.head.linear.weight
        assert model.decoder_last_weight.shape == (16 * 16 * 3, 768)


class TestForward:
    @torch.no_grad()
    def test_decodes_the_mode_unless_asked_to_sample(self, build_tiny, random_video) -> None:
        model = build_tiny()
        video = random_video(model)
        out = model(video)
        mode = model.encode(video).mode()
        assert all(map(torch.equal, out.latents.tensors(), mode.tensors()))
        assert torch.equal(out.reconstruction, model.decode(mode))
        assert torch.equal(model(video).reconstruction, out.reconstruction)
        drawn = model(video, sample_posterior=True).reconstruction
        assert not torch.allclose(drawn, out.reconstruction)

    @torch.no_grad()
    def test_samples_with_what_it_is_given(self, build_tiny, random_video) -> None:
        model = build_tiny()
        video, seeds = random_video(model), (3, 4)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        drawn = model(video, sample_posterior=True, generator=generators)
        noise = draw_noise(model.sizes, seeds)
        given = model(video, sample_posterior=True, noise=noise)
        assert torch.equal(drawn.reconstruction, given.reconstruction)
        expected = drawn.posterior.sample(noise=noise)
        assert all(map(torch.equal, given.latents.tensors(), expected.tensors()))

    @torch.no_grad()
    def test_a_part_leaves_the_other_out(self, build_tiny) -> None:
        model = build_tiny()
        first, second = latents_like(model), latents_like(model, 4)[2:]
        mixed = first.with_structure(second)
        for part, same in (("structure", second), ("dynamics", first)):
            assert torch.equal(model.decode(mixed, part), model.decode(same, part))
        both = model.decoder_features(first)
        parts = [model.decoder_features(first, part) for part in ("structure", "dynamics")]
        torch.testing.assert_close(both, parts[0] + parts[1])

    @torch.no_grad()
    def test_a_clip_does_not_depend_on_its_batch(self, build_tiny, random_video) -> None:
        model = build_tiny().double()
        video, noise = random_video(model, 3).double(), latents_like(model, 3)
        together = model(video, sample_posterior=True, noise=noise)
        for i in range(3):
            alone = model(video[i : i + 1], sample_posterior=True, noise=noise[i : i + 1])
            pairs = [(together.reconstruction[i : i + 1], alone.reconstruction)]
            pairs += zip(together.latents[i : i + 1].tensors(), alone.latents.tensors())
            for ours, theirs in pairs:
                error = (ours - theirs).abs().max() / theirs.abs().max()
                assert error <= 1e-12


class TestGradients:
    @pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
    @pytest.mark.parametrize("downsamples", [(0, 0), (1, 1), (2, 0), (0, 2)], ids=str)
    @pytest.mark.parametrize("dropout", [0.0, 0.1])
    def test_reach_every_parameter(
        self, build_tiny, random_video, grid, downsamples, dropout
    ) -> None:
        """No dead parameter: distributed training needs no search for unused ones."""
        model = build_tiny(
            height=grid[0],
            width=grid[1],
            structure_downsamples=downsamples[0],
            dynamics_downsamples=downsamples[1],
            query_dropout=dropout,
        ).train()
        video = random_video(model)
        out = model(video, sample_posterior=True)
        loss = (out.reconstruction - video).square().mean() + out.posterior.kl().mean()
        loss.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            # Softmax ignores what all its logits share: a key's bias has no gradient by nature.
            assert parameter.grad.any() or name.endswith(".key.bias"), name

    def test_reach_every_parameter_of_a_new_model(self, build_tiny, random_video) -> None:
        model = build_tiny(jitter=0.0).train()
        out = model(random_video(model), sample_posterior=True)
        (out.reconstruction.mean() + out.posterior.kl().mean()).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name

    def test_dropout_is_the_query_formers_alone(self, build_tiny, random_video) -> None:
        model = build_tiny(query_dropout=0.5).train()
        first, second = (model.encode(random_video(model)) for _ in range(2))
        assert not torch.equal(first.structure.mean, second.structure.mean)
        assert torch.equal(first.dynamics_x.mean, second.dynamics_x.mean)
        model.eval()
        first, second = (model.encode(random_video(model)) for _ in range(2))
        assert torch.equal(first.structure.mean, second.structure.mean)


class TestCausality:
    """A change of the frames after t may reach the frames up to t or not, by config."""

    @torch.no_grad()
    @pytest.mark.parametrize("causal", [True, False])
    @pytest.mark.parametrize("frame", [0, 1])
    def test_encoder(self, build_tiny, random_video, causal, frame) -> None:
        model = build_tiny(encoder_causal=causal, decoder_causal=not causal)
        video, changed = random_video(model), random_video(model)
        changed[:, :, frame + 1 :] = random_video(model, seed=2)[:, :, frame + 1 :]
        before, after = model.features(video), model.features(changed)
        self.check(before.movedim(2, 1), after.movedim(2, 1), frame, causal)

    @torch.no_grad()
    @pytest.mark.parametrize("causal", [True, False])
    @pytest.mark.parametrize("frame", [0, 1])
    def test_decoder(self, build_tiny, causal, frame) -> None:
        model = build_tiny(decoder_causal=causal, encoder_causal=not causal)
        tokens = torch.randn(2, 3, 5 * 7, 16)
        changed = tokens.clone()
        changed[:, frame + 1 :] = torch.randn(changed[:, frame + 1 :].shape)
        before, after = (model.head(model.decoder(t)).movedim(2, 1) for t in (tokens, changed))
        self.check(before, after, frame, causal)

    def check(self, before: torch.Tensor, after: torch.Tensor, frame: int, causal: bool) -> None:
        """(B, T, ...) before and after; the first frames agree if causal, the rest never."""
        moved = (before - after).abs().flatten(2).amax(dim=(0, 2)) / before.abs().max()
        assert (moved[frame + 1 :] > 1e-3).all()
        if causal:
            assert (moved[: frame + 1] <= 1e-6).all()
        else:
            assert (moved[: frame + 1] > 1e-3).all()


class TestInitialisation:
    @pytest.fixture(scope="class")
    def model(self, build_tiny) -> VidTwinAutoencoder:
        return build_tiny(
            jitter=0.0,
            hidden_size=64,
            query_hidden_size=64,
            num_queries=64,
            query_intermediate_size=64,
        )

    def is_uniform(self, weight: torch.Tensor, bound: float) -> bool:
        near = 0.95 * bound < weight.abs().max().item() <= bound
        return near and weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)

    def test_linears_of_the_transformers(self, model) -> None:
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear) and name.startswith(("encoder.", "decoder.")):
                assert not module.bias.any(), name
                if name.endswith("temporal_attention.proj"):
                    assert not module.weight.any(), name
                    continue
                bound = math.sqrt(6 / (module.in_features + module.out_features))
                assert self.is_uniform(module.weight, bound), name

    def test_patch_embedding_is_a_linear_of_its_flattened_view(self, model) -> None:
        weight = model.patch_embedding.weight
        assert self.is_uniform(weight, math.sqrt(6 / (weight[0].numel() + 64)))

    def test_tables(self, model) -> None:
        tables = [block.modulation for block in (*model.encoder.blocks, *model.decoder.blocks)]
        for table in (*tables, model.head.modulation):
            assert table.std().item() == pytest.approx(1 / math.sqrt(64), rel=0.3)
        assert torch.cat(tables).std().item() == pytest.approx(1 / math.sqrt(64), rel=0.1)

    def test_head(self, model) -> None:
        """Default of nn.Linear; neither zero nor xavier."""
        assert self.is_uniform(model.head.linear.weight, 1 / math.sqrt(64))
        assert model.head.linear.bias.any()

    def test_query_former(self, model) -> None:
        temporal = model.structure_encoder.temporal
        assert temporal.queries.std().item() == pytest.approx(1.0, rel=0.05)
        for name, module in temporal.qformer.named_modules():
            if isinstance(module, nn.Linear):
                assert module.weight.std().item() == pytest.approx(0.02, rel=0.1), name
                assert not module.bias.any(), name
            if isinstance(module, nn.LayerNorm):
                assert module.eps == 1e-12

    def test_cross_attention_stands_on_every_second_layer(self, build_tiny) -> None:
        model = build_tiny(query_layers=3)
        layers = model.structure_encoder.temporal.qformer.encoder.layer
        assert [hasattr(layer, "crossattention") for layer in layers] == [True, False, True]


class TestPositionTables:
    def exact(self, model: VidTwinAutoencoder) -> tuple[torch.Tensor, torch.Tensor]:
        return spatial_table(*model.sizes.grid, 16), temporal_table(3, 16)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
    def test_are_exact_whatever_the_model_was_before(self, build_tiny, dtype) -> None:
        model = build_tiny().float().bfloat16().to(dtype)
        for side in (model.encoder, model.decoder):
            tables = (side.positions.spatial, side.positions.temporal)
            for table, exact in zip(tables, self.exact(model), strict=True):
                assert torch.equal(table, exact.to(dtype))

    def test_come_with_a_model_built_without_memory(self, tiny_sizes) -> None:
        with torch.device("meta"):
            model = VidTwinAutoencoder(**tiny_sizes)
        model.to_empty(device="cpu")
        assert torch.equal(model.decoder.positions.spatial, self.exact(model)[0].float())

    def test_are_no_weights(self, build_tiny) -> None:
        assert not [key for key in build_tiny().state_dict() if "positions" in key]


class TestRefusals:
    @pytest.mark.parametrize(
        "shape",
        [(2, 3, 4, 10, 14), (2, 3, 3, 14, 10), (2, 1, 3, 10, 14), (3, 3, 10, 14)],
        ids=str,
    )
    def test_video_of_another_size(self, build_tiny, shape) -> None:
        """The second has as many tokens as the model's: the released code takes it, and garbles."""
        with pytest.raises(ValueError, match=r"of shape \(B, 3, 3, 10, 14\) .*`reconstruct`") as e:
            build_tiny()(torch.zeros(shape))
        assert f"got {shape}" in str(e.value)

    def test_video_of_bytes(self, build_tiny) -> None:
        video = torch.zeros(1, 3, 3, 10, 14, dtype=torch.uint8)
        with pytest.raises(ValueError, match=r"float video in \[-1, 1\], got torch.uint8; convert"):
            build_tiny().encode(video)

    @pytest.mark.parametrize("name", ["structure", "dynamics_x", "dynamics_y"])
    def test_latent_of_another_size(self, build_tiny, name) -> None:
        model = build_tiny()
        tensors = dict(vars(latents_like(model)))
        tensors[name] = tensors[name][..., :-1]
        with pytest.raises(ValueError, match=rf"expected `{name}` of shape \(2, 2, .*another auto"):
            model.decode(VidTwinLatents(**tensors))

    def test_latents_of_two_batches(self, build_tiny) -> None:
        model = build_tiny()
        mixed = latents_like(model, 2).with_structure(latents_like(model, 1))
        with pytest.raises(ValueError, match=r"expected `dynamics_x` of shape \(1, 2, 3, 4\), got"):
            model.decode(mixed)

    def test_unknown_part(self, build_tiny) -> None:
        model = build_tiny()
        with pytest.raises(ValueError, match=r'"both", "structure" or "dynamics", got \'all\''):
            model.decode(latents_like(model), part="all")

    @pytest.mark.parametrize("count", [1, 3])
    def test_generators_of_another_batch(self, build_tiny, random_video, count) -> None:
        model = build_tiny()
        generators = [torch.Generator() for _ in range(count)]
        with pytest.raises(ValueError, match=rf"one generator per sample \(2\), got {count}"):
            model(random_video(model), sample_posterior=True, generator=generators)
