"""Replaced tokens ("rtd", ELECTRA): a generator fills masked places, a discriminator finds which
tokens it changed.

Axes: B batch, L tokens, V vocabulary.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import ElectraConfig

from vidtwin_lab.language.config import ObjectiveConfig
from vidtwin_lab.language.objectives.base import IGNORED, Choice, Term, inputs_for, padded
from vidtwin_lab.language.objectives.masked_tokens import MaskedTokens
from vidtwin_lab.language.samples import Sample

GENERATOR = "generator"  # its folder inside of the discriminator's
# Beside what is masked in a sample, the seed of what the generator puts there.
_DRAW_STREAM = 1


class ReplacedTokens(MaskedTokens):
    """A generator predicts masked tokens ("mlm"), a discriminator finds its errors ("rtd")."""

    name = "rtd"

    def __init__(self, config: ObjectiveConfig, tokenizer: Any, teacher: Any = None) -> None:
        super().__init__(config, tokenizer)
        self.weights["rtd"] = config.rtd.discriminator_weight

    def hide(self, sample: Sample) -> Sample:
        """As of "mlm", with "draws", which sample from the generator's predictions."""
        rng = np.random.default_rng([*sample["mask_seed"], _DRAW_STREAM])
        return {**super().hide(sample), "draws": rng.random(len(sample["input_ids"])).tolist()}

    def counts(self, samples: Sequence[Sample]) -> dict[str, int]:
        """Over how many predictions each term is a sum; "rtd" predicts for every token."""
        tokens = sum(len(sample["input_ids"]) for sample in samples)
        return {**super().counts(samples), "rtd": tokens}

    def batch(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """As of "mlm", with draws (B, L) in [0, 1)."""
        return {**super().batch(samples), "draws": padded(samples, "draws", 0.0)}

    def terms(self, model: torch.nn.Module, batch: dict[str, Tensor]) -> dict[str, Term]:
        """Of the generator ("mlm"), then of the discriminator ("rtd")."""
        logits, scores, replaced = model(
            labels=batch["labels"], draws=batch["draws"], **inputs_for(model, batch)
        )
        answers = replaced.long().masked_fill(batch["attention_mask"] == 0, IGNORED)
        # Two choices, of which the first has a score of 0: the logistic loss.
        choice = Choice(torch.stack([torch.zeros_like(scores), scores], -1), answers)
        return {"mlm": Choice(logits, batch["labels"]), "rtd": choice}


class ReplacedTokenModel(nn.Module):
    """Generator and discriminator, which share their embeddings.

    Args:
        generator: ElectraForMaskedLM.
        discriminator: ElectraForPreTraining, with embeddings of the same sizes; the one that is
            used after training.
    Source: ELECTRA (arXiv 2003.10555), Sec. 2 and 3.2; all embeddings are shared, as in its code.
    """

    def __init__(self, generator: Any, discriminator: Any) -> None:
        super().__init__()
        self.discriminator, self.generator = discriminator, generator
        generator.electra.embeddings = discriminator.electra.embeddings
        generator.tie_weights()

    @property
    def config(self) -> Any:
        """Of the discriminator."""
        return self.discriminator.config

    def forward(
        self, labels: Tensor, draws: Tensor, input_ids: Tensor, **inputs: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The predictions of both.

        Args:
            labels: (B, L) the true token of each masked place, IGNORED elsewhere.
            draws: (B, L) in [0, 1), see `sample_tokens`.
            input_ids: (B, L) with masks; `inputs`: the models' other inputs.
        Returns:
            (B, L, V) logits of the generator; (B, L) logits of the discriminator that a token was
            replaced; (B, L) bool, True where it was.
        """
        logits = self.generator(input_ids=input_ids, **inputs).logits
        tokens, replaced = fill_gaps(logits.detach(), labels, draws, input_ids)
        scores = self.discriminator(input_ids=tokens, **inputs).logits
        return logits, scores, replaced

    def gradient_checkpointing_enable(self) -> None:
        """Of both."""
        self.generator.gradient_checkpointing_enable()
        self.discriminator.gradient_checkpointing_enable()

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes the discriminator, and the generator into a folder inside."""
        self.discriminator.save_pretrained(folder)
        self.generator.save_pretrained(Path(folder) / GENERATOR)


def fill_gaps(
    logits: Tensor, labels: Tensor, draws: Tensor, input_ids: Tensor
) -> tuple[Tensor, Tensor]:
    """(B, L) tokens with the masked ones sampled, and (B, L) bool: which differ from the truth.

    A sampled token that is the true one counts as original.
    """
    gaps = labels != IGNORED
    original = torch.where(gaps, labels, input_ids)
    tokens = original.clone()
    tokens[gaps] = sample_tokens(logits[gaps], draws[gaps])
    return tokens, tokens != original


def sample_tokens(logits: Tensor, draws: Tensor) -> Tensor:
    """(N,) tokens sampled from (N, V) logits by inverting the cumulative distribution at the draw.

    Each token depends on its own draw in [0, 1) alone, not on the batch.
    """
    shares = logits.float().softmax(-1).cumsum(-1)  # (N, V)
    places = draws.to(shares.dtype)[:, None] * shares[:, -1:]
    return torch.searchsorted(shares, places, right=True)[:, 0].clamp_max(logits.shape[-1] - 1)


def generator_config(discriminator: ElectraConfig, size: float) -> ElectraConfig:
    """The discriminator's config with its widths multiplied by about `size`.

    Heads keep their width; the generator's width is that of a whole number of them.
    """
    heads = max(1, round(size * discriminator.num_attention_heads))
    share = heads / discriminator.num_attention_heads
    values = discriminator.to_dict()
    for name in ("hidden_size", "intermediate_size"):
        values[name] = max(1, round(share * values[name]))
    values["num_attention_heads"] = heads
    return ElectraConfig.from_dict(values)
