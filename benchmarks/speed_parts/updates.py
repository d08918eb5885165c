"""The optimizer's update and the running average, as they are configured and faster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from diffusion import DiTConfig, TwinDiT
from speed_parts.measuring import Found, Setting, ratio, seconds, side_by_side
from vidtwin_lab.runtime import EMAConfig, OptimizerConfig, build_ema, build_optimizer

SHARE = 1e-3


def whole(averages: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
    """A step of a running average by three operations on all weights."""
    steps = torch._foreach_sub(averages, weights)
    torch._foreach_mul_(steps, SHARE)
    torch._foreach_sub_(averages, steps)


def measure(setting: Setting) -> Found:
    """A row for each way to update a transformer's weights."""
    model = TwinDiT(**vars(DiTConfig.preset("debug" if setting.small else setting.preset)))
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    average = build_ema(model, EMAConfig())
    assert average is not None
    averages, weights = average.shadow_params, [p.detach() for p in model.parameters()]
    calls: dict[str, Callable[[], Any]] = {
        "AdamW": build_optimizer(model, OptimizerConfig()).step,
        "AdamW, fused": build_optimizer(model, OptimizerConfig(fused=True)).step,
        "running average": lambda: average.step(model.parameters()),
        "running average, whole": lambda: whole(averages, weights),
        "running average, lerp": lambda: torch._foreach_lerp_(averages, weights, SHARE),
    }
    turns = side_by_side(calls, setting.rounds)
    count = sum(p.numel() for p in model.parameters())
    rows = [
        {
            "update": name,
            "parameters": count,
            "s": seconds(found),
            "× AdamW": ratio(found, turns["AdamW"]),
        }
        for name, found in turns.items()
    ]
    return Found(rows=rows)
