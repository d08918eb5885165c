"""The table of a comparison of text encoders, from what its stages have written.

Medians and spreads over seeds stand beside published figures, which are read from the page that
has their sources. What is not finished is listed as missing.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from vidtwin.files import written_whole
from vidtwin_lab.evaluation.report import (
    COLORS,
    Report,
    markdown_table,
    new_figure,
    save_figure,
    write_report,
)
from vidtwin_lab.language.alike import check_alike, told_once
from vidtwin_lab.language.comparison_config import BASELINE
from vidtwin_lab.language.published import Published, read_published
from vidtwin_lab.language.tasks.caption_questions import QUESTIONS
from vidtwin_lab.language.tasks.glue import GLUE_TASKS
from vidtwin_lab.language.tasks.metrics import over_seeds

__all__ = ["Comparison", "Wanted", "collect", "write_comparison"]

NAME = "compare_text_encoders"
MISSING = "not run"
METRICS = {"f1": "F1", "exact": "exact match", "matthews": "Matthews", "pearson": "Pearson",
           "spearman": "Spearman"}  # fmt: skip
SQUAD = ("f1", "exact")
TITLES = {
    "mlm": "masked tokens",
    "span": "spans",
    "rtd": "replaced tokens",
    "clm": "next token",
}
PROMPTED = ("color", "shape", "motion", "background", "all")


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the table shall have, whether or not it is finished.

    Args:
        text encoders: names; those of random_baselines begin with "random_".
        seeds: of every stage.
        tasks: of GLUE.
        squad: whether it is asked for.
        questions: of probes; ("all",) for all.
        heard: text encoders that video models are conditioned on.
    """

    encoders: tuple[str, ...]
    seeds: tuple[int, ...]
    tasks: tuple[str, ...] = ()
    squad: bool = False
    questions: tuple[str, ...] = ()
    conditioned: tuple[str, ...] = ()

    def measures(self) -> list[str]:
        """STAGE/TASK/NAME of everything."""
        questions = tuple(QUESTIONS) if self.questions == ("all",) else self.questions
        return [
            *(f"glue/{task}/{metric}" for task in self.tasks for metric in _metrics(task)),
            *(f"squad/squad1/{name}" for name in SQUAD if self.squad),
            *(f"probe/{name}/accuracy" for name in questions),
            *(f"adherence/prompt/{name}" for name in PROMPTED if self.conditioned),
        ]

    def asks(self, measure: str, encoder: str) -> bool:
        """Whether a text encoder shall be measured so."""
        return not measure.startswith("adherence/") or encoder in self.conditioned


@dataclass(frozen=True)
class Comparison:
    """What was found.

    Args:
        values: measure -> text encoder -> seed -> value; a measure is STAGE/TASK/NAME.
        pretraining: text encoder -> how it was pretrained.
        protocols: stage -> READER_seedN -> task -> what its figures follow from.
        words_alone: probe -> seed -> what the words give without their order, the same for all
            text encoders.
    """

    values: dict[str, dict[str, dict[int, float]]] = field(default_factory=dict)
    pretraining: dict[str, dict[str, Any]] = field(default_factory=dict)
    protocols: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    words_alone: dict[str, dict[int, float]] = field(default_factory=dict)

    def add(self, measure: str, encoder: str, seed: int, value: float) -> None:
        """Takes a value."""
        self.values.setdefault(measure, {}).setdefault(encoder, {})[seed] = value

    def summary(self, measure: str, encoder: str, seeds: Sequence[int]) -> dict[str, Any] | None:
        """Median, low, high and values over the seeds that are finished, and which; or None."""
        own = self.values.get(measure, {}).get(encoder, {})
        finished = [seed for seed in seeds if seed in own]
        if not finished:
            return None
        found = over_seeds([{measure: own[seed]} for seed in finished])[measure]
        return {**found, "seeds": finished}


def write_comparison(folder: Path, wanted: Wanted, published: Path) -> str:
    """Writes compare_text_encoders.md, .json, .csv and .png of what is finished in a folder.

    Args:
        published: the page with the published figures.
    Returns:
        str: the Markdown.
    Raises:
        ValueError: if text encoders were not treated alike; says in what.
    """
    found = collect(folder, wanted)
    rows = measures(found, wanted)
    known = read_published(published)
    text = markdown(found, wanted, rows, known)
    report = Report(
        name=NAME,
        protocol={
            "text_encoders": list(wanted.encoders),
            "seeds": list(wanted.seeds),
            "pretraining": found.pretraining,
            "stages": {stage: told_once(own) for stage, own in found.protocols.items()},
            "seconds_of_jobs": {
                path.stem: _json(path)["seconds"] for path in sorted(folder.glob("jobs/*.json"))
            },
        },
        found={
            "text_encoders": {
                encoder: {row: found.summary(row, encoder, wanted.seeds) for row in rows}
                for encoder in wanted.encoders
            },
            "missing": missing(found, wanted),
            "published": {
                name.title: {row: name.figures[row] for row in rows if row in name.figures}
                for name in known
            },
        },
        rows=[
            {"measure": row, "text_encoder": encoder, "seed": seed, "value": value}
            for row in rows
            for encoder in wanted.encoders
            for seed, value in sorted(found.values.get(row, {}).get(encoder, {}).items())
            if seed in wanted.seeds
        ],
        draw=lambda path: draw(found, wanted, rows, known, path),
    )
    with written_whole(folder / f"{NAME}.md") as partial:
        partial.write_text(text, encoding="utf-8")
    write_report(report, folder)
    return text


def collect(folder: Path, wanted: Wanted) -> Comparison:
    """Everything that is finished of the wanted text encoders and seeds.

    Raises:
        ValueError: if text encoders were not treated alike.
    """
    found = Comparison()
    for encoder in wanted.encoders:
        pretrained = _pretraining(folder / "pretrain" / encoder)
        if pretrained is not None:
            found.pretraining[encoder] = pretrained
    for encoder in wanted.encoders:
        for seed in wanted.seeds:
            _collect_run(found, folder, encoder, seed)
    check_alike("pretrain", {
        encoder: {**own["config"], "tokenizer": own["tokenizer"]}
        for encoder, own in found.pretraining.items() if "config" in own
    })  # fmt: skip
    for stage, protocols in found.protocols.items():
        for task in dict.fromkeys(name for own in protocols.values() for name in own):
            given = {run: own[task] for run, own in protocols.items() if task in own}
            check_alike(stage, given)
    return found


def measures(found: Comparison, wanted: Wanted) -> dict[str, str]:
    """Measure -> how its row is called, of what is asked for or is there, in the stages' order."""
    asked = wanted.measures()
    extra = sorted(name for name in found.values if name not in asked)
    stages = ("glue", "squad", "probe", "adherence")
    names = sorted([*asked, *extra], key=lambda name: stages.index(name.partition("/")[0]))
    return {name: called(name) for name in names}


def called(measure: str) -> str:
    """A measure as the table calls it."""
    stage, task, name = measure.split("/")
    if stage == "probe":
        return f"probe: {task.replace('_', ' ')}"
    if stage == "adherence":
        return f"prompt: {name}"
    folder = {"squad1": "SQuAD 1.1", "squad2": "SQuAD 2.0"}.get(task) or GLUE_TASKS[task].folder
    return f"{folder} {METRICS.get(name, name)}"


def title(encoder: str) -> str:
    """A text encoder as the table calls it."""
    name = encoder.removeprefix(BASELINE)
    called = TITLES.get(name, name)
    return f"random weights ({called})" if encoder.startswith(BASELINE) else f"{called} ({name})"


def missing(found: Comparison, wanted: Wanted) -> list[str]:
    """READER_seedN MEASURE of everything that is asked for and not finished."""
    return [
        f"{encoder}_seed{seed} {row}"
        for row in wanted.measures()
        for encoder in wanted.encoders
        for seed in wanted.seeds
        if wanted.asks(row, encoder) and seed not in found.values.get(row, {}).get(encoder, {})
    ]


def markdown(
    found: Comparison, wanted: Wanted, rows: Mapping[str, str], known: Sequence[Published]
) -> str:
    """A row for each measure, a column for each text encoder and each published model."""
    shown = [model for model in known if any(row in model.figures for row in rows)]
    lines = []
    for name, about in _about(found, wanted).items():
        own = [(title(encoder), about[encoder]) for encoder in wanted.encoders]
        lines.append([("measured, %", name), *own, *((model.title, "") for model in shown)])
    for row, text in rows.items():
        own = [(title(encoder), cell(found, wanted, row, encoder)) for encoder in wanted.encoders]
        figures = [(model.title, model.figures.get(row, "")) for model in shown]
        alone = [found.words_alone.get(row, {}).get(seed) for seed in wanted.seeds]
        if known_alone := [value for value in alone if value is not None]:
            text += f" (words alone: {100 * statistics.median(known_alone):.1f})"
        lines.append([("measured, %", text), *own, *figures])
    notes = [
        f"Medians of {len(wanted.seeds)} seeds, with the lowest and the highest; each text encoder "
        "was pretrained once, and one of random weights is new in each fine-tuning.",
        "Columns that name a dev or test set are published figures of far larger models, which "
        "have their sources in published_language.md.",
    ]
    left_out = missing(found, wanted)
    if left_out:
        notes.append(f"{len(left_out)} measurements are not finished.")
    return f"{markdown_table(lines)}\n{' '.join(notes)}\n"


def cell(found: Comparison, wanted: Wanted, measure: str, encoder: str) -> str:
    """Median and spread in percent, and how many seeds lack."""
    known = found.summary(measure, encoder, wanted.seeds)
    if known is None:
        return MISSING if wanted.asks(measure, encoder) else ""
    text = f"{100 * known['median']:.1f}"
    count = len(known["seeds"])
    if count > 1:
        text += f" ({100 * known['low']:.1f} to {100 * known['high']:.1f})"
    if count < len(wanted.seeds):
        text += f", {count} of {len(wanted.seeds)} seeds"
    return text


def draw(
    found: Comparison,
    wanted: Wanted,
    rows: Mapping[str, str],
    known: Sequence[Published],
    path: Path,
) -> None:
    """Medians with their spreads, a panel for each kind of task; published figures in gray."""
    kinds = {
        "fine-tuned": [row for row in rows if row.startswith(("glue/", "squad/"))],
        "probes of captions": [row for row in rows if row.startswith("probe/")],
        "videos of prompts": [row for row in rows if row.startswith("adherence/")],
    }
    panels = {title: [row for row in own if row in found.values] for title, own in kinds.items()}
    panels = {title: own for title, own in panels.items() if own} or {"nothing is finished": []}
    figure, axes = new_figure(len(panels), 1, size=(9.0, 3.2))
    for panel, (kind, own) in zip(axes, panels.items(), strict=True):
        _draw_text_encoders(panel, found, wanted, own)
        figures = [
            (place, float(model.figures[row]))
            for place, row in enumerate(own)
            for model in known
            if row in model.figures
        ]
        if figures:
            panel.plot(
                *zip(*figures, strict=True), linestyle="none", marker="_", color="#999999",
                markersize=14, label="published, far larger",
            )  # fmt: skip
        low = min([0.0, *panel.get_ylim()])  # a correlation may be below 0
        panel.set(ylabel="%", title=kind, xlim=(-0.5, max(len(own), 1) - 0.5), ylim=(low, 103))
        panel.set_xticks(range(len(own)), [rows[row] for row in own], rotation=25, ha="right")
        if own:
            panel.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    save_figure(figure, path)


def _draw_text_encoders(panel: Any, found: Comparison, wanted: Wanted, rows: Sequence[str]) -> None:
    """Beside one another a point for each text encoder, with its spread over the seeds."""
    width = 0.8 / len(wanted.encoders)
    for number, encoder in enumerate(wanted.encoders):
        points = [
            (place + (number + 0.5) * width - 0.4, found.summary(row, encoder, wanted.seeds))
            for place, row in enumerate(rows)
        ]
        there = [(x, value) for x, value in points if value is not None]
        if there:
            errors = [
                [100 * (value["median"] - value["low"]) for _, value in there],
                [100 * (value["high"] - value["median"]) for _, value in there],
            ]
            panel.errorbar(
                [x for x, _ in there],
                [100 * value["median"] for _, value in there],
                yerr=errors,
                capsize=2,
                linestyle="none",
                marker="x" if encoder.startswith(BASELINE) else "o",
                markersize=4,
                color=COLORS[number % len(COLORS)],
                label=title(encoder),
            )


def _about(found: Comparison, wanted: Wanted) -> dict[str, dict[str, str]]:
    """Rows that say what the text encoders are: name -> text encoder -> text."""
    texts: dict[str, dict[str, str]] = {}
    for encoder in wanted.encoders:
        own = found.pretraining.get(encoder, {})
        described: dict[str, Any] = next(
            (
                tasks[task]["text_encoder"]
                for stage in ("glue", "squad", "probe")
                for run, tasks in found.protocols.get(stage, {}).items()
                if run.rpartition("_seed")[0] == encoder
                for task in tasks
            ),
            {},
        )
        attention = "causal" if described.get("causal") else "bidirectional"
        shown = {
            "attention": attention if described else "",
            "parameters, million": _scaled(described.get("parameters"), 1e6),
            "steps": _of(own.get("steps", 0), own.get("config", {}).get("steps")),
            "tokens read, million": _scaled(own.get("tokens", 0), 1e6),
            "minutes of pretraining": _scaled(own.get("seconds", 0), 60),
        }
        for name, text in shown.items():
            texts.setdefault(name, {})[encoder] = text
    return texts


def _of(done: int, asked: int | None) -> str:
    return f"{done:,}" if asked in (None, done) else f"{done:,} of {asked:,}"


def _scaled(value: float | None, unit: float) -> str:
    return "" if value is None else f"{value / unit:.3g}"


def _metrics(task: str) -> tuple[str, ...]:
    known = GLUE_TASKS[task]
    prefixes = [""] if len(known.parts) == 1 else [f"{part}_" for part in known.parts]
    return tuple(f"{prefix}{metric}" for prefix in prefixes for metric in known.metrics)


def _pretraining(folder: Path) -> dict[str, Any] | None:
    """Steps, tokens, seconds and the last validation of a text encoder; None if it is not there."""
    tokenizer = folder / "language_model" / "tokenizer.json"
    if not tokenizer.is_file():
        return None
    own: dict[str, Any] = {"tokenizer": hashlib.sha256(tokenizer.read_bytes()).hexdigest()}
    if not (folder / "metrics.jsonl").is_file():
        return own  # of random weights
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    records = [
        json.loads(line)
        for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    trained = [record for record in records if "samples_per_second" in record]
    steps, seconds = 0, 0.0
    for record in trained:
        seconds += (record["step"] - steps) * config["batch_size"] / record["samples_per_second"]
        steps = record["step"]
    lengths = [record["tokens_per_sample"] for record in trained if "tokens_per_sample" in record]
    length = sum(lengths) / len(lengths) if lengths else config["model"]["max_positions"]
    validated = [
        {name: value for name, value in record.items() if name.startswith("validation/")}
        for record in records
    ]
    return {
        **own,
        "config": config,
        "steps": steps,
        "tokens": round(steps * config["batch_size"] * length),
        "seconds": round(seconds),
        "validation": next((each for each in reversed(validated) if each), {}),
    }


def _collect_run(found: Comparison, folder: Path, encoder: str, seed: int) -> None:
    """What the stages after pretraining have left of a text encoder and a seed."""
    run = f"{encoder}_seed{seed}"

    def keep(stage: str, task: str, protocol: dict[str, Any]) -> None:
        found.protocols.setdefault(stage, {}).setdefault(run, {})[task] = protocol

    for stage in ("glue", "squad"):
        for path in sorted((folder / stage / run / "finished").glob(f"*_seed{seed}.json")):
            task, content = path.stem.rpartition("_seed")[0], _json(path)
            keep(stage, task, {**content["identity"], "made_by": content["made_by"]})
            for metric, value in content["measures"].items():
                if not metric.endswith("_threshold"):
                    found.add(f"{stage}/{task}/{metric}", encoder, seed, value)
    probed, shown = (folder / stage / run / f"{stage}.json" for stage in ("probe", "adherence"))
    if probed.is_file():
        content = _json(probed)
        keep("probe", "captions", content["protocol"])
        for question, known in content["found"].items():
            measure = f"probe/{question}/accuracy"
            found.add(measure, encoder, seed, known["accuracy"]["median"])
            found.words_alone.setdefault(measure, {})[seed] = known["words_alone"]["median"]
    if shown.is_file():
        content = _json(shown)
        keep("adherence", "prompt", content["protocol"])
        for name in PROMPTED:
            if name in content["found"]["all_videos"]:
                value = content["found"]["all_videos"][name]["value"]
                found.add(f"adherence/prompt/{name}", encoder, seed, value)
        config = folder / "diffusion" / run / "config.yaml"
        if config.is_file():
            keep("diffusion", "training", yaml.safe_load(config.read_text(encoding="utf-8")))


def _json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
