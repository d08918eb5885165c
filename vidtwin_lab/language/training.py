"""The parts of a language model's training, from its config, and its validation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.utils.data import Dataset

from diffusion.text_loading import load_tokenizer
from vidtwin.metrics import sum_measures
from vidtwin_lab import runtime
from vidtwin_lab.language.config import TOKENIZER_OF, TrainConfig
from vidtwin_lab.language.corpus import Corpus, DocumentCorpus, read_texts
from vidtwin_lab.language.models import build_language_model, load_teacher
from vidtwin_lab.language.objectives import Objective, build_objective
from vidtwin_lab.language.samples import (
    FirstSamples,
    PackedCorpus,
    PairedCorpus,
    Samples,
    TokenizedCorpus,
)
from vidtwin_lab.language.tokenizers import train_tokenizer

# Of a sample: the sums of each term of the objective, as "TERM.SUM"; see `Choice.rows`.
Measures = dict[str, float]


def build_tokenizer(config: TrainConfig, corpus: Corpus) -> Any:
    """The tokenizer of the config: loaded with the model or teacher, or trained on the corpus."""
    given = config.init_from or config.objective.distillation.teacher or config.tokenizer.path
    if given is not None:
        return load_tokenizer(given)
    kind = config.tokenizer.kind or TOKENIZER_OF[config.model.family]
    texts = read_texts(corpus, config.tokenizer.train_texts)
    return train_tokenizer(texts, kind, config.tokenizer, config.model.max_positions)


def build_model(config: TrainConfig, tokenizer: Any) -> tuple[Any, Objective]:
    """The model to train, and what it is trained to do.

    Raises:
        ValueError: if they do not go together, or files of theirs are missing.
    """
    teacher = None
    if config.objective.distillation.teacher is not None:
        teacher = load_teacher(config.model, config.objective.distillation.teacher, tokenizer)
    objective = build_objective(config.objective, config.model.family, tokenizer, teacher)
    model = build_language_model(
        config.model, config.objective, tokenizer, config.init_from, teacher
    )
    return model, objective


def build_samples(config: TrainConfig, corpus: Corpus, tokenizer: Any) -> Samples | FirstSamples:
    """The corpus in the samples that model and objective need.

    Raises:
        ValueError: if the corpus has no documents to pack or pair sentences of.
    """
    objective, packing = config.objective, config.corpus.packing
    common = (tokenizer, config.model.max_positions, config.seed, objective.words)
    if objective.named(config.model.family) == "contrastive" and (
        config.corpus.source != "shapes" or config.corpus.shapes.pair_fraction < 1
    ):
        raise ValueError(
            "objective.name=contrastive needs two texts that say the same in each sample; set "
            "corpus.source=shapes corpus.shapes.pair_fraction=1, got "
            f"{config.corpus.source} and {config.corpus.shapes.pair_fraction}"
        )
    samples: Samples
    if objective.pairs == "none" and packing == "none":
        samples = TokenizedCorpus(corpus, *common)
    elif not isinstance(corpus, DocumentCorpus):
        raise ValueError(
            f"objective.pairs={objective.pairs} needs documents of sentences, and "
            f"corpus.source={config.corpus.source} has none; set corpus.source=text"
        )
    elif objective.pairs != "none":
        samples = PairedCorpus(corpus, *common, objective.pairs, objective.short_fraction)
    else:
        samples = PackedCorpus(corpus, *common, across=packing == "full")
    return FirstSamples(samples, config.overfit) if config.overfit else samples


@torch.no_grad()
def measure_language_model(
    model: torch.nn.Module,
    objective: Objective,
    samples: Dataset[dict[str, Any]],
    batches: Iterable[Sequence[int]],
    *,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> list[tuple[int, Measures]]:
    """(index, its measures) of batches of samples in epoch 0, which are always masked alike.

    Measures are sums over the predictions of each term of the objective: their "count", how many
    are "right", and the "loss" in nats.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    rows: list[tuple[int, Measures]] = []
    for part in batches:
        batch = objective.batch([objective.hide(samples[index]) for index in part])
        batch = {name: value.to(device) for name, value in batch.items()}
        with autocast():
            terms = objective.terms(model, batch)
        columns = {name: term.rows() for name, term in terms.items()}
        for place, index in enumerate(part):
            sums = {name: column[place] for name, column in columns.items()}
            rows.append((index, runtime.flatten(sums)))
    model.train(training)
    return rows


def token_means(rows: Iterable[tuple[int, Measures]]) -> dict[str, float]:
    """Accuracy, mean loss and perplexity over all predicted tokens, and their number.

    Those of the first term are named so; accuracy and loss of the others begin with their names.
    """
    sums, _ = sum_measures(rows)
    names = dict.fromkeys(key.partition(".")[0] for key in sums)
    means: dict[str, float] = {}
    for place, name in enumerate(names):
        count = max(1.0, sums[f"{name}.count"])
        loss = sums[f"{name}.loss"] / count
        prefix = f"{name}_" if place else ""
        if f"{name}.right" in sums:
            means[f"{prefix}accuracy"] = sums[f"{name}.right"] / count
        means[f"{prefix}loss"] = loss
        if not place:
            means["perplexity"] = math.exp(min(loss, 700.0))  # the largest number there is
            means["tokens"] = sums[f"{name}.count"]
    return means
