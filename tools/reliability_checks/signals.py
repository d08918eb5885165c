"""Signals at random moments of a script: how it ends, how soon, and that it goes on."""

from __future__ import annotations

import math
import re
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from reliability_checks import runs
from reliability_checks.kills import reference
from reliability_checks.options import Options

PATIENCE = 20.0  # seconds
MOMENTS = 20  # for each script, signal and number of processes
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Told(NamedTuple):
    """What came of a signal.

    Attributes:
        seconds: from the signal to the end; None where it came after the end.
        saved: whether a checkpoint was named.
        wrong: what was not as promised.
    """

    what: str
    seconds: float | None
    saved: bool
    wrong: list[str]


def measure(options: Options) -> dict[str, Any]:
    """Sends each signal to each script, with one and with two processes."""
    runs.preload()
    told: list[Told] = []
    moments = 1 if options.quick else math.ceil(options.share * MOMENTS)
    with runs.workers(options.jobs) as workers:
        waiting = []
        for script in runs.SCRIPTS:
            for processes in (1, 2):
                first = workers.submit(reference, options.folder, script, processes, False)
                expected, _, seconds = first.result()
                rng = options.rng("signals", script, processes)
                for number in SIGNALS:
                    for _ in range(moments):
                        after = rng.uniform(0, seconds)
                        arguments = (options.folder, script, processes, expected, number, after)
                        waiting.append(workers.submit(send_and_resume, *arguments))
        told = [each.result() for each in waiting]
    met = [each for each in told if each.seconds is not None]
    longest = max(each.seconds or 0.0 for each in met)
    bad = [each._asdict() for each in told if each.wrong]
    saved = sum(each.saved for each in met)
    figure = (
        f"{len(met):,} signals to {len(runs.SCRIPTS)} scripts with 1 and 2 processes: "
        f"{saved:,} named the checkpoint that they saved, the others came before the first step or "
        f"to encode.py; {longest:.1f} s at most until the end, {len(met) - len(bad):,} ended equal"
    )
    return {
        "figure": figure,
        "passed": not bad,
        "signals": len(met),
        "saved": saved,
        "longest_seconds": longest,
        "failures": bad,
    }


def send_and_resume(
    folder: Path, script: str, processes: int, expected: dict[str, Any], number: int, after: float
) -> Told:
    """A run that all its processes are told to stop, and the same command once more."""
    what = f"{script}, {processes} processes, {signal.Signals(number).name} after {after:.3f} s"
    with runs.new_box(folder, script, processes=processes) as box:
        plan = {"mark": "start", "nth": 0, "after": after, "signal": number}
        ended = box.run([plan] * processes, grace=2 * PATIENCE)
        sent = [note["time"] for note in ended.notes[0] if note.get("mark") == "signal"]
        if not sent:
            return Told(what, None, False, [] if ended.done else [ended.text[-2000:]])
        seconds = ended.seconds - sent[0]
        wrong = [f"it took {seconds:.1f} s"] if seconds > PATIENCE else []
        saved = re.search(r"saved (\S+); the same command goes on", ended.text)
        wrong += faults(box, ended, number, saved)
        again = box.run()
        if not again.done:
            wrong.append(f"run again: exit codes {again.codes}: {again.text[-2000:]}")
        different, litter = runs.differences(_lasting(expected), _lasting(box.contents()))
        return Told(what, seconds, saved is not None, [*wrong, *different, *litter])


def _lasting(contents: dict[str, Any]) -> dict[str, Any]:
    """What does not depend on when checkpoints were saved; of these the newest's weights."""
    of_time = re.compile(r"progress\.json$|random_states_\d+\.pkl$")
    newest = max((name for name in contents if "/checkpoints/step_" in name), default="")
    newest = "/".join(newest.split("/")[:3])
    return {
        name: content
        for name, content in contents.items()
        if "/checkpoints/" not in name
        or (name.startswith(f"{newest}/") and not of_time.search(name))
    }


def faults(box: runs.Box, ended: runs.Ended, number: int, saved: re.Match[str] | None) -> list[str]:
    """What is not as promised in the end of a run after a signal."""
    wrong = []
    steps = _steps_before_the_signal(ended.notes)
    # Processes that have not found each other yet fail as torch says when one of them is gone.
    begun = steps > 0 or box.processes == 1
    if begun and "Traceback" in ended.text:
        wrong.append(f"a traceback: {ended.text[-2000:]}")
    if begun and any(code not in (0, 128 + number, -number) for code in ended.codes):
        wrong.append(f"exit codes {ended.codes}: {ended.text[-2000:]}")
    if saved is not None and not (box.path / saved[1]).is_dir():
        wrong.append(f"no checkpoint at {saved[1]}")
    if box.script != "encode" and steps and any(ended.codes) and saved is None:
        wrong.append(f"no checkpoint was named after {steps} steps: {ended.text[-2000:]}")
    if (box.output / ".lock").exists():
        wrong.append("the lock was not given back")
    return wrong


def _steps_before_the_signal(notes: Sequence[list[dict[str, Any]]]) -> int:
    marks = [note["mark"] for note in notes[0] if "mark" in note]
    return marks[: marks.index("signal")].count("step")
