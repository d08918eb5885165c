"""From moving shapes to videos by prompt and by class, through every script as users run it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import av
import pytest
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": ""}
PROMPT = "a red circle moving left on a navy background"


def run(script: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, script, *map(str, arguments)],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, f"{script}: {done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Path:
    """Autoencoder, reader, cache and transformer, each trained for a few steps."""
    folder = tmp_path_factory.mktemp("stages")
    quick = ("save_every=6", "validate_every=6")
    run("train_ae.py", "--config", "configs/ae/shapes_debug.yaml", f"output={folder}/ae", *quick)
    run(
        "train_language.py",
        *("--config", "configs/language/shapes_bert_debug.yaml", f"output={folder}/bert"),
    )
    run(
        "encode.py",
        *("--config", "configs/encode/shapes_debug.yaml"),
        *(f"autoencoder={folder}/ae", f"output={folder}/latents"),
    )
    run(
        "train_diffusion.py",
        *("--config", "configs/diffusion/shapes_debug.yaml", f"output={folder}/dit"),
        *(f"autoencoder={folder}/ae", f"cache={folder}/latents"),
        *(f"text_encoder={folder}/bert/language_model", f"sample_prompts=[{PROMPT}]"),
        # Both conditions in one model; the clips are in the cache.
        *("class_conditional=true", "data.shapes_size=20000"),
    )
    return folder / "dit" / "pipeline"


@pytest.mark.parametrize(
    ("flags", "asked"),
    [
        (["--prompt", PROMPT], PROMPT),
        (["--class-label", "growing"], "growing"),
    ],
)
def test_from_shapes_to_a_video(pipeline, tmp_path, flags, asked):
    out = run(
        "sample.py",
        *("--pipeline", pipeline, "--output", tmp_path, "--steps", 2, "--device", "cpu"),
        *flags,
    )
    assert str(tmp_path / "sample_0000.mp4") in out
    with av.open(tmp_path / "sample_0000.mp4") as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(frames) == 16
    assert frames[0].shape == (32, 32, 3)
    report = json.loads((tmp_path / "sample.json").read_text())
    assert report["samples"][0]["asked"] == asked
    assert (tmp_path / "sheet.png").is_file()
    latents = load_file(tmp_path / "sample_0000.latents.safetensors")
    assert all(bool(value.isfinite().all()) for value in latents.values())
