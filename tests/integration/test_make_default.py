"""The command that makes the shipped pipeline from nothing, a few steps of each stage."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from script_runs import ROOT, read_json, run, weights

from diffusion import VidTwinPipeline

STAGES = (
    *("ae_1_drawing", "ae_2_pairs", "ae_3_decay", "latents", "bert", "paraphrases"),
    *("transformer", "shipped"),
)


def commands(output: Path, python: str) -> subprocess.CompletedProcess[str]:
    """The tool, with another program for python."""
    words = ["bash", str(ROOT / "tools" / "make_default.sh"), "--debug", str(output)]
    return subprocess.run(
        words, env=os.environ | {"PYTHON": python}, capture_output=True, text=True, timeout=60
    )


def test_from_nothing_to_a_pipeline_that_is_shipped(tmp_path):
    """Its commands as it would start them, in this process, which has the libraries loaded."""
    told = commands(tmp_path, "echo").stdout.splitlines()
    asked = [line.split() for line in told if not line.startswith("== ")]
    assert len(asked) == len(STAGES)
    for stage, (script, *words) in zip(STAGES, asked, strict=True):
        run(script.removesuffix(".py"), *words).done()
        assert (tmp_path / stage).is_dir(), script
    # Run again, a stage that is done does nothing.
    before = (tmp_path / "ae_1_drawing" / "metrics.jsonl").read_bytes()
    run("train_ae", *asked[0][1:]).done()
    assert (tmp_path / "ae_1_drawing" / "metrics.jsonl").read_bytes() == before

    last = weights(
        tmp_path / "ae_3_decay" / "autoencoder_ema" / "diffusion_pytorch_model.safetensors"
    )
    assert {name.split(".")[0] for name in last} >= {"overlap", "refinement"}
    assert read_json(tmp_path / "shipped" / "autoencoder" / "config.json")["structure_frame"] == 8
    pipeline = VidTwinPipeline.from_pretrained(tmp_path / "shipped")
    assert "tiny" in pipeline.tokenizer.init_kwargs["known_words"]
    videos = pipeline("a tiny red circle moving left slowly", num_inference_steps=2, seed=0).videos
    assert videos.shape == (1, 3, 16, 32, 32) and videos.isfinite().all()


def test_a_stage_that_fails_stops_it(tmp_path):
    ended = commands(tmp_path, "false")
    assert ended.returncode == 1
    assert ended.stdout.count("== ") == 1 and "ae_1_drawing" in ended.stdout
