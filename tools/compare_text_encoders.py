"""Compares text encoders that differ in their pretraining objective alone, in one table.

    python tools/compare_text_encoders.py --config configs/language/compare_text_encoders.yaml
    python tools/compare_text_encoders.py --config ... --stages glue,table "objectives=[mlm,clm]"

STAGES, in this order:
    corpus      text without what is tested on (collect_texts.py)
    pretrain    a text encoder for each objective (train_language.py), and what is made of them:
                bidirectional readings, random baselines
    glue        each fine-tuned on GLUE with each seed (evaluate_language.py)
    squad       and on SQuAD
    probe       what its frozen states say of captions
    latents     the cache that transformers are trained on (encode.py)
    diffusion   a transformer that is conditioned on it, with each seed (train_diffusion.py)
    adherence   how much of prompts that transformer shows (evaluate.py)
    table       compare_text_encoders.md, .json, .csv and .png of what is finished

Stop it at any time: the same command resumes where it stopped, and keeps what is finished. The same
command in a second terminal shares the work. --dry-run lists the jobs, and which are finished.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from diffusion import TwinDiT
from diffusion.text_encoder import TextEncoder
from vidtwin.files import check_folder
from vidtwin_lab import runtime
from vidtwin_lab.language.comparison import write_comparison
from vidtwin_lab.language.comparison_config import BASELINE, BIDIRECTIONAL, STAGES, CompareConfig
from vidtwin_lab.runtime.jobs import Job, Jobs

ROOT = Path(__file__).resolve().parents[1]
PUBLISHED = "docs/results/published_language.md"


class Plan:
    """The jobs of a comparison, and where their results lie."""

    def __init__(self, config: CompareConfig) -> None:
        self.config, self.output = config, Path(config.output)
        made = config.diffusion.cache is None
        self.cache = str(self.output / "latents" if made else config.diffusion.cache)
        precision = config.mixed_precision
        self.precision = f'mixed_precision="{precision}"' if precision else "mixed_precision=null"

    def jobs(self) -> list[Job]:
        """All jobs, those of every text encoder with the first seed before those with the next."""
        stages = (self.corpus, self.pretrain, self.derived, self.glue, self.squad, self.probe,
                  self.latents, self.starts, self.diffusion, self.adherence)  # fmt: skip
        return [job for stage in stages for job in stage()]

    def model(self, encoder: str) -> Path:
        """The folder of a pretrained text encoder."""
        return self.output / "pretrain" / encoder / "language_model"

    def runs(self, stage: str, encoders: Sequence[str]) -> Iterator[tuple[str, int, str, Path]]:
        """(text encoder, seed, name of the job, its folder) of what is done with each seed."""
        for seed, encoder in itertools.product(self.config.seeds, encoders):
            run = f"{encoder}_seed{seed}"
            yield encoder, seed, f"{stage}/{run}", self.output / stage / run

    def corpus(self) -> Iterator[Job]:
        """The texts."""
        corpus, target = self.config.corpus, self.output / "texts"
        if corpus.path is not None:
            yield Job(
                name="corpus/texts",
                script=script("tools/collect_texts.py"),
                free=(corpus.path, "--output", str(target)),
                files=tuple(target / name for name in corpus.files),
            )

    def pretrain(self) -> Iterator[Job]:
        """A text encoder for each objective, and for the architecture of each random baseline."""
        own = self.config.pretrain
        warmup = values(own, "warmup_steps", prefix="optimizer.")
        texts: tuple[str, ...] = ()
        if self.config.corpus.path is not None:
            files = [str(self.output / "texts" / name) for name in self.config.corpus.files]
            texts = (f"corpus.files=[{', '.join(files)}]",)
        for name in dict.fromkeys((*self.config.objectives, *self.config.random_baselines)):
            output = f"output={self.model(name).parent}"
            yield Job(
                name=f"pretrain/{name}",
                script=script("train_language.py", "--config", own.config.format(objective=name)),
                fixed=(*values(own, "steps", "batch_size", "seed"), *warmup, *own.settings),
                free=(*values(own, "accumulation"), output, *texts, self.precision),
                files=(self.model(name) / "config.json",),
                needs=("corpus/texts",) if texts else (),
            )

    def derived(self) -> Iterator[Job]:
        """Text encoders made of pretrained ones: read bidirectionally, or with random weights."""
        seed = self.config.pretrain.seed
        renewed = functools.partial(write_random_baseline, seed=seed)
        for kind, names, fixed, write in (
            (BIDIRECTIONAL, self.config.bidirectional, (), write_bidirectional),
            (BASELINE, self.config.random_baselines, (f"seed={seed}",), renewed),
        ):
            for name in names:
                target = self.model(kind + name)
                yield Job(
                    name=f"pretrain/{kind}{name}",
                    fixed=fixed,
                    files=(target / "config.json",),
                    needs=(f"pretrain/{name}",),
                    make=functools.partial(write, self.model(name), target),
                )

    def glue(self) -> Iterator[Job]:
        """Each text encoder on GLUE with each seed."""
        own, tasks = self.config.glue, self.config.glue_tasks
        limit = values(own, "max_train", prefix="data.")
        fixed = (*values(own, "epochs", "min_steps", "batch_size"), *limit)
        free = (f"data.tasks=[{', '.join(tasks)}]", f"data.path={own.path}", self.precision)
        files = [f"finished/{task}_seed{{seed}}.json" for task in tasks]
        return self.evaluations("glue", fixed, free, files) if tasks else iter(())

    def squad(self) -> Iterator[Job]:
        """Each text encoder on SQuAD with each seed."""
        own = self.config.squad
        limit = values(own, "max_train", prefix="data.")
        fixed = (*values(own, "epochs", "batch_size"), *limit)
        free = (*values(own, "train", "dev", "article_split", prefix="data."), self.precision)
        return self.evaluations("squad", fixed, free, ["squad.json"])

    def probe(self) -> Iterator[Job]:
        """Probes of each text encoder, on other captions for each seed."""
        fixed = values(self.config.probe, "questions", "train_size", "test_size")
        return self.evaluations("probe", fixed, (), ["probe.json"])

    def evaluations(
        self, stage: str, fixed: Sequence[str], free: Sequence[str], files: Sequence[str]
    ) -> Iterator[Job]:
        """Jobs of evaluate_language.py, for each text encoder and seed."""
        own = getattr(self.config, stage)
        for encoder, seed, name, folder in self.runs(stage, self.config.encoders):
            # Fine-tuning gives a random baseline new weights for each seed.
            renewed = encoder.startswith(BASELINE) and stage != "probe"
            weights = ("text_encoder.random_weights=true",) if renewed else ()
            source = f"text_encoder.name={self.model(encoder)}"
            yield Job(
                name=name,
                script=script("evaluate_language.py", stage, "--config", own.config),
                fixed=(*fixed, *weights, *own.settings),
                free=(f"seeds=[{seed}]", *free, source, f"output={folder}"),
                files=tuple(folder / file.format(seed=seed) for file in files),
                needs=(f"pretrain/{encoder}",),
            )

    def latents(self) -> Iterator[Job]:
        """The cache, unless there is one."""
        own = self.config.diffusion
        if own.cache is None:
            yield Job(
                name="latents/cache",
                script=script("encode.py", "--config", own.encode_config),
                fixed=own.encode_settings,
                free=(*values(own, "autoencoder"), f"output={self.cache}"),
                files=tuple(Path(self.cache) / part for part in ("train", "validation")),
            )

    def starts(self) -> Iterator[Job]:
        """For each seed the transformer that all text encoders' trainings start from."""
        own, encoder = self.config.diffusion, self.config.objectives[0]
        for seed in self.config.seeds if own.init_from else ():
            target = self.output / "diffusion" / f"start_seed{seed}"
            source = (Path(str(own.init_from)), self.model(encoder), target, seed)
            yield Job(
                name=f"diffusion/start_seed{seed}",
                files=(target / "config.json",),
                needs=(f"pretrain/{encoder}",),
                make=functools.partial(write_start, *source),
            )

    def diffusion(self) -> Iterator[Job]:
        """A transformer that is conditioned on each text encoder, with each seed."""
        own = self.config.diffusion
        cache = ("latents/cache",) if own.cache is None else ()
        warmup = values(own, "warmup_steps", prefix="optimizer.")
        fixed = (*values(own, "steps", "batch_size"), *warmup, *own.settings)
        free = (*values(own, "autoencoder"), f"cache={self.cache}", self.precision)
        for encoder, seed, name, folder in self.runs("diffusion", self.config.conditioning):
            start = [f"start_seed{seed}"] if own.init_from else []
            source = [f"init_from={folder.with_name(each)}" for each in start]
            text_encoder = f"text_encoder={self.model(encoder)}"
            yield Job(
                name=name,
                script=script("train_diffusion.py", "--config", own.config),
                fixed=(f"seed={seed}", *fixed),
                free=(text_encoder, *source, *free, f"output={folder}"),
                files=(folder / "pipeline" / "model_index.json",),
                needs=(f"pretrain/{encoder}", *cache, *(f"diffusion/{each}" for each in start)),
            )

    def adherence(self) -> Iterator[Job]:
        """What each transformer shows of the same prompts."""
        own, trained = self.config.adherence, self.output / "diffusion"
        names = ("samples", "steps", "guidance_scale", "batch_size")
        for _, _, name, folder in self.runs("adherence", self.config.conditioning):
            yield Job(
                name=name,
                script=script("evaluate.py", "adherence"),
                fixed=("mode=prompt", *values(own, *names), *own.settings),
                free=(f"pipeline={trained / folder.name / 'pipeline'}", f"output={folder}"),
                files=(folder / "adherence.json",),
                needs=(f"diffusion/{folder.name}",),
            )


def script(name: str, *words: str) -> tuple[str, ...]:
    """A script of the repository and its first words."""
    return (str(ROOT / name), *words)


def values(stage: Any, *names: str, prefix: str = "") -> tuple[str, ...]:
    """PREFIXkey=value of some keys of a stage, without those that are null."""
    found = []
    for name in names:
        value = getattr(stage, name)
        if value is not None:
            text = f"[{', '.join(value)}]" if isinstance(value, tuple) else value
            found.append(f"{prefix}{name}={text}")
    return tuple(found)


def write_bidirectional(source: Path, target: Path) -> None:
    """The same text encoder, marked to be read with bidirectional attention."""
    encoder = TextEncoder.from_pretrained(str(source), local_files_only=True, bidirectional=True)
    encoder.save_pretrained(target)


def write_random_baseline(source: Path, target: Path, seed: int) -> None:
    """A text encoder of the same architecture and tokenizer with new weights."""
    torch.manual_seed(seed)
    encoder = TextEncoder.from_pretrained(str(source), local_files_only=True)
    model: Any = encoder.model
    TextEncoder(type(model)(model.config), encoder.tokenizer).save_pretrained(target)


def write_start(source: Path, encoder: Path, target: Path, seed: int) -> None:
    """A trained transformer whose text part is new, in the width of a text encoder's states."""
    saved: Any = TwinDiT.from_pretrained(source, local_files_only=True)
    width = TextEncoder.from_pretrained(str(encoder), local_files_only=True).hidden_size
    torch.manual_seed(seed)
    model = TwinDiT(**{**vars(saved.sizes), "text_hidden_size": width})
    kept = {k: v for k, v in saved.float().state_dict().items() if not k.startswith("text.")}
    model.load_state_dict({**model.state_dict(), **kept})
    model.save_pretrained(target)


def parse_arguments() -> tuple[argparse.Namespace, CompareConfig]:
    """The command line and the configuration."""
    about, _, details = (__doc__ or "").partition("\n")

    def extend(parser: argparse.ArgumentParser) -> None:
        parser.epilog, parser.formatter_class = details, argparse.RawDescriptionHelpFormatter
        parser.add_argument(
            "--stages", metavar="A,B", help=f"only these of {','.join(STAGES)} (stages=[A, B])"
        )

    arguments = runtime.parse_arguments(about, None, extend, training=False)
    overrides = list(arguments.overrides)
    if arguments.stages:
        overrides.append(f"stages=[{arguments.stages}]")
    return arguments, runtime.load_config(CompareConfig, arguments.config, overrides)


def main() -> None:
    """Reads the command line, then lists the jobs or does them, and writes the table."""
    runtime.configure_logging()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends what was called, too
    arguments, config = parse_arguments()
    runtime.check_precision(config.mixed_precision)
    plan = Plan(config)
    all_jobs = plan.jobs()
    jobs = Jobs(config.output, all_jobs, ROOT)
    chosen = [job.name for job in all_jobs if config.chosen(job.name.partition("/")[0])]
    if arguments.dry_run:
        print(runtime.format_config(config), jobs.describe(chosen), sep="\n", end="")
        return
    check_folder(plan.output, "output=FOLDER")
    jobs.run(chosen)
    if config.chosen("table"):
        print(write_comparison(plan.output, config, ROOT / PUBLISHED), end="")


if __name__ == "__main__":
    runtime.run_main(main)
