"""A training step of TwinDiT against diffusers' LatteTransformer3DModel of equal depth and width.

Latte reads the 4 x 16 x 28 x 28 latents that an image VAE gives of 16 frames at 224 x 224, in
patches of 2; its depth counts spatial and temporal blocks. Both read a text of 16 tokens, and take
two samples a step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from diffusion import DiTConfig, TwinDiT
from speed_parts.measuring import Found, Setting, flops, mebibytes, ratio, seconds, side_by_side

TEXT_TOKENS, TEXT_WIDTH = 16, 768
FRAMES, GRID, PATCH, CHANNELS = 16, 28, 2, 4
BATCH = 2


def own_step(sizes: DiTConfig, batch: int = 1) -> tuple[TwinDiT, Callable[[], None]]:
    """A transformer, and a step of it; it reads a text where it can."""
    model = TwinDiT(**vars(sizes))
    shapes = (sizes.structure_shape, sizes.dynamics_x_shape, sizes.dynamics_y_shape)
    latents = [torch.randn(batch, *shape) for shape in shapes]
    level = torch.full((batch,), 500.0)
    text = {}
    if sizes.text_hidden_size is not None:
        states = torch.randn(batch, TEXT_TOKENS, sizes.text_hidden_size)
        mask = torch.ones(batch, TEXT_TOKENS, dtype=torch.bool)
        text = {"encoder_hidden_states": states, "encoder_attention_mask": mask}

    def step() -> None:
        train(model, *model(*latents, level, level, **text))

    return model, step


def latte_step(sizes: DiTConfig) -> tuple[Any, Callable[[], None]]:
    """The same of Latte."""
    from diffusers import LatteTransformer3DModel

    model = LatteTransformer3DModel(
        num_attention_heads=sizes.num_heads,
        attention_head_dim=sizes.hidden_size // sizes.num_heads,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_layers=sizes.depth // 2,
        cross_attention_dim=sizes.hidden_size,
        attention_bias=True,
        sample_size=GRID,
        patch_size=PATCH,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        caption_channels=TEXT_WIDTH,
        video_length=FRAMES,
    )
    latents = torch.randn(BATCH, CHANNELS, FRAMES, GRID, GRID)
    level, text = torch.full((BATCH,), 500), torch.randn(BATCH, TEXT_TOKENS, TEXT_WIDTH)

    def step() -> None:
        train(model, model(latents, level, encoder_hidden_states=text, return_dict=False)[0])

    return model, step


def train(model: torch.nn.Module, *found: Tensor) -> None:
    """Backward from the squared predictions."""
    torch.stack([each.square().mean() for each in found]).sum().backward()
    model.zero_grad(set_to_none=True)


def measure(setting: Setting) -> Found:
    """A row for each transformer."""
    preset = "debug" if setting.small else setting.preset
    whole = DiTConfig.preset(preset, text_hidden_size=TEXT_WIDTH)
    halved = DiTConfig.preset(
        preset, text_hidden_size=TEXT_WIDTH, structure_query_patch_size=2, dynamics_patch_size=2
    )
    built = {
        "TwinDiT": (sum(whole.token_counts), *own_step(whole, BATCH)),
        "TwinDiT, patches of 2": (sum(halved.token_counts), *own_step(halved, BATCH)),
        "Latte": (FRAMES * (GRID // PATCH) ** 2, *latte_step(whole)),
    }
    turns = side_by_side({name: step for name, (_, _, step) in built.items()}, setting.rounds)
    rows = [
        {
            "transformer": name,
            "tokens": tokens,
            "parameters": sum(p.numel() for p in model.parameters()),
            "GFLOPs": flops(step) / 1e9,
            "step, s": seconds(turns[name]),
            "Latte's ×": ratio(turns["Latte"], turns[name]),
            "peak, MiB": mebibytes(turns[name]),
        }
        for name, (tokens, model, step) in built.items()
    ]
    sizes = {"hidden_size": whole.hidden_size, "depth": whole.depth, "num_heads": whole.num_heads}
    return Found(rows=rows, protocol={**sizes, "text_tokens": TEXT_TOKENS, "batch_size": BATCH})
