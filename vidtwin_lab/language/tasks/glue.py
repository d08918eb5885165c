"""The nine tasks of GLUE: their files as published, their labels, measures and submission files.

Source: Wang et al., "GLUE" (arXiv 1804.07461), and the files of gluebenchmark.com.
"""

from __future__ import annotations

import dataclasses
import difflib
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vidtwin import file_digest, nearest_name
from vidtwin_lab.language.hub import load_rows
from vidtwin_lab.language.tasks.metrics import METRICS

logger = logging.getLogger(__name__)

HUB_NAME = "nyu-mll/glue"
HIGHEST_SCORE = 5.0  # of STS-B, whose scores start at 0
_UNLABELLED = "; labels are missing: is it a test file?"


@dataclasses.dataclass(frozen=True, kw_only=True)
class GlueTask:
    """What is known of a task beforehand.

    Args:
        name: in configs, and of the task on the hub.
        folder: of its files.
        texts: the columns of its one or two texts; hub_texts: the same on the hub.
        label: the column of the label.
        labels: as they are written in the files, in the order of their numbers; none for a score.
        metrics: names in `METRICS`.
        parts: what is measured -> its file and its split on the hub.
        tests: name of a submission file -> the file without labels and its split on the hub; none
            means one that is called as the folder.
        headless: the columns of files that have no header.
        tolerant: leave out rows that lack a text, as GLUE's own reader does.
    """

    name: str
    folder: str
    texts: tuple[str, ...]
    hub_texts: tuple[str, ...] = ()
    label: str = "label"
    labels: tuple[str, ...] = ("0", "1")
    metrics: tuple[str, ...] = ("accuracy",)
    parts: Mapping[str, tuple[str, str]] = dataclasses.field(
        default_factory=lambda: {"dev": ("dev.tsv", "validation")}
    )
    tests: Mapping[str, tuple[str, str]] = dataclasses.field(default_factory=dict)
    headless: tuple[str, ...] = ()
    tolerant: bool = False

    def __post_init__(self) -> None:
        if not self.tests:
            object.__setattr__(self, "tests", {self.folder: ("test.tsv", "test")})

    @property
    def outputs(self) -> int:
        """How many numbers a model gives for a sample."""
        return len(self.labels) or 1

    def prefix(self, part: str) -> str:
        """Of the measures of a part: nothing, unless there are several parts."""
        return "" if len(self.parts) == 1 else f"{part}_"

    @property
    def measures(self) -> list[str]:
        """The names of all measures."""
        return [self.prefix(part) + metric for part in self.parts for metric in self.metrics]

    def decide(self, outputs: NDArray[np.float64]) -> NDArray[Any]:
        """(N,) class numbers or scores from (N, outputs)."""
        if self.labels:
            return outputs.argmax(1)
        return np.clip(outputs[:, 0], 0.0, HIGHEST_SCORE)

    def measure(self, outputs: NDArray[np.float64], wanted: Sequence[float]) -> dict[str, float]:
        """The task's measures of (N, outputs) against N labels."""
        predicted = self.decide(outputs)
        return {name: METRICS[name](predicted, wanted) for name in self.metrics}

    def submission(self, indices: Sequence[str], outputs: NDArray[np.float64]) -> str:
        """The text of a submission file: index and prediction in two columns."""
        predicted = self.decide(outputs)
        lines = ["index\tprediction\n"]
        for index, value in zip(indices, predicted, strict=True):
            lines.append(f"{index}\t{self.labels[value] if self.labels else f'{value:.3f}'}\n")
        return "".join(lines)


class GlueExample(NamedTuple):
    """One row: its texts, the number of its class or its score (None in a test file), its name."""

    texts: tuple[str, ...]
    label: float | None
    name: str


class GlueSplit(NamedTuple):
    """The rows of one file; source: path or hub split; digest: of its bytes, or of its rows."""

    examples: list[GlueExample]
    source: str
    digest: str
    skipped: list[dict[str, str]]


_ENTAILMENT = ("entailment", "not_entailment")
_PAIR = ("sentence1", "sentence2")
_TASKS = (
    GlueTask(name="cola", folder="CoLA", texts=("sentence",), metrics=("matthews",),
             headless=("source", "label", "mark", "sentence")),
    GlueTask(name="sst2", folder="SST-2", texts=("sentence",)),
    GlueTask(name="mrpc", folder="MRPC", texts=("#1 String", "#2 String"), hub_texts=_PAIR,
             label="Quality", metrics=("f1", "accuracy")),
    GlueTask(name="qqp", folder="QQP", texts=("question1", "question2"), label="is_duplicate",
             metrics=("f1", "accuracy"), tolerant=True),
    GlueTask(name="stsb", folder="STS-B", texts=_PAIR, label="score", labels=(),
             metrics=("pearson", "spearman")),
    GlueTask(name="mnli", folder="MNLI", texts=_PAIR, hub_texts=("premise", "hypothesis"),
             label="gold_label", labels=("entailment", "neutral", "contradiction"),
             parts={name: (f"dev_{name}.tsv", f"validation_{name}")
                    for name in ("matched", "mismatched")},
             tests={"MNLI-m": ("test_matched.tsv", "test_matched"),
                    "MNLI-mm": ("test_mismatched.tsv", "test_mismatched")}),
    GlueTask(name="qnli", folder="QNLI", texts=("question", "sentence"), labels=_ENTAILMENT),
    GlueTask(name="rte", folder="RTE", texts=_PAIR, labels=_ENTAILMENT),
    GlueTask(name="wnli", folder="WNLI", texts=_PAIR),
)  # fmt: skip
GLUE_TASKS: dict[str, GlueTask] = {task.name: task for task in _TASKS}


def find_task(name: str) -> GlueTask:
    """A task by its name, however it is written ("SST-2", "sst2").

    Raises:
        ValueError: if there is none; names the nearest.
    """
    plain = _plain(name)
    plain = {"mnlim": "mnli", "mnlimm": "mnli", "sts": "stsb", "sst": "sst2"}.get(plain, plain)
    if plain not in GLUE_TASKS:
        near = nearest_name(plain, GLUE_TASKS)
        raise ValueError(
            f"unknown task {name!r}; the nearest is {near!r} (known are {', '.join(GLUE_TASKS)})"
        )
    return GLUE_TASKS[plain]


def read_glue(task: GlueTask, data: str, source: str, part: str) -> GlueSplit | None:
    """The rows of a part of a task; None if its file is not there.

    Args:
        data: the folder with the tasks' folders in it, or a name on the hub.
        source: "files" or "datasets".
        part: "train", a key of `task.parts`, or a key of `task.tests`.
    Raises:
        ValueError: if the file is not of the task's format: says the line and the column.
    """
    file, split = {"train": ("train.tsv", "train"), **task.parts, **task.tests}[part]
    labelled = part not in task.tests
    if source == "datasets":
        return _read_hub(task, data, split, labelled)
    path = task_folder(task, data) / file
    return _read_file(task, path, labelled) if path.is_file() else None


def tasks_folder(data: str) -> Path:
    """The folder of all tasks, which must be there."""
    root = Path(data)
    if not root.is_dir():
        raise ValueError(
            f"the folder of the GLUE tasks, {data}, does not exist; set data.path=FOLDER"
        )
    return root


def task_folder(task: GlueTask, data: str) -> Path:
    """Where a task's files lie; capitals and hyphens of the folder's name don't matter."""
    root = tasks_folder(data)
    folders = [path for path in sorted(root.iterdir()) if path.is_dir()]
    return next((f for f in folders if _plain(f.name) == _plain(task.folder)), root / task.folder)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _read_file(task: GlueTask, path: Path, labelled: bool) -> GlueSplit:
    """A file as published: tabs between the cells, and quotes that mean nothing but themselves."""
    lines = _lines(path)
    columns = list(task.headless) if labelled and task.headless else lines.pop(0)[1]
    first_row = 1 if columns == list(task.headless) else 2
    if not lines:
        raise ValueError(f"{path} has no row after its header")
    places = _places(task, path, columns, labelled, lines[0])
    examples, skipped = [], []
    for number, cells in lines:
        where = f"{path}, line {number}"
        cut_off = len(cells) <= max(places.values())
        if len(cells) != len(columns) and not task.tolerant:
            raise ValueError(
                f"{where}: expected {len(columns)} columns ({', '.join(columns)}), "
                f"got {len(cells)}: {_shown(cells)}"
            )
        texts = () if cut_off else tuple(cells[places[name]].strip() for name in task.texts)
        if not all(texts or [""]):
            empty = "a column" if cut_off else task.texts[texts.index("")]
            if not task.tolerant:
                raise ValueError(f"{where}: column {empty!r} is empty, expected a text")
            skipped.append({"path": where, "reason": f"{empty} is missing"})
            continue
        label = _label(task, cells[places[task.label]], where) if labelled else None
        index = cells[places["index"]] if "index" in places else str(number - first_row)
        examples.append(GlueExample(texts, label, index))
    if skipped:
        logger.warning("%s: %d rows lack a text and were left out", path, len(skipped))
    return GlueSplit(examples, str(path), file_digest(path), skipped)


def _lines(path: Path) -> list[tuple[int, list[str]]]:
    """(number, cells) of every line that is not empty.

    Lines end at line feeds alone: some sentences hold other characters that Python's
    `splitlines` would cut at.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line}: not UTF-8 text ({error.reason})") from error
    rows = [
        (number, line.rstrip("\r").split("\t"))
        for number, line in enumerate(text.split("\n"), 1)
        if line.strip()
    ]
    if not rows:
        raise ValueError(f"{path} is empty")
    return rows


def _places(
    task: GlueTask, path: Path, columns: list[str], labelled: bool, first: tuple[int, list[str]]
) -> dict[str, int]:
    """Column -> its place, of the columns that are read."""
    number, cells = first
    if labelled and task.headless and len(cells) != len(columns):
        hint = _UNLABELLED if len(cells) == 2 else ""
        raise ValueError(
            f"{path}, line {number}: expected {len(columns)} columns without a header "
            f"({', '.join(columns)}), got {len(cells)}: {_shown(cells)}{hint}"
        )
    wanted = [*task.texts, task.label] if labelled else list(task.texts)
    for name in wanted:
        if name not in columns:
            near = difflib.get_close_matches(name, columns, n=1, cutoff=0.6)
            unlabelled = _UNLABELLED if name == task.label else ""
            hint = f"; the nearest is {near[0]!r}" if near else unlabelled
            raise ValueError(
                f"{path}, line 1: no column {name!r} in {_shown(columns)} of {task.folder}{hint}"
            )
    places = {name: columns.index(name) for name in wanted}
    for name in ("id", "index"):  # of test files; QQP's has the first
        if not labelled and name in columns:
            places["index"] = columns.index(name)
    return places


def _label(task: GlueTask, cell: str, where: str) -> float:
    cell = cell.strip()
    if task.labels:
        if cell in task.labels:
            return task.labels.index(cell)
        expected = f"one of {', '.join(task.labels)}"
    else:
        try:
            score = float(cell)
        except ValueError:
            score = float("nan")
        if 0.0 <= score <= HIGHEST_SCORE:
            return score
        expected = f"a number from 0 to {HIGHEST_SCORE:g}"
    hint = _UNLABELLED if cell in ("", "-1", "?", "hidden") else ""
    raise ValueError(f"{where}, column {task.label!r}: expected {expected}, got {cell!r}{hint}")


def _read_hub(task: GlueTask, name: str, split: str, labelled: bool) -> GlueSplit:
    rows, digest = load_rows(name, task.name, split)
    examples = []
    for number, row in enumerate(rows):
        where = f"{name} {task.name} {split}, row {number}"
        try:
            texts = tuple(str(row[column]).strip() for column in task.hub_texts or task.texts)
            label, index = row["label"], str(row.get("idx", number))
        except KeyError as error:
            raise ValueError(f"{where}: no column {error}, got {', '.join(row)}") from error
        # Numbers of classes are in the order of `labels`; -1 stands for a hidden label.
        cell = task.labels[label] if task.labels and 0 <= label < task.outputs else str(label)
        number_or_score = _label(task, cell, where) if labelled else None
        examples.append(GlueExample(texts, number_or_score, index))
    return GlueSplit(examples, f"{name} {task.name} {split}", digest, [])


def _shown(cells: Iterable[str]) -> str:
    text = " | ".join(cells)
    return repr(text if len(text) <= 80 else f"{text[:77]}...")
