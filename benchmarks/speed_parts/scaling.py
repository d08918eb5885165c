"""The cost of encoding and decoding over the length and the size of a clip, by counted FLOPs."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from diffusion import DiTConfig, TwinDiT
from speed_parts.autoencoders import TINY
from speed_parts.measuring import Found, Setting, flops
from vidtwin import AutoencoderConfig, VidTwinAutoencoder
from vidtwin_lab.evaluation.report import COLORS, new_figure, save_figure

LENGTHS, SIZES = (16, 32, 64, 128), (64, 128, 224, 448, 896)


def counted(sizes: AutoencoderConfig, preset: str) -> dict[str, Any]:
    """Of one clip, on fake tensors: nothing is computed."""
    with FakeTensorMode(), torch.no_grad():
        model = VidTwinAutoencoder(**asdict(sizes)).eval().requires_grad_(False)
        video = torch.zeros(1, 3, sizes.num_frames, sizes.height, sizes.width)
        latents = model.encode(video).mode()
        shapes = {name: tuple(latent.shape[1:]) for name, latent in latents.items()}
        shapes = {f"{name}_shape": shape for name, shape in shapes.items()}
        transformer = DiTConfig.preset(preset, **shapes)
        dit, level = TwinDiT(**vars(transformer)).requires_grad_(False), torch.zeros(1)
        return {
            "frames": sizes.num_frames,
            "px": sizes.height,
            "latent values": sizes.numel_per_clip,
            "tokens": sum(transformer.token_counts),
            "encode, GFLOPs": flops(lambda: model.encode(video)) / 1e9,
            "decode, GFLOPs": flops(lambda: model.decode(latents)) / 1e9,
            "transformer, GFLOPs": flops(lambda: dit(*latents.tensors(), level, level)) / 1e9,
        }


def measure(setting: Setting) -> Found:
    """Rows over the length at one size, then over the size at 16 frames."""
    base = AutoencoderConfig(**(TINY if setting.small else {}))
    lengths, sizes = (LENGTHS, SIZES) if not setting.small else (LENGTHS[:2], SIZES[:2])
    preset = "debug" if setting.small else setting.preset
    asked = [{"num_frames": frames} for frames in lengths]
    asked += [{"height": size, "width": size} for size in sizes if size != base.height]
    rows = [counted(replace(base, **changes), preset) for changes in asked]
    return Found(
        rows=rows,
        protocol={"counted": "matrix products on fake tensors", "transformer": preset},
        draw=lambda path: draw(rows, base.height, path),
    )


def draw(rows: list[dict[str, Any]], size: int, path: Path) -> None:
    """GFLOPs over frames, and over pixels."""
    figure, panels = new_figure(1, 2, size=(4.2, 3.2))
    for panel, key in zip(panels, ("frames", "px"), strict=True):
        held = {"frames": ("px", size), "px": ("frames", 16)}[key]
        chosen = sorted((row for row in rows if row[held[0]] == held[1]), key=lambda row: row[key])
        for color, what in zip(COLORS, ("encode", "decode", "transformer"), strict=False):
            values = [row[f"{what}, GFLOPs"] for row in chosen]
            panel.loglog([row[key] for row in chosen], values, "o-", color=color, label=what)
        panel.set_xlabel({"frames": f"frames at {size} px", "px": "px at 16 frames"}[key])
        panel.set_ylabel("GFLOPs of a forward pass")
    panels[0].legend()
    save_figure(figure, path)
