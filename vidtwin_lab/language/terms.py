"""The terms of a loss: what was predicted, and how far from what was right.

Axes: B batch, L places, K choices.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

IGNORED = -100  # the label of what is not to be predicted


class Choice(NamedTuple):
    """(B, L, K) predictions and (B, L) labels that they stand for, some of them ignored."""

    logits: Tensor
    labels: Tensor

    def total(self) -> Tensor:
        """Cross entropy summed over all that is to be predicted."""
        return functional.cross_entropy(
            self.logits.flatten(0, 1).float(),
            self.labels.flatten(),
            ignore_index=IGNORED,
            reduction="sum",
        )

    def right(self) -> Tensor:
        """How many predictions are right."""
        return ((self.logits.argmax(-1) == self.labels) & (self.labels != IGNORED)).sum()

    def rows(self) -> list[dict[str, float]]:
        """Of each sample: "count" of predictions, how many are "right", their summed "loss"."""
        wanted = self.labels != IGNORED
        losses = functional.cross_entropy(
            self.logits.float().transpose(1, 2),
            self.labels,
            ignore_index=IGNORED,
            reduction="none",
        )
        right = (self.logits.argmax(-1) == self.labels) & wanted
        columns = zip(wanted.sum(1).tolist(), right.sum(1).tolist(), losses.sum(1).tolist())
        return [{"count": n, "right": r, "loss": total} for n, r, total in columns]


class Distance(NamedTuple):
    """(B, L) values to be made small where the (B, L) bool mask is True."""

    values: Tensor
    mask: Tensor

    def total(self) -> Tensor:
        """The values summed."""
        return torch.where(self.mask, self.values, 0.0).sum()

    def rows(self) -> list[dict[str, float]]:
        """Of each sample: "count" of values, their summed "loss"."""
        sums = torch.where(self.mask, self.values, 0.0).sum(1)
        columns = zip(self.mask.sum(1).tolist(), sums.tolist(), strict=True)
        return [{"count": n, "loss": total} for n, total in columns]


Term = Choice | Distance
