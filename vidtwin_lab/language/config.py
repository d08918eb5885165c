"""The configuration of a language model's training; imports neither torch nor transformers."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from diffusion.text_loading import find_encoder
from vidtwin.data.config import DataConfig
from vidtwin_lab import runtime
from vidtwin_lab.language.config_checks import check_choices, check_range
from vidtwin_lab.language.text_files import find_text_files

SOURCES = ("shapes", "text", "csv", "captions", "datasets")
DOCUMENTS = ("line", "blank", "heading", "file")
SENTENCES = ("line", "split")
PACKINGS = ("none", "full", "document")
MASKINGS = ("token", "word", "span")
PAIRS = ("none", "nsp", "sop")
TOKENIZER_KINDS = ("wordpiece", "byte_bpe")
# The family of a model -> the tokenizer it uses, unless another is chosen.
TOKENIZER_OF = {
    "bert": "wordpiece",
    "roberta": "byte_bpe",
    "albert": "wordpiece",
    "distilbert": "wordpiece",
    "electra": "wordpiece",
    "gpt2": "byte_bpe",
}
# The family of a model -> the objectives it can be trained with, its default first.
OBJECTIVES_OF: dict[str, tuple[str, ...]] = {
    "bert": ("mlm", "distillation", "contrastive"),
    "roberta": ("mlm", "distillation", "contrastive"),
    "albert": ("mlm", "contrastive"),
    "distilbert": ("mlm", "distillation", "contrastive"),
    "electra": ("rtd", "mlm"),
    "gpt2": ("clm", "prefix_lm"),
}
# Families whose embeddings may be narrower than their layers.
FACTORISED = ("albert", "electra")
# Families that have a head for pairs of texts, and those that take the span-boundary objective.
PAIR_FAMILIES, SPAN_FAMILIES = ("bert", "albert"), ("bert", "roberta")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShapesCaptionsConfig:
    """Captions of random moving shapes, made as they are needed.

    Args:
        size: number of captions in an epoch.
        wordings: "train", "test" or "all".
        pair_fraction: share of the samples that are two captions of one clip in different words:
            to predict a masked token of one, a model must find the same thing in the other.
        two_object_fraction: share of the captions with two objects.
        sized_fraction, paced_fraction: share of the objects whose size and whose speed is said,
            as in `data.shapes`.
    """

    size: int = 100_000
    wordings: str = "all"
    pair_fraction: float = 0.0
    two_object_fraction: float = 0.25
    sized_fraction: float = 0.0
    paced_fraction: float = 0.0

    def __post_init__(self) -> None:
        check_range(self, "at least 1", "size")
        check_range(self, "in [0, 1]", "pair_fraction", "two_object_fraction")
        check_range(self, "in [0, 1]", "sized_fraction", "paced_fraction")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """Which texts, and how they are divided.

    Args:
        source: "shapes" for captions of moving shapes, made as they are needed; "text" for text
            files; "csv" for a column of CSV files; "captions" for those of a video data set;
            "datasets" for a data set of the optional library of that name.
        path: of "text" and "csv": a file, or a folder of .txt or .csv files; of "datasets": its
            name.
        files: of "text" and "csv", instead of `path`: several files, folders or patterns.
        column: of "csv" and "datasets".
        subset, split, validation_split: of "datasets"; without a validation split, texts are held
            out.
        data: of "captions": the data set, as in `train_ae.py`.
        validation_path: what to validate on; None holds out `validation_fraction` of the
            documents, the same ones always, so that none is ever in both parts.
        validation_fraction: the share that is held out.
        documents: of "text": each "line" is one; or they are divided by "blank" lines; or begin
            at a "heading" as WikiText has them ("= Title ="); or each "file" is one. A cell of a
            CSV file, a caption and a row of a data set is one always.
        sentences: each "line" of a document is one, or they are "split" at stops; matters where
            sentences are packed or paired.
        packing: "none": a sample is one document, or a window of it; "full": as many sentences as
            fit, going on with the next document (RoBERTa's); "document": the same inside of
            documents.
        shapes: of "shapes".
    """

    RENAMED_KEYS: ClassVar[dict[str, str]] = {
        "shapes_size": "shapes.size",
        "shapes_wordings": "shapes.wordings",
        "shapes_pair_fraction": "shapes.pair_fraction",
        "shapes_two_object_fraction": "shapes.two_object_fraction",
    }

    source: str = "shapes"
    path: str | None = None
    files: tuple[str, ...] = ()
    column: str = "caption"
    subset: str | None = None
    split: str = "train"
    validation_split: str | None = None
    data: DataConfig | None = None
    validation_path: str | None = None
    validation_fraction: float = 0.02
    documents: str = "line"
    sentences: str = "line"
    packing: str = "none"
    shapes: ShapesCaptionsConfig = ShapesCaptionsConfig()

    def __post_init__(self) -> None:
        check_choices(
            self, source=SOURCES, documents=DOCUMENTS, sentences=SENTENCES, packing=PACKINGS
        )
        if self.source == "shapes" and self.packing != "none":
            raise ValueError(
                f"`packing` must be none for source=shapes, whose captions have no end, "
                f"got {self.packing}"
            )
        check_range(self, "in (0, 1)", "validation_fraction")
        if self.source in ("text", "csv") and (self.path is None) == (not self.files):
            raise ValueError(
                f"`path` or `files` is required for source={self.source}, one of the two; got "
                f"path={self.path} and files={list(self.files)}"
            )
        if self.source == "datasets" and self.path is None:
            raise ValueError("`path` is required for source=datasets: the name of the data set")
        if self.source == "captions" and self.data is None:
            raise ValueError("`data` is required for source=captions: set corpus.data.source=...")

    def check_files(self) -> None:
        """Raises ValueError for texts that are not there; reads none."""
        if self.source in ("text", "csv"):
            own = (self.path, self.validation_path)
            find_text_files([place for place in (*own, *self.files) if place], self.source)
        elif self.source == "captions" and self.data is not None:
            self.data.check_files()


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """The tokenizer of a run.

    Args:
        path: a folder or hub id to load one from; then the other keys are not used.
        kind: "wordpiece" (BERT's) or "byte_bpe" (RoBERTa's and GPT's, which has a token for every
            byte, 256 in all); None takes that of the model's family.
        vocabulary_size: tokens at most, special ones included.
        lowercase: read "Red" as "red"; wordpiece alone.
        min_frequency: how often a pair must occur to become a token.
        train_texts: how many texts of the corpus it is trained on.
        keep_words: save the words of these texts with it, so that a prompt with others is told of
            them (their pieces mean nothing); for the captions of a small grammar, wordpiece alone.
    """

    path: str | None = None
    kind: str | None = None
    vocabulary_size: int = 30_000
    lowercase: bool = True
    min_frequency: int = 2
    train_texts: int = 1_000_000
    keep_words: bool = False

    def __post_init__(self) -> None:
        check_choices(self, kind=(None, *TOKENIZER_KINDS))
        check_range(self, "at least 1", "vocabulary_size", "min_frequency", "train_texts")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageModelConfig:
    """Family and sizes of a language model; BERT-base is the default.

    Args:
        family: "gpt2" is causal, the others bidirectional; the layers of "albert" share weights.
        hidden_size: width of the layers, a multiple of `num_heads`.
        num_layers: number of them.
        num_heads: attention heads of each.
        intermediate_size: width of the feed-forward part of each.
        embedding_size: width of the embeddings of "albert" (None: 128, as published) and "electra"
            (None: hidden_size); the other families' is hidden_size.
        max_positions: most tokens of a sample.
        dropout: of hidden states and attention.
        new_heads: with `init_from`: initialize the heads that this objective needs and the files
            lack, such as BERT's head for pairs of texts.
    """

    family: str = "bert"
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    intermediate_size: int = 3072
    embedding_size: int | None = None
    max_positions: int = 512
    dropout: float = 0.1
    new_heads: bool = False

    def __post_init__(self) -> None:
        check_choices(self, family=TOKENIZER_OF)
        sizes = ("hidden_size", "num_layers", "num_heads", "intermediate_size", "embedding_size")
        check_range(self, "at least 1", *sizes)
        check_range(self, "in [0, 1)", "dropout")
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"`hidden_size` must be a multiple of num_heads={self.num_heads}, "
                f"got {self.hidden_size}"
            )
        if self.embedding_size is not None and self.family not in FACTORISED:
            raise ValueError(
                f"`embedding_size` is for {' and '.join(FACTORISED)}, got {self.embedding_size} "
                f"for {self.family}; set model.embedding_size=null"
            )
        if self.max_positions < 8:
            raise ValueError(f"`max_positions` must be at least 8, got {self.max_positions}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReplacedTokensConfig:
    """ELECTRA's replaced-token detection ("rtd").

    Args:
        generator_size: the generator's width as a share of the discriminator's.
        discriminator_weight: of the discriminator's loss; the generator's has 1.
    """

    generator_size: float = 0.25
    discriminator_weight: float = 50.0

    def __post_init__(self) -> None:
        check_range(self, "in (0, 1]", "generator_size")
        check_range(self, "at least 0", "discriminator_weight")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillationConfig:
    """DistilBERT's distillation ("distillation").

    Args:
        teacher: a saved language model's folder or hub id; all sizes but the number of layers are
            the teacher's.
        temperature: of both models' predictions.
        soft_weight, hard_weight, cosine_weight: of the teacher's predictions, of the true tokens,
            of the angle between the last hidden states; those of DistilBERT's repository.
    """

    teacher: str | None = None
    temperature: float = 2.0
    soft_weight: float = 5.0
    hard_weight: float = 2.0
    cosine_weight: float = 1.0

    def __post_init__(self) -> None:
        check_range(self, "above 0", "temperature")
        check_range(self, "at least 0", "soft_weight", "hard_weight", "cosine_weight")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContrastiveConfig:
    """SimCSE's contrastive learning ("contrastive").

    Args:
        temperature: of the cosines between texts.
        token_weight: of the masked tokens that are predicted beside it; pairs have 1.
    """

    temperature: float = 0.05
    token_weight: float = 0.1

    def __post_init__(self) -> None:
        check_range(self, "above 0", "temperature")
        check_range(self, "at least 0", "token_weight")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """The pretraining objective: what all share, and the settings of each.

    Args:
        name: "mlm" predicts masked tokens (BERT), "clm" the next token (GPT), "prefix_lm" the next
            token after a prefix that is read in both directions (T5), "rtd" which tokens a small
            generator replaced (ELECTRA), "distillation" masked tokens as a teacher does
            (DistilBERT), "contrastive" the other text of a pair among those of its batch (SimCSE);
            None takes the default of the model's family.
        mask_probability: share of the tokens that are to be predicted; all but "clm" and
            "prefix_lm".
        replaced_by_mask, replaced_by_random: shares of those; the rest keeps its token.
        masking: mask single tokens ("token"), whole words ("word"), or spans of words ("span").
        span_probability: of the geometric distribution of a span's length in words.
        span_longest: words of a span at most.
        span_boundary: predict a span also from the two tokens beside it (SpanBERT's SBO).
        pairs: samples of two texts: "nsp" whether the second is the next (BERT), "sop" whether
            they are in order (ALBERT), or "none".
        short_fraction: share of the pairs that are shorter than they could be.
        rtd, distillation, contrastive: of these objectives.
    Source: BERT (arXiv 1810.04805), RoBERTa (1907.11692), SpanBERT (1907.10529), ALBERT
        (1909.11942), ELECTRA (2003.10555), DistilBERT (1910.01108), SimCSE (2104.08821), T5
        (1910.10683).
    """

    RENAMED_KEYS: ClassVar[dict[str, str]] = {
        "generator_size": "rtd.generator_size",
        "discriminator_weight": "rtd.discriminator_weight",
        "teacher": "distillation.teacher",
        "temperature": "distillation.temperature",
        "soft_weight": "distillation.soft_weight",
        "hard_weight": "distillation.hard_weight",
        "cosine_weight": "distillation.cosine_weight",
        "similarity_temperature": "contrastive.temperature",
        "token_weight": "contrastive.token_weight",
    }

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
    rtd: ReplacedTokensConfig = ReplacedTokensConfig()
    distillation: DistillationConfig = DistillationConfig()
    contrastive: ContrastiveConfig = ContrastiveConfig()

    def __post_init__(self) -> None:
        names = dict.fromkeys(name for known in OBJECTIVES_OF.values() for name in known)
        check_choices(self, name=(None, *names), masking=MASKINGS, pairs=PAIRS)
        check_range(self, "in (0, 1)", "mask_probability", "span_probability")
        check_range(self, "in [0, 1]", "replaced_by_mask", "replaced_by_random", "short_fraction")
        check_range(self, "at least 1", "span_longest")
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
        """Whether samples must say which word a token belongs to."""
        return self.masking != "token"

    def named(self, family: str) -> str:
        """The objective for a model of this family.

        Raises:
            ValueError: if the family can't be trained so.
        """
        known = OBJECTIVES_OF[family]
        teacher = self.distillation.teacher
        default = "distillation" if teacher and "distillation" in known else known[0]
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
        if name in ("clm", "prefix_lm") and self.words:
            raise ValueError(f"{name} masks no tokens; remove objective.masking={self.masking}")
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
        if (name == "distillation") != (self.distillation.teacher is not None):
            raise ValueError(
                "objective.distillation.teacher=FOLDER is for distillation, which needs it; got "
                f"{name} with teacher={self.distillation.teacher}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(runtime.RunConfig):
    """The training of one language model; the other keys are `vidtwin_lab.runtime.RunConfig`'s.

    Args:
        init_from: a saved language model's folder or hub id to train on, with its tokenizer; the
            model's own sizes then hold.
        overfit: train and validate on the first N samples only.
    """

    output: str = "outputs/language"
    project: str = "vidtwin-language"
    num_workers: int = 0
    validation_samples: int = 1000
    validation_batch_size: int = 64
    init_from: str | None = None
    overfit: int | None = None
    corpus: CorpusConfig = CorpusConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    model: LanguageModelConfig = LanguageModelConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: runtime.OptimizerConfig = runtime.OptimizerConfig(weight_decay=0.01)
    ema: runtime.EMAConfig = runtime.EMAConfig(enabled=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.objective.named(self.model.family)

    def check_files(self, dry_run: bool = False) -> None:
        super().check_files(dry_run)
        self.corpus.check_files()
        tokenizer, teacher = self.tokenizer.path, self.objective.distillation.teacher
        for name, what in (
            (self.init_from, "language model"),
            (tokenizer, "tokenizer"),
            (teacher, "language model"),
        ):
            if name is not None:
                find_encoder(name, what)


# A resumed run may find its texts elsewhere; it may not train on other texts.
TEXTS_MAY_CHANGE = (
    *("corpus.path", "corpus.files", "corpus.validation_path", "corpus.data.path"),
    *("init_from", "tokenizer.path", "objective.distillation.teacher"),
)
