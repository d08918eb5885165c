"""What every pretraining objective is made of: samples with labels, a batch, terms of a loss.

An objective turns samples into a batch with labels, each sample from its own seed, so that what is
masked in it does not depend on the batch, and a batch into terms of a loss. Terms are sums, to be
divided by the number of predictions in the whole step.
Axes: B batch, L tokens, V vocabulary, K choices.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from vidtwin_lab.language.config import ObjectiveConfig
from vidtwin_lab.language.samples import Sample

IGNORED = -100  # the label of what is not to be predicted
SEGMENT_FAMILIES = ("bert", "albert", "electra")  # which tell the second of two texts


class Choice(NamedTuple):
    """(B, L, K) logits and (B, L) labels, some of which are IGNORED."""

    logits: Tensor
    labels: Tensor

    def total(self) -> Tensor:
        """Cross entropy in nats, summed over the labels that are not IGNORED."""
        return functional.cross_entropy(
            self.logits.flatten(0, 1).float(),
            self.labels.flatten(),
            ignore_index=IGNORED,
            reduction="sum",
        )

    def right(self) -> Tensor:
        """Number of correct predictions."""
        return ((self.logits.argmax(-1) == self.labels) & (self.labels != IGNORED)).sum()

    def rows(self) -> list[dict[str, float]]:
        """For each sample: "count" of predictions, how many are "right", their summed "loss"."""
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
    """(B, L) values to be minimized where the (B, L) bool mask is True."""

    values: Tensor
    mask: Tensor

    def total(self) -> Tensor:
        """The values summed."""
        return torch.where(self.mask, self.values, 0.0).sum()

    def rows(self) -> list[dict[str, float]]:
        """For each sample: "count" of values, their summed "loss"."""
        sums = torch.where(self.mask, self.values, 0.0).sum(1)
        columns = zip(self.mask.sum(1).tolist(), sums.tolist(), strict=True)
        return [{"count": n, "loss": total} for n, total in columns]


Term = Choice | Distance


class Objective(abc.ABC):
    """Batches and loss terms of one pretraining objective.

    Args:
        config: of the objective.
        tokenizer: of the model.
        teacher: for objectives that follow another model.
    """

    name: ClassVar[str]

    def __init__(self, config: ObjectiveConfig, tokenizer: Any, teacher: Any = None) -> None:
        self.config = config
        self.pad = tokenizer.pad_token_id or 0
        self.weights: dict[str, float] = {self.name: 1.0}

    def to(self, device: torch.device) -> None:  # noqa: B027  most have nothing to move
        """Moves what an objective has of its own, such as a teacher."""

    @abc.abstractmethod
    def hide(self, sample: Sample) -> Sample:
        """The sample with "labels", the tokens to predict, and masks in their places."""

    @abc.abstractmethod
    def terms(self, model: torch.nn.Module, batch: dict[str, Tensor]) -> dict[str, Term]:
        """The terms of the loss by name, that of the tokens to predict first."""

    def hide_all(self, samples: Sequence[Sample]) -> list[Sample]:
        """`hide` for each of them."""
        return [self.hide(sample) for sample in samples]

    def counts(self, samples: Sequence[Sample]) -> dict[str, int]:
        """Over how many predictions each term is a sum, for samples from `hide`."""
        labels = (label for sample in samples for label in sample["labels"])
        return {self.name: sum(label != IGNORED for label in labels)}

    def batch(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """`hide`'s samples as (B, L) input_ids, token_type_ids, attention_mask and labels."""
        lengths = torch.tensor([len(sample["input_ids"]) for sample in samples])
        return {
            "input_ids": padded(samples, "input_ids", self.pad),
            "token_type_ids": padded(samples, "token_type_ids", 0),
            "attention_mask": (torch.arange(int(lengths.max())) < lengths[:, None]).long(),
            "labels": padded(samples, "labels", IGNORED),
        }

    def loss(
        self, terms: Mapping[str, Term], counts: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(weighted sum of the means, {name: mean}); each term is divided by its count."""
        means = {name: term.total() / counts[name] for name, term in terms.items()}
        total = sum(self.weights[name] * value for name, value in means.items())
        assert isinstance(total, Tensor)
        return total, {name: value.detach() for name, value in means.items()}

    def accuracies(
        self, terms: Mapping[str, Term], counts: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Share of correct predictions: "accuracy" of the first term, "NAME_accuracy" of others."""
        first = next(iter(terms))
        return {
            "accuracy" if name == first else f"{name}_accuracy": term.right() / counts[name]
            for name, term in terms.items()
            if isinstance(term, Choice)
        }


def padded(samples: Sequence[Sample], name: str, value: float) -> Tensor:
    """(B, L) the samples' lists of this name, padded with `value` on the right."""
    length = max(len(sample[name]) for sample in samples)
    rows = [[*s[name], *[value] * (length - len(s[name]))] for s in samples]
    return torch.tensor(rows, dtype=torch.float32 if isinstance(value, float) else torch.int64)


def inputs_for(model: torch.nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The model's inputs among a batch; not every family takes token types."""
    names = ["input_ids", "attention_mask"]
    if model_type_of(model) in SEGMENT_FAMILIES:
        names.append("token_type_ids")
    return {name: batch[name] for name in names}


def model_type_of(model: torch.nn.Module) -> str:
    """The family of a model, also of one that is compiled or wrapped for several processes."""
    inner: Any = getattr(model, "module", model)
    return str(getattr(inner, "_orig_mod", inner).config.model_type)
