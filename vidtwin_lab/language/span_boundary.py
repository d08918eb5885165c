"""The span-boundary objective: the tokens of a gap from the two beside it.

Axes: B batch, L tokens, M targets, D width, V vocabulary.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

# Further tokens of a long span have no place of their own and are left to "mlm".
MOST_TARGETS = 20
_PLACE_WIDTH = 200
_FILE = "span_boundary.safetensors"


def span_targets(
    spans: Sequence[tuple[int, int]], labels: Sequence[int]
) -> list[tuple[int, int, int, int]]:
    """(place before the span, place after it, number inside of it, token) of what is to be told."""
    return [
        (first - 1, last + 1, place - first, labels[place])
        for first, last in spans
        for place in range(first, min(last + 1, first + MOST_TARGETS))
    ]


class SpanBoundaryHead(nn.Module):
    """Predicts a token of a span from the hidden states at its two ends and its number in it.

    Source: SpanBERT (arXiv 1907.10529), Sec. 3.2: two layers with GELU and layer norm; numbers are
        embedded in 200 dimensions, tokens are told by their embeddings.
    """

    def __init__(self, width: int, vocabulary: int) -> None:
        super().__init__()
        self.places = nn.Embedding(MOST_TARGETS, _PLACE_WIDTH)
        nn.init.normal_(self.places.weight, std=0.02)
        self.layers = nn.Sequential(
            nn.Linear(2 * width + _PLACE_WIDTH, width),
            nn.GELU(),
            nn.LayerNorm(width),
            nn.Linear(width, width),
            nn.GELU(),
            nn.LayerNorm(width),
        )
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def forward(self, states: Tensor, spans: Tensor, embeddings: Tensor) -> Tensor:
        """(B, M, V) predictions.

        Args:
            states: (B, L, D) hidden states.
            spans: (B, M, 3 or more): left end, right end, number in the span.
            embeddings: (V, D) of the tokens.
        """
        rows = rearrange(torch.arange(len(states), device=states.device), "b -> b 1")
        left, right = states[rows, spans[..., 0]], states[rows, spans[..., 1]]  # (B, M, D)
        told = torch.cat([left, right, self.places(spans[..., 2])], dim=-1)
        return functional.linear(self.layers(told), embeddings, self.bias)


class SpanBoundaryModel(nn.Module):
    """A model for masked tokens with the span-boundary head beside its own.

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
        """(B, L, V) predictions of all tokens, (B, M, V) of those in spans by their ends."""
        output = self.encoder(**inputs, output_hidden_states=True)
        embeddings = self.encoder.get_input_embeddings().weight
        return output.logits, self.boundary(output.hidden_states[-1], spans, embeddings)

    def gradient_checkpointing_enable(self) -> None:
        """Of the encoder."""
        self.encoder.gradient_checkpointing_enable()

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes the encoder, as transformers does, and the head into one more file."""
        self.encoder.save_pretrained(folder)
        weights = {name: value.contiguous() for name, value in self.boundary.state_dict().items()}
        save_file(weights, Path(folder) / _FILE)

    def load_head(self, folder: str) -> bool:
        """Reads the head back; False where the folder has none."""
        file = Path(folder) / _FILE
        if file.is_file():
            self.boundary.load_state_dict(load_file(file))
        return file.is_file()
