"""Masked tokens ("mlm"), with BERT's and ALBERT's pairs of texts and SpanBERT's span boundaries.

Axes: B batch, L tokens, M targets of the span boundary, D width, V vocabulary.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from vidtwin_lab.language import masking
from vidtwin_lab.language.config import ObjectiveConfig
from vidtwin_lab.language.objectives.base import IGNORED, Choice, Objective, Term, inputs_for
from vidtwin_lab.language.samples import Sample

# Tokens of a span that the span-boundary objective predicts; "mlm" alone predicts those after.
MOST_TARGETS = 20
_POSITION_WIDTH = 200
_FILE = "span_boundary.safetensors"


class MaskedTokens(Objective):
    """Predicts masked tokens, and, for pairs of texts, how the two belong together.

    Raises:
        ValueError: if the tokenizer has no mask token.
    """

    name = "mlm"

    def __init__(self, config: ObjectiveConfig, tokenizer: Any, teacher: Any = None) -> None:
        super().__init__(config, tokenizer)
        if tokenizer.mask_token_id is None:
            raise ValueError(f"the tokenizer has no mask token, which {self.name} needs")
        self.mask = tokenizer.mask_token_id
        special = set(tokenizer.all_special_ids)
        self.ordinary = np.array([token for token in range(len(tokenizer)) if token not in special])
        self.lengths = masking.span_lengths(config.span_probability, config.span_longest)
        self.weights = {"mlm": 1.0}
        if config.pairs != "none":
            self.weights[config.pairs] = 1.0
        if config.span_boundary:
            self.weights["sbo"] = 1.0

    def hide(self, sample: Sample) -> Sample:
        """The sample with "labels", the tokens to predict, and masks in their places."""
        row = np.array(sample["input_ids"])
        hidden = self._choose(sample, np.random.default_rng(sample["mask_seed"]))
        labels = np.full_like(row, IGNORED)
        labels[hidden.places] = row[hidden.places]
        masked = self.config.replaced_by_mask
        to_random = hidden.kinds < masked + self.config.replaced_by_random
        row[hidden.places[to_random]] = hidden.randoms[to_random]
        row[hidden.places[hidden.kinds < masked]] = self.mask
        sample = {**sample, "input_ids": row.tolist(), "labels": labels.tolist()}
        if self.config.span_boundary:
            sample["spans"] = hidden.spans
        return sample

    def _choose(self, sample: Sample, rng: np.random.Generator) -> masking.Hidden:
        share = self.config.mask_probability
        if self.config.masking == "token":
            special = np.array(sample["special"])
            return masking.choose_tokens(special, share, self.ordinary, rng)
        words = np.array(sample["words"])
        if self.config.masking == "word":
            return masking.choose_words(words, share, self.ordinary, rng)
        return masking.choose_spans(words, share, self.ordinary, rng, self.lengths)

    def counts(self, samples: Sequence[Sample]) -> dict[str, int]:
        """Over how many predictions each term is a sum, for samples from `hide`."""
        counts = {"mlm": super().counts(samples)[self.name]}
        if self.config.pairs != "none":
            counts[self.config.pairs] = len(samples)
        if self.config.span_boundary:
            counts["sbo"] = sum(len(span_targets(s["spans"], s["labels"])) for s in samples)
        return counts

    def batch(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """As `Objective.batch`; for pairs pair_labels (B,), for span boundaries spans (B, M, 4)."""
        batch = super().batch(samples)
        if self.config.pairs != "none":
            batch["pair_labels"] = torch.tensor([sample["pair_label"] for sample in samples])
        if self.config.span_boundary:
            targets = [span_targets(sample["spans"], sample["labels"]) for sample in samples]
            most, nothing = max(1, *map(len, targets)), [(0, 0, 0, IGNORED)]
            batch["spans"] = torch.tensor([row + nothing * (most - len(row)) for row in targets])
        return batch

    def terms(self, model: torch.nn.Module, batch: dict[str, Tensor]) -> dict[str, Term]:
        """The terms of the loss, that of the tokens to predict first."""
        inputs = inputs_for(model, batch)
        if self.config.span_boundary:
            logits, from_boundary = model(spans=batch["spans"], **inputs)
            sbo = Choice(from_boundary, batch["spans"][..., 3])
            return {"mlm": Choice(logits, batch["labels"]), "sbo": sbo}
        output = model(**inputs)
        if self.config.pairs == "none":
            return {"mlm": Choice(output.logits, batch["labels"])}
        # ALBERT's output calls them differently from BERT's.
        pairs = output["sop_logits" if "sop_logits" in output else "seq_relationship_logits"]
        return {
            "mlm": Choice(output.prediction_logits, batch["labels"]),
            self.config.pairs: Choice(pairs[:, None], batch["pair_labels"][:, None]),
        }


def span_targets(
    spans: Sequence[tuple[int, int]], labels: Sequence[int]
) -> list[tuple[int, int, int, int]]:
    """(place before the span, place after it, position in it, token) of each token to predict."""
    return [
        (first - 1, last + 1, place - first, labels[place])
        for first, last in spans
        for place in range(first, min(last + 1, first + MOST_TARGETS))
    ]


class SpanBoundaryHead(nn.Module):
    """Predicts a token of a span from the hidden states beside the span and its position in it.

    Source: SpanBERT (arXiv 1907.10529), Sec. 3.2: two layers with GELU and layer norm; positions
        are embedded in 200 dimensions, logits are products with the token embeddings.
    """

    def __init__(self, width: int, vocabulary: int) -> None:
        super().__init__()
        self.places = nn.Embedding(MOST_TARGETS, _POSITION_WIDTH)
        nn.init.normal_(self.places.weight, std=0.02)
        self.layers = nn.Sequential(
            nn.Linear(2 * width + _POSITION_WIDTH, width),
            nn.GELU(),
            nn.LayerNorm(width),
            nn.Linear(width, width),
            nn.GELU(),
            nn.LayerNorm(width),
        )
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def forward(self, states: Tensor, spans: Tensor, embeddings: Tensor) -> Tensor:
        """(B, M, V) logits.

        Args:
            states: (B, L, D) hidden states.
            spans: (B, M, 3 or more): place before the span, place after it, position in it.
            embeddings: (V, D) of the tokens.
        """
        rows = rearrange(torch.arange(len(states), device=states.device), "b -> b 1")
        left, right = states[rows, spans[..., 0]], states[rows, spans[..., 1]]  # (B, M, D)
        inputs = torch.cat([left, right, self.places(spans[..., 2])], dim=-1)
        return functional.linear(self.layers(inputs), embeddings, self.bias)


class SpanBoundaryModel(nn.Module):
    """A masked language model with the span-boundary head beside its own.

    Args:
        encoder: of transformers, such as BertForMaskedLM.
    """

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder
        vocabulary = encoder.get_input_embeddings().num_embeddings
        self.boundary = SpanBoundaryHead(encoder.config.hidden_size, vocabulary)

    @property
    def config(self) -> Any:
        """Of the encoder."""
        return self.encoder.config

    def forward(self, spans: Tensor, **inputs: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L, V) logits of all tokens, (B, M, V) of those in spans by the boundary head."""
        output = self.encoder(**inputs, output_hidden_states=True)
        embeddings = self.encoder.get_input_embeddings().weight
        return output.logits, self.boundary(output.hidden_states[-1], spans, embeddings)

    def gradient_checkpointing_enable(self) -> None:
        """Of the encoder."""
        self.encoder.gradient_checkpointing_enable()

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes the encoder as transformers does, and the head into a file beside it."""
        self.encoder.save_pretrained(folder)
        weights = {name: value.contiguous() for name, value in self.boundary.state_dict().items()}
        save_file(weights, Path(folder) / _FILE)

    def load_head(self, folder: str) -> bool:
        """Loads the head; False where the folder has none."""
        file = Path(folder) / _FILE
        if file.is_file():
            self.boundary.load_state_dict(load_file(file))
        return file.is_file()
