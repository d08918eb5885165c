"""What a command costs before it does anything: CPU seconds of sample.py, and of imports."""

from __future__ import annotations

from statistics import median

from speed_parts.commands import run
from speed_parts.measuring import Found, Setting

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


def measure(setting: Setting) -> Found:
    """A row for each import in a process of its own, and one for a whole command."""
    names = SMALL if setting.small else tuple(IMPORTS)
    commands = {name: ["-c", IMPORTS[name]] for name in names}
    output = str(setting.scratch / "samples")
    prompt = ["--prompt", "a red circle moving left", "--output", output, "--overwrite"]
    if not setting.small:
        commands["sample.py, one prompt"] = ["sample.py", *prompt]
    turns = {name: [] for name in commands}
    for _ in range(setting.rounds):
        for name, command in commands.items():
            turns[name].append(run(command).seconds)
    found = {name: median(times[1:] or times) for name, times in turns.items()}
    return Found(rows=[{"what": name, "CPU s": value} for name, value in found.items()])
