"""From moving shapes to videos by prompt and by class, through every script as users run it."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
from script_runs import read_back, read_json, run, run_python, weights

PROMPT = "a red circle moving left on a navy background"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Path:
    """Autoencoder, text encoder, cache and transformer, each trained for a few steps."""
    folder = tmp_path_factory.mktemp("stages")
    for script, config, output, *options in (
        ("train_ae", "ae/shapes_debug", "ae", "save_every=6", "validate_every=6"),
        ("train_language", "language/shapes_bert_debug", "bert"),
        ("encode", "encode/shapes_debug", "latents", f"autoencoder={folder}/ae"),
        (
            *("train_diffusion", "diffusion/shapes_debug", "dit", f"autoencoder={folder}/ae"),
            *(f"cache={folder}/latents", f"text_encoder={folder}/bert/language_model"),
            # Both conditions in one model; the clips are in the cache.
            *("class_conditional=true", f"sample_prompts=[{PROMPT}]"),
        ),
    ):
        words = ("--config", f"configs/{config}.yaml", f"output={folder / output}", *options)
        run_python(f"{script}.py", *words).done()
    return folder / "dit" / "pipeline"


@pytest.mark.parametrize(
    ("sample", "flag", "asked"),
    [
        (functools.partial(run_python, "sample.py"), "--prompt", PROMPT),
        (functools.partial(run, "sample"), "--class-label", "growing"),
    ],
    ids=["prompt", "class"],
)
def test_from_shapes_to_a_video(pipeline, tmp_path, sample, flag, asked):
    out = sample(
        *("--pipeline", pipeline, "--output", tmp_path, "--steps", 2, "--device", "cpu"),
        *(flag, asked),
    ).done()
    assert str(tmp_path / "sample_0000.mp4") in out
    assert read_back(tmp_path / "sample_0000.mp4")[0].shape == (16, 32, 32, 3)
    assert read_json(tmp_path / "sample.json")["samples"][0]["asked"] == asked
    assert (tmp_path / "sheet.png").is_file()
    latents = weights(tmp_path / "sample_0000.latents.safetensors")
    assert all(bool(value.isfinite().all()) for value in latents.values())
