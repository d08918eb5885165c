"""Contrastive learning (SimCSE): the other text of each pair is found among those of the batch.

Axes: B batch, L tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vidtwin_lab.language.config import ObjectiveConfig
from vidtwin_lab.language.objectives.base import Choice, Term, inputs_for
from vidtwin_lab.language.objectives.masked_tokens import MaskedTokens
from vidtwin_lab.language.samples import Sample


class Contrastive(MaskedTokens):
    """The other text of each pair among those of the batch, and masked tokens ("mlm").

    A text is the mean of its tokens' states. It is compared with the texts of its micro-batch on
    its process: accumulation and more processes give it fewer others.
    Source: SimCSE (arXiv 2104.08821), Sec. 4 without hard negatives, in both directions, and App.
        D for masked tokens. Differs: tokens are masked in the texts that are compared.
    """

    name = "contrastive"

    def __init__(self, config: ObjectiveConfig, tokenizer: Any, teacher: Any = None) -> None:
        super().__init__(config, tokenizer)
        self.weights = {"contrastive": 1.0, "mlm": config.contrastive.token_weight}

    def counts(self, samples: Sequence[Sample]) -> dict[str, int]:
        """Over how many predictions each term is a sum; each text of a pair makes one."""
        return {"contrastive": 2 * len(samples), **super().counts(samples)}

    def batch(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """As of "mlm", (2 B, L): all first texts, then all second ones."""
        return super().batch([_text_of(sample, which) for which in (0, 1) for sample in samples])

    def terms(self, model: torch.nn.Module, batch: dict[str, Tensor]) -> dict[str, Term]:
        """Of the pairs ("contrastive"), then of the masked tokens ("mlm")."""
        output = model(**inputs_for(model, batch), output_hidden_states=True)
        mask = batch["attention_mask"][..., None].float()
        sums = (output.hidden_states[-1].float() * mask).sum(1)
        texts = torch.nn.functional.normalize(sums / mask.sum(1), dim=-1)
        first, second = texts.chunk(2)  # (B, D) each
        cosines = first @ second.T / self.config.contrastive.temperature
        places = torch.arange(len(cosines), device=cosines.device)
        # One row for each pair: both directions, (B, 2, B), and both texts' tokens, (B, 2 L, V).
        both = torch.stack([cosines, cosines.T], 1)
        logits, labels = (torch.cat(x.chunk(2), 1) for x in (output.logits, batch["labels"]))
        return {
            "contrastive": Choice(both, places[:, None].repeat(1, 2)),
            "mlm": Choice(logits, labels),
        }


def _text_of(sample: Sample, which: int) -> Sample:
    """One of the two texts of a hidden pair as a sample: [CLS] a [SEP]."""
    places = [i for i, kind in enumerate(sample["token_type_ids"]) if kind == which]
    places = [0, *places] if which else places  # the second has no token of its own before it
    row = {name: [sample[name][i] for i in places] for name in ("input_ids", "labels")}
    return {**row, "token_type_ids": [0] * len(places)}
