"""Runs the scripts as their users do, and reads what a run leaves in its folder.

`run` takes the process of the tests. What is about processes gets its own: `run_apart` and
`run_until` fork them off a server that has imported what the scripts import, which takes seconds,
once for all tests. `run_python` starts python itself, for what only a new python shows.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import json
import multiprocessing
import os
import random
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch.distributed.elastic.utils.distributed import get_free_port
from torch.multiprocessing import (
    ProcessContext,
    ProcessExitedException,
    ProcessRaisedException,
    start_processes,
)

ROOT = Path(__file__).resolve().parents[2]
# With small models more threads only wait for each other, and their number changes bits.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
TIMEOUT = 500.0  # seconds of one run
NEVER_EQUAL = {"samples_per_second", "data_wait", "memory_gib"}


class Ended(NamedTuple):
    """How a run ended: exit code, standard output and standard error, of all its processes."""

    code: int
    out: str
    err: str

    def done(self) -> str:
        """What a run that must succeed wrote to standard output."""
        assert self.code == 0, f"exit code {self.code}: {self.out[-2000:]}\n{self.err[-4000:]}"
        return self.out

    def refused(self) -> str:
        """The one line of error of a run that must not take its input."""
        lines = [line for line in self.err.splitlines() if "error: " in line]
        assert self.code == 2, f"exit code {self.code}: {self.err[-4000:]}"
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err
        return lines[0]


def run(script: str, *arguments: object, folder: Path = ROOT) -> Ended:
    """Runs a script in this process, on one thread of the CPU.

    Args:
        script: its name, without the ending.
        folder: the current folder meanwhile.
    """
    path = str(ROOT / f"{script}.py")
    out, err = io.StringIO(), io.StringIO()
    threads, code = torch.get_num_threads(), 0
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("ACCELERATE_USE_CPU", ENVIRONMENT["ACCELERATE_USE_CPU"])
        patch.setattr(sys, "argv", [path, *map(str, arguments)])
        torch.set_num_threads(1)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                runpy.run_path(path, run_name="__main__")
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            torch.set_num_threads(threads)
            AcceleratorState._reset_state(reset_partial_state=True)
    return Ended(code, out.getvalue(), err.getvalue())


def run_apart(
    script: str,
    *arguments: object,
    processes: int = 1,
    folder: Path = ROOT,
    environment: dict[str, str] | None = None,
) -> Ended:
    """Runs a script in a process of its own, or in several as torchrun starts them."""
    deadline = time.monotonic() + TIMEOUT
    with _started(script, arguments, processes, folder, environment) as (context, outputs):
        code, trace = 0, ""
        try:
            while not context.join(timeout=max(0.0, deadline - time.monotonic())):
                assert time.monotonic() < deadline, f"{script} takes more than {TIMEOUT} s"
        except ProcessRaisedException as error:
            code, trace = 1, str(error)
        except ProcessExitedException as error:
            code = error.exit_code
        out, err = (
            "".join((outputs / f"{name}{rank}").read_text() for rank in range(processes))
            for name in ("out", "err")
        )
    return Ended(code, out, err + trace)


def run_until(
    ready: Callable[[], bool],
    script: str,
    *arguments: object,
    processes: int = 1,
    folder: Path = ROOT,
    environment: dict[str, str] | None = None,
) -> None:
    """Runs a script in processes of its own and kills them as soon as `ready` is true."""
    deadline = time.monotonic() + TIMEOUT
    with _started(script, arguments, processes, folder, environment) as (context, outputs):
        while not ready():
            alive = all(process.is_alive() for process in context.processes)
            assert alive, "it ended too soon: " + (outputs / "err0").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.002)


def run_python(
    *words: object, folder: Path = ROOT, environment: dict[str, str] | None = None
) -> Ended:
    """Runs a command line of python, as a shell would."""
    with subprocess.Popen(
        [sys.executable, *map(str, words)],
        cwd=folder,
        env={**os.environ, **ENVIRONMENT, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=TIMEOUT)
        except BaseException:
            os.killpg(process.pid, signal.SIGTERM)  # on which launchers end what they started
            raise
    return Ended(process.returncode, out, err)


@functools.cache
def _start_server() -> None:
    """The process from which the others are forked: it has imported and computed nothing else."""
    # What the scripts import once their arguments are right.
    used = ["vidtwin.building", "diffusion.training", "vidtwin_lab.runtime.run"]
    used += ["vidtwin_lab.language.training", "vidtwin_lab.evaluation.report", "script_runs"]
    multiprocessing.get_context("forkserver").set_forkserver_preload(used)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        for folder in (ROOT, Path(__file__).parent):
            patch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
        forkserver.ensure_running()


@contextlib.contextmanager
def _started(
    script: str,
    arguments: tuple[object, ...],
    processes: int,
    folder: Path,
    environment: dict[str, str] | None = None,
) -> Iterator[tuple[ProcessContext, Path]]:
    """The processes of a script, and the folder of what they write; in the end they are killed."""
    _start_server()
    command = [str(ROOT / f"{script}.py"), *map(str, arguments)]
    port = get_free_port() if processes > 1 else None
    with tempfile.TemporaryDirectory() as outputs:
        # One that is ended because another has failed may not have begun to write.
        for name, rank in itertools.product(("out", "err"), range(processes)):
            (Path(outputs) / f"{name}{rank}").touch()
        context = start_processes(
            _be_script,
            (processes, port, command, str(folder), outputs, environment or {}),
            nprocs=processes,
            join=False,
            start_method="forkserver",
        )
        try:
            yield context, Path(outputs)
        finally:
            for process in context.processes:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.kill()
                process.join()


def _be_script(
    rank: int,
    processes: int,
    port: int | None,
    command: list[str],
    folder: str,
    outputs: str,
    environment: dict[str, str],
) -> None:
    """What a process of `_started` does."""
    os.setsid()  # to be killed with its own processes
    multiprocessing.set_start_method(None, force=True)  # as in a process that was not forked
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{outputs}/{name}{rank}", os.O_CREAT | os.O_WRONLY), descriptor)
    if processes > 1:
        of_all = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
        of_one = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        os.environ |= of_all | of_one | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        # Which torchrun does not set, and most users neither.
        os.environ.pop("ACCELERATE_USE_CPU", None)
    os.environ |= environment
    os.chdir(folder)
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")


def train_killed_and_again(
    script: str, folder: Path, *options: object, steps: int
) -> tuple[Path, Path]:
    """The folders of a training that nothing disturbed, and of one that was killed at some step.

    Run again, the second has logged what the first has. The options must log every step.
    """
    whole, killed = folder / "whole", folder / "killed"
    options = (*options, f"steps={steps}")
    run_apart(script, *options, f"output={whole}").done()
    log, stop_at = killed / "metrics.jsonl", random.randint(2, steps - 2)
    run_until(
        lambda: log.exists() and len(log.read_text().splitlines()) >= stop_at,
        *(script, *options, f"output={killed}"),
    )
    assert not (killed / "checkpoints" / f"step_{steps:09d}").exists()
    run_apart(script, *options, f"output={killed}").done()
    assert [record["step"] for record in records(killed)] == list(range(1, steps + 1))
    assert_same_records(whole, killed)
    return whole, killed


def train_on_one_and_two(script: str, folder: Path, *options: object) -> tuple[Path, Path]:
    """The folders of a training in one process, and of the same in two, which logs the same."""
    one, two = folder / "one", folder / "two"
    run(script, *options, f"output={one}").done()
    run_apart(script, *options, f"output={two}", processes=2).done()
    newest = max((two / "checkpoints").iterdir())
    assert read_json(newest / "progress.json")["num_processes"] == 2
    assert_same_records(one, two, rel=2e-4, abs=2e-5)
    return one, two


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def records(folder: Path) -> list[dict[str, Any]]:
    """What a run logged, line by line."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_same_records(one: Path, other: Path, rel: float = 0.0, abs: float = 0.0) -> None:
    """That two runs logged the same, but for what is about time and memory."""
    for first, second in zip(records(one), records(other), strict=True):
        assert first.keys() == second.keys()
        for key in first.keys() - NEVER_EQUAL:
            where = f"{key} in step {first['step']}"
            assert second[key] == pytest.approx(first[key], rel=rel, abs=abs), where


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of all files of a folder, by their paths in it."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def weights(path: Path) -> dict[str, torch.Tensor]:
    """The weights in a file, or in all such files of a model's folder."""
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    found = [load_file(file) for file in files]
    together = {key: value for part in found for key, value in part.items()}
    assert together and len(together) == sum(map(len, found)), f"{path}: none, or named alike"
    return together


def assert_same_weights(one: Path, other: Path, rtol: float = 0.0, atol: float = 0.0) -> None:
    expected, came = weights(one), weights(other)
    assert expected.keys() == came.keys()
    for key, value in expected.items():
        torch.testing.assert_close(
            came[key], value, rtol=rtol, atol=atol, msg=lambda text, key=key: f"{key}: {text}"
        )


def read_back(path: Path) -> tuple[np.ndarray, float]:
    """(T, H, W, 3) uint8 frames of a video, and its frames per second."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        rate = float(stream.average_rate or 0)
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    return np.stack(frames), rate
