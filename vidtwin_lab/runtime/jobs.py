"""Calls of scripts that are kept when they are finished, and shared by several terminals.

Each job writes its own files. A lock that the called script holds too tells other terminals that
it is being done, also when the terminal that started it was killed and the script was not.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from vidtwin.files import write_json

WAIT = 3.0  # seconds until a job of another terminal is asked for again
_TAIL = 4096  # bytes of a log in which its last words are looked for


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One call of a script, or of a function.

    Args:
        name: STAGE/NAME.
        script: the script and its first words.
        fixed: arguments that the result follows from; with others it is another result.
        free: arguments that say where files lie, or which of its parts are wanted.
        files: what is there when it is finished.
        needs: names of the jobs that must be finished before.
        make: done in this process instead of the script.
    """

    name: str
    script: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()
    free: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()
    needs: tuple[str, ...] = ()
    make: Callable[[], object] | None = None

    @property
    def command(self) -> list[str]:
        """The words of its command line."""
        return [sys.executable, *self.script, *self.fixed, *self.free]


class Jobs:
    """The jobs of a folder: jobs/NAME.json says that one is finished, logs/NAME.log what it said.

    Args:
        folder: of the results.
        jobs: in the order in which they are done.
        root: is put on the path that the scripts import from.
    """

    def __init__(self, folder: str | Path, jobs: Sequence[Job], root: Path) -> None:
        self.folder, self.root = Path(folder), root
        self.jobs = {job.name: job for job in jobs}

    def finished(self, job: Job) -> bool:
        """Whether a job is finished.

        Raises:
            ValueError: if it was done with other settings; names them.
        """
        record = self.record(job.name)
        if not record.get("finished"):
            return False
        changed = sorted(set(record["fixed"]) ^ set(job.fixed))
        if changed:
            raise ValueError(
                f"{job.name} of {self.folder} is the result of other settings, it differs in "
                f"{', '.join(changed)}; take the changes back, or choose another output=FOLDER"
            )
        return all(file.exists() for file in job.files)

    def record(self, name: str) -> dict[str, Any]:
        """What is known of a job: fixed, command, seconds, finished; nothing if never begun."""
        path = self._path(name, "json")
        if not path.is_file():
            return {}
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return record

    def describe(self, wanted: Sequence[str]) -> str:
        """A line for each job: finished or to do, and its command."""
        return "".join(
            f"{'finished' if self.finished(job) else 'to do':9}{job.name}: "
            f"{shlex.join(job.command[1:]) if job.make is None else 'done in this process'}\n"
            for job in map(self.jobs.__getitem__, wanted)
        )

    def run(self, wanted: Sequence[str], tell: Callable[[str], object] = print) -> None:
        """Does what is not finished of the wanted jobs; waits for those that others do.

        Raises:
            ValueError: if a script fails, with its last words; or what a job needs is neither
                finished nor wanted.
        """
        left = [self.jobs[name] for name in wanted]
        for job in left:
            lacking = [n for n in job.needs if n not in wanted and not self._there(n)]
            if lacking:
                raise ValueError(
                    f"{job.name} needs {', '.join(lacking)}, not finished in {self.folder}; do the "
                    "stage before it too"
                )
        while left:
            later = [job for job in left if not self._try(job, tell)]
            if len(later) == len(left):
                time.sleep(WAIT)  # another terminal is at work
            left = later

    def _try(self, job: Job, tell: Callable[[str], object]) -> bool:
        """Whether the job is finished now; False if its needs or itself are being done."""
        if self.finished(job):
            return True
        if not all(self._there(name) for name in job.needs):
            return False
        with self._locked(job.name) as lock:
            if lock is None:
                return False
            if not self.finished(job):  # another terminal may just have done it
                self._do(job, lock, tell)
        return True

    def _there(self, name: str) -> bool:
        job = self.jobs.get(name)
        return bool(self.record(name).get("finished")) if job is None else self.finished(job)

    def _do(self, job: Job, lock: IO[str], tell: Callable[[str], object]) -> None:
        tell(f"{time.strftime('%H:%M:%S')} {job.name}")
        before = self.record(job.name)
        start, done = time.monotonic(), False
        try:
            if job.make is not None:
                job.make()
            else:
                self._call(job, lock)
            done = True
        finally:
            spent = before.get("seconds", 0.0) if before.get("fixed") == [*job.fixed] else 0.0
            self._write(job, spent + time.monotonic() - start, done)
        missing = [file for file in job.files if not file.exists()]
        if missing:
            raise ValueError(f"{job.name} ended and left no {missing[0]}")

    def _call(self, job: Job, lock: IO[str]) -> None:
        log = self._path(job.name, "log")
        log.parent.mkdir(parents=True, exist_ok=True)
        paths = [str(self.root), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        with log.open("a", encoding="utf-8") as stream:
            print(f"$ {shlex.join(job.command)}", file=stream, flush=True)
            called = subprocess.Popen(
                job.command,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=environment,
                pass_fds=[lock.fileno()],  # a script that outlives this process keeps the lock
            )
            try:
                code = called.wait()
            except BaseException:
                called.terminate()
                called.wait()
                raise
        if code:
            raise ValueError(f"{job.name} failed ({last_words(log)}); see {log}")

    def _write(self, job: Job, seconds: float, done: bool) -> None:
        path = self._path(job.name, "json")
        record = {
            "finished": done,
            "seconds": round(seconds, 1),
            "fixed": list(job.fixed),
            "command": job.command[1:] if job.make is None else [],
        }
        write_json(path, record)

    @contextmanager
    def _locked(self, name: str) -> Iterator[IO[str] | None]:
        """The job's lock, or None where another process has it."""
        path = self._path(name, "lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
                return
            yield stream

    def _path(self, name: str, ending: str) -> Path:
        folder = "logs" if ending == "log" else "jobs"
        return self.folder / folder / f"{name.replace('/', '_')}.{ending}"


def last_words(log: Path) -> str:
    """The last "error: ..." of a log, or its last line."""
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - _TAIL))
        lines = stream.read().decode("utf-8", errors="replace").splitlines()
    told = [line.strip() for line in lines if line.strip()]
    errors = [line for line in told if "error:" in line.lower()]
    return (errors or told or ["it said nothing"])[-1]
