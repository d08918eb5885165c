"""TwinDiT: tokens, conditions, gradients and files, on models of a few thousand weights."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close

from diffusion import DiTConfig, TwinDiT, dit_blocks
from diffusion.config import TransformerConfig
from diffusion.dit_blocks import DiTAttention
from diffusion.positions import position_codes
from diffusion.training import build_transformer, describe_transformer
from vidtwin import AutoencoderConfig

# A grid that is not square, with other numbers of rows, columns, frames and queries.
SIZES: dict[str, Any] = {
    "structure_shape": (3, 2, 4, 6),
    "dynamics_x_shape": (2, 8, 6),
    "dynamics_y_shape": (2, 8, 4),
    "hidden_size": 16,
    "depth": 2,
    "num_heads": 2,
    "structure_patch_size": 2,
    "dynamics_patch_size": 4,
}
CLASSES, TEXT_WIDTH, TEXT_LENGTH = 3, 10, 5
READ = {"class_conditioning": "cross_attention", "class_embed_dim": 12}
VARIANTS: dict[str, dict[str, Any]] = {
    "none": {},
    "class": {"num_classes": CLASSES},
    "cross": {"text_hidden_size": TEXT_WIDTH},
    "in_context": {"text_hidden_size": TEXT_WIDTH, "text_conditioning": "in_context"},
    "both": {"num_classes": CLASSES, "text_hidden_size": TEXT_WIDTH},
    "plain_attention": {"qk_norm": False, "text_hidden_size": TEXT_WIDTH},
    "class_read": {"num_classes": CLASSES, **READ},
    "both_read": {"num_classes": CLASSES, "text_hidden_size": TEXT_WIDTH, **READ},
}
TEXT_VARIANTS = ("cross", "in_context", "plain_attention", "both_read")


def build(variant: str = "none", *, jitter: float = 0.2, **changes: Any) -> TwinDiT:
    """A model whose weights are moved away from special values: a new one gives zero."""
    torch.manual_seed(0)
    model = TwinDiT(**SIZES | VARIANTS[variant] | changes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=jitter)
    return model.eval()


def draw(model: TwinDiT, batch: int = 3, seed: int = 1) -> dict[str, Tensor]:
    """Inputs of the model, with texts of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    inputs = {
        name: torch.randn(batch, *getattr(model.sizes, f"{name}_shape"), generator=generator)
        for name in ("structure", "dynamics_x", "dynamics_y")
    }
    for name in ("structure_timestep", "dynamics_timestep"):
        inputs[name] = 1000 * torch.rand(batch, generator=generator)
    if model.sizes.num_classes:
        inputs["class_labels"] = torch.arange(batch) % model.sizes.num_classes
    if model.sizes.text_hidden_size:
        shape = (batch, TEXT_LENGTH, TEXT_WIDTH)
        inputs["encoder_hidden_states"] = torch.randn(shape, generator=generator)
        lengths = torch.arange(batch)[:, None] % TEXT_LENGTH + 1
        inputs["encoder_attention_mask"] = torch.arange(TEXT_LENGTH) < lengths
    return inputs


def run(model: TwinDiT, inputs: dict[str, Tensor], **changes: Any) -> Tensor:
    """(B, values): all predictions of a sample in one row."""
    with torch.no_grad():
        outputs = model(**inputs | changes)
    return torch.cat([output.flatten(1) for output in outputs], dim=1)


class TestSizes:
    def test_the_released_latents_are_784_and_224_tokens(self) -> None:
        for name in ("debug", "S", "B", "L", "XL"):
            assert DiTConfig.preset(name).token_counts == (784, 112, 112)

    def test_the_released_grid_can_be_patched_over_queries(self) -> None:
        sizes = DiTConfig(structure_query_patch_size=2, dynamics_patch_size=2)
        assert sizes.structure_grid == (8, 7, 7)
        assert sum(sizes.token_counts) == 504

    def test_presets_have_the_published_sizes(self) -> None:
        found = {
            name: (sizes.depth, sizes.hidden_size, sizes.num_heads)
            for name in ("S", "B", "L", "XL")
            for sizes in [DiTConfig.preset(name)]
        }
        assert found == {
            "S": (12, 384, 6),
            "B": (12, 768, 12),
            "L": (24, 1024, 16),
            "XL": (28, 1152, 16),
        }

    def test_patches_divide_the_tokens(self) -> None:
        sizes = DiTConfig(**SIZES)
        assert sizes.structure_grid == (2, 2, 3)
        assert sizes.token_counts == (2 * 2 * 3, 2 * 6, 2 * 4)

    def test_sizes_follow_the_autoencoder(self) -> None:
        latents = AutoencoderConfig()
        sizes = TransformerConfig(preset="S", depth=3).sizes(latents, {"num_classes": 5})
        assert sizes == DiTConfig.preset("S", depth=3, num_classes=5)
        assert "1,008 tokens: structure 784, dynamics_x 112, dynamics_y 112" in (
            describe_transformer(sizes)
        )

    @pytest.mark.parametrize("variant", VARIANTS)
    def test_the_description_counts_the_weights(self, variant) -> None:
        model = build(variant)
        assert f" {model.num_parameters():,} parameters" in describe_transformer(model.sizes)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"structure_shape": (3, 2, 4)}, "`structure_shape` must be 4 counts"),
            ({"dynamics_x_shape": (2, 0, 6)}, "`dynamics_x_shape` must be 3 counts"),
            ({"dynamics_y_shape": (2, 4, 4)}, "same channels and frames"),
            ({"hidden_size": 20}, "`hidden_size` must be a multiple of 8"),
            ({"num_heads": 3}, "`num_heads`=3 must divide `hidden_size`=16"),
            ({"num_heads": None}, "`num_heads` must be at least 1, got None"),
            ({"depth": 0}, "`depth` must be at least 1, got 0"),
            ({"num_classes": 0}, "`num_classes` must be at least 1, got 0"),
            ({"structure_patch_size": 4}, "`structure_patch_size`=4 must divide the latent's 6"),
            (
                {"structure_query_patch_size": 4},
                "`structure_query_patch_size`=4 must divide the latent's 2; set structure_query_pa",
            ),
            ({"class_embed_dim": 0}, "`class_embed_dim` must be at least 1, got 0"),
            ({"class_conditioning": "token"}, "must be one of adaln, cross_attention; got 'token'"),
            ({"dynamics_patch_size": 3}, "`dynamics_patch_size`=3 must divide the latent's 8"),
            ({"mlp_ratio": float("nan")}, "`mlp_ratio` must be positive"),
            ({"text_conditioning": "prefix"}, "must be one of cross_attention, in_context"),
        ],
    )
    def test_what_does_not_fit_is_named(self, changes, message) -> None:
        with pytest.raises(ValueError, match=message):
            DiTConfig(**SIZES | changes)
        with pytest.raises(ValueError, match=message):
            TwinDiT(**SIZES | changes)

    def test_an_unknown_preset(self) -> None:
        with pytest.raises(ValueError, match="the presets are debug, S, B, L, XL; got 'M'"):
            DiTConfig.preset("M")
        with pytest.raises(ValueError, match="`preset` must be one of debug, S, B, L, XL"):
            TransformerConfig(preset="M")


class TestTokens:
    @pytest.mark.parametrize(
        ("queries", "side", "frames", "grid"),
        [(1, 1, 1, (4, 6)), (1, 2, 1, (4, 6)), (1, 1, 8, (4, 6)), (2, 2, 4, (4, 6)),
         (2, 1, 2, (7, 7)), (3, 1, 1, (5, 7)), (6, 7, 8, (7, 7))],
    )  # fmt: skip
    def test_unpatchify_is_the_inverse_of_patchify(self, queries, side, frames, grid) -> None:
        rows, columns = grid
        model = build(
            structure_shape=(3, 6, rows, columns),
            dynamics_x_shape=(2, 8, columns),
            dynamics_y_shape=(2, 8, rows),
            structure_query_patch_size=queries,
            structure_patch_size=side,
            dynamics_patch_size=frames,
        )
        inputs = draw(model)
        latents = [inputs[name] for name in ("structure", "dynamics_x", "dynamics_y")]
        parts = model.patchify(*latents)
        assert tuple(part.shape[1] for part in parts) == model.sizes.token_counts
        for latent, back in zip(latents, model.unpatchify(*parts), strict=True):
            assert torch.equal(latent, back)

    def test_a_token_holds_its_patch_alone(self) -> None:
        model = build()
        inputs = draw(model)
        structure, along_x, along_y = model.patchify(
            inputs["structure"], inputs["dynamics_x"], inputs["dynamics_y"]
        )
        # Query 1, second row and third column of patches; second frames, row and column 3.
        wanted = inputs["structure"][:, :, 1, 2:4, 4:6]
        assert torch.equal(structure[:, 1 * 6 + 1 * 3 + 2], wanted.flatten(1))
        assert torch.equal(along_x[:, 6 + 3], inputs["dynamics_x"][:, :, 4:8, 3].flatten(1))
        assert torch.equal(along_y[:, 4 + 3], inputs["dynamics_y"][:, :, 4:8, 3].flatten(1))

    def test_a_token_of_several_queries(self) -> None:
        model = build(structure_shape=(3, 6, 4, 6), structure_query_patch_size=3)
        inputs = draw(model)
        structure, _, _ = model.patchify(
            inputs["structure"], inputs["dynamics_x"], inputs["dynamics_y"]
        )
        wanted = inputs["structure"][:, :, 3:6, 2:4, 4:6]  # the second queries, as above
        assert torch.equal(structure[:, 1 * 6 + 1 * 3 + 2], wanted.flatten(1))
        assert model.query_codes.shape == (2, 8)

    def test_a_code_means_the_same_place_in_every_latent(self) -> None:
        codes = position_codes(DiTConfig(**SIZES | {"structure_patch_size": 1}))
        structure, along_x, along_y = codes.split(DiTConfig(**SIZES | {
            "structure_patch_size": 1}).token_counts)  # fmt: skip
        structure = structure.reshape(2, 4, 6, 16)
        along_x, along_y = along_x.reshape(2, 6, 16), along_y.reshape(2, 4, 16)
        for query in range(2):
            for row in range(4):
                for column in range(6):
                    assert torch.equal(structure[query, row, column, 8:12], along_y[1, row, 8:12])
                    assert torch.equal(structure[query, row, column, 12:], along_x[0, column, 12:])
        for frame in range(2):
            assert torch.equal(along_x[frame, 0, :8], along_y[frame, 3, :8])
        # What a token does not have is zero, and what it has tells it from all others.
        assert not structure[..., :8].any()
        assert not along_x[..., 8:12].any()
        assert not along_y[..., 12:].any()
        assert len(torch.unique(codes, dim=0)) == 24 + 12 + 8

    def test_a_patch_lies_in_the_middle_of_its_rows(self) -> None:
        sizes = DiTConfig(**SIZES)
        structure, _, along_y = position_codes(sizes).split(sizes.token_counts)
        rows = along_y[:4, 8:12]
        first_patch = structure[0, 8:12]
        near = rows @ first_patch  # falls with the distance
        assert_close(near[0], near[1])
        assert near[1] > near[2] > near[3]


class TestStart:
    @pytest.mark.parametrize("variant", VARIANTS)
    def test_a_new_model_predicts_zero(self, variant) -> None:
        model = build(variant, jitter=0.0)
        assert not run(model, draw(model)).any()

    def test_a_new_block_is_the_identity(self) -> None:
        block = build("cross", jitter=0.0).blocks[0]
        tokens, vector, text = torch.randn(2, 7, 16), torch.randn(2, 16), torch.randn(2, 3, 16)
        mask = torch.ones(2, 3, dtype=torch.bool)
        assert torch.equal(block(tokens, vector, None, text, mask), tokens)

    def test_the_same_seed_gives_the_same_weights(self) -> None:
        first, second = (build("both").state_dict() for _ in range(2))
        assert all(torch.equal(value, second[name]) for name, value in first.items())


class TestGradients:
    @pytest.mark.parametrize("variant", VARIANTS)
    def test_every_weight_has_one(self, variant) -> None:
        model = build(variant).train()
        inputs = draw(model, batch=4)
        if "class_labels" in inputs:  # every class, and the null class
            inputs["class_labels"] = torch.tensor([0, 1, 2, 3])
        if "encoder_attention_mask" in inputs:  # and the null text
            inputs["encoder_attention_mask"][0] = False
        outputs = model(**inputs)
        sum((output * torch.randn_like(output)).sum() for output in outputs).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().max() > 0, name
            if name == "classes.weight":
                assert (parameter.grad.abs().amax(1) > 0).all()

    @pytest.mark.parametrize("variant", ["in_context", "both"])
    def test_checkpointing_changes_nothing(self, variant) -> None:
        model = build(variant).train()
        inputs = draw(model)

        def gradients() -> list[Tensor]:
            model.zero_grad()
            outputs = model(**inputs)
            sum(output.square().sum() for output in outputs).backward()
            return [parameter.grad.clone() for parameter in model.parameters()]

        plain = gradients()
        model.enable_gradient_checkpointing()
        runs = []
        hook = model.blocks[0].register_forward_pre_hook(lambda *_: runs.append(1))
        checkpointed = gradients()
        hook.remove()
        assert len(runs) == 2  # once more in the backward pass
        for first, second in zip(plain, checkpointed, strict=True):
            assert torch.equal(first, second)

    def test_all_latents_depend_on_all_latents(self) -> None:
        model = build()
        inputs = draw(model)
        plain = model(**inputs)
        for name in ("structure", "dynamics_x", "dynamics_y"):
            changed = model(**inputs | {name: inputs[name] + 1})
            for before, after in zip(plain, changed, strict=True):
                assert not torch.allclose(before, after, atol=1e-4)


class TestConditions:
    @pytest.mark.parametrize("variant", VARIANTS)
    def test_a_sample_does_not_depend_on_its_batch(self, variant) -> None:
        model = build(variant)
        inputs = draw(model)
        together = run(model, inputs)
        for index in range(3):
            alone = run(model, {name: value[index : index + 1] for name, value in inputs.items()})
            assert_close(alone[0], together[index], rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("name", ["structure_timestep", "dynamics_timestep"])
    def test_each_noise_level_counts(self, name) -> None:
        model = build()
        inputs = draw(model)
        changed = run(model, inputs, **{name: inputs[name] + 200})
        assert ((changed - run(model, inputs)).abs().amax(1) > 1e-3).all()

    def test_the_noise_levels_are_told_apart(self) -> None:
        model = build()
        inputs = draw(model)
        exchanged = {
            "structure_timestep": inputs["dynamics_timestep"],
            "dynamics_timestep": inputs["structure_timestep"],
        }
        assert not torch.allclose(run(model, inputs), run(model, inputs, **exchanged), atol=1e-3)

    @pytest.mark.parametrize("variant", ["both", "class_read", "both_read"])
    def test_no_class_is_the_null_class(self, variant) -> None:
        model = build(variant)
        inputs = draw(model)
        null = run(model, inputs, class_labels=torch.full((3,), CLASSES))
        assert torch.equal(run(model, inputs, class_labels=None), null)
        classes = [run(model, inputs, class_labels=torch.full((3,), n)) for n in range(CLASSES)]
        for one in classes:
            assert not torch.allclose(one, null, atol=1e-3)
        assert not torch.allclose(classes[0], classes[1], atol=1e-3)

    def test_reading_one_token_is_attention_to_it(self) -> None:
        """What stands for attention to the class alone is attention, to the last weight."""
        model = build("class_read")
        lean = model.blocks[0].cross_attention
        full = DiTAttention(16, 2, True)
        full.key_value.weight.data[16:] = lean.value.weight
        full.key_value.bias.data[16:] = lean.value.bias
        full.output = lean.output
        tokens, context = torch.randn(2, 5, 16), torch.randn(2, 1, 16)
        assert_close(lean(tokens, context).expand(2, 5, 16), full(tokens, context))

    @pytest.mark.parametrize("variant", ["class_read", "both_read"])
    def test_a_class_that_is_read_does_not_modulate(self, variant) -> None:
        model = build(variant)
        assert model.classes.weight.shape == (CLASSES + 1, 12)
        told = []
        model.blocks[0].modulation.register_forward_pre_hook(lambda _, args: told.append(args[0]))
        inputs = draw(model)
        for label in range(2):
            run(model, inputs, class_labels=torch.full((3,), label))
        assert torch.equal(*told)

    @pytest.mark.parametrize("variant", TEXT_VARIANTS)
    def test_no_text_is_the_null_text(self, variant) -> None:
        model = build(variant)
        inputs = draw(model)
        mask = inputs["encoder_attention_mask"].clone()
        null = {"encoder_hidden_states": None, "encoder_attention_mask": None}
        expected = run(model, inputs, **null)
        mask[1] = False
        came = run(model, inputs, encoder_attention_mask=mask)
        assert_close(came[1], expected[1], rtol=1e-4, atol=1e-4)
        told = run(model, inputs)
        for index in (0, 2):
            assert_close(came[index], told[index], rtol=1e-4, atol=1e-4)
        assert ((told - expected).abs().amax(1) > 1e-3).all()

    @pytest.mark.parametrize("variant", TEXT_VARIANTS)
    def test_padding_changes_nothing(self, variant) -> None:
        model = build(variant)
        inputs = draw(model)
        states, mask = inputs["encoder_hidden_states"], inputs["encoder_attention_mask"]
        expected = run(model, inputs)
        noise = torch.where(mask[..., None], states, 100 * torch.randn_like(states))
        came = run(model, inputs, encoder_hidden_states=noise)
        assert_close(came, expected, rtol=1e-4, atol=1e-4)
        longer = {
            "encoder_hidden_states": torch.cat([states, torch.ones(3, 4, TEXT_WIDTH)], dim=1),
            "encoder_attention_mask": torch.cat([mask, torch.zeros(3, 4, dtype=torch.bool)], 1),
        }
        assert_close(run(model, inputs, **longer), expected, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("variant", TEXT_VARIANTS)
    def test_texts_without_padding_need_a_mask_beside_other_tokens_alone(
        self, variant, monkeypatch
    ) -> None:
        model, masks = build(variant), []
        inputs = draw(model)
        attend = dit_blocks.dispatch_attention_fn
        monkeypatch.setattr(
            dit_blocks,
            "dispatch_attention_fn",
            lambda *args, attn_mask: masks.append(attn_mask) or attend(*args, attn_mask=attn_mask),
        )
        mask = torch.ones(3, TEXT_LENGTH, dtype=torch.bool)
        mask[1] = False  # the null text
        expected = run(model, inputs, encoder_attention_mask=mask)
        masks.clear()
        came = run(model, inputs, encoder_attention_mask=mask[:, :1])
        assert_close(came, expected, rtol=1e-5, atol=1e-5)
        beside = variant in ("in_context", "both_read")
        assert any(m is not None for m in masks) == beside
        masks.clear()
        none = run(model, inputs, encoder_attention_mask=None)
        assert_close(none[0], expected[0], rtol=1e-5, atol=1e-5)
        assert masks and not any(m is not None for m in masks)

    @pytest.mark.parametrize("variant", TEXT_VARIANTS)
    def test_every_real_token_is_read(self, variant) -> None:
        model = build(variant)
        inputs = draw(model)
        inputs["encoder_attention_mask"][:] = True
        expected = run(model, inputs)
        without = run(model, inputs, encoder_attention_mask=None)
        assert_close(without, expected, rtol=1e-5, atol=1e-5)
        for token in range(TEXT_LENGTH):
            states = inputs["encoder_hidden_states"].clone()
            states[:, token] = states[:, token].flip(-1)
            came = run(model, inputs, encoder_hidden_states=states)
            assert ((came - expected).abs().amax(1) > 1e-4).all()


class TestPrecision:
    @pytest.mark.filterwarnings("error")
    @pytest.mark.parametrize("variant", ["in_context", "both"])
    def test_bf16_is_close(self, variant) -> None:
        # As wide as a real model is at least: a few roundings must not decide.
        model = build(variant, jitter=0.05, hidden_size=64)
        inputs = draw(model)
        expected = run(model, inputs)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = run(model, inputs)
        names = ("structure", "dynamics_x", "dynamics_y", "encoder_hidden_states")
        halved = {name: inputs[name].bfloat16() for name in names}
        pure = run(model.to(torch.bfloat16), inputs, **halved)
        for came in (mixed, pure):
            error = (came.float() - expected).norm() / expected.norm()
            assert error < 0.03
        assert pure.dtype == torch.bfloat16


class TestFiles:
    @pytest.mark.parametrize("variant", ["none", "both", "in_context", "both_read"])
    def test_saved_and_loaded_is_the_same(self, variant, tmp_path) -> None:
        model = build(variant)
        model.save_pretrained(tmp_path)
        loaded = TwinDiT.from_pretrained(tmp_path)
        assert loaded.sizes == model.sizes
        assert dict(loaded.config)["structure_shape"] == model.sizes.structure_shape
        assert not loaded.training
        inputs = draw(model)
        assert torch.equal(run(loaded, inputs), run(model, inputs))
        assert not list(tmp_path.glob("*.bin"))
        assert torch.equal(loaded.positions, model.positions)

    @pytest.mark.parametrize("change", ["missing", "unexpected", "other shape"])
    def test_weights_that_do_not_fit_are_refused(self, change, tmp_path) -> None:
        build().save_pretrained(tmp_path)
        file = tmp_path / "diffusion_pytorch_model.safetensors"
        weights = load_file(file)
        if change == "missing":
            del weights["blocks.1.mlp.0.weight"]
        elif change == "unexpected":
            weights["blocks.2.mlp.0.weight"] = torch.zeros(1)
        else:
            weights["norm_of_nothing"] = weights.pop("blocks.1.mlp.0.weight")[:3].clone()
            weights["blocks.1.mlp.0.weight"] = weights.pop("norm_of_nothing")
        save_file(weights, file)
        with pytest.raises(ValueError, match=r"blocks\.[12]\.mlp\.0\.weight"):
            TwinDiT.from_pretrained(tmp_path)

    def test_a_config_key_that_means_nothing_is_refused(self, tmp_path) -> None:
        build().save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(config | {"dropout": 0.1}))
        with pytest.raises(ValueError, match="dropout"):
            TwinDiT.from_pretrained(tmp_path)

    def test_pickles_are_not_read(self, tmp_path) -> None:
        build().save_pretrained(tmp_path, safe_serialization=False)
        with pytest.raises(OSError, match="safetensors"):
            TwinDiT.from_pretrained(tmp_path)
        with pytest.raises(ValueError, match="safetensors files only"):
            TwinDiT.from_pretrained(tmp_path, use_safetensors=False)

    def test_a_run_may_start_from_a_saved_model(self, tmp_path) -> None:
        model = build("class")
        model.save_pretrained(tmp_path)
        started = build_transformer(model.sizes, str(tmp_path))
        assert started.training
        assert torch.equal(run(started, draw(model)), run(model, draw(model)))
        other = DiTConfig(**SIZES | {"num_classes": 4, "depth": 1})
        with pytest.raises(ValueError, match=r"depth=2, expected 1; num_classes=3, expected 4"):
            build_transformer(other, str(tmp_path))


class TestBadInput:
    def test_latents_of_another_autoencoder(self) -> None:
        model = build()
        inputs = draw(model)
        with pytest.raises(ValueError, match=r"expected `dynamics_y` of shape \(3, 2, 8, 4\)"):
            model(**inputs | {"dynamics_y": inputs["dynamics_x"]})
        with pytest.raises(ValueError, match=r"`dynamics_x` of shape \(3, .*got \(2, "):
            model(**inputs | {"dynamics_x": inputs["dynamics_x"][:2]})

    def test_a_condition_that_the_model_does_not_have(self) -> None:
        text, classes = build("cross"), build("class")
        with pytest.raises(ValueError, match="this model has no classes"):
            text(**draw(text), class_labels=torch.zeros(3, dtype=torch.int64))
        states = torch.zeros(3, 2, TEXT_WIDTH)
        with pytest.raises(ValueError, match="this model has no text condition"):
            classes(**draw(classes), encoder_hidden_states=states)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"encoder_hidden_states": torch.zeros(3, 5, 4)}, r"shape \(3, L, 10\), got \(3, 5, 4"),
            ({"encoder_hidden_states": torch.zeros(1, 5, 10)}, r"shape \(3, L, 10\), got \(1, 5,"),
            ({"encoder_attention_mask": torch.ones(3, 4, dtype=torch.bool)}, r"got \(3, 4\)"),
            ({"encoder_attention_mask": torch.ones(3, 5)}, "type bool"),
            ({"encoder_hidden_states": None}, "without `encoder_hidden_states`"),
        ],
    )
    def test_a_text_of_another_shape(self, changes, message) -> None:
        model = build("cross")
        with pytest.raises(ValueError, match=message):
            model(**draw(model) | changes)
