"""What a language model is trained to do: fill gaps (mlm) or go on (clm).

An objective turns samples into a batch with labels, each from its own seed, so that a sample is
hidden alike in any batch; it knows nothing of where the samples come from.
Axes: B batch, L tokens, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

IGNORED = -100  # the label of a token that is not to be predicted
OBJECTIVES = ("mlm", "clm")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """How gaps are made for "mlm"; "clm" uses none of it.

    Args:
        mask_probability: share of the tokens that are to be predicted.
        replaced_by_mask, replaced_by_random: shares of those; the rest stays as it is.
    Source: BERT (arXiv 1810.04805), Sec. 3.1; at least one token of a sample is chosen.
    """

    mask_probability: float = 0.15
    replaced_by_mask: float = 0.8
    replaced_by_random: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.mask_probability < 1:
            raise ValueError(f"`mask_probability` must be in (0, 1), got {self.mask_probability}")
        for name in ("replaced_by_mask", "replaced_by_random"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must be in [0, 1], got {getattr(self, name)}")
        total = self.replaced_by_mask + self.replaced_by_random
        if total > 1 + 1e-9:
            raise ValueError(
                f"`replaced_by_mask` and `replaced_by_random` must be at most 1 together, "
                f"got {total}"
            )


class Objective:
    """Batches and loss of one objective.

    Args:
        name: "mlm" or "clm".
        config: how gaps are made.
        tokenizer: its special tokens are neither hidden nor drawn.
    """

    def __init__(self, name: str, config: ObjectiveConfig, tokenizer: Any) -> None:
        if name not in OBJECTIVES:
            raise ValueError(f"`objective` must be one of {', '.join(OBJECTIVES)}; got {name!r}")
        if name == "mlm" and tokenizer.mask_token_id is None:
            raise ValueError("the tokenizer has no mask token, which mlm needs")
        self.name, self.config = name, config
        self.pad = tokenizer.pad_token_id or 0  # what stands there is neither read nor predicted
        self.mask = tokenizer.mask_token_id
        special = set(tokenizer.all_special_ids)
        self.plain = np.array([token for token in range(len(tokenizer)) if token not in special])

    def hide(self, sample: dict[str, Any]) -> dict[str, Any]:
        """The sample with "labels", the tokens to predict, and gaps in their places."""
        row = np.array(sample["input_ids"])
        if self.name == "clm":
            # The first token has nothing before it to be told from.
            return {**sample, "labels": [IGNORED, *row[1:].tolist()]}
        rng = np.random.default_rng(sample["mask_seed"])
        candidates = np.flatnonzero(np.array(sample["special"]) == 0)
        labels = np.full_like(row, IGNORED)
        draws, kinds = rng.random(len(candidates)), rng.random(len(candidates))
        randoms = self.plain[rng.integers(len(self.plain), size=len(candidates))]
        if len(candidates):
            chosen = draws < max(self.config.mask_probability, draws.min() + 1e-12)
            places = candidates[chosen]
            labels[places] = row[places]
            kinds, randoms = kinds[chosen], randoms[chosen]
            to_mask = kinds < self.config.replaced_by_mask
            to_random = ~to_mask & (
                kinds < self.config.replaced_by_mask + self.config.replaced_by_random
            )
            row[places[to_mask]] = self.mask
            row[places[to_random]] = randoms[to_random]
        return {**sample, "input_ids": row.tolist(), "labels": labels.tolist()}

    def hide_all(self, samples: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """`hide` for each of them."""
        return [self.hide(sample) for sample in samples]

    def batch(self, samples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Hidden samples as (B, L) tensors input_ids, token_type_ids, attention_mask, labels."""
        length = max(len(sample["input_ids"]) for sample in samples)

        def padded(name: str, value: int) -> Tensor:
            rows = [[*s[name], *[value] * (length - len(s[name]))] for s in samples]
            return torch.tensor(rows, dtype=torch.int64)

        lengths = torch.tensor([len(sample["input_ids"]) for sample in samples])
        return {
            "input_ids": padded("input_ids", self.pad),
            "token_type_ids": padded("token_type_ids", 0),
            "attention_mask": (torch.arange(length) < lengths[:, None]).long(),
            "labels": padded("labels", IGNORED),
        }

    def logits(self, model: torch.nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """((B, L, V) predictions, (B, L) labels they stand for, some of them ignored)."""
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        if self.name == "clm":
            output = model(**inputs, use_cache=False).logits
            return output[:, :-1], batch["labels"][:, 1:]
        if model_type_of(model) == "bert":
            inputs["token_type_ids"] = batch["token_type_ids"]
        return model(**inputs).logits, batch["labels"]


def model_type_of(model: torch.nn.Module) -> str:
    """The family of a model, also of one that is wrapped for several processes."""
    inner: Any = getattr(model, "module", model)
    return str(getattr(inner, "_orig_mod", inner).config.model_type)


def summed_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy summed over the tokens to predict; divide by their number in all."""
    return functional.cross_entropy(
        logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED, reduction="sum"
    )
