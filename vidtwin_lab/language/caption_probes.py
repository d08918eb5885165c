"""Linear probes: what a frozen reader's states say of the captions of moving shapes.

Axes: N captions, D width.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import numpy as np

from diffusion.text_encoder import TextEncoder
from vidtwin import nearest_name
from vidtwin.data.synthetic.shapes import WORDINGS
from vidtwin_lab.evaluation.report import Processes, Report, software_protocol
from vidtwin_lab.language.caption_questions import QUESTIONS, caption_questions
from vidtwin_lab.language.tasks import (
    ProbeText,
    TextEncoderConfig,
    over_seeds,
    probe,
    text_states,
    unknown_tokens,
    word_counts,
)
from vidtwin_lab.language.tasks.metrics import accuracy


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionProbesConfig:
    """Which questions, and how they are asked.

    Args:
        output: folder of results.
        seeds: of the captions; each gives a probe of its own.
        questions: names of `vidtwin_lab.language.caption_questions.QUESTIONS`; "all" for all.
        train_size, test_size: captions for each question and seed.
        wordings: of the captions to train and to test on: "train", "test" or "all".
        layer: hidden state that is read: -1 the last, 0 the embeddings.
        decay: of the probe's weights.
        reader: pooling null is "mean" here, and "last" for a one-way reader.
    """

    output: str = "outputs/probe"
    seeds: tuple[int, ...] = (0, 1, 2)
    questions: tuple[str, ...] = ("all",)
    train_size: int = 4000
    test_size: int = 2000
    wordings: tuple[str, str] = ("all", "all")
    layer: int = -1
    decay: float = 1e-3
    reader: TextEncoderConfig = TextEncoderConfig(max_length=None)

    def __post_init__(self) -> None:
        if not self.seeds or min(self.seeds) < 0 or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"`seeds` must be different numbers from 0, got {list(self.seeds)}")
        if min(self.train_size, self.test_size) < 2 or self.decay < 0:
            raise ValueError("`train_size` and `test_size` must be at least 2, `decay` at least 0")
        for names, known in ((self.names, tuple(QUESTIONS)), (self.wordings, WORDINGS)):
            for name in names:
                if name not in known:
                    raise ValueError(
                        f"unknown name {name!r}; the nearest is {nearest_name(name, known)!r} "
                        f"(known are {', '.join(known)})"
                    )
        if self.reader.random_weights or self.reader.max_length is not None:
            raise ValueError(
                "reader.random_weights and reader.max_length are for fine-tuning; leave them out"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """The questions that are asked."""
        return tuple(QUESTIONS) if tuple(self.questions) == ("all",) else tuple(self.questions)


def describe(config: CaptionProbesConfig) -> dict[str, Any]:
    """Questions, their answers and numbers of captions."""
    return {
        "questions": {name: len(QUESTIONS[name]) for name in config.names},
        "captions": {"train": config.train_size, "test": config.test_size},
        "seeds": list(config.seeds),
    }


def measure(config: CaptionProbesConfig, processes: Processes) -> Report:
    """Accuracy of the probes, beside those of the most frequent answer and of words alone."""
    reader = config.reader
    encoder = reader.load(config.layer).to(processes.device)
    pooling = reader.pooling_of(encoder, default="mean")
    jobs = [(name, seed) for name in config.names for seed in config.seeds]
    rows: list[dict[str, Any]] = [
        {"index": jobs.index(job), "question": job[0], "seed": job[1]}
        | _ask(config, encoder, pooling, *job)
        for job in processes.share(jobs)
    ]
    rows = processes.gather_sorted(rows)
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
            "reader": {**reader.protocol(encoder, pooling), "layer": config.layer},
            "captions": {"train": config.train_size, "test": config.test_size},
            "wordings": list(config.wordings),
            "answers": {name: len(QUESTIONS[name]) for name in config.names},
            "seeds": list(config.seeds),
            "decay": config.decay,
            **software_protocol(processes),
        },
        found=found,
        rows=rows,
        markdown=[
            ("reader", reader.name),
            *((name, f"{100 * found[name]['accuracy']['median']:.1f}") for name in config.names),
        ],
    )


def _ask(
    config: CaptionProbesConfig, encoder: TextEncoder, pooling: str, name: str, seed: int
) -> dict[str, float]:
    """A question of one seed."""
    train, test = (
        [
            ProbeText(*question)
            for question in caption_questions(name, count, 2 * seed + part, config.wordings[part])
        ]
        for part, count in enumerate((config.train_size, config.test_size))
    )
    labels = [text.label for text in train]
    wanted = [text.label for text in test]
    states = [text_states(encoder, texts, pooling) for texts in (train, test)]
    counts = word_counts(encoder, train, test)
    classes = len(QUESTIONS[name])
    frequent = Counter(labels).most_common(1)[0][0]
    return {
        "accuracy": accuracy(probe((states[0], labels), states[1], classes, config.decay), wanted),
        "words_alone": accuracy(
            probe((counts[0], labels), counts[1], classes, config.decay), wanted
        ),
        "unknown_tokens": unknown_tokens(encoder, [*train, *test]),
        "most_frequent": accuracy(np.full(len(wanted), frequent), wanted),
    }
