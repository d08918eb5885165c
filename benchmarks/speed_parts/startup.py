"""What a command costs before it does anything: CPU seconds of sample.py, and of imports."""

from __future__ import annotations

import resource
import subprocess
import sys
from statistics import median

from speed_parts.measuring import Found, Setting
from vidtwin.files import root_folder

IMPORTS = {
    "torch": "import torch",
    "torch, torch._dynamo": "import torch._dynamo",
    "diffusers' ModelMixin": "from diffusers.models.modeling_utils import ModelMixin",
    "diffusers' DiffusionPipeline": "from diffusers import DiffusionPipeline",
    "transformers' AutoModel": "from transformers import AutoModel",
    "accelerate": "import accelerate",
    "vidtwin.VidTwinAutoencoder": "from vidtwin import VidTwinAutoencoder",
    "diffusion.VidTwinPipeline": "from diffusion import VidTwinPipeline",
}
SMALL = ("torch",)


def child_seconds(command: list[str]) -> float:
    """CPU seconds, user and system, of a process and its threads; it must end well."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, cwd=root_folder(), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{command} ended with {done.returncode}: {done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(setting: Setting) -> Found:
    """A row for each import in a process of its own, and one for a whole command."""
    names = SMALL if setting.small else tuple(IMPORTS)
    commands = {name: [sys.executable, "-c", IMPORTS[name]] for name in names}
    output = str(setting.scratch / "samples")
    prompt = ["--prompt", "a red circle moving left", "--output", output, "--overwrite"]
    if not setting.small:
        commands["sample.py, one prompt"] = [sys.executable, "sample.py", *prompt]
    turns = {name: [] for name in commands}
    for _ in range(setting.rounds):
        for name, command in commands.items():
            turns[name].append(child_seconds(command))
    found = {name: median(times[1:] or times) for name, times in turns.items()}
    return Found(rows=[{"what": name, "CPU s": value} for name, value in found.items()])
