"""Tasks ready for fine-tuning: samples to train on, samples to predict, and the measures."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffusion.text_encoder import TextEncoder
from vidtwin import file_digest
from vidtwin_lab.language.tasks.config import GlueData, SquadData
from vidtwin_lab.language.tasks.glue import (
    GLUE_TASKS,
    HUB_NAME,
    GlueSplit,
    GlueTask,
    find_task,
    read_glue,
)
from vidtwin_lab.language.tasks.rows import RowFormat, Sample, length_batches
from vidtwin_lab.language.tasks.squad import (
    Question,
    SquadFile,
    WindowSpans,
    best_answers,
    evaluate_v1,
    evaluate_v2,
    read_article_split,
    read_hub_squad,
    read_squad,
)

logger = logging.getLogger(__name__)

_SUBSET_SEED = 0  # one subset for all seeds of a task


class TaskResult(NamedTuple):
    """Measures by name, the chief one first, and the text of files by their names."""

    measures: dict[str, float]
    files: dict[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedTask:
    """A task in the tokens of a text encoder.

    Args:
        kind, outputs: of `TaskModel`.
        train: samples with labels.
        parts: what is predicted after training: development sets, and tests without labels.
        measure: from the outputs of each part, in the order of its samples.
        protocol: what the figures depend on: files, digests, numbers.
        skipped: {"path", "reason"} of rows that could not be used.
        max_answer, n_best: of spans, see `best_spans`.
    """

    name: str
    kind: str
    outputs: int
    train: list[Sample]
    parts: dict[str, list[Sample]]
    measure: Callable[[Mapping[str, Sequence[Any]]], TaskResult]
    protocol: dict[str, Any]
    skipped: list[dict[str, str]]
    max_answer: int = 30
    n_best: int = 20

    def describe(self, steps: int) -> dict[str, Any]:
        """Its sizes, for training of so many steps."""
        return {
            "trained_on": len(self.train),
            "mean_tokens": round(float(np.mean([len(row.input_ids) for row in self.train])), 1),
            "steps": steps,
            "predicted": {part: len(samples) for part, samples in self.parts.items()},
        }

    def batches(self, batch_size: int, seed: int, processes: int = 1) -> Iterator[list[int]]:
        """Numbers of training samples without end, one epoch after another.

        Raises:
            ValueError: if there are fewer samples than processes to share them.
        """
        if len(self.train) < processes:
            raise ValueError(
                f"{self.name} has {len(self.train)} rows to train on, fewer than the {processes} "
                "processes; start fewer"
            )
        lengths = [len(sample.input_ids) for sample in self.train]
        for epoch in itertools.count():
            yield from length_batches(lengths, batch_size, seed, epoch)


def prepare_glue(
    data: GlueData, encoder: TextEncoder, max_length: int | None
) -> tuple[list[PreparedTask], list[dict[str, str]]]:
    """(tasks, those left out because their files are not there; only where all are asked for).

    Raises:
        ValueError: if a file is not there or not in its format, or a text encoder can't read it.
    """
    tasks, absent = [], []
    for task in GLUE_TASKS.values() if data.all else map(find_task, data.tasks):
        files = {"train": ("train.tsv", ""), **task.parts, **task.tests}
        found = {part: read_glue(task, data.path or HUB_NAME, data.source, part) for part in files}
        splits = {part: split for part, split in found.items() if split is not None}
        lacking = [files[part][0] for part in ("train", *task.parts) if part not in splits]
        if not lacking:
            tasks.append(_glue_task(task, splits, data, RowFormat(encoder, max_length)))
            continue
        reason = f"no {' and no '.join(lacking)} in {task.folder}"
        if not data.all:
            raise ValueError(f"{reason} of {data.path}; task {task.name} needs it")
        logger.warning("%s is left out: %s", task.name, reason)
        absent.append({"path": task.folder, "reason": reason})
    if not tasks:
        raise ValueError(f"{data.path} has no task with files to train and to measure on")
    return tasks, absent


def _glue_task(
    task: GlueTask, splits: dict[str, GlueSplit], data: GlueData, form: RowFormat
) -> PreparedTask:
    chosen = _subset(splits["train"].examples, data.max_train)
    train = form([row.texts for row in chosen], [row.label for row in chosen])
    form.check(splits["train"].source, [text for row in chosen for text in row.texts])
    rows = {part: split.examples for part, split in splits.items() if part != "train"}
    parts = {
        part: form(
            [row.texts for row in examples],
            None if part in task.tests else [row.label for row in examples],
        )
        for part, examples in rows.items()
    }

    def measure(outputs: Mapping[str, Sequence[Any]]) -> TaskResult:
        measures: dict[str, float] = {}
        files: dict[str, str] = {}
        for part, values in outputs.items():
            array = np.asarray(values, np.float64)
            if part in task.tests:
                names = [row.name for row in rows[part]]
                files[f"{part}.tsv"] = task.submission(names, array)
                continue
            wanted = [float(row.label or 0) for row in rows[part]]
            found = task.measure(array, wanted)
            measures |= {task.prefix(part) + name: value for name, value in found.items()}
        return TaskResult(measures, files)

    return PreparedTask(
        name=task.name,
        kind="classes" if task.labels else "score",
        outputs=task.outputs,
        train=train,
        parts=parts,
        measure=measure,
        protocol={
            "trained_on": len(train),
            "files": {
                part: {"path": split.source, "sha256": split.digest, "n": len(split.examples)}
                for part, split in splits.items()
            },
            "metrics": list(task.metrics),
            "max_length": form.max_length,
            "texts": dataclasses.asdict(form.counts),
        },
        skipped=[row for split in splits.values() for row in split.skipped],
    )


def _squad_questions(
    data: SquadData,
) -> tuple[dict[str, SquadFile], list[Question], list[Question]]:
    """The files by part, the questions to train on and those to measure.

    Raises:
        ValueError: if a file is not in SQuAD's format, has no answers to measure against, or a
            question stands on both sides.
    """
    named = {"dev": str(data.dev), **{f"train_{i}": name for i, name in enumerate(data.train)}}
    files = {
        part: read_squad(name)
        if data.source == "files"
        else read_hub_squad(name, "validation" if part == "dev" else "train")
        for part, name in named.items()
    }
    dev = files["dev"]
    train = [asked for part, file in files.items() if part != "dev" for asked in file.questions]
    asked = dev.questions
    if data.article_split is not None:
        titles, held_out = read_article_split(data.article_split)
        train += [question for question in dev.questions if question.title in titles]
        asked = [question for question in dev.questions if question.title in held_out]
        if not asked:
            raise ValueError(f"no article of {data.dev} is in the list `test` of the article split")
    both = {question.id for question in train} & {question.id for question in asked}
    if both:
        raise ValueError(
            f"{len(both)} questions would be trained on and measured, such as {min(both)}; give "
            "article_split, or other files"
        )
    unanswered = _unanswered(asked)
    if len(unanswered) == len(asked) or (unanswered and not dev.version2):
        raise ValueError(
            f"{dev.source}: question {unanswered[0].id} has no answers; labels are missing: is "
            "it a test file?"
        )
    return files, train, asked


def _unanswered(questions: Sequence[Question]) -> list[Question]:
    return [question for question in questions if not question.answers]


def prepare_squad(data: SquadData, encoder: TextEncoder, max_length: int | None) -> PreparedTask:
    """Questions and the windows of their contexts.

    Raises:
        ValueError: as `_squad_questions`, or if the text encoder can't read them.
    """
    files, train, asked = _squad_questions(data)
    dev = files["dev"]
    form = RowFormat(encoder, max_length)
    chosen = _subset(train, data.max_train)
    windows = {
        part: [
            window
            for index, question in enumerate(questions)
            for window in form.windows(question, index, data.stride, data.max_question, trained)
        ]
        for part, questions, trained in (("train", chosen, True), ("dev", asked, False))
    }
    form.check(dev.source, [question.question for question in asked])
    if not windows["train"]:
        raise ValueError("no question to train on: no answer stands in its context")
    lost = [question.id for question in (*chosen, *asked) if question.lost]
    if lost:
        logger.warning(
            "%d questions have no answer that stands in its context, such as %s", len(lost), lost[0]
        )
    return PreparedTask(
        name="squad2" if dev.version2 else "squad1",
        kind="span",
        outputs=2,
        train=windows["train"],
        parts={"dev": windows["dev"]},
        measure=lambda outputs: _squad_result(asked, outputs["dev"], dev.version2, data),
        protocol={
            "trained_on": len(chosen),
            "measured_on": len(asked),
            "files": {
                part: {"path": file.source, "sha256": file.digest, "n": len(file.questions)}
                for part, file in files.items()
            },
            "article_split": data.article_split
            and {"path": data.article_split, "sha256": file_digest(Path(data.article_split))},
            "version": "2.0" if dev.version2 else "1.1",
            "unanswerable": len(_unanswered(asked)),
            "answers_not_in_context": {"n": len(lost), "first": lost[:10]},
            "no_answer_token": "last" if encoder.causal else "first",
            "max_length": form.max_length,
            "texts": dataclasses.asdict(form.counts),
        },
        skipped=[],
        max_answer=data.max_answer,
        n_best=data.n_best,
    )


def _squad_result(
    asked: list[Question], windows: Sequence[WindowSpans], version2: bool, data: SquadData
) -> TaskResult:
    answers, odds = best_answers(asked, windows, data.n_best)
    best = {name: texts[0][0] for name, texts in answers.items()}
    files = {"predictions.json": best, "nbest.json": answers}
    if not version2:
        measures = evaluate_v1(asked, best)
    else:
        measures = evaluate_v2(asked, best, odds, data.null_threshold)
        given = {name: "" if odds[name] > data.null_threshold else best[name] for name in best}
        # What the official script takes beside the odds to find the best threshold.
        files |= {"predictions.json": given, "best_answers.json": best, "null_odds.json": odds}
    texts = {name: json.dumps(content, ensure_ascii=False) for name, content in files.items()}
    return TaskResult({"f1": measures["f1"], **measures}, texts)


def _subset(rows: Sequence[Any], most: int | None) -> list[Any]:
    """At most so many of the rows, in their order."""
    if most is None or most >= len(rows):
        return list(rows)
    chosen = np.random.default_rng(_SUBSET_SEED).choice(len(rows), most, replace=False)
    return [rows[index] for index in sorted(chosen.tolist())]
