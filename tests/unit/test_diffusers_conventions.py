"""What someone who knows diffusers tries on any pipeline; docs/diffusers.md is the table of it."""

from __future__ import annotations

import json

import diffusers
import pytest
import torch
from diffusers.hooks import HookRegistry
from diffusers.models.attention_dispatch import attention_backend
from safetensors.torch import load_file

from diffusion import VidTwinPipeline
from diffusion.config import LoraConfig
from diffusion.lora import add_lora, load_adapters, save_lora
from vidtwin import draw_noise

PROMPT = "a red circle moving left"


@pytest.fixture
def pipeline(build_pipeline) -> VidTwinPipeline:
    return build_pipeline()


def structure(pipeline: VidTwinPipeline, **options: object) -> torch.Tensor:
    """The structure latents of one video."""
    asked = {"prompt": PROMPT, "seed": 3, "num_inference_steps": 2, "output_type": "latent"}
    return pipeline(**asked | options).latents.structure


class TestCalls:
    @pytest.mark.parametrize("name", ["UniPC", "DPMSolver", "DEIS"])
    def test_solvers_are_swapped_by_from_config(self, pipeline, name) -> None:
        pipeline.scheduler = getattr(diffusers, f"{name}MultistepScheduler").from_config(
            pipeline.scheduler.config
        )
        assert structure(pipeline, num_inference_steps=4).isfinite().all()

    def test_saved_and_loaded_it_still_is_without_a_warning(
        self, pipeline, tmp_path, caplog, monkeypatch
    ) -> None:
        monkeypatch.setattr(diffusers.utils.logging.get_logger("diffusers"), "propagate", True)
        expected = dict(pipeline.scheduler.config)
        pipeline.save_pretrained(tmp_path)
        assert dict(pipeline.scheduler.config) == expected
        saved = json.loads((tmp_path / "scheduler" / "scheduler_config.json").read_text())
        assert not {"flow_shift", "prediction_type", "use_flow_sigmas"} & set(saved)
        loaded = VidTwinPipeline.from_pretrained(tmp_path)
        assert "not expected" not in caplog.text
        solver = diffusers.UniPCMultistepScheduler.from_config(loaded.scheduler.config)
        assert solver.config.use_flow_sigmas and solver.config.prediction_type == "flow_prediction"

    def test_a_scheduler_that_does_not_fit_names_those_that_do(self, pipeline) -> None:
        pipeline.scheduler = diffusers.DDIMScheduler(clip_sample=False)
        with pytest.raises(ValueError, match="euler, heun, dpm\\+\\+, unipc"):
            structure(pipeline)

    def test_frames_are_the_videos(self, pipeline) -> None:
        output = pipeline(PROMPT, num_inference_steps=1, seed=0)
        assert output.frames is output.videos

    def test_what_was_read_of_prompts_takes_their_place(self, pipeline) -> None:
        embeds, mask, other, other_mask = pipeline.encode_prompt(PROMPT, "a square")
        read = structure(
            pipeline,
            prompt=None,
            prompt_embeds=embeds,
            prompt_attention_mask=mask,
            negative_prompt_embeds=other,
            negative_prompt_attention_mask=other_mask,
        )
        assert torch.equal(read, structure(pipeline, negative_prompt="a square"))
        assert len(pipeline.encode_prompt(PROMPT, num_videos_per_prompt=2)[0]) == 2

    @pytest.mark.parametrize(
        ("options", "told"),
        [
            ({"prompt_embeds": torch.zeros(1, 3, 5)}, "prompt_embeds"),
            ({"prompt_embeds": torch.zeros(1, 3, 5), "prompt": None}, "tokens, "),
            ({"prompt_attention_mask": torch.ones(1, 3)}, "prompt_embeds"),
            ({"height": 48}, "height"),
            ({"latents": torch.zeros(1)}, "VidTwinLatents"),
        ],
    )
    def test_bad_values_are_named(self, pipeline, options, told) -> None:
        with pytest.raises(ValueError, match=told):
            structure(pipeline, **options)

    def test_noise_is_given_as_latents(self, pipeline) -> None:
        noise = draw_noise(pipeline.transformer.sizes, [3])
        assert torch.equal(structure(pipeline, seed=9, latents=noise), structure(pipeline))
        with pytest.raises(ValueError, match=r"latents\.structure"):
            structure(pipeline, num_videos_per_prompt=2, latents=noise)

    def test_components_and_parameters_make_it_again(self, pipeline) -> None:
        again = VidTwinPipeline(**pipeline.components, **pipeline.parameters)
        assert dict(again.config) == dict(pipeline.config)

    def test_the_stored_dtype_is_kept_on_demand(self, pipeline, tmp_path) -> None:
        pipeline.transformer.half()
        pipeline.save_pretrained(tmp_path)
        loaded = VidTwinPipeline.from_pretrained(tmp_path, torch_dtype="auto")
        assert loaded.transformer.dtype == torch.float16
        assert loaded.autoencoder.dtype == torch.float32

    def test_blocks_are_compiled_one_by_one(self, pipeline, monkeypatch) -> None:
        compiled = []
        monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **_: compiled.append(self))
        pipeline.transformer.compile_repeated_blocks()
        assert compiled == list(pipeline.transformer.blocks)

    def test_attention_backends_are_used(self, pipeline, monkeypatch) -> None:
        from diffusers.models import attention_dispatch as dispatch

        used, plain = [], structure(pipeline)
        backends = dispatch._AttentionBackendRegistry._backends
        name = dispatch.AttentionBackendName._NATIVE_MATH
        math = backends[name]
        monkeypatch.setitem(backends, name, lambda **k: used.append(1) or math(**k))
        with dispatch.attention_backend("_native_math"):
            found = structure(pipeline)
        assert used
        torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize(
        "asked", [{}, {"prompt": None}, {"prompt": [PROMPT] * 2}, {"negative_prompt": PROMPT}]
    )
    def test_backends_without_masks_take_prompts_of_equal_length(self, pipeline, asked) -> None:
        plain = structure(pipeline, **asked)
        with attention_backend("_native_flash"):
            found = structure(pipeline, **asked)
        torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-4)

    def test_backends_without_masks_refuse_padded_prompts(self, pipeline) -> None:
        with (
            attention_backend("_native_flash"),
            pytest.raises(ValueError, match="`attn_mask` is not supported"),
        ):
            structure(pipeline, prompt=[PROMPT, "a star"])

    def test_an_empty_negative_prompt_is_none(self, pipeline) -> None:
        assert torch.equal(structure(pipeline, negative_prompt=[""]), structure(pipeline))

    @pytest.mark.parametrize(
        "options",
        [
            {"offload_type": "leaf_level"},
            {"offload_type": "block_level", "num_blocks_per_group": 1},
        ],
    )
    def test_weights_are_offloaded_in_groups(self, pipeline, options) -> None:
        plain = structure(pipeline)
        pipeline.transformer.enable_group_offload(torch.device("cpu"), **options)
        hooks = [HookRegistry.check_if_exists_or_initialize(m).hooks
                 for m in pipeline.transformer.modules()]  # fmt: skip
        assert any("group_offloading" in names for names in hooks)
        assert torch.equal(structure(pipeline), plain)

    def test_layers_are_stored_in_less_than_they_compute_in(self, pipeline) -> None:
        pipeline.transformer.enable_layerwise_casting(torch.float16, torch.float32)
        assert any(
            HookRegistry.check_if_exists_or_initialize(m).hooks
            for m in pipeline.transformer.modules()
            if isinstance(m, torch.nn.Linear)
        )
        assert pipeline.transformer.blocks[0].mlp[0].weight.dtype == torch.float16
        assert structure(pipeline).isfinite().all()


class TestLora:
    @pytest.fixture
    def saved(self, pipeline, tmp_path):
        """Two folders of adapters that change something."""
        pytest.importorskip("peft", reason="adapters are peft's")
        for number in range(2):
            model = type(pipeline.transformer)(**vars(pipeline.transformer.sizes))
            add_lora(model, LoraConfig(rank=2), seed=number)
            trained = [p for p in model.parameters() if p.requires_grad]
            assert 0 < sum(p.numel() for p in trained) < sum(p.numel() for p in model.parameters())
            with torch.no_grad():
                for weight in trained:
                    weight.add_(0.3)
            save_lora(model, tmp_path / str(number))
        return [tmp_path / "0", tmp_path / "1"]

    def test_it_is_saved_alone_loaded_scaled_merged_and_taken_away(self, pipeline, saved) -> None:
        plain = structure(pipeline)
        names = load_file(saved[0] / "pytorch_lora_weights.safetensors")
        assert names and all("lora" in name for name in names)
        pipeline.load_lora_weights(saved[0], adapter_name="word")
        with_word = structure(pipeline)
        assert not torch.equal(with_word, plain)
        pipeline.fuse_lora()
        torch.testing.assert_close(structure(pipeline), with_word, rtol=1e-3, atol=1e-3)
        pipeline.unfuse_lora()
        pipeline.set_adapters(["word"], [0.0])
        torch.testing.assert_close(structure(pipeline), plain, rtol=1e-3, atol=1e-3)
        pipeline.unload_lora_weights()
        torch.testing.assert_close(structure(pipeline), plain, rtol=1e-3, atol=1e-3)

    def test_several_are_added_up(self, pipeline, saved) -> None:
        load_adapters(pipeline, [(saved[0], 1.0), (saved[1], 0.0)])
        both = structure(pipeline)
        pipeline.unload_lora_weights()
        load_adapters(pipeline, [(saved[0], 1.0)])
        torch.testing.assert_close(both, structure(pipeline), rtol=1e-4, atol=1e-4)

    def test_adapters_of_another_transformer_are_named(self, pipeline, saved, tmp_path) -> None:
        sizes = vars(pipeline.transformer.sizes) | {"hidden_size": 32}
        other = type(pipeline.transformer)(**sizes)
        add_lora(other, LoraConfig(rank=2), seed=0)
        save_lora(other, tmp_path / "other")
        with pytest.raises(ValueError, match="other holds no adapters of this transformer"):
            load_adapters(pipeline, [(tmp_path / "other", 1.0)])

    def test_its_first_weights_follow_from_the_seed(self, pipeline) -> None:
        pytest.importorskip("peft", reason="adapters are peft's")
        found = []
        for _ in range(2):
            torch.rand(3)
            model = type(pipeline.transformer)(**vars(pipeline.transformer.sizes))
            add_lora(model, LoraConfig(rank=2), seed=1)
            found.append([p.detach() for p in model.parameters() if p.requires_grad])
        assert all(map(torch.equal, *found))
