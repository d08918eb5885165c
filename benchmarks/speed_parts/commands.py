"""Commands of the repository as processes of their own, with what they took."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from vidtwin.files import root_folder

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}


@dataclass(frozen=True)
class Ended:
    """A process that ended well: what it wrote, CPU seconds of all its threads, its peak."""

    output: str
    seconds: float
    peak: int


def start(arguments: Sequence[str]) -> subprocess.Popen[str]:
    """Starts Python on arguments in the repository's root, with one thread."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=root_folder(),
        env={**os.environ, **ONE_THREAD},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def end(process: subprocess.Popen[str]) -> Ended:
    """Waits for a process; it must end well."""
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stdout.close()
    if process.returncode:
        raise RuntimeError(f"{process.args} ended with {process.returncode}: {output}")
    return Ended(output, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def run(arguments: Sequence[str]) -> Ended:
    """Runs Python on arguments."""
    return end(start(arguments))
