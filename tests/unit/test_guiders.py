"""diffusers' guiders in the pipeline: at their neutral settings they change nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import guiders
from torch.testing import assert_close

from diffusion import VidTwinPipeline
from diffusion.guiders import build_guider, parse_guider
from vidtwin import VidTwinLatents

WEAK = 'auto_guidance_config={"indices":[0]}'


@pytest.fixture(scope="module")
def pipeline(build_pipeline) -> VidTwinPipeline:
    return build_pipeline(classes=True)


def ask(pipeline: VidTwinPipeline, **changes: Any) -> VidTwinLatents:
    options = {"num_inference_steps": 4, "seed": 5, "output_type": "latent"}
    asked = {"prompt": ["a red circle", "a star"], "class_labels": [0, 1]}
    return pipeline(**options | asked | changes).latents


def distance(one: VidTwinLatents, other: VidTwinLatents) -> float:
    pairs = zip(one.tensors(), other.tensors(), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


@pytest.mark.parametrize("lead", [0.0, 0.5])
@pytest.mark.parametrize(
    ("text", "scale"),
    [("cfg", 3.0), ("cfg start=0 stop=1 guidance_rescale=0", 3.0),
     ("apg adaptive_projected_guidance_rescale=0 eta=1", 3.0), ("cfg", 1.0),
     ("cfg enabled=false", 3.0), ("cfg stop=0", 3.0), ("apg", 1.0),
     ("cfg_zero zero_init_steps=0", 1.0), (f"autoguidance {WEAK}", 1.0)],
)  # fmt: skip
def test_neutral_is_plain_guidance_or_none(pipeline, text, scale, lead) -> None:
    """With both conditions at one scale, as a guider has them."""
    off = scale == 1.0 or "false" in text or "stop=0" in text
    plain = ask(pipeline, guidance_scale=1.0 if off else scale, structure_lead=lead)
    made = ask(pipeline, guider=build_guider(text, scale), structure_lead=lead)
    assert distance(made, plain) < 1e-4


@pytest.mark.parametrize(
    "text", ["cfg stop=0.5", "cfg start=0.5", "cfg guidance_rescale=0.7", "apg eta=0",
             "apg adaptive_projected_guidance_momentum=-0.5", "cfg_zero", f"autoguidance {WEAK}"],
)  # fmt: skip
def test_others_do_something(pipeline, text) -> None:
    made = ask(pipeline, guider=build_guider(text, 3.0))
    assert distance(made, ask(pipeline, guidance_scale=3.0)) > 1e-3
    assert distance(made, ask(pipeline, guidance_scale=1.0)) > 1e-3
    alone = ask(pipeline, prompt="a star", class_labels=1, seed=6, guider=build_guider(text, 3.0))
    assert distance(made[1:2], alone) < 1e-4  # whatever the batch around it
    assert distance(ask(pipeline, guider=build_guider(text, 3.0)), made) == 0  # and called again


def test_an_interval_is_of_each_latents_own_steps(pipeline) -> None:
    """The structure goes first, and is guided in its own first half; then so do the dynamics."""
    rows: list[int] = []
    hook = pipeline.transformer.register_forward_pre_hook(
        lambda module, inputs: rows.append(len(inputs[0]))
    )
    ask(pipeline, guider=build_guider("cfg stop=0.5", 3.0), structure_lead=1.0,
        num_inference_steps=8)  # fmt: skip
    hook.remove()
    # Each takes four steps, of which two are guided, by a call without conditions.
    assert len(rows) == 8 + 2 + 2


def test_autoguidance_skips_a_block_and_leaves_the_model_as_it_was(pipeline) -> None:
    before = ask(pipeline, guidance_scale=1.0)
    weak = ask(pipeline, guider=build_guider(f"autoguidance {WEAK}", 2.0))
    plain = ask(pipeline, guidance_scale=2.0)
    assert distance(weak, plain) > 1e-3
    assert distance(ask(pipeline, guidance_scale=1.0), before) == 0


@pytest.mark.parametrize("given", [1.0, 2.0])
@pytest.mark.parametrize("name", ["structure", "dynamics"])
def test_what_is_given_keeps_its_own_guidance(pipeline, name, given) -> None:
    held = {name: ask(pipeline, seed=9), "given_guidance_scale": given}
    plain = ask(pipeline, guidance_scale=3.0, **held)
    assert distance(ask(pipeline, guider=build_guider("cfg", 3.0), **held), plain) < 1e-4


def test_a_negative_prompt(pipeline) -> None:
    asked = {"negative_prompt": "a ring", "class_labels": None}
    plain = ask(pipeline, guidance_scale=3.0, **asked)
    assert distance(ask(pipeline, guider=build_guider("cfg", 3.0), **asked), plain) < 1e-4


def test_a_guider_of_the_callers_own(pipeline) -> None:
    own = guiders.ClassifierFreeGuidance(guidance_scale=3.0, stop=0.5)
    made = ask(pipeline, guider=own)
    assert_close(made.structure, ask(pipeline, guider=own).structure)
    assert distance(made, ask(pipeline, guider=build_guider("cfg stop=0.5", 3.0))) == 0


def test_names_and_options() -> None:
    assert parse_guider("apg eta=0.5 norm=[1,2]") == ("apg", {"eta": 0.5, "norm": [1, 2]})
    assert build_guider("cfg", 4.5).guidance_scale == 4.5
    assert build_guider("cfg guidance_scale=2", 4.5).guidance_scale == 2


@pytest.mark.parametrize(
    ("text", "reason"),
    [("", "`guider` must be one of cfg, apg"), ("pag", "got 'pag'"),
     ("apg eta", "key=value, .* got 'eta'"), ("apg eta=1 eta=2", "each key once"),
     ("apg etta=1", "nearest is eta"),
     ("apg eta=[", "no YAML value"), ("cfg start=2", "`start`"),
     ("autoguidance", "must be provided"),
     ('autoguidance auto_guidance_config={"indices":[0],"dropout":0.5}', "skip whole blocks"),
     ("autoguidance auto_guidance_layers=[0] dropout=1.0", "skip whole blocks")],
)  # fmt: skip
def test_what_is_refused(text, reason) -> None:
    with pytest.raises(ValueError, match=reason):
        build_guider(text, 3.0)


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"guidance_scale": 3.0}, "`guidance_scale` is 3.0, and `guider`"),
     ({"class_guidance_scale": 3.0}, "`class_guidance_scale`"),
     ({"guider": "apg"}, "one of diffusers.guiders"),
     ({"guider": torch.nn.Linear(1, 1)}, "Linear")],
)  # fmt: skip
def test_what_the_pipeline_refuses(pipeline, options, reason) -> None:
    with pytest.raises(ValueError, match=reason):
        ask(pipeline, **{"guider": guiders.ClassifierFreeGuidance(3.0)} | options)
