"""Held-out losses by latent and by noise level.

Axes: B batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch

from diffusion.flow import Levels
from diffusion.training_batch import BatchReader, TrainingBatch, losses_of

QUANTILES = 4


@torch.no_grad()
def measure_losses(
    model: torch.nn.Module,
    reader: BatchReader,
    batches: Iterable[Mapping[str, Any]],
    *,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> list[tuple[int, dict[str, float]]]:
    """The losses of every sample with its conditions, at the middles of the levels' quartiles.

    Both latents have equal levels, and every sample the same noise each time, so that two
    measurements differ by the model alone.

    Returns:
        (index of the sample in its data set, measures): "structure_q1" for the lowest quarter of
        the levels, up to "dynamics_q4"; "structure" and "dynamics" are the means over quarters.
    """
    objective = reader.objective
    rows: list[tuple[int, dict[str, float]]] = []
    training = model.training
    model.eval()
    for batch in batches:
        measures: list[dict[str, float]] = [{} for _ in batch["index"]]
        seeds = batch["noise_seed"].tolist()
        held = TrainingBatch(
            reader.latents(batch),
            reader.noise(seeds),
            Levels(torch.empty(0), torch.empty(0)),
            reader.conditions(batch),
        )
        for quarter in range(QUANTILES):
            middle = torch.full((len(seeds),), (quarter + 0.5) / QUANTILES, device=reader.device)
            levels = Levels(*(2 * [objective.config.structure_levels.quantile(middle)]))
            with autocast():
                losses = losses_of(model, objective, replace(held, levels=levels))
            for name in ("structure", "dynamics"):
                for found, value in zip(measures, getattr(losses, name).tolist(), strict=True):
                    found[f"{name}_q{quarter + 1}"] = value
                    found[name] = found.get(name, 0.0) + value / QUANTILES
        rows += zip(batch["index"].tolist(), measures, strict=True)
    model.train(training)
    return rows
