"""What a text encoder is asked for: fine-tuning on GLUE and SQuAD, probes of captions.

Imports neither torch nor transformers.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

from diffusion.text_loading import find_encoder
from vidtwin import nearest_name
from vidtwin.data.synthetic.shapes import WORDINGS
from vidtwin_lab import runtime
from vidtwin_lab.language.config_checks import check_choices, check_range, check_seeds
from vidtwin_lab.language.tasks.caption_questions import QUESTIONS
from vidtwin_lab.language.tasks.glue import find_task, tasks_folder
from vidtwin_lab.language.tasks.squad import squad_file

if TYPE_CHECKING:
    from diffusion.text_encoder import TextEncoder

POOLINGS = ("first", "mean", "last")
SOURCES = ("files", "datasets")


def _check_source(data: GlueData | SquadData, place: str) -> None:
    check_choices(data, source=SOURCES)
    if data.source == "files" and getattr(data, place) is None:
        raise ValueError(f"`{place}` is required for source=files")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextEncoderConfig:
    """The text encoder that is fine-tuned or probed.

    Args:
        name: a folder (`OUTPUT/language_model` of train_language.py, or a pipeline's with its
            text_encoder and tokenizer), a hub id, or "minilm" where that package is installed.
        random_weights: take its architecture and tokenizer, and new weights.
        pooling: which state stands for a text: "first" token's, "mean" of all, or "last" token's;
            None takes "last" of a causal text encoder, whose other tokens have not read all, and
            "first" of a bidirectional one.
        max_length: tokens of a row at most; None for all that the text encoder can read, and
            no more than these.
        local_files_only: never ask the hub.
    """

    name: str = "minilm"
    random_weights: bool = False
    pooling: str | None = None
    max_length: int | None = 128
    local_files_only: bool = False

    def __post_init__(self) -> None:
        check_choices(self, pooling=(None, *POOLINGS))

    def check_files(self) -> None:
        """Raises ValueError for a folder that is not there, or a package that is not installed."""
        find_encoder(self.name)

    def load(self, layer: int = -1) -> TextEncoder:
        """The text encoder, giving this hidden state.

        Raises:
            ValueError: if there is none, or its tokenizer has other tokens than the model.
        """
        from diffusion.text_encoder import TextEncoder

        return TextEncoder.from_pretrained(self.name, layer, local_files_only=self.local_files_only)

    def pooling_of(self, encoder: TextEncoder, default: str = "first") -> str:
        """The pooling for this text encoder.

        Raises:
            ValueError: if it would pool a token that has not read the text.
        """
        pooling = self.pooling or ("last" if encoder.causal else default)
        if encoder.causal and pooling == "first":
            raise ValueError(
                "pooling=first of a causal text encoder knows the first token alone; set "
                "pooling=last or pooling=mean"
            )
        return pooling

    def protocol(self, encoder: TextEncoder, pooling: str) -> dict[str, Any]:
        """Which text encoder it is and how its states are pooled, for the record."""
        return {
            "name": self.name,
            "family": encoder.model.config.model_type,
            "parameters": sum(parameter.numel() for parameter in encoder.model.parameters()),
            "random_weights": self.random_weights,
            "digest": encoder.digest(),
            "causal": encoder.causal,
            "pooling": pooling,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class GlueData:
    """Which tasks of GLUE, and from where.

    Args:
        tasks: names such as "sst2" or "SST-2"; "all" for those whose files are there.
        source: "files" as published, or "datasets" by that library.
        path: the folder with CoLA/, SST-2/, ... in it; null takes nyu-mll/glue of `datasets`.
        max_train: at most so many rows to train on, drawn once; null for all.
    """

    tasks: tuple[str, ...] = ("all",)
    source: str = "files"
    path: str | None = None
    max_train: int | None = None

    def __post_init__(self) -> None:
        _check_source(self, "path")
        if not self.tasks:
            raise ValueError("`tasks` must name a task, or be [all]")
        names = [] if self.all else [find_task(name).name for name in self.tasks]
        if len(set(names)) < len(names):
            raise ValueError(f"`tasks` must name each task once, got {', '.join(self.tasks)}")
        check_range(self, "at least 1", "max_train")

    def check_files(self) -> None:
        """Raises ValueError if the folder is not there."""
        if self.source == "files" and self.path is not None:
            tasks_folder(self.path)

    @property
    def all(self) -> bool:
        """Whether every task is taken whose files are there."""
        return tuple(self.tasks) == ("all",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SquadData:
    """Which files in SQuAD's JSON, and how answers are looked for.

    Args:
        source: "files", or "datasets" by that library, where `train` and `dev` are names of data
            sets such as rajpurkar/squad.
        train: files to train on; all of them are read.
        dev: the file to measure on.
        article_split: a JSON with lists of titles "train" and "test", of which no article is in
            both: then the articles "test" of `dev` are measured, and its articles "train" are
            trained on too.
        stride: tokens from the start of one window of a context to that of the next.
        max_question: tokens of a question.
        max_answer: tokens of an answer.
        n_best: answers that are weighed, and kept in the file of the n best.
        null_threshold: v2.0: no answer where its odds are above this.
        max_train: at most so many questions to train on, drawn once; null for all.
    """

    source: str = "files"
    train: tuple[str, ...] = ()
    dev: str | None = None
    article_split: str | None = None
    stride: int = 128
    max_question: int = 64
    max_answer: int = 30
    n_best: int = 20
    null_threshold: float = 0.0
    max_train: int | None = None

    def __post_init__(self) -> None:
        _check_source(self, "dev")
        check_range(self, "at least 1", "stride", "max_question", "max_answer", "n_best")
        if not self.train and self.article_split is None:
            raise ValueError("`train` must name a file to train on, or set `article_split`")
        check_range(self, "at least 1", "max_train")

    def check_files(self) -> None:
        """Raises ValueError for a file that is not there."""
        for path in (*self.train, self.dev):
            if self.source == "files" and path is not None:
                squad_file(path)


LINEAR = runtime.OptimizerConfig(learning_rate=5e-5, weight_decay=0.01, schedule="linear")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """How a text encoder is fine-tuned; the last weights are measured, none are chosen.

    Args:
        output: folder of results.
        seeds: of the head, dropout and the order of the samples.
        epochs: of the training samples.
        min_steps: small tasks go on beyond their epochs until so many steps.
        batch_size: samples per step, over all processes.
        evaluation_batch_size: of each process.
        dropout: of the head; the text encoder has its own.
        warmup_fraction: of the steps; null for optimizer.warmup_steps.
        mixed_precision: "no" or "bf16"; null leaves it to `accelerate launch`.
        log_every: in steps.
        tracker: "none", "tensorboard" or "wandb".
        project: the tracker's project.
        optimizer: of the head and the text encoder.
    """

    RENAMED_KEYS: ClassVar[dict[str, str]] = {"reader": "text_encoder"}

    output: str
    seeds: tuple[int, ...] = (0,)
    epochs: float = 3.0
    min_steps: int = 0
    batch_size: int = 32
    evaluation_batch_size: int = 64
    dropout: float = 0.1
    warmup_fraction: float | None = 0.1
    mixed_precision: str | None = None
    log_every: int = 50
    tracker: str = "none"
    project: str = "vidtwin-language-tasks"
    text_encoder: TextEncoderConfig = TextEncoderConfig()
    optimizer: runtime.OptimizerConfig = LINEAR

    def __post_init__(self) -> None:
        check_seeds(self.seeds)
        check_range(self, "at least 1", "batch_size", "evaluation_batch_size", "log_every")
        check_range(self, "at least 0", "min_steps")
        check_range(self, "above 0", "epochs")
        check_range(self, "in [0, 1)", "dropout", "warmup_fraction")
        runtime.check_precision(self.mixed_precision)

    def check_files(self) -> None:
        """Raises ValueError for data or a text encoder that are not there."""
        data: GlueData | SquadData = vars(self)["data"]  # of the tasks' own configs
        data.check_files()
        self.text_encoder.check_files()

    def steps(self, samples: int) -> int:
        """Of a task with so many samples."""
        per_epoch = max(1, samples // self.batch_size)
        return max(1, round(self.epochs * per_epoch), self.min_steps)

    def schedule(self, steps: int) -> runtime.OptimizerConfig:
        """The optimizer with its warm-up counted out."""
        if self.warmup_fraction is None:
            return self.optimizer
        return dataclasses.replace(self.optimizer, warmup_steps=int(self.warmup_fraction * steps))


@dataclasses.dataclass(frozen=True, kw_only=True)
class GlueConfig(FinetuneConfig):
    """Tasks of GLUE; the other keys are `FinetuneConfig`'s."""

    output: str = "outputs/glue"
    data: GlueData = GlueData(path="glue")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SquadConfig(FinetuneConfig):
    """SQuAD; the other keys are `FinetuneConfig`'s."""

    output: str = "outputs/squad"
    epochs: float = 2.0
    evaluation_batch_size: int = 32
    text_encoder: TextEncoderConfig = TextEncoderConfig(max_length=384)
    data: SquadData = SquadData(train=("train-v1.1.json",), dev="dev-v1.1.json")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionProbesConfig:
    """Which questions, and how they are asked.

    Args:
        output: folder of results.
        seeds: of the captions; each gives a probe of its own.
        questions: names in `tasks.caption_questions.QUESTIONS`; "all" for all.
        train_size, test_size: captions for each question and seed.
        wordings: of the captions to train and to test on: "train", "test" or "all".
        layer: hidden state that is read: -1 the last, 0 the embeddings.
        decay: of the probe's weights.
        text_encoder: pooling null is "mean" here, and "last" for a causal one.
    """

    RENAMED_KEYS: ClassVar[dict[str, str]] = {"reader": "text_encoder"}

    output: str = "outputs/probe"
    seeds: tuple[int, ...] = (0, 1, 2)
    questions: tuple[str, ...] = ("all",)
    train_size: int = 4000
    test_size: int = 2000
    wordings: tuple[str, str] = ("all", "all")
    layer: int = -1
    decay: float = 1e-3
    text_encoder: TextEncoderConfig = TextEncoderConfig(max_length=None)

    def __post_init__(self) -> None:
        check_seeds(self.seeds)
        if min(self.train_size, self.test_size) < 2 or self.decay < 0:
            raise ValueError("`train_size` and `test_size` must be at least 2, `decay` at least 0")
        for names, known in ((self.names, tuple(QUESTIONS)), (self.wordings, WORDINGS)):
            for name in (name for name in names if name not in known):
                raise ValueError(
                    f"unknown name {name!r}; the nearest is {nearest_name(name, known)!r} "
                    f"(known are {', '.join(known)})"
                )
        if self.text_encoder.random_weights or self.text_encoder.max_length is not None:
            raise ValueError(
                "text_encoder.random_weights and text_encoder.max_length are for fine-tuning; "
                "leave them out"
            )

    def check_files(self) -> None:
        """Raises ValueError for a text encoder that is not there."""
        self.text_encoder.check_files()

    @property
    def names(self) -> tuple[str, ...]:
        """The questions that are asked."""
        return tuple(QUESTIONS) if tuple(self.questions) == ("all",) else tuple(self.questions)
