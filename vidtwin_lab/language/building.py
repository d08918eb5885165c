"""The parts of a training from its config: tokenizer, samples, model and objective."""

from __future__ import annotations

from typing import Any, Protocol

from diffusion.tokenizer import TokenizerConfig, load_tokenizer, train_tokenizer
from vidtwin_lab.language.corpus import Corpus, CorpusConfig, DocumentCorpus, read_texts
from vidtwin_lab.language.models import LanguageModelConfig, build_language_model, load_teacher
from vidtwin_lab.language.objectives import Objective, ObjectiveConfig, build_objective
from vidtwin_lab.language.samples import (
    FirstSamples,
    PackedCorpus,
    PairedCorpus,
    Samples,
    TokenizedCorpus,
)


class LanguageConfig(Protocol):
    """What of a run's config these parts follow from; see the classes."""

    @property
    def seed(self) -> int: ...
    @property
    def init_from(self) -> str | None: ...
    @property
    def overfit(self) -> int | None: ...
    @property
    def corpus(self) -> CorpusConfig: ...
    @property
    def tokenizer(self) -> TokenizerConfig: ...
    @property
    def model(self) -> LanguageModelConfig: ...
    @property
    def objective(self) -> ObjectiveConfig: ...


def build_tokenizer(config: LanguageConfig, corpus: Corpus) -> Any:
    """The tokenizer of the config: loaded with the model or teacher, or trained on the corpus."""
    given = config.init_from or config.objective.teacher or config.tokenizer.path
    if given is not None:
        return load_tokenizer(given)
    kind = config.tokenizer.kind or config.model.tokenizer_kind
    texts = read_texts(corpus, config.tokenizer.train_texts)
    return train_tokenizer(texts, kind, config.tokenizer, config.model.max_positions)


def build_model(config: LanguageConfig, tokenizer: Any) -> tuple[Any, Objective]:
    """The model to train, and what it is trained to do.

    Raises:
        ValueError: if they do not go together, or files of theirs are missing.
    """
    teacher = None
    if config.objective.teacher is not None:
        teacher = load_teacher(config.model, config.objective.teacher, tokenizer)
    objective = build_objective(config.objective, config.model.family, tokenizer, teacher)
    model = build_language_model(
        config.model, config.objective, tokenizer, config.init_from, teacher
    )
    return model, objective


def build_samples(config: LanguageConfig, corpus: Corpus, tokenizer: Any) -> Samples | FirstSamples:
    """The corpus as model and objective read it.

    Raises:
        ValueError: if the corpus has no documents to pack or pair sentences of.
    """
    samples = _samples(config, corpus, tokenizer)
    return FirstSamples(samples, config.overfit) if config.overfit else samples


def _samples(config: LanguageConfig, corpus: Corpus, tokenizer: Any) -> Samples:
    objective, packing = config.objective, config.corpus.packing
    common = (tokenizer, config.model.max_positions, config.seed, objective.words)
    if objective.named(config.model.family) == "contrastive" and (
        config.corpus.source != "shapes" or config.corpus.shapes_pair_fraction < 1
    ):
        raise ValueError(
            "objective.name=contrastive needs two texts that say the same in each sample; set "
            "corpus.source=shapes corpus.shapes_pair_fraction=1, got "
            f"{config.corpus.source} and {config.corpus.shapes_pair_fraction}"
        )
    if objective.pairs == "none" and packing == "none":
        return TokenizedCorpus(corpus, *common)
    if not isinstance(corpus, DocumentCorpus):
        raise ValueError(
            f"objective.pairs={objective.pairs} needs documents of sentences, and "
            f"corpus.source={config.corpus.source} has none; set corpus.source=text"
        )
    if objective.pairs != "none":
        return PairedCorpus(corpus, *common, objective.pairs, objective.short_fraction)
    return PackedCorpus(corpus, *common, across=packing == "full")
