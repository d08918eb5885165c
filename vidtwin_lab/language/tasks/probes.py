"""Linear probes: what a frozen text encoder's states say of the captions of moving shapes.

Axes: N texts, L tokens, D width, K classes.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from diffusion.text_encoder import TextEncoder
from vidtwin_lab.evaluation.report import Processes, Report, software_protocol
from vidtwin_lab.language.tasks.caption_questions import (
    QUESTIONS,
    ProbeText,
    caption_questions,
)
from vidtwin_lab.language.tasks.config import CaptionProbesConfig
from vidtwin_lab.language.tasks.finetuning import pool
from vidtwin_lab.language.tasks.metrics import accuracy, over_seeds
from vidtwin_lab.language.tasks.rows import tokens_within

BATCH_SIZE = 64


def describe(config: CaptionProbesConfig) -> dict[str, Any]:
    """Questions, their answers and numbers of captions."""
    return {
        "questions": {name: len(QUESTIONS[name]) for name in config.names},
        "captions": {"train": config.train_size, "test": config.test_size},
        "seeds": list(config.seeds),
    }


def measure(config: CaptionProbesConfig, processes: Processes) -> Report:
    """Accuracy of the probes, beside those of the most frequent answer and of words alone."""
    chosen = config.text_encoder
    encoder = chosen.load(config.layer).to(processes.device)
    pooling = chosen.pooling_of(encoder, default="mean")
    jobs = [(name, seed) for name in config.names for seed in config.seeds]
    rows: list[dict[str, Any]] = processes.gather_sorted([
        {"index": jobs.index(job), "question": job[0], "seed": job[1]}
        | _ask(config, encoder, pooling, *job)
        for job in processes.share(jobs)
    ])  # fmt: skip
    measures = ("accuracy", "words_alone", "most_frequent", "unknown_tokens")
    found = {
        name: over_seeds(
            [{key: row[key] for key in measures} for row in rows if row["question"] == name]
        )
        for name in config.names
    }
    return Report(
        name="probe",
        protocol={
            "metric": "accuracy of multinomial logistic regression on frozen states",
            "text_encoder": {**chosen.protocol(encoder, pooling), "layer": config.layer},
            "wordings": list(config.wordings),
            "decay": config.decay,
            "captions": {"train": config.train_size, "test": config.test_size},
            "answers": {name: len(QUESTIONS[name]) for name in config.names},
            "seeds": list(config.seeds),
            **software_protocol(processes),
        },
        found=found,
        rows=rows,
        markdown=[
            ("text encoder", chosen.name),
            *((name, f"{100 * found[name]['accuracy']['median']:.1f}") for name in config.names),
        ],
    )


def _ask(
    config: CaptionProbesConfig, encoder: TextEncoder, pooling: str, name: str, seed: int
) -> dict[str, float]:
    """A question of one seed."""
    train, test = (
        caption_questions(name, count, 2 * seed + part, config.wordings[part])
        for part, count in enumerate((config.train_size, config.test_size))
    )
    labels, wanted = ([text.label for text in texts] for texts in (train, test))

    def solved(features: Sequence[Tensor]) -> float:
        classes = len(QUESTIONS[name])
        return accuracy(probe((features[0], labels), features[1], classes, config.decay), wanted)

    return {
        "accuracy": solved([text_states(encoder, texts, pooling) for texts in (train, test)]),
        "words_alone": solved(word_counts(encoder, train, test)),
        "unknown_tokens": unknown_tokens(encoder, [*train, *test]),
        "most_frequent": accuracy([Counter(labels).most_common(1)[0][0]] * len(wanted), wanted),
    }


def unknown_tokens(encoder: TextEncoder, texts: Sequence[ProbeText]) -> float:
    """Share of the texts' tokens that the text encoder does not know."""
    rows = encoder.tokenizer(
        [text.text for text in texts], add_special_tokens=False, verbose=False
    )["input_ids"]
    unknown = encoder.tokenizer.unk_token_id
    tokens = [token for row in rows for token in row]
    return sum(token == unknown for token in tokens) / max(1, len(tokens))


def text_states(encoder: TextEncoder, texts: Sequence[ProbeText], pooling: str) -> Tensor:
    """(N, D) states: of whole texts pooled, of places that of their last token.

    Unknown tokens are not logged text by text; see `unknown_tokens`.

    Raises:
        ValueError: if a text is too long for the text encoder, or its place has no token.
    """
    states = torch.zeros(len(texts), encoder.hidden_size)
    order = sorted(range(len(texts)), key=lambda i: (len(texts[i].text), i))
    for first in range(0, len(order), BATCH_SIZE):
        chosen = order[first : first + BATCH_SIZE]
        with _without_warnings():
            encoding = encoder.encode([texts[i].text for i in chosen])
        cut = next((i for i, rest in zip(chosen, encoding.truncated) if rest is not None), None)
        if cut is not None:
            raise ValueError(
                f"the text encoder's {encoder.max_length} tokens are too few for "
                f"{texts[cut].text!r}"
            )
        hidden, mask = encoding.hidden_states.cpu(), encoding.attention_mask.cpu()
        pooled = pool(hidden, mask, pooling)
        for place, index in enumerate(chosen):
            asked = texts[index].place
            token = None if asked is None else token_at(encoder, texts[index].text, asked)
            states[index] = pooled[place] if token is None else hidden[place, token]
    return states


def token_at(encoder: TextEncoder, text: str, place: tuple[int, int]) -> int:
    """The number of the last token of some characters, special tokens counted."""
    if not encoder.tokenizer.is_fast:
        raise ValueError("a probe at a word needs a fast tokenizer, which knows its characters")
    encoded = encoder.tokenizer(text, return_offsets_mapping=True, verbose=False)
    held = tokens_within(encoded["offset_mapping"], *place)
    if not held:
        raise ValueError(f"no token of {text!r} has the characters {place[0]} to {place[1]}")
    return held[-1]


def word_counts(
    encoder: TextEncoder, train: Sequence[ProbeText], test: Sequence[ProbeText]
) -> tuple[Tensor, Tensor]:
    """(N, words) counts of the tokens of the texts or places, what a probe knows without order.

    Columns are the tokens that the training texts have.
    """
    rows = []
    for texts in (train, test):
        cut = [t.text if t.place is None else t.text[slice(*t.place)] for t in texts]
        rows.append(encoder.tokenizer(cut, add_special_tokens=False, verbose=False)["input_ids"])
    column = {token: i for i, token in enumerate(sorted({t for row in rows[0] for t in row}))}
    counts = [torch.zeros(len(part), max(1, len(column))) for part in rows]
    for values, part in zip(counts, rows, strict=True):
        for number, row in enumerate(part):
            for token in filter(column.__contains__, row):
                values[number, column[token]] += 1
    return counts[0], counts[1]


def probe(
    train: tuple[Tensor, Sequence[int]], test: Tensor, num_classes: int, decay: float = 1e-3
) -> NDArray[np.int64]:
    """(N,) classes predicted by multinomial logistic regression on standardized features.

    Fitted by L-BFGS on all samples at once, which starts at zero: nothing is random.

    Args:
        train: (N, D) features and N labels; test: (N, D).
        decay: of the weights, in the mean loss.
    """
    features, labels = train[0].double(), torch.tensor(train[1])
    mean, scale = features.mean(0), features.std(0).clamp_min(1e-6)
    features = (features - mean) / scale
    layer = nn.Linear(features.shape[1], num_classes, dtype=torch.float64)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = functional.cross_entropy(layer(features), labels)
        value = value + decay / 2 * layer.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    with torch.no_grad():
        return layer((test.double() - mean) / scale).argmax(1).numpy()


@contextmanager
def _without_warnings() -> Iterator[None]:
    logger = logging.getLogger(TextEncoder.__module__)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
