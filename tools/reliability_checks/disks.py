"""Disks that fill, are read-only or go away while a script writes to them."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from reliability_checks import runs
from reliability_checks.kills import reference
from reliability_checks.options import Options

SIZES = 20  # disks that are too small, for each script
LARGE = "1g"


def measure(options: Options) -> dict[str, Any]:
    """Runs each script on disks that fail, and again once they do not."""
    if reason := _no_mounts(options.folder):
        return {"figure": f"not measured: {reason}", "passed": None}
    runs.preload()
    sizes = 2 if options.quick else math.ceil(options.share * SIZES)
    found: list[dict[str, Any]] = []
    with runs.workers(options.jobs) as workers:
        for script in runs.SCRIPTS:
            expected, _, _ = workers.submit(reference, options.folder, script, 1, False).result()
            rng = options.rng("disks", script)
            whole = sum(len(each) for each in expected.values() if isinstance(each, bytes))
            waiting = [
                workers.submit(full, options.folder, script, expected, int(rng.uniform(0, whole)))
                for _ in range(sizes)
            ]
            waiting += [
                workers.submit(each, options.folder, script, expected) for each in (read_only, gone)
            ]
            found += [each.result() for each in waiting]
    met = [each for each in found if each["failed"]]
    bad = [each for each in found if each["wrong"]]
    kinds = ("full", "read-only", "gone")
    counts = {kind: sum(each["kind"] == kind for each in met) for kind in kinds}
    figure = (
        f"{counts['full']:,} disks of different sizes that filled, {counts['read-only']} "
        f"read-only, {counts['gone']} gone: {len(met) - len(bad):,} of {len(met):,} runs ended "
        "with exit code 2 and one line, lost no checkpoint, and ended equal when run again"
    )
    return {"figure": figure, "passed": not bad and all(counts.values()), **counts, "failures": bad}


def full(folder: Path, script: str, expected: dict[str, Any], size: int) -> dict[str, Any]:
    """A disk of so many bytes, made larger for the second run."""
    with _disk(folder, script, size) as (box, disk):
        ended = box.run()
        wrong = [] if ended.done else _faults(box, ended, "free")
        _run("mount", "-o", f"remount,size={LARGE}", disk)
        return _again(box, "full", expected, not ended.done, wrong, f"{script}, {size:,} bytes")


def read_only(folder: Path, script: str, expected: dict[str, Any]) -> dict[str, Any]:
    """A disk that is read-only when a killed run goes on."""
    with _disk(folder, script) as (box, disk):
        first = box.run([{"mark": "step", "nth": 3, "after": 0.0}])
        assert first.killed, first.text
        _run("mount", "-o", "remount,ro", disk)
        ended = box.run()
        wrong = _faults(box, ended, "Read-only")
        _run("mount", "-o", "remount,rw", disk)
        return _again(box, "read-only", expected, not ended.done, wrong, script)


def gone(folder: Path, script: str, expected: dict[str, Any]) -> dict[str, Any]:
    """A disk that is taken away in the middle of a run, and comes back."""
    with _disk(folder, script) as (box, _):
        output = box.output
        store = output.with_name("store")
        output.rename(store)
        output.mkdir()
        _run("mount", "--bind", store, output)
        try:
            nth = 2 if script == "encode" else 3
            plan = {"mark": "step", "nth": nth, "do": ["umount", "-l", str(output)]}
            ended = box.run([plan])
            wrong = _faults(box, ended, str(output.name))
            wrong += [f"{path} was written where no disk is" for path in output.rglob("*")]
            _run("mount", "--bind", store, output)
            found = _again(box, "gone", expected, not ended.done, wrong, script)
        finally:
            subprocess.run(["umount", "-l", output], check=False, capture_output=True)
        output.rmdir()
        store.rename(output)
        return found


@contextmanager
def _disk(folder: Path, script: str, size: int | str = LARGE) -> Iterator[tuple[runs.Box, Path]]:
    """A box whose output lies on a disk of its own."""
    with runs.new_box(folder, script) as box:
        disk = box.path / "disk"
        disk.mkdir()
        _run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk)
        try:
            (disk / "output").mkdir()
            box.output.symlink_to(disk / "output")
            yield box, disk
        finally:
            _run("umount", "-l", disk)


def _again(
    box: runs.Box, kind: str, expected: dict[str, Any], failed: bool, wrong: list[str], what: str
) -> dict[str, Any]:
    ended = box.run()
    if not ended.done:
        wrong = [*wrong, f"run again: exit codes {ended.codes}: {ended.text[-2000:]}"]
    different, litter = runs.differences(expected, box.contents())
    wrong = [*wrong, *different, *litter]
    return {"kind": kind, "what": what, "failed": failed, "wrong": wrong[:9]}


def _faults(box: runs.Box, ended: runs.Ended, named: str) -> list[str]:
    """What is not as promised in the end of a run whose disk has failed."""
    wrong = []
    lines = [line for line in ended.text.splitlines() if "error: " in line]
    if ended.codes != (2,) or len(lines) != 1 or "Traceback" in ended.text:
        wrong.append(f"exit code {ended.codes}, {len(lines)} lines of error: {ended.text[-2000:]}")
    elif "output" not in lines[0] or named not in lines[0]:
        wrong.append(f"the line does not say enough: {lines[0]}")
    from vidtwin.files import damaged_file

    for checkpoint in (box.output / "checkpoints").glob("step_*"):
        record = json.loads((checkpoint / "progress.json").read_text())
        if damage := damaged_file(checkpoint, record["files"]):
            wrong.append(f"{checkpoint.name}: {damage}")
    return wrong


def _no_mounts(folder: Path) -> str | None:
    """Why no disk can be mounted here; None if one can."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        return "mounting a disk needs root"
    place = folder / "try"
    place.mkdir()
    ended = subprocess.run(
        ["mount", "-t", "tmpfs", "tmpfs", place], check=False, capture_output=True, text=True
    )
    if ended.returncode:
        return f"mounting is not allowed: {ended.stderr.strip()}"
    _run("umount", place)
    return None


def _run(*words: str | Path) -> None:
    subprocess.run(list(map(str, words)), check=True, capture_output=True)
