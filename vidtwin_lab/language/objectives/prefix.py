"""Prefix language modelling ("prefix_lm"): the next token after a part that is read both ways.

Axes: B batch, L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from diffusion.prefix_attention import prefix_attention
from vidtwin_lab.language.objectives.base import IGNORED
from vidtwin_lab.language.objectives.next_token import NextToken
from vidtwin_lab.language.samples import Sample


class PrefixLM(NextToken):
    """Predicts each token after a prefix from all of the prefix and the tokens between.

    Source: T5 (arXiv 1910.10683), Sec. 3.2.1; the length of the prefix is uniform, one token at
        least, and one token at least is left to predict.
    """

    name = "prefix_lm"

    def hide(self, sample: Sample) -> Sample:
        """The sample with "prefix", the length of it, and "labels" of the tokens after it."""
        row = sample["input_ids"]
        prefix = int(np.random.default_rng(sample["mask_seed"]).integers(1, len(row)))
        return {**sample, "prefix": prefix, "labels": [IGNORED] * prefix + row[prefix:]}

    def batch(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """As `Objective.batch`, with a (B, 1, L, L) attention_mask that opens the prefix."""
        batch = super().batch(samples)
        prefix = torch.tensor([sample["prefix"] for sample in samples])
        return {**batch, "attention_mask": prefix_attention(batch["attention_mask"].bool(), prefix)}
