"""Finished fine-tuning runs on disk, and the report over tasks and seeds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vidtwin.files import write_json, written_whole
from vidtwin_lab import runtime
from vidtwin_lab.evaluation.report import Report, rounded
from vidtwin_lab.language.tasks.metrics import over_seeds, percent
from vidtwin_lab.language.tasks.prepared import PreparedTask, TaskResult

# Measures that are thresholds of a score and no shares.
_NO_SHARE = "_threshold"
# Paths and names may change; digests say whether files and text encoder are the same.
_PLACES = ("path", "name", "train", "dev", "article_split", "local_files_only")


class FinishedRun(NamedTuple):
    """A text encoder fine-tuned on a task with a seed.

    identity: everything its measures follow from; made_by: software and number of processes.
    """

    task: str
    seed: int
    measures: dict[str, float]
    identity: dict[str, Any]
    made_by: dict[str, Any]


class FinishedRuns:
    """The finished tasks and seeds of a folder; each is whole or is not there.

    Args:
        folder: of the results.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def files_of(self, task: str, seed: int) -> Path:
        """The folder of a run's predictions."""
        return self.folder / "predictions" / f"{task}_seed{seed}"

    def read(self, task: str, seed: int, identity: Mapping[str, Any]) -> FinishedRun | None:
        """A run that was finished before, or None.

        Raises:
            ValueError: if it was made of other things than `identity` says; names them.
        """
        path = self._path(task, seed)
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            run = FinishedRun(task, seed, *(content[name] for name in FinishedRun._fields[2:]))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} can't be read ({error!r}); remove it") from error
        changed = _changes(run.identity, rounded(identity))
        if changed:
            raise ValueError(
                f"{path} is the result of other settings: {'; '.join(changed[:5])}; take the "
                "changes back, choose another output=FOLDER, or remove it"
            )
        return run

    def write(
        self, task: str, seed: int, result: TaskResult, identity: Any, made_by: Any
    ) -> FinishedRun:
        """Keeps a run: its predictions, and then its measures."""
        folder = self.files_of(task, seed)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name, text in result.files.items():
            (folder / name).write_text(text, encoding="utf-8")
        run = FinishedRun(task, seed, rounded(result.measures), rounded(identity), rounded(made_by))
        write_json(self._path(task, seed), run._asdict())
        return run

    def submit(self, tasks: Sequence[PreparedTask], runs: Sequence[FinishedRun]) -> dict[str, int]:
        """Copies the predictions of each task's best seed into submission/; gives these seeds.

        The best is that of the highest chief measure on the development set.
        """
        target = self.folder / "submission"
        target.mkdir(exist_ok=True)
        chosen = {}
        for task in tasks:
            own = [run for run in runs if run.task == task.name]
            best = max(own, key=lambda run: next(iter(run.measures.values())))
            files = sorted(self.files_of(task.name, best.seed).iterdir())
            for file in files:
                with written_whole(target / file.name) as partial:
                    shutil.copyfile(file, partial)
            if files:
                chosen[task.name] = best.seed
        return chosen

    def _path(self, task: str, seed: int) -> Path:
        return self.folder / "finished" / f"{task}_seed{seed}.json"


def fine_tuning_report(
    name: str,
    tasks: Sequence[PreparedTask],
    runs: Sequence[FinishedRun],
    absent: Sequence[dict[str, str]],
    protocol: Mapping[str, Any],
) -> Report:
    """Median and spread of every task's measures over its seeds.

    Args:
        name: of the report.
        runs: of all tasks and seeds.
        absent: what was left out and why.
        protocol: of all tasks; each one's own is added.
    """
    found: dict[str, Any] = {}
    columns = [("text encoder", str(protocol["text_encoder"]["name"]))]
    for task in tasks:
        own = [run for run in runs if run.task == task.name]
        found[task.name] = over_seeds([run.measures for run in own])
        for measure, values in found[task.name].items():
            if not measure.endswith(_NO_SHARE):
                columns.append((f"{task.name} {measure}", percent(values)))
    columns.append(("seeds", str(len({run.seed for run in runs}))))
    made_by = {json.dumps(run.made_by, sort_keys=True) for run in runs}
    return Report(
        name=name,
        protocol={
            **protocol,
            "tasks": {task.name: task.protocol for task in tasks},
            "made_by": [json.loads(text) for text in sorted(made_by)],
        },
        found=found,
        rows=[{"task": run.task, "seed": run.seed, **run.measures} for run in runs],
        skipped=[*absent, *(row for task in tasks for row in task.skipped)],
        markdown=columns,
    )


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """ "key was this, now that" of every value that differs, in dotted keys."""
    first, second = runtime.flatten(before), runtime.flatten(now)
    found = []
    for key in dict.fromkeys((*first, *second)):
        parent, _, name = key.rpartition(".")
        file = f"{parent}.sha256" in first or parent in ("text_encoder", "settings.data")
        if first.get(key) != second.get(key) and not (file and name in _PLACES):
            found.append(f"{key} was {first.get(key)!r}, now {second.get(key)!r}")
    return found
