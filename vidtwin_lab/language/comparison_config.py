"""What the comparison of text encoders is asked to do: its stages and their settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vidtwin_lab.language.config_checks import check_seeds
from vidtwin_lab.language.tasks.glue import find_task

# Before the name of an objective: its architecture with random weights.
BASELINE = "random_"
# Before the name of a causal objective: its text encoder with bidirectional attention.
BIDIRECTIONAL = "bidirectional_"
STAGES = (
    *("corpus", "pretrain", "glue", "squad", "probe"),
    *("latents", "diffusion", "adherence", "table"),
)
OBJECTIVES = ("mlm", "span", "rtd", "clm")
KNOWN_OBJECTIVES = (*OBJECTIVES, "prefix")


@dataclass(frozen=True, kw_only=True)
class CorpusStage:
    """Text to pretrain on.

    Args:
        path: folder that collect_texts.py reads; null for the texts that `pretrain.config` names.
        files: those of its files that are read.
    """

    path: str | None = "data/text"
    files: tuple[str, ...] = ("wikitext.txt", "squad.txt", "plain.txt")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The settings of a stage's script; its other keys here are that script's.

    Args:
        config: file of the script.
        settings: further key=value.
    """

    config: str
    settings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PretrainStage(Stage):
    """Pretraining by train_language.py, the same for all objectives; {objective} is its name."""

    config: str = "configs/language/wikitext_{objective}.yaml"
    steps: int = 3000
    batch_size: int = 32
    accumulation: int = 1
    warmup_steps: int = 300
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class GlueStage(Stage):
    """Fine-tuning on GLUE by evaluate_language.py.

    Args:
        path: folder with CoLA/, SST-2/, ... in it.
        max_train: rows of each task at most.
    """

    config: str = "configs/language/tasks/glue_comparison.yaml"
    path: str = "data/text/glue"
    max_train: int | None = None
    epochs: float = 3.0
    min_steps: int = 600
    batch_size: int = 32


@dataclass(frozen=True, kw_only=True)
class SquadStage(Stage):
    """Fine-tuning on SQuAD by evaluate_language.py.

    Args:
        train, dev, article_split: as `data.train`, `data.dev` and `data.article_split` there.
        max_train: questions at most.
    """

    config: str = "configs/language/tasks/squad_comparison.yaml"
    train: tuple[str, ...] = ("data/text/squad/train-v1.1.json",)
    dev: str = "data/text/squad/dev-v1.1.json"
    article_split: str | None = None
    max_train: int | None = None
    epochs: float = 2.0
    batch_size: int = 32


@dataclass(frozen=True, kw_only=True)
class ProbeStage(Stage):
    """Probes of captions by evaluate_language.py."""

    config: str = "configs/language/tasks/probe.yaml"
    questions: tuple[str, ...] = ("all",)
    train_size: int = 4000
    test_size: int = 2000


@dataclass(frozen=True, kw_only=True)
class DiffusionStage(Stage):
    """Transformers over cached latents by train_diffusion.py.

    Args:
        autoencoder: its folder.
        cache: folder of encode.py; null makes one by `encode_config`.
        encode_config, encode_settings: of encode.py, and further key=value.
        init_from: a trained transformer to start from, with a new text part: it can make videos and
            has to learn to use the text encoder; null for one that has learnt nothing.
        random_baselines: train with the text encoders of random weights too.
    """

    config: str = "configs/diffusion/shapes_text_encoder.yaml"
    autoencoder: str = "checkpoints/shapes/autoencoder"
    cache: str | None = None
    encode_config: str = "configs/encode/shapes.yaml"
    encode_settings: tuple[str, ...] = ()
    init_from: str | None = None
    steps: int = 10_000
    batch_size: int = 64
    warmup_steps: int = 200
    random_baselines: bool = True

    RENAMED_KEYS: ClassVar[dict[str, str]] = {"floors": "random_baselines"}


@dataclass(frozen=True, kw_only=True)
class AdherenceStage:
    """Videos of prompts, judged by evaluate.py; the same prompts and noise for all transformers."""

    samples: int = 256
    steps: int = 30
    guidance_scale: float = 3.0
    batch_size: int = 8
    settings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """What is compared, and how each stage is done.

    Args:
        output: folder of everything.
        stages: names of stages, or all.
        objectives: of mlm, span, rtd, clm, prefix.
        bidirectional: of clm: those of `objectives` whose text encoder is also read with
            bidirectional attention, which it was not trained with.
        random_baselines: objectives whose architecture is compared with random weights too.
        seeds: of fine-tuning, of the captions of probes and of the transformers; text encoders are
            pretrained once.
        tasks: of GLUE.
        mixed_precision: of trainings: "no" or "bf16".
    """

    output: str = "outputs/compare_text_encoders"
    stages: tuple[str, ...] = ("all",)
    objectives: tuple[str, ...] = OBJECTIVES
    bidirectional: tuple[str, ...] = ()
    random_baselines: tuple[str, ...] = ("mlm", "clm")
    seeds: tuple[int, ...] = (0, 1, 2)
    tasks: tuple[str, ...] = ("cola", "sst2", "mrpc", "rte", "stsb")
    mixed_precision: str | None = "no"
    corpus: CorpusStage = CorpusStage()
    pretrain: PretrainStage = PretrainStage()
    glue: GlueStage = GlueStage()
    squad: SquadStage = SquadStage()
    probe: ProbeStage = ProbeStage()
    diffusion: DiffusionStage = DiffusionStage()
    adherence: AdherenceStage = AdherenceStage()

    RENAMED_KEYS: ClassVar[dict[str, str]] = {"floors": "random_baselines"}

    def __post_init__(self) -> None:
        for name, known in (
            ("stages", ("all", *STAGES)),
            ("objectives", KNOWN_OBJECTIVES),
            ("bidirectional", ("clm",)),
            ("random_baselines", KNOWN_OBJECTIVES),
        ):
            given = getattr(self, name)
            wrong = [each for each in given if each not in known]
            if wrong or len(set(given)) < len(given):
                raise ValueError(
                    f"`{name}` must be different names of {', '.join(known)}; got {list(given)}"
                )
        if not self.objectives:
            raise ValueError("`objectives` must name at least one")
        if not set(self.bidirectional) <= set(self.objectives):
            raise ValueError(
                f"`bidirectional` must be of objectives={list(self.objectives)}, which are "
                f"pretrained; got {list(self.bidirectional)}"
            )
        check_seeds(self.seeds)
        for name in self.tasks:
            find_task(name)

    @property
    def glue_tasks(self) -> tuple[str, ...]:
        """`tasks` by the names that results have."""
        return tuple(find_task(name).name for name in self.tasks)

    @property
    def encoders(self) -> tuple[str, ...]:
        """Objectives, each with its bidirectional reading behind it, then random_baselines."""
        return (*self._trained, *(BASELINE + name for name in self.random_baselines))

    @property
    def conditioning(self) -> tuple[str, ...]:
        """Those of `encoders` that video models are conditioned on."""
        return self.encoders if self.diffusion.random_baselines else self._trained

    @property
    def _trained(self) -> tuple[str, ...]:
        found = []
        for name in self.objectives:
            found.append(name)
            if name in self.bidirectional:
                found.append(BIDIRECTIONAL + name)
        return tuple(found)

    def chosen(self, stage: str) -> bool:
        """Whether a stage shall be done."""
        return stage in self.stages or "all" in self.stages
