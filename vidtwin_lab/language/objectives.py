"""What a language model is trained to do: fill gaps, go on, find what was replaced, follow another
model, read two texts that say the same alike.

An objective turns samples into a batch with labels, each from its own seed, so that a sample is
hidden alike in any batch, and a batch into terms of a loss; it knows nothing of where the samples
come from. Its terms are sums, to be divided by their numbers in the whole step.
Axes: B batch, L tokens, V vocabulary, M targets of the span boundary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vidtwin_lab.language import masking
from vidtwin_lab.language.samples import PAIRS, Sample
from vidtwin_lab.language.span_boundary import span_targets
from vidtwin_lab.language.terms import IGNORED, Choice, Distance, Term

OBJECTIVES = ("mlm", "clm", "rtd", "distillation", "contrastive")
# The family of a model -> what it can be trained with, its default first.
OBJECTIVES_OF = {
    "bert": ("mlm", "distillation", "contrastive"),
    "roberta": ("mlm", "distillation", "contrastive"),
    "albert": ("mlm", "contrastive"),
    "distilbert": ("mlm", "distillation", "contrastive"),
    "electra": ("rtd", "mlm"),
    "gpt2": ("clm",),
}
# Which families have a head for pairs of texts, and which take the span-boundary objective.
PAIR_FAMILIES, SPAN_FAMILIES = ("bert", "albert"), ("bert", "roberta")
SEGMENT_FAMILIES = ("bert", "albert", "electra")  # which tell the second of two texts
# Beside what is hidden in a sample, the seed of what the generator puts there.
_DRAW_STREAM = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """What is trained; keys of other objectives than the chosen one are not used.

    Args:
        name: "mlm" fills gaps (BERT), "clm" goes on (GPT), "rtd" finds what a small generator put
            into the gaps (ELECTRA), "distillation" fills gaps as a teacher does (DistilBERT),
            "contrastive" finds the other text of a pair among those of its batch (SimCSE); None
            takes that of the model's family.
        mask_probability: share of the tokens that are to be predicted; all but "clm".
        replaced_by_mask, replaced_by_random: shares of those; the rest stays as it is.
        masking: gaps of a "token", a whole "word", or a "span" of words (SpanBERT).
        span_probability: of the geometric distribution of a span's length in words.
        span_longest: words of a span at most.
        span_boundary: predict a span also from the two tokens beside it (SpanBERT's SBO).
        pairs: samples of two texts: "nsp" whether the second is the next (BERT), "sop" whether
            they are in order (ALBERT), or "none".
        short_fraction: share of the pairs that are shorter than they could be.
        generator_size: of "rtd": the generator's width as a share of the discriminator's.
        discriminator_weight: of "rtd": of the discriminator's loss; the generator's has 1.
        teacher: of "distillation": a saved language model's folder or hub id; all sizes but the
            number of layers are the teacher's.
        temperature: of "distillation": of both predictions.
        soft_weight, hard_weight, cosine_weight: of "distillation": of the teacher's predictions,
            of the true tokens, of the angle between the last hidden states.
        similarity_temperature: of "contrastive": of the cosines between texts.
        token_weight: of "contrastive": of the gaps that are filled beside it; pairs have 1.
    Source: BERT (arXiv 1810.04805), RoBERTa (1907.11692), SpanBERT (1907.10529), ALBERT
        (1909.11942), ELECTRA (2003.10555), DistilBERT (1910.01108; weights of its repository),
        SimCSE (2104.08821).
    """

    name: str | None = None
    mask_probability: float = 0.15
    replaced_by_mask: float = 0.8
    replaced_by_random: float = 0.1
    masking: str = "token"
    span_probability: float = 0.2
    span_longest: int = 10
    span_boundary: bool = False
    pairs: str = "none"
    short_fraction: float = 0.1
    generator_size: float = 0.25
    discriminator_weight: float = 50.0
    teacher: str | None = None
    temperature: float = 2.0
    soft_weight: float = 5.0
    hard_weight: float = 2.0
    cosine_weight: float = 1.0
    similarity_temperature: float = 0.05
    token_weight: float = 0.1

    def __post_init__(self) -> None:
        choices = {
            "name": (None, *OBJECTIVES),
            "masking": masking.MASKINGS,
            "pairs": PAIRS,
        }
        for name, known in choices.items():
            value = getattr(self, name)
            if value not in known:
                names = ", ".join("null" if choice is None else choice for choice in known)
                raise ValueError(f"`objective.{name}` must be one of {names}; got {value!r}")
        for name in ("mask_probability", "span_probability"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be in (0, 1), got {getattr(self, name)}")
        for name in ("replaced_by_mask", "replaced_by_random", "short_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must be in [0, 1], got {getattr(self, name)}")
        if not 0 < self.generator_size <= 1:
            raise ValueError(f"`generator_size` must be in (0, 1], got {self.generator_size}")
        if self.span_longest < 1:
            raise ValueError(f"`span_longest` must be at least 1, got {self.span_longest}")
        for name in ("temperature", "similarity_temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be above 0, got {getattr(self, name)}")
        for name in (
            "discriminator_weight",
            "soft_weight",
            "hard_weight",
            "cosine_weight",
            "token_weight",
        ):
            if not getattr(self, name) >= 0:
                raise ValueError(f"`{name}` must not be negative, got {getattr(self, name)}")
        total = self.replaced_by_mask + self.replaced_by_random
        if total > 1 + 1e-9:
            raise ValueError(
                f"`replaced_by_mask` and `replaced_by_random` must be at most 1 together, "
                f"got {total}"
            )
        if self.span_boundary and self.masking != "span":
            raise ValueError(
                f"`span_boundary` needs spans; set objective.masking=span, got {self.masking}"
            )

    @property
    def words(self) -> bool:
        """Whether samples must tell which word a token is of."""
        return self.masking != "token"

    def named(self, family: str) -> str:
        """The objective for a model of this family.

        Raises:
            ValueError: if the family can't be trained so.
        """
        known = OBJECTIVES_OF[family]
        default = "distillation" if self.teacher and "distillation" in known else known[0]
        name = self.name or default
        if name not in known:
            raise ValueError(
                f"model.family={family} can be trained by {' or '.join(known)}, got "
                f"objective.name={name}"
            )
        self._check_parts(name, family)
        return name

    def _check_parts(self, name: str, family: str) -> None:
        """Raises ValueError for parts that don't go together."""
        if name == "clm" and self.words:
            raise ValueError(f"clm makes no gaps; remove objective.masking={self.masking}")
        if self.pairs != "none" and (name != "mlm" or family not in PAIR_FAMILIES):
            raise ValueError(
                f"objective.pairs={self.pairs} is for mlm with model.family="
                f"{' or '.join(PAIR_FAMILIES)}, got {name} with {family}"
            )
        if self.span_boundary and (
            name != "mlm" or family not in SPAN_FAMILIES or self.pairs != "none"
        ):
            raise ValueError(
                f"objective.span_boundary is for mlm with model.family="
                f"{' or '.join(SPAN_FAMILIES)} and objective.pairs=none, got {name} with {family} "
                f"and {self.pairs}"
            )
        if (name == "distillation") != (self.teacher is not None):
            raise ValueError(
                f"objective.teacher=FOLDER is for distillation, which needs it; got {name} with "
                f"teacher={self.teacher}"
            )


class Objective:
    """Batches and terms of one objective; this one goes on ("clm").

    Args:
        config: of the objective.
        tokenizer: its special tokens are neither hidden nor drawn.
    """

    name = "clm"

    def __init__(self, config: ObjectiveConfig, tokenizer: Any) -> None:
        self.config = config
        self.pad = tokenizer.pad_token_id or 0  # what stands there is neither read nor predicted
        self.weights: dict[str, float] = {self.name: 1.0}

    def to(self, device: torch.device) -> None:
        """Moves what an objective has of its own, such as a teacher."""

    def hide(self, sample: Sample) -> Sample:
        """The sample with "labels", the tokens to predict, and gaps in their places."""
        # The first token has nothing before it to be told from.
        return {**sample, "labels": [IGNORED, *sample["input_ids"][1:]]}

    def hide_all(self, samples: Sequence[Sample]) -> list[Sample]:
        """`hide` for each of them."""
        return [self.hide(sample) for sample in samples]

    def counts(self, samples: Sequence[Sample]) -> dict[str, int]:
        """Of each term, over how many predictions it is a sum; samples are hidden."""
        labels = (label for sample in samples for label in sample["labels"])
        return {self.name: sum(label != IGNORED for label in labels)}

    def batch(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Hidden samples as (B, L) tensors input_ids, token_type_ids, attention_mask, labels."""
        lengths = torch.tensor([len(sample["input_ids"]) for sample in samples])
        return {
            "input_ids": padded(samples, "input_ids", self.pad),
            "token_type_ids": padded(samples, "token_type_ids", 0),
            "attention_mask": (torch.arange(int(lengths.max())) < lengths[:, None]).long(),
            "labels": padded(samples, "labels", IGNORED),
        }

    def terms(self, model: torch.nn.Module, batch: dict[str, Tensor]) -> dict[str, Term]:
        """The terms of the loss, that of the tokens to predict first."""
        logits = model(**inputs_for(model, batch), use_cache=False).logits
        return {self.name: Choice(logits[:, :-1], batch["labels"][:, 1:])}

    def loss(
        self, terms: Mapping[str, Term], counts: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(the weighted sum, {name: mean}) of terms whose sums are over `counts` predictions."""
        means = {name: term.total() / counts[name] for name, term in terms.items()}
        total = sum(self.weights[name] * value for name, value in means.items())
        assert isinstance(total, Tensor)
        return total, {name: value.detach() for name, value in means.items()}

    def accuracies(
        self, terms: Mapping[str, Term], counts: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """{"accuracy": of the first term, "NAME_accuracy": of others}, of those that are right."""
        first = next(iter(terms))
        return {
            "accuracy" if name == first else f"{name}_accuracy": term.right() / counts[name]
            for name, term in terms.items()
            if isinstance(term, Choice)
        }


class MaskedTokens(Objective):
    """Fills gaps ("mlm"), and tells how two texts belong together where they are pairs.

    Raises:
        ValueError: if the tokenizer has no mask token.
    """

    name = "mlm"

    def __init__(self, config: ObjectiveConfig, tokenizer: Any) -> None:
        super().__init__(config, tokenizer)
        if tokenizer.mask_token_id is None:
            raise ValueError(f"the tokenizer has no mask token, which {self.name} needs")
        self.mask = tokenizer.mask_token_id
        special = set(tokenizer.all_special_ids)
        self.plain = np.array([token for token in range(len(tokenizer)) if token not in special])
        self.lengths = masking.span_lengths(config.span_probability, config.span_longest)
        self.weights = {"mlm": 1.0}
        if config.pairs != "none":
            self.weights[config.pairs] = 1.0
        if config.span_boundary:
            self.weights["sbo"] = 1.0

    def hide(self, sample: Sample) -> Sample:
        """The sample with "labels", the tokens to predict, and gaps in their places."""
        row = np.array(sample["input_ids"])
        hidden = self._choose(sample, np.random.default_rng(sample["mask_seed"]))
        labels = np.full_like(row, IGNORED)
        labels[hidden.places] = row[hidden.places]
        to_mask = hidden.kinds < self.config.replaced_by_mask
        to_random = ~to_mask & (
            hidden.kinds < self.config.replaced_by_mask + self.config.replaced_by_random
        )
        row[hidden.places[to_mask]] = self.mask
        row[hidden.places[to_random]] = hidden.randoms[to_random]
        sample = {**sample, "input_ids": row.tolist(), "labels": labels.tolist()}
        if self.config.span_boundary:
            sample["spans"] = hidden.spans
        return sample

    def _choose(self, sample: Sample, rng: np.random.Generator) -> masking.Hidden:
        share = self.config.mask_probability
        if self.config.masking == "token":
            special = np.array(sample["special"])
            return masking.choose_tokens(special, share, self.plain, rng)
        words = np.array(sample["words"])
        if self.config.masking == "word":
            return masking.choose_words(words, share, self.plain, rng)
        return masking.choose_spans(words, share, self.plain, rng, self.lengths)

    def counts(self, samples: Sequence[Sample]) -> dict[str, int]:
        """Of each term, over how many predictions it is a sum; samples are hidden."""
        labels = (label for sample in samples for label in sample["labels"])
        counts = {"mlm": sum(label != IGNORED for label in labels)}
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
            most = max(1, *map(len, targets))
            nothing = [(0, 0, 0, IGNORED)]
            rows = [row + nothing * (most - len(row)) for row in targets]
            batch["spans"] = torch.tensor(rows)
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
        # BERT's head and ALBERT's have a name each.
        pairs = output["sop_logits" if "sop_logits" in output else "seq_relationship_logits"]
        return {
            "mlm": Choice(output.prediction_logits, batch["labels"]),
            self.config.pairs: Choice(pairs[:, None], batch["pair_labels"][:, None]),
        }


class ReplacedTokens(MaskedTokens):
    """A generator fills the gaps ("mlm"), a discriminator finds which tokens it changed ("rtd")."""

    def __init__(self, config: ObjectiveConfig, tokenizer: Any) -> None:
        super().__init__(config, tokenizer)
        self.weights["rtd"] = config.discriminator_weight

    def hide(self, sample: Sample) -> Sample:
        """As of "mlm", with "draws": what of the generator's predictions is taken."""
        rng = np.random.default_rng([*sample["mask_seed"], _DRAW_STREAM])
        return {**super().hide(sample), "draws": rng.random(len(sample["input_ids"])).tolist()}

    def counts(self, samples: Sequence[Sample]) -> dict[str, int]:
        """Of each term, over how many predictions it is a sum; "rtd" asks about every token."""
        tokens = sum(len(sample["input_ids"]) for sample in samples)
        return {**super().counts(samples), "rtd": tokens}

    def batch(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """As of "mlm", with draws (B, L) in [0, 1)."""
        return {**super().batch(samples), "draws": padded(samples, "draws", 0.0)}

    def terms(self, model: torch.nn.Module, batch: dict[str, Tensor]) -> dict[str, Term]:
        """The terms of the loss, that of the generator first."""
        logits, scores, replaced = model(
            labels=batch["labels"], draws=batch["draws"], **inputs_for(model, batch)
        )
        answers = replaced.long().masked_fill(batch["attention_mask"] == 0, IGNORED)
        # Two choices, of which the first has a score of 0: the logistic loss.
        choice = Choice(torch.stack([torch.zeros_like(scores), scores], -1), answers)
        return {"mlm": Choice(logits, batch["labels"]), "rtd": choice}


class Distillation(MaskedTokens):
    """Fills gaps ("mlm") as a frozen teacher would ("soft"), thinking alike ("cosine").

    Args:
        teacher: of transformers, for the same tokens.
    """

    def __init__(self, config: ObjectiveConfig, tokenizer: Any, teacher: Any) -> None:
        super().__init__(config, tokenizer)
        self.teacher = teacher.eval().requires_grad_(False)
        self.weights = {
            "mlm": config.hard_weight,
            "soft": config.soft_weight,
            "cosine": config.cosine_weight,
        }

    def to(self, device: torch.device) -> None:
        """Moves the teacher."""
        self.teacher.to(device)

    def counts(self, samples: Sequence[Sample]) -> dict[str, int]:
        """Of each term, over how many predictions it is a sum; the teacher speaks on all tokens."""
        tokens = sum(len(sample["input_ids"]) for sample in samples)
        return {**super().counts(samples), "soft": tokens, "cosine": tokens}

    def terms(self, model: torch.nn.Module, batch: dict[str, Tensor]) -> dict[str, Term]:
        """The terms of the loss, that of the true tokens first."""
        with torch.no_grad():
            expected = self.teacher(**inputs_for(self.teacher, batch), output_hidden_states=True)
        output = model(**inputs_for(model, batch), output_hidden_states=True)
        seen = batch["attention_mask"] == 1
        states = (output.hidden_states[-1].float(), expected.hidden_states[-1].float())
        angle = 1 - torch.nn.functional.cosine_similarity(*states, dim=-1)
        logits = (output.logits, expected.logits)
        return {
            "mlm": Choice(output.logits, batch["labels"]),
            "soft": Distance(soft_cross_entropy(*logits, self.config.temperature), seen),
            "cosine": Distance(angle, seen),
        }


class Paraphrases(MaskedTokens):
    """Finds the other text of each pair among those of the batch ("contrastive"); fills gaps.

    A text is the mean of its tokens. The batch is what is read at once: with accumulation or more
    processes a text is compared with fewer others.
    Source: SimCSE (arXiv 2104.08821), Sec. 4 without hard negatives, in both directions, and App.
        D for the gaps. Differs: the gaps are in the texts that are compared.
    """

    name = "contrastive"

    def __init__(self, config: ObjectiveConfig, tokenizer: Any) -> None:
        super().__init__(config, tokenizer)
        self.weights = {"contrastive": 1.0, "mlm": config.token_weight}

    def counts(self, samples: Sequence[Sample]) -> dict[str, int]:
        """Of each term, over how many predictions it is a sum; each text of a pair seeks one."""
        return {"contrastive": 2 * len(samples), **super().counts(samples)}

    def batch(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """As of "mlm", (2 B, L): all first texts, then all second ones, each read alone."""
        return super().batch([_text_of(sample, which) for which in (0, 1) for sample in samples])

    def terms(self, model: torch.nn.Module, batch: dict[str, Tensor]) -> dict[str, Term]:
        """The terms of the loss, that of the pairs first."""
        output = model(**inputs_for(model, batch), output_hidden_states=True)
        mask = batch["attention_mask"][..., None].float()
        sums = (output.hidden_states[-1].float() * mask).sum(1)
        texts = torch.nn.functional.normalize(sums / mask.sum(1), dim=-1)
        first, second = texts.chunk(2)  # (B, D) each
        cosines = first @ second.T / self.config.similarity_temperature
        places = torch.arange(len(cosines), device=cosines.device)
        # Of each pair both texts' search, (B, 2, B), and both texts' gaps, (B, 2 L, V).
        return {
            "contrastive": Choice(
                torch.stack([cosines, cosines.T], 1), places[:, None].repeat(1, 2)
            ),
            "mlm": Choice(
                torch.cat(output.logits.chunk(2), 1), torch.cat(batch["labels"].chunk(2), 1)
            ),
        }


def _text_of(sample: Sample, which: int) -> Sample:
    """One of the two texts of a hidden pair as a sample: [CLS] a [SEP]."""
    places = [i for i, kind in enumerate(sample["token_type_ids"]) if kind == which]
    places = [0, *places] if which else places  # the second has no token of its own before it
    row = {name: [sample[name][i] for i in places] for name in ("input_ids", "labels")}
    return {**row, "token_type_ids": [0] * len(places)}


def soft_cross_entropy(logits: Tensor, expected: Tensor, temperature: float) -> Tensor:
    """(B, L) divergence of (B, L, V) predictions from expected ones, 0 where they agree.

    Times the squared temperature, so that gradients stay as large as those of true labels.
    Source: Hinton et al. (arXiv 1503.02531), Sec. 2; DistilBERT's `loss_ce`.
    """
    own = (logits.float() / temperature).log_softmax(-1)
    other = (expected.float() / temperature).log_softmax(-1)
    return temperature**2 * (other.exp() * (other - own)).sum(-1)


def build_objective(
    config: ObjectiveConfig, family: str, tokenizer: Any, teacher: Any = None
) -> Objective:
    """The objective for a model of a family.

    Args:
        teacher: of "distillation".
    Raises:
        ValueError: if the two don't go together, or the tokenizer lacks the tokens for it.
    """
    name = config.named(family)
    if name == "clm":
        return Objective(config, tokenizer)
    if name == "rtd":
        return ReplacedTokens(config, tokenizer)
    if name == "distillation":
        return Distillation(config, tokenizer, teacher)
    if name == "contrastive":
        return Paraphrases(config, tokenizer)
    return MaskedTokens(config, tokenizer)


def padded(samples: Sequence[Sample], name: str, value: float) -> Tensor:
    """(B, L) the lists of the samples, filled up on the right."""
    length = max(len(sample[name]) for sample in samples)
    rows = [[*s[name], *[value] * (length - len(s[name]))] for s in samples]
    return torch.tensor(rows, dtype=torch.float32 if isinstance(value, float) else torch.int64)


def inputs_for(model: torch.nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """What of a batch a model of this family reads."""
    names = ["input_ids", "attention_mask"]
    if model_type_of(model) in SEGMENT_FAMILIES:
        names.append("token_type_ids")
    return {name: batch[name] for name in names}


def model_type_of(model: torch.nn.Module) -> str:
    """The family of a model, also of one that is wrapped for several processes."""
    inner: Any = getattr(model, "module", model)
    return str(getattr(inner, "_orig_mod", inner).config.model_type)
