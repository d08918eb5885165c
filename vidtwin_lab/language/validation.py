"""Measures a language model on texts while it is being trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.utils.data import Dataset

from vidtwin_lab.language.objectives import Objective

# Of a sample: {name of the term: its sums}; see `Choice.rows`.
Measures = dict[str, dict[str, float]]


@torch.no_grad()
def measure_language_model(
    model: torch.nn.Module,
    objective: Objective,
    samples: Dataset[dict[str, Any]],
    batches: Iterable[Sequence[int]],
    *,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> list[tuple[int, Measures]]:
    """(index, its measures) of batches of samples in epoch 0, whose gaps are always the same.

    Measures are sums over what is to be predicted: "count" how much it is, "right" how much was
    predicted, "loss" in nats; of each term of the objective.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    rows: list[tuple[int, Measures]] = []
    for part in batches:
        batch = objective.batch([objective.hide(samples[index]) for index in part])
        batch = {name: value.to(device) for name, value in batch.items()}
        with autocast():
            terms = objective.terms(model, batch)
        columns = {name: term.rows() for name, term in terms.items()}
        for place, index in enumerate(part):
            rows.append((index, {name: column[place] for name, column in columns.items()}))
    model.train(training)
    return rows


def mean_measures(rows: Iterable[tuple[int, Measures]]) -> dict[str, float]:
    """Accuracy, mean loss and perplexity over all tokens to predict, and their number.

    Accuracy and loss of further terms have their names before them. Summed in the order of the
    samples, so that it does not matter which process measured which.
    """
    ordered = [values for _, values in sorted(rows, key=lambda row: row[0])]
    means: dict[str, float] = {}
    for place, name in enumerate(ordered[0]):
        keys = ordered[0][name]
        sums = {key: sum(row[name][key] for row in ordered) for key in keys}
        count = max(1.0, sums["count"])
        loss = sums["loss"] / count
        prefix = f"{name}_" if place else ""
        if "right" in sums:
            means[f"{prefix}accuracy"] = sums["right"] / count
        means[f"{prefix}loss"] = loss
        if not place:
            means["perplexity"] = math.exp(min(loss, 700.0))  # the largest number there is
            means["tokens"] = sums["count"]
    return means
