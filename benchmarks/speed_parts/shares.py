"""The share of the machine's own matrix peak that training steps reach, by counted FLOPs.

The large models take one sample a step, as memory asks; the shapes' the batch of their configs.
"""

from __future__ import annotations

from typing import Any

import torch

from diffusion import DiTConfig
from speed_parts.autoencoders import Clip, own_autoencoder
from speed_parts.measuring import Found, Setting, flops, mebibytes, seconds, side_by_side
from speed_parts.transformers import own_step
from vidtwin.files import shipped_path

SHAPES_CLIPS, SHAPES_LATENTS = 4, 16


def shipped(name: str) -> Any:
    """A part of the shipped pipeline."""
    from diffusion import TwinDiT
    from vidtwin import VidTwinAutoencoder

    folder = shipped_path(f"checkpoints/shapes/{name}")
    return {"autoencoder": VidTwinAutoencoder, "transformer": TwinDiT}[name].from_pretrained(folder)


def measure(setting: Setting) -> Found:
    """A row for each model; the peak is that of a large float32 product, which takes turns too."""
    size, side = (32, 256) if setting.small else (setting.size, 2048)
    factors = torch.randn(2, side, side)
    official = Clip(own_autoencoder(size, setting.small), 16, size)
    shapes = Clip(shipped("autoencoder"), 16, 64, SHAPES_CLIPS)
    preset = "debug" if setting.small else setting.preset
    calls = {
        "matrix product": lambda: factors[0] @ factors[1],
        f"autoencoder, official, {size} px": official.step,
        f"transformer, {preset}": own_step(DiTConfig.preset(preset))[1],
        "autoencoder of the shapes": shapes.step,
        "transformer of the shapes": own_step(shipped("transformer").sizes, SHAPES_LATENTS)[1],
    }
    turns = side_by_side(calls, setting.rounds)
    counted = {name: flops(call) for name, call in calls.items()}
    rates = {name: counted[name] / seconds(found) for name, found in turns.items()}
    rows = [
        {
            "step": name,
            "GFLOPs": counted[name] / 1e9,
            "s": seconds(turns[name]),
            "GFLOP/s": rates[name] / 1e9,
            "share of the peak, %": 100 * rates[name] / rates["matrix product"],
            "peak, MiB": mebibytes(turns[name]),
        }
        for name in calls
    ]
    batches = {"official": 1, "shapes_clips": SHAPES_CLIPS, "shapes_latents": SHAPES_LATENTS}
    sizes = {"matrix_side": side, "batch_sizes": batches, "dtype": "float32"}
    return Found(rows=rows, protocol=sizes)
