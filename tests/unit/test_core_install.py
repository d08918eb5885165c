"""The encoder alone needs torch, diffusers and einops: everything else may be missing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# What the full installation brings along and the core doesn't.
OPTIONAL = (
    *("accelerate", "av", "datasets", "decord", "gradio", "lpips", "matplotlib", "mujoco", "onnx"),
    *("onnxruntime", "pandas", "psutil", "pyarrow", "scipy", "sklearn", "tensorboard"),
    *("tokenizers", "torchmetrics", "torchvision", "transformers", "peft", "wandb"),
)
BLOCK = """
import importlib.machinery, json, sys, tempfile
blocked = set(json.loads(sys.argv[1]))

class Without(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.split(".")[0] not in blocked:
            return super().find_spec(name, path, target)

place = sys.meta_path.index(importlib.machinery.PathFinder)
sys.meta_path[place] = Without
"""
ENCODE = """
import vidtwin
cheap = sorted({"torch", "diffusers", "numpy"} & set(sys.modules))
import torch
torch.set_num_threads(1)
sizes = dict(num_frames=2, height=16, width=16, patch_size=(1, 8, 8), hidden_size=8,
             encoder_depth=1, decoder_depth=1, encoder_heads=1, decoder_heads=1, num_queries=1,
             query_hidden_size=8,
             query_layers=1, query_heads=1, query_intermediate_size=8, structure_base_channels=4,
             structure_downsamples=0, dynamics_downsamples=0)
model = vidtwin.VidTwinAutoencoder(**sizes).eval()
with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    again = vidtwin.VidTwinAutoencoder.from_pretrained(folder).eval()
video = torch.rand(1, 3, 2, 16, 16) * 2 - 1
with torch.no_grad():
    vector = again.encode_dynamics(video)
    assert torch.equal(vector, model.encode(video).mode().to_vector())
    decoded = again.decode_dynamics(vector, structure_from=video)
print(json.dumps({"cheap": cheap, "shape": list(decoded.shape),
                  "loaded": sorted({name.split(".")[0] for name in sys.modules})}))
"""


def run_without_optional_packages(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BLOCK + script, json.dumps(OPTIONAL)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_encoder_works_without_optional_packages() -> None:
    done = run_without_optional_packages(ENCODE)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["cheap"] == []  # `import vidtwin` alone loads nothing heavy
    assert found["shape"] == [1, 3, 2, 16, 16]
    assert not set(found["loaded"]) & set(OPTIONAL)


def test_scripts_say_what_to_install() -> None:
    done = run_without_optional_packages("from vidtwin_lab.cli import main\nmain(['--version'])")
    assert done.returncode == 2
    expected = "error: the scripts need more than the core (accelerate, transformers, av missing)"
    assert done.stderr.strip() == f"{expected}: pip install 'vidtwin[all]'"
