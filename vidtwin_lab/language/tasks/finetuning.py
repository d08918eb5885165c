"""A text encoder with a small head, to be fine-tuned on a task.

Axes: B batch, L tokens, D width, K outputs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from diffusion.text_encoder import TextEncoder
from vidtwin_lab.language.tasks.rows import Sample, pad_rows
from vidtwin_lab.language.tasks.squad import WindowSpans


class TaskModel(nn.Module):
    """A copy of a text encoder with a new head.

    For texts: dropout, a layer of the encoder's width, tanh, dropout, K outputs (RoBERTa's head).
    For spans: two outputs for each token, first and last of the answer; "no answer" is predicted
    at the first token of a bidirectional encoder, at the last one of a causal encoder.

    Args:
        encoder: stays as it is.
        kind: "classes", "score" or "span".
        outputs: K; 2 for spans.
        pooling: see `TextEncoderConfig`.
        dropout: of the head.
        random_weights: new weights in the text encoder too.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        kind: str,
        outputs: int,
        pooling: str,
        dropout: float = 0.1,
        random_weights: bool = False,
    ) -> None:
        super().__init__()
        self._encoder = copy.copy(encoder)
        own: Any = encoder.model
        # Its own class and config, which says how it is initialized.
        self.model = type(own)(copy.deepcopy(own.config)) if random_weights else copy.deepcopy(own)
        # What it is stored in does not decide how it is trained.
        self.model.to(encoder.device, torch.float32)
        self._encoder.model = self.model  # inputs are made for this one
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_("pooler." not in name)  # the pooler takes no part
        self.kind, self.pooling, self.null_last = kind, pooling, encoder.causal
        width = encoder.hidden_size
        layers: list[nn.Module] = [nn.Dropout(dropout)]
        if kind != "span":
            layers += [nn.Linear(width, width), nn.Tanh(), nn.Dropout(dropout)]
        self.head = nn.Sequential(*layers, nn.Linear(width, outputs))
        for layer in self.head:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self._typed = int(getattr(own.config, "type_vocab_size", 0) or 0) > 1
        self.pad = int(encoder.tokenizer.pad_token_id or 0)

    def forward(self, tokens: Tensor, mask: Tensor, types: Tensor) -> Tensor:
        """(B, K) outputs of texts, or (B, L, 2) of spans; arguments as of `pad_rows`."""
        # A model that knows one type alone (GPT-2 takes them for tokens) is given none.
        kinds = types if self._typed else None
        inputs = self._encoder.model_inputs(tokens, mask, kinds)
        hidden = self.model(**inputs, return_dict=True).last_hidden_state
        return self.head(hidden if self.kind == "span" else pool(hidden, mask, self.pooling))

    def batch(self, samples: Sequence[Sample], device: torch.device) -> tuple[Tensor, ...]:
        """tokens, mask and types of some samples."""
        return tuple(value.to(device) for value in pad_rows(samples, self.pad))

    def labels(self, samples: Sequence[Sample], device: torch.device) -> Tensor:
        """(B,) classes or scores, or (B, 2) places, no answer's where there is none."""
        labels: list[Any] = [sample.label for sample in samples]
        if self.kind == "span":
            labels = [
                label if label[0] >= 0 else [self.null_place(sample)] * 2
                for label, sample in zip(labels, samples, strict=True)
            ]
        dtype = torch.float32 if self.kind == "score" else torch.long
        return torch.tensor(labels, dtype=dtype, device=device)

    def null_place(self, sample: Sample) -> int:
        """The token at which "no answer" is predicted."""
        return len(sample.input_ids) - 1 if self.null_last else 0


def pool(hidden: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """(B, D) from (B, L, D) states and their (B, L) mask: one state for each text."""
    if pooling == "first":
        return hidden[:, 0]
    if pooling == "last":
        return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(1) - 1]
    weights = mask[..., None].to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1).clamp_min(1)


def summed_task_loss(kind: str, outputs: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy of classes or of places (mean of both ends), squared error of scores.

    Args:
        outputs: of `TaskModel`; labels: of `TaskModel.labels`; mask: (B, L).
    Returns:
        The sum over the batch.
    """
    outputs = outputs.float()
    if kind == "score":
        return functional.mse_loss(outputs[:, 0], labels, reduction="sum")
    if kind == "span":
        # No end of an answer is in the padding.
        ends = outputs.masked_fill(~mask[..., None], torch.finfo(outputs.dtype).min)
        ends, labels = rearrange(ends, "B L E -> (B E) L"), rearrange(labels, "B E -> (B E)")
        return functional.cross_entropy(ends, labels, reduction="sum") / 2
    return functional.cross_entropy(outputs, labels, reduction="sum")


@torch.no_grad()
def predict(
    model: TaskModel,
    samples: Sequence[Sample],
    *,
    batch_size: int,
    rank: int = 0,
    count: int = 1,
    max_answer: int = 30,
    n_best: int = 20,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> list[tuple[int, Any]]:
    """(number, outputs) of this rank's samples; of spans the n best as `WindowSpans`.

    Batches are of about one length and the same for any number of processes; batch i goes to
    rank i % count.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    order = sorted(range(len(samples)), key=lambda i: (len(samples[i].input_ids), i))
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    rows: list[tuple[int, Any]] = []
    for places in batches[rank::count]:
        part = [samples[place] for place in places]
        tokens, mask, types = model.batch(part, device)
        with autocast():
            outputs = model(tokens, mask, types)
        outputs = outputs.float().cpu()
        found: list[Any] = outputs.tolist()
        if model.kind == "span":
            found = [
                best_spans(ends.numpy(), sample, model.null_place(sample), max_answer, n_best)
                for ends, sample in zip(outputs, part, strict=True)
            ]
        rows += zip(places, found, strict=True)
    model.train(training)
    return rows


def best_spans(
    ends: NDArray[np.float32], sample: Sample, null_place: int, max_answer: int, n_best: int
) -> WindowSpans:
    """The n best answers in a window from the (L, 2) scores of its tokens.

    Args:
        max_answer: tokens of an answer at most.
        n_best: how many, made of as many best first and last tokens.
    """
    size = len(sample.offsets)
    scores = ends[sample.start : sample.start + size].astype(np.float64)
    # Stable, so that equal scores are taken in the order of the text.
    firsts, lasts = (np.argsort(-scores[:, end], kind="stable")[:n_best] for end in (0, 1))
    found = [
        (
            float(scores[first, 0] + scores[last, 1]),
            sample.offsets[first][0],
            sample.offsets[last][1],
        )
        for first in firsts.tolist()
        for last in lasts.tolist()
        if first <= last < first + max_answer
    ]
    found.sort(key=lambda span: (-span[0], span[1:]))
    return WindowSpans(sample.index, float(ends[null_place].sum()), tuple(found[:n_best]))
