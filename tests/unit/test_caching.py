"""diffusers' caches in the transformer: neutral ones change nothing, others compute less."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import hooks
from diffusers.hooks import FirstBlockCacheConfig, MagCacheConfig, TaylorSeerCacheConfig

from diffusion import TwinDiT, VidTwinPipeline
from diffusion.guiders import build_guider
from vidtwin import VidTwinLatents

PROMPT = "a red circle moves left"
STEPS = 8
NEUTRAL = {
    "first_block": FirstBlockCacheConfig(threshold=0.0),
    "mag": MagCacheConfig(mag_ratios=[1.0] * STEPS, max_skip_steps=0, num_inference_steps=STEPS),
    "taylor": TaylorSeerCacheConfig(cache_interval=1),
}
SKIPPING = {
    "first_block": FirstBlockCacheConfig(threshold=1e6),
    "mag": MagCacheConfig(mag_ratios=[1.0] * STEPS, num_inference_steps=STEPS),
    "taylor": TaylorSeerCacheConfig(cache_interval=2, taylor_factors_dtype=torch.float32),
    "taylor_lite": TaylorSeerCacheConfig(cache_interval=2, use_lite_mode=True),
}
CALLS: dict[str, Any] = {
    "prompt": {},
    "guider": {"guidance_scale": None},
    "lead": {"structure_lead": 0.5, "num_inference_steps": 12},
    "long": {"num_frames": 14},
}


@pytest.fixture
def pipeline(build_pipeline) -> VidTwinPipeline:
    """With three blocks, of which caches skip the later ones."""
    small = build_pipeline()
    torch.manual_seed(1)
    deep = TwinDiT(**vars(small.transformer.sizes) | {"depth": 3}).eval()
    with torch.no_grad():
        for weight in deep.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.2)
    made = VidTwinPipeline(**small.components | {"transformer": deep})
    made.set_progress_bar_config(disable=True)
    return made


def ask(pipeline: VidTwinPipeline, name: str = "prompt") -> VidTwinLatents:
    asked = {"num_inference_steps": STEPS, "guidance_scale": 3.0, "output_type": "latent"}
    if name == "guider":
        asked["guider"] = build_guider("cfg", 3.0)
    return pipeline(PROMPT, seed=4, **asked | CALLS[name]).latents


def same(one: VidTwinLatents, other: VidTwinLatents) -> bool:
    return all(map(torch.equal, one.tensors(), other.tensors()))


def counted(pipeline: VidTwinPipeline) -> list[int]:
    """Grows by one each time that a later block's MLP is computed."""
    calls: list[int] = []
    layer = pipeline.transformer.blocks[1].mlp[0]
    layer.register_forward_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("kind", NEUTRAL)
def test_a_neutral_cache_changes_nothing(pipeline, kind, name) -> None:
    plain = ask(pipeline, name)
    pipeline.transformer.enable_cache(NEUTRAL[kind])
    assert pipeline.transformer.is_cache_enabled
    assert same(ask(pipeline, name), plain)


@pytest.mark.parametrize("name", ["prompt", "guider", "long"])
@pytest.mark.parametrize("kind", SKIPPING)
def test_others_compute_less_and_begin_anew(pipeline, kind, name) -> None:
    calls = counted(pipeline)
    plain = ask(pipeline, name)
    full = len(calls)
    pipeline.transformer.enable_cache(SKIPPING[kind])
    calls.clear()
    found = ask(pipeline, name)
    assert 0 < len(calls) < full
    assert not same(found, plain) and all(t.isfinite().all() for t in found.tensors())
    assert same(ask(pipeline, name), found)
    pipeline.transformer.disable_cache()
    assert same(ask(pipeline, name), plain)


@pytest.mark.parametrize(
    "config",
    [
        hooks.FasterCacheConfig(),
        hooks.PyramidAttentionBroadcastConfig(),
        hooks.SeaCacheConfig(),
        hooks.TextKVCacheConfig(),
    ],
)
def test_caches_of_other_models_are_refused(pipeline, config) -> None:
    with pytest.raises(ValueError, match=f"TaylorSeerCacheConfig; got {type(config).__name__}"):
        pipeline.transformer.enable_cache(config)


def test_a_first_block_needs_a_second(build_pipeline) -> None:
    with pytest.raises(ValueError, match="at least 2 blocks, got one of 1"):
        build_pipeline().transformer.enable_cache(FirstBlockCacheConfig())
