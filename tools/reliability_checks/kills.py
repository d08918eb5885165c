"""Kills of a script: before each of its file-system events, and at random moments of each phase."""

from __future__ import annotations

import functools
import math
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from reliability_checks import runs
from reliability_checks.options import Options

MOMENTS = 20  # random moments in each phase
QUICK_EVENTS = 5  # for each number of processes, and a moment in each phase


class Kill(NamedTuple):
    """When a process of a run is killed, as `hooks.install` takes it."""

    phase: str
    rank: int
    plan: dict[str, Any]


class Outcome(NamedTuple):
    """What came of a kill.

    Attributes:
        killed: whether it met the run; a random moment may come after the end.
        wrong: what is not as in an uninterrupted run, after the second.
        litter: files that an uninterrupted run does not have.
    """

    kill: Kill
    killed: bool
    wrong: list[str]
    litter: list[str]


def measure(options: Options, script: str, processes: Sequence[int] = (1, 2)) -> dict[str, Any]:
    """Kills runs of a script, runs each of them again, and compares what is left.

    All others of several processes are killed with the one whose turn it is.
    """
    runs.preload()
    by_processes = {}
    for count in processes:
        by_processes[str(count)] = sweep(options, script, count)
    both = by_processes.values()
    total = {key: sum(each[key] for each in both) for key in ("events", "kills", "equal", "litter")}
    failed = [failure for each in both for failure in each["failures"]]
    before = sum(each["killed_events"] for each in both)
    figure = (
        f"{total['kills']:,} kills with {' and '.join(by_processes)} processes, {before:,} of them "
        f"before a file-system event (of {total['events']:,}): {total['equal']:,} ended equal, "
        f"{total['litter']:,} left litter"
    )
    return {"figure": figure, "passed": not failed, **total, "processes": by_processes}


def sweep(options: Options, script: str, processes: int) -> dict[str, Any]:
    """All kills with one number of processes."""
    with runs.workers(options.jobs) as workers:
        expected, notes, seconds = workers.submit(
            reference, options.folder, script, processes, not options.quick
        ).result()
        rng = options.rng(script, processes)
        kills = planned(notes, seconds, options, rng)
        work = functools.partial(kill_and_resume, options.folder, script, processes, expected)
        outcomes = list(workers.map(work, kills))
    met = [outcome for outcome in outcomes if outcome.killed]
    bad = [outcome for outcome in met if outcome.wrong or outcome.litter]
    phases = Counter(outcome.kill.phase for outcome in met)
    return {
        "events": sum("event" in note for each in notes for note in each),
        "killed_events": phases["event"],
        "kills": len(met),
        "phases": dict(phases),
        "equal": sum(not outcome.wrong for outcome in met),
        "litter": sum(bool(outcome.litter) for outcome in met),
        "failures": [
            {**each.kill._asdict(), "wrong": each.wrong[:9], "litter": each.litter[:9]}
            for each in bad
        ],
    }


def reference(
    folder: Path, script: str, processes: int, compare: bool
) -> tuple[dict[str, Any], tuple[list[dict[str, Any]], ...], float]:
    """Contents, notes and seconds of an uninterrupted run.

    Args:
        compare: check that a fork does what a new python does.
    """
    with (
        runs.new_box(folder, script, processes=processes) as forked,
        runs.new_box(folder, script, processes=processes) as user,
    ):
        ended = forked.run()
        assert ended.done, ended.text
        expected = forked.contents()
        if compare:
            users = user.run_as_users_do()
            assert users.done, users.text
            wrong, more = runs.differences(expected, user.contents())
            wrong += [name for name in more if not name.startswith("temporary/torchelastic")]
            assert not wrong, wrong
    return expected, ended.notes, ended.seconds


def planned(
    notes: Sequence[list[dict[str, Any]]], seconds: float, options: Options, rng: random.Random
) -> list[Kill]:
    """Every event of every process, or some of them, and random moments in each phase."""
    kills = [
        Kill("event", rank, {"event": number, "before": note})
        for rank, each in enumerate(notes)
        for number, note in enumerate(note for note in each if "event" in note)
    ]
    many = QUICK_EVENTS if options.quick else math.ceil(options.share * len(kills))
    kills = rng.sample(kills, many)
    moments = 1 if options.quick else math.ceil(options.share * MOMENTS)
    marks = [note for note in notes[0] if "mark" in note]
    for phase, (first, last) in phases_of(marks).items():
        end = marks[last]["time"] if last < len(marks) else seconds
        began = marks[first]
        nth = sum(note["mark"] == began["mark"] for note in marks[:first])
        for _ in range(moments):
            plan = {"mark": began["mark"], "nth": nth}
            plan["after"] = rng.uniform(0, end - began["time"])
            kills.append(Kill(phase, 0, plan))
    return kills


def phases_of(marks: Sequence[dict[str, Any]]) -> dict[str, tuple[int, int]]:
    """The marks that begin and end each phase; epochs have two steps."""
    names = [note["mark"] for note in marks]
    steps = [place for place, name in enumerate(names) if name == "step"]
    phases = {"anywhere": (0, len(marks)), "start-up": (0, steps[0])}
    if "validation" in names:
        phases["epoch 2"] = (steps[2], steps[4])
        place = names.index("validation")
        phases["validation"] = (place, place + 1)
    else:  # encode: the validation part comes last
        phases["validation"] = (steps[-2], len(marks))
    return phases


def kill_and_resume(
    folder: Path, script: str, processes: int, expected: dict[str, Any], kill: Kill
) -> Outcome:
    """A run that is killed, and the same command once more."""
    with runs.new_box(folder, script, processes=processes) as box:
        plans: list[dict[str, Any]] = [{} for _ in range(processes)]
        plans[kill.rank] = kill.plan
        first = box.run(plans)
        if not first.killed:
            text = [] if first.done else [f"the first run ended with {first.codes}: {first.text}"]
            return Outcome(kill, not first.done, text, [])
        second = box.run()
        if not second.done:
            return Outcome(kill, True, [f"exit codes {second.codes}: {second.text[-3000:]}"], [])
        return Outcome(kill, True, *runs.differences(expected, box.contents()))
