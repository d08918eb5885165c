"""The command that makes the shipped pipeline from nothing, a few steps of each stage."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from script_runs import ROOT, read_json, weights

from diffusion import VidTwinPipeline

STAGES = (
    "ae_1_drawing",
    "ae_2_pairs",
    "ae_3_decay",
    "latents",
    "bert",
    "paraphrases",
    "transformer",
)


def make(output: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    command = [str(ROOT / "tools" / "make_default.sh"), "--debug", str(output)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)


def test_from_nothing_to_a_pipeline_that_is_shipped(tmp_path):
    output = tmp_path / "default"
    # The first stage can't write its run: the command stops there, and goes on when run again.
    output.mkdir()
    (output / "ae_1_drawing").write_text("in the way")
    stopped = make(output)
    assert stopped.returncode != 0 and "ae_2_pairs" not in stopped.stdout
    (output / "ae_1_drawing").unlink()

    done = make(output)
    assert done.returncode == 0, done.stderr[-2000:]
    begun = [line for line in done.stdout.splitlines() if line.startswith("== ")]
    assert [line.split(":")[0].rpartition("/")[2] for line in begun] == list(STAGES)
    first, last = (
        weights(output / stage / "autoencoder_ema" / "diffusion_pytorch_model.safetensors")
        for stage in ("ae_1_drawing", "ae_3_decay")
    )
    assert first.keys() == last.keys()
    assert any(name.startswith("refinement.") for name in last)
    assert read_json(output / "shipped" / "autoencoder" / "config.json")["structure_frame"] == 8
    pipeline = VidTwinPipeline.from_pretrained(output / "shipped")
    videos = pipeline("a tiny red circle moving left slowly", num_inference_steps=2, seed=0).videos
    assert videos.shape == (1, 3, 16, 32, 32) and videos.isfinite().all()
