"""ELECTRA's two models: a small generator fills gaps, a discriminator finds what it changed.

Axes: B batch, L tokens, V vocabulary.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import ElectraConfig

from vidtwin_lab.language.terms import IGNORED

GENERATOR = "generator"  # its folder inside of the discriminator's


class ReplacedTokenModel(nn.Module):
    """Both models, which share their embeddings.

    Args:
        generator: ElectraForMaskedLM.
        discriminator: ElectraForPreTraining, with embeddings of the same sizes; is what is used
            afterwards.
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
        """What both say.

        Args:
            labels: (B, L) the true token in each gap, IGNORED elsewhere.
            draws: (B, L) in [0, 1), see `sample_tokens`.
            input_ids: (B, L) with the gaps; `inputs` is the rest of what the models read.
        Returns:
            (B, L, V) predictions of the generator; (B, L) scores of the discriminator, high where
            it holds a token for replaced; (B, L) bool, True where one is.
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
    """((B, L) the text with sampled tokens in its gaps, (B, L) bool: which differ from the truth).

    A sampled token that happens to be the true one counts as original.
    """
    gaps = labels != IGNORED
    original = torch.where(gaps, labels, input_ids)
    tokens = original.clone()
    tokens[gaps] = sample_tokens(logits[gaps], draws[gaps])
    return tokens, tokens != original


def sample_tokens(logits: Tensor, draws: Tensor) -> Tensor:
    """(N,) tokens from (N, V) predictions: the one in whose share of [0, 1) the draw falls.

    So a token follows from its own draw, in whatever batch it stands.
    """
    shares = logits.float().softmax(-1).cumsum(-1)  # (N, V)
    places = draws.to(shares.dtype)[:, None] * shares[:, -1:]
    return torch.searchsorted(shares, places, right=True)[:, 0].clamp_max(logits.shape[-1] - 1)


def generator_config(discriminator: ElectraConfig, size: float) -> ElectraConfig:
    """The discriminator's sizes, the width and what goes with it times `size`.

    Heads keep their width, so that the generator is as wide as a whole number of them.
    """
    heads = max(1, round(size * discriminator.num_attention_heads))
    share = heads / discriminator.num_attention_heads
    values = discriminator.to_dict()
    for name in ("hidden_size", "intermediate_size"):
        values[name] = max(1, round(share * values[name]))
    values["num_attention_heads"] = heads
    return ElectraConfig.from_dict(values)
