"""What a run under test does beside its work: notes its file-system events, and kills itself."""

from __future__ import annotations

import functools
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

# Python tells of these before they happen; what compiled code opens is told by FUNCTIONS.
AUDITED = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate")
FUNCTIONS = ("os:fsync", "torch:save", "safetensors.torch:serialize_file", "av:open")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Script -> what its steps and its validation call.
MARKS = {
    "train_ae": {
        "step": "vidtwin_lab.runtime.run:seed_step",
        "validation": "vidtwin.metrics:measure_reconstructions",
    },
    "train_diffusion": {
        "step": "vidtwin_lab.runtime.run:seed_step",
        "validation": "diffusion.training:measure_losses",
    },
    "train_language": {
        "step": "vidtwin_lab.runtime.run:seed_step",
        "validation": "vidtwin_lab.language.training:measure_language_model",
    },
    "encode": {"step": "diffusion.cache_writer:CacheWriter.write"},
}


def install(plan: dict[str, Any], notes: Path, script: str) -> None:
    """Lets this process note what it goes through, and kill itself as planned.

    Args:
        plan: {"event": n} kills before the n-th event, counted from 0; {"mark": name, "nth": n,
            "after": seconds} so long after the n-th time that the mark is passed, whose names
            are "start" and those of MARKS; {} never. With "signal" that is sent instead, and with
            "do", a command line, that is run, at once and in the place of the mark.
        notes: file of the notes, a JSON object a line: {"event", "path"} or {"mark", "time"}.
    """
    descriptor = os.open(notes, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_APPEND)
    process, began = os.getpid(), time.monotonic()
    events, marks = 0, dict.fromkeys(("start", *MARKS[script]), 0)

    def note(**values: Any) -> None:
        os.write(descriptor, (json.dumps(values, default=str) + "\n").encode())

    def event(kind: str, path: Any) -> None:
        nonlocal events
        if os.getpid() != process:
            return  # a worker of this process
        note(event=kind, path=str(path)[-80:])
        if plan.get("event") == events:
            os.killpg(process, signal.SIGKILL)  # whose group it leads
        events += 1

    def mark(name: str) -> None:
        note(mark=name, time=round(time.monotonic() - began, 4))
        if plan.get("mark") == name and plan["nth"] == marks[name]:
            if "do" in plan:
                subprocess.run(plan["do"], check=True)
            else:
                timer = threading.Timer(plan["after"], end)
                timer.daemon = True
                timer.start()
        marks[name] += 1

    def end() -> None:
        note(mark="signal", time=round(time.monotonic() - began, 4))
        os.killpg(process, plan.get("signal", signal.SIGKILL))

    def hook(kind: str, arguments: tuple[Any, ...]) -> None:
        if kind in AUDITED:
            path = arguments[0]
            if kind == "open" and not (isinstance(arguments[2], int) and arguments[2] & WRITES):
                return
            if isinstance(path, int) or str(path).startswith(("/dev/null", "/proc")):
                return
            event(kind, path)

    sys.addaudithook(hook)
    for name in FUNCTIONS:
        _before(name, functools.partial(event, name))
    for name, function in MARKS[script].items():
        _before(function, lambda *_, name=name: mark(name), first_argument=False)
    mark("start")


def check(scripts: Iterable[str]) -> None:
    """Imports what is hooked, so that a name that is gone is found before anything runs."""
    for script in scripts:
        for name in (*FUNCTIONS, *MARKS[script].values()):
            _find(name)


def _find(name: str) -> tuple[Any, str]:
    module, _, names = name.partition(":")
    owner: Any = importlib.import_module(module)
    *owners, attribute = names.split(".")
    for each in owners:
        owner = getattr(owner, each)
    getattr(owner, attribute)
    return owner, attribute


def _before(name: str, told: Callable[..., None], first_argument: bool = True) -> None:
    """Calls `told` before each call of a function."""
    owner, attribute = _find(name)
    function = getattr(owner, attribute)

    @functools.wraps(function)
    def wrapper(*arguments: Any, **options: Any) -> Any:
        told(arguments[0] if arguments and first_argument else "")
        return function(*arguments, **options)

    setattr(owner, attribute, wrapper)
