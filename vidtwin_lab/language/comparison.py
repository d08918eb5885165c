"""The table of a comparison of text encoders, from what its stages have written.

Medians and spreads over seeds stand beside published figures, which are read from the page that
has their sources. What is not finished is listed as missing.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vidtwin.files import file_digest, written_whole
from vidtwin.yaml_files import read_yaml_file
from vidtwin_lab.evaluation.report import (
    COLORS,
    Report,
    markdown_table,
    new_figure,
    save_figure,
    write_report,
)
from vidtwin_lab.language.alike import check_alike, told_once
from vidtwin_lab.language.comparison_config import BASELINE, BIDIRECTIONAL, CompareConfig
from vidtwin_lab.language.published import read_published
from vidtwin_lab.language.tasks.caption_questions import QUESTIONS
from vidtwin_lab.language.tasks.glue import GLUE_TASKS
from vidtwin_lab.language.tasks.metrics import over_seeds, percent

__all__ = ["Comparison", "collect", "write_comparison"]

Published = Mapping[str, Mapping[str, str]]  # title -> measure -> figure

NAME = "compare_text_encoders"
MISSING = "not run"
METRICS = {"f1": "F1", "exact": "exact match", "matthews": "Matthews", "pearson": "Pearson",
           "spearman": "Spearman"}  # fmt: skip
TITLES = {
    "mlm": "masked tokens",
    "span": "spans",
    "rtd": "replaced tokens",
    "clm": "next token",
    "prefix": "next token after a prefix",
}
# Stage, in the order of the rows -> the panel of its measures in the figure.
PANELS = {
    "glue": "fine-tuned",
    "squad": "fine-tuned",
    "probe": "probes of captions",
    "adherence": "videos of prompts",
}
PROMPTED = ("color", "shape", "motion", "background", "all")


@dataclass(frozen=True)
class Comparison:
    """What was found.

    Args:
        values: measure -> text encoder -> seed -> value; a measure is STAGE/TASK/NAME.
        pretraining: text encoder -> how it was pretrained.
        protocols: stage -> ENCODER_seedN -> task -> what its figures follow from.
        words_alone: probe -> seed -> what the words give without their order, the same for all
            text encoders.
    """

    values: dict[str, dict[str, dict[int, float]]] = field(default_factory=dict)
    pretraining: dict[str, dict[str, Any]] = field(default_factory=dict)
    protocols: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    words_alone: dict[str, dict[int, float]] = field(default_factory=dict)

    def seeds(self, measure: str, encoder: str) -> dict[int, float]:
        """Seed -> value, of those that are finished."""
        return self.values.get(measure, {}).get(encoder, {})

    def summary(self, measure: str, encoder: str, seeds: Sequence[int]) -> dict[str, Any] | None:
        """Median, low, high and values over the seeds that are finished, and which; or None."""
        own = self.seeds(measure, encoder)
        finished = [seed for seed in seeds if seed in own]
        if not finished:
            return None
        found = over_seeds([{measure: own[seed]} for seed in finished])[measure]
        return {**found, "seeds": finished}


def write_comparison(folder: Path, config: CompareConfig, published: Path) -> str:
    """Writes compare_text_encoders.md, .json, .csv and .png of what is finished in a folder.

    Args:
        published: the page with the published figures.
    Returns:
        str: the Markdown.
    Raises:
        ValueError: if text encoders were not treated alike; says in what.
    """
    found = collect(folder, config)
    rows = measures(found, config)
    known = read_published(published)
    text = markdown(found, config, rows, known)
    report = Report(
        name=NAME,
        protocol={
            "text_encoders": list(config.encoders),
            "seeds": list(config.seeds),
            "pretraining": found.pretraining,
            "stages": {stage: told_once(own) for stage, own in found.protocols.items()},
            "seconds_of_jobs": {
                path.stem: _json(path)["seconds"] for path in sorted(folder.glob("jobs/*.json"))
            },
        },
        found={
            "text_encoders": {
                encoder: {row: found.summary(row, encoder, config.seeds) for row in rows}
                for encoder in config.encoders
            },
            "missing": missing(found, config),
            "published": {
                model: {row: figures[row] for row in rows if row in figures}
                for model, figures in known.items()
            },
        },
        rows=[
            {"measure": row, "text_encoder": encoder, "seed": seed, "value": value}
            for row in rows
            for encoder in config.encoders
            for seed, value in sorted(found.seeds(row, encoder).items())
            if seed in config.seeds
        ],
        draw=lambda path: draw(found, config, rows, known, path),
    )
    with written_whole(folder / f"{NAME}.md") as partial:
        partial.write_text(text, encoding="utf-8")
    write_report(report, folder)
    return text


def collect(folder: Path, config: CompareConfig) -> Comparison:
    """Everything that is finished of the text encoders and seeds.

    Raises:
        ValueError: if text encoders were not treated alike.
    """
    found = Comparison()
    for encoder in config.encoders:
        pretrained = _pretraining(folder / "pretrain" / encoder.removeprefix(BIDIRECTIONAL))
        if pretrained is not None:
            found.pretraining[encoder] = pretrained
    for encoder in config.encoders:
        for seed in config.seeds:
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


def asked(config: CompareConfig) -> list[str]:
    """The measures that the table shall have, finished or not."""
    names: list[str] = []
    if config.chosen("glue"):
        tasks = [GLUE_TASKS[task] for task in config.glue_tasks]
        names += [f"glue/{task.name}/{name}" for task in tasks for name in task.measures]
    if config.chosen("squad"):
        names += ["squad/squad1/f1", "squad/squad1/exact"]
    if config.chosen("probe"):
        questions = config.probe.questions
        every = questions == ("all",)
        names += [f"probe/{name}/accuracy" for name in (QUESTIONS if every else questions)]
    if config.chosen("adherence"):
        names += [f"adherence/prompt/{name}" for name in PROMPTED]
    return names


def applies(measure: str, encoder: str, config: CompareConfig) -> bool:
    """Whether a text encoder is measured so: not every random baseline conditions a video model."""
    return not measure.startswith("adherence/") or encoder in config.conditioning


def measures(found: Comparison, config: CompareConfig) -> dict[str, str]:
    """Measure -> how its row is called, of what is asked for or is there, in the stages' order."""
    names = asked(config)
    names += sorted(name for name in found.values if name not in names)
    names.sort(key=lambda name: list(PANELS).index(name.partition("/")[0]))
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
    name = encoder.removeprefix(BASELINE).removeprefix(BIDIRECTIONAL)
    called = TITLES.get(name, name)
    if encoder.startswith(BIDIRECTIONAL):
        return f"{called}, read bidirectionally ({name})"
    return f"random weights ({called})" if encoder.startswith(BASELINE) else f"{called} ({name})"


def missing(found: Comparison, config: CompareConfig) -> list[str]:
    """ENCODER_seedN MEASURE of everything that is asked for and not finished."""
    return [
        f"{encoder}_seed{seed} {row}"
        for row in asked(config)
        for encoder in config.encoders
        for seed in config.seeds
        if applies(row, encoder, config) and seed not in found.seeds(row, encoder)
    ]


def markdown(
    found: Comparison, config: CompareConfig, rows: Mapping[str, str], known: Published
) -> str:
    """A row for each measure, a column for each text encoder and each published model."""
    shown = {model: figures for model, figures in known.items() if figures.keys() & rows.keys()}
    titles = {encoder: title(encoder) for encoder in config.encoders}
    lines = []
    for name, about in _about(found, config).items():
        own = [(titles[encoder], about[encoder]) for encoder in titles]
        lines.append([("measured, %", name), *own, *((model, "") for model in shown)])
    for row, text in rows.items():
        own = [(titles[encoder], cell(found, config, row, encoder)) for encoder in titles]
        figures = [(model, known.get(row, "")) for model, known in shown.items()]
        alone = found.words_alone.get(row, {})
        if values := [alone[seed] for seed in config.seeds if seed in alone]:
            text += f" (words alone: {100 * statistics.median(values):.1f})"
        lines.append([("measured, %", text), *own, *figures])
    notes = [
        f"Medians of {len(config.seeds)} seeds, with the lowest and the highest; each text encoder "
        "was pretrained once, and one of random weights is new in each fine-tuning.",
        "Columns that name a dev or test set are published figures of far larger models, which "
        "have their sources in published_language.md.",
    ]
    if left_out := missing(found, config):
        notes.append(f"{len(left_out)} measurements are not finished.")
    return f"{markdown_table(lines)}\n{' '.join(notes)}\n"


def cell(found: Comparison, config: CompareConfig, measure: str, encoder: str) -> str:
    """Median and spread in percent, and how many seeds lack."""
    known = found.summary(measure, encoder, config.seeds)
    if known is None:
        return MISSING if applies(measure, encoder, config) else ""
    count = len(known["seeds"])
    left = "" if count == len(config.seeds) else f", {count} of {len(config.seeds)} seeds"
    return percent(known) + left


def draw(
    found: Comparison,
    config: CompareConfig,
    rows: Mapping[str, str],
    known: Published,
    path: Path,
) -> None:
    """Medians with their spreads, a panel for each kind of task; published figures in gray."""
    panels: dict[str, list[str]] = {}
    for row in rows:
        if row in found.values:
            panels.setdefault(PANELS[row.partition("/")[0]], []).append(row)
    panels = panels or {"nothing is finished": []}
    figure, axes = new_figure(len(panels), 1, size=(9.0, 3.2))
    for panel, (kind, own) in zip(axes, panels.items(), strict=True):
        _draw_text_encoders(panel, found, config, own)
        figures = [
            (place, float(model[row]))
            for place, row in enumerate(own)
            for model in known.values()
            if row in model
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


def _draw_text_encoders(
    panel: Any, found: Comparison, config: CompareConfig, rows: Sequence[str]
) -> None:
    """Beside one another a point for each text encoder, with its spread over the seeds."""
    width = 0.8 / len(config.encoders)
    for number, encoder in enumerate(config.encoders):
        points = [
            (place + (number + 0.5) * width - 0.4, found.summary(row, encoder, config.seeds))
            for place, row in enumerate(rows)
        ]
        there = [(x, value) for x, value in points if value is not None]
        if there:
            low, middle, high = (
                np.array([100 * value[name] for _, value in there])
                for name in ("low", "median", "high")
            )
            panel.errorbar(
                [x for x, _ in there],
                middle,
                yerr=[middle - low, high - middle],
                capsize=2,
                linestyle="none",
                marker="x" if encoder.startswith(BASELINE) else "o",
                markersize=4,
                color=COLORS[number % len(COLORS)],
                label=title(encoder),
            )


def _about(found: Comparison, config: CompareConfig) -> dict[str, dict[str, str]]:
    """Rows that say what the text encoders are: name -> text encoder -> text."""

    def scaled(value: float | None, unit: float) -> str:
        return "" if value is None else f"{value / unit:.3g}"

    described: dict[str, dict[str, Any]] = {}
    for stage in ("glue", "squad", "probe"):
        for run, tasks in found.protocols.get(stage, {}).items():
            for protocol in tasks.values():
                described.setdefault(run.rpartition("_seed")[0], protocol.get("text_encoder", {}))
    texts: dict[str, dict[str, str]] = {}
    for encoder in config.encoders:
        own, about = found.pretraining.get(encoder, {}), described.get(encoder, {})
        done = own.get("steps", 0)
        steps = own.get("config", {}).get("steps", done)
        shown = {
            "attention": ("causal" if about["causal"] else "bidirectional") if about else "",
            "parameters, million": scaled(about.get("parameters"), 1e6),
            "steps": f"{done:,}" if done == steps else f"{done:,} of {steps:,}",
            "tokens read, million": scaled(own.get("tokens", 0), 1e6),
            "minutes of pretraining": scaled(own.get("seconds", 0), 60),
        }
        for name, text in shown.items():
            texts.setdefault(name, {})[encoder] = text
    return texts


def _pretraining(folder: Path) -> dict[str, Any] | None:
    """Steps, tokens, seconds and the last validation of a text encoder; None if it is not there."""
    tokenizer = folder / "language_model" / "tokenizer.json"
    if not tokenizer.is_file():
        return None
    own: dict[str, Any] = {"tokenizer": file_digest(tokenizer)}
    if not (folder / "metrics.jsonl").is_file():
        return own  # of random weights
    config = read_yaml_file(folder / "config.yaml")
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records: list[dict[str, Any]] = [json.loads(line) for line in lines]
    steps, seconds, lengths = 0, 0.0, []
    validation: dict[str, float] = {}
    for record in records:
        if "samples_per_second" in record:
            samples = (record["step"] - steps) * config["batch_size"]
            steps, seconds = record["step"], seconds + samples / record["samples_per_second"]
            lengths.append(record["tokens_per_sample"])
        known = {name: value for name, value in record.items() if name.startswith("validation/")}
        validation = known or validation
    length = statistics.fmean(lengths) if lengths else 0
    return {
        **own,
        "config": config,
        "steps": steps,
        "tokens": round(steps * config["batch_size"] * length),
        "seconds": round(seconds),
        "validation": validation,
    }


def _collect_run(found: Comparison, folder: Path, encoder: str, seed: int) -> None:
    """What the stages after pretraining have left of a text encoder and a seed."""
    run = f"{encoder}_seed{seed}"

    def add(measure: str, value: float) -> None:
        found.values.setdefault(measure, {}).setdefault(encoder, {})[seed] = value

    def keep(stage: str, task: str, protocol: dict[str, Any]) -> None:
        found.protocols.setdefault(stage, {}).setdefault(run, {})[task] = protocol

    for stage in ("glue", "squad"):
        for path in sorted((folder / stage / run / "finished").glob(f"*_seed{seed}.json")):
            task, content = path.stem.rpartition("_seed")[0], _json(path)
            keep(stage, task, {**content["identity"], "made_by": content["made_by"]})
            for metric, value in content["measures"].items():
                if not metric.endswith("_threshold"):
                    add(f"{stage}/{task}/{metric}", value)
    probed, shown = (folder / stage / run / f"{stage}.json" for stage in ("probe", "adherence"))
    if probed.is_file():
        content = _json(probed)
        keep("probe", "captions", content["protocol"])
        for question, known in content["found"].items():
            measure = f"probe/{question}/accuracy"
            add(measure, known["accuracy"]["median"])
            found.words_alone.setdefault(measure, {})[seed] = known["words_alone"]["median"]
    if shown.is_file():
        content = _json(shown)
        keep("adherence", "prompt", content["protocol"])
        for name in PROMPTED:
            if name in content["found"]["all_videos"]:
                add(f"adherence/prompt/{name}", content["found"]["all_videos"][name]["value"])
        config = folder / "diffusion" / run / "config.yaml"
        if config.is_file():
            keep("diffusion", "training", read_yaml_file(config))


def _json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
