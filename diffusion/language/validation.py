"""Measures a language model on texts while it is being trained.

Axes: B batch, L tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from diffusion.language.corpus import TokenizedCorpus
from diffusion.language.objectives import IGNORED, Objective

Measures = dict[str, float]


@torch.no_grad()
def measure_language_model(
    model: torch.nn.Module,
    objective: Objective,
    samples: TokenizedCorpus,
    indices: Sequence[int],
    *,
    batch_size: int,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> list[tuple[int, Measures]]:
    """(index, its measures) of some samples in epoch 0, whose gaps are always the same.

    Measures are sums over the tokens to predict: "tokens" how many they are, "right" how many were
    predicted, "loss" in nats.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    rows: list[tuple[int, Measures]] = []
    for start in range(0, len(indices), batch_size):
        part = indices[start : start + batch_size]
        batch = objective.batch([objective.hide(samples[index]) for index in part])
        batch = {name: value.to(device) for name, value in batch.items()}
        with autocast():
            logits, labels = objective.logits(model, batch)
        rows += zip(part, _measures(logits, labels), strict=True)
    model.train(training)
    return rows


def mean_measures(rows: Iterable[tuple[int, Measures]]) -> Measures:
    """Accuracy, mean loss and perplexity over all tokens to predict, and their number.

    Summed in the order of the samples, so that it does not matter which process measured which.
    """
    ordered = [values for _, values in sorted(rows, key=lambda row: row[0])]
    sums = {name: sum(row[name] for row in ordered) for name in ("tokens", "right", "loss")}
    tokens = max(1.0, sums["tokens"])
    loss = sums["loss"] / tokens
    return {
        "accuracy": sums["right"] / tokens,
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),  # the largest number there is
        "tokens": sums["tokens"],
    }


def _measures(logits: Tensor, labels: Tensor) -> list[Measures]:
    """Of each sample, from (B, L, V) predictions and (B, L) labels."""
    wanted = labels != IGNORED
    losses = functional.cross_entropy(
        logits.float().transpose(1, 2), labels, ignore_index=IGNORED, reduction="none"
    )
    right = (logits.argmax(-1) == labels) & wanted
    columns = zip(wanted.sum(1).tolist(), right.sum(1).tolist(), losses.sum(1).tolist())
    return [{"tokens": n, "right": r, "loss": total} for n, r, total in columns]
