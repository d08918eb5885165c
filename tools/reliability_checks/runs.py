"""Runs of the scripts in processes that are forked once all is imported.

Importing takes seconds, and the work of a debug config a second: a parent imports what the scripts
do, and every run is a fork of it. Nothing is computed in the parent. The runs that others are
compared with are started as a user starts them, so that a fork that computed something else
would be found.

A child can be made to kill itself before its n-th file-system event, or some time after a mark in
its work; what it went through is noted beside its folder.
"""

from __future__ import annotations

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from reliability_checks import hooks

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "passive",
    "CUDA_VISIBLE_DEVICES": "",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONDONTWRITEBYTECODE": "1",
}
TIMEOUT = 300.0  # seconds of one run
NEVER_EQUAL = ("samples_per_second", "data_wait", "memory_gib")

# Two batches an epoch, so that the run ends in its third; two checkpoints are kept of three.
TRAINING = ("steps=6", "save_every=2", "validate_every=3", "log_every=1", "keep_checkpoints=2",
            "num_workers=0", "optimizer.warmup_steps=2")  # fmt: skip
SCRIPTS: dict[str, tuple[str, ...]] = {
    "train_ae": (
        *("--config", "configs/ae/shapes_debug.yaml", *TRAINING, "data.shapes.size=4"),
        *("loss.discriminator_start=1", "validation_samples=2", "model.num_frames=4"),
    ),
    "train_diffusion": (
        *("--config", "configs/diffusion/shapes_debug.yaml", *TRAINING, "data.shapes.size=4"),
        *("batch_size=2", "validation_samples=2", "validation_batch_size=2", "stats_samples=2"),
        *("sample_classes=[growing]", "sample_steps=1"),
    ),
    "train_language": (
        *("--config", "configs/language/shapes_bert_debug.yaml", *TRAINING, "batch_size=4"),
        *("validation_samples=4", "validation_batch_size=2", "overfit=8"),
        *("tokenizer.train_texts=50", "tokenizer.vocabulary_size=100"),
    ),
    "encode": (
        *("--config", "configs/encode/shapes_debug.yaml", "max_samples=6", "shard_size=2"),
        *("max_validation_samples=2", "batch_size=2"),
    ),
}


@dataclass(frozen=True)
class Ended:
    """How a run ended.

    Attributes:
        codes: exit code of each process; minus the signal's number of one that was killed.
        seconds: from the start to the end.
        notes: what each process went through, see `hooks.install`.
    """

    codes: tuple[int, ...]
    seconds: float
    text: str
    notes: tuple[list[dict[str, Any]], ...] = ()

    @property
    def killed(self) -> bool:
        return -signal.SIGKILL in self.codes

    @property
    def done(self) -> bool:
        return not any(self.codes)


@dataclass
class Box:
    """A folder in which a script runs again and again, as in one folder of a user.

    Attributes:
        path: current folder of the script; it writes to `output` in it and temporary files to
            `temporary`.
    """

    path: Path
    script: str
    options: Sequence[str] = ()
    processes: int = 1
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def output(self) -> Path:
        return self.path / "output"

    @property
    def words(self) -> list[str]:
        """The arguments of the script."""
        words = [*SCRIPTS[self.script], "output=output", *self.options]
        words[1] = str(ROOT / words[1])
        return words

    def make(self) -> Box:
        (self.path / "temporary").mkdir(parents=True)
        return self

    def start(self, plans: Sequence[dict[str, Any]] = ()) -> list[int]:
        """Forks the processes of a run; the plan of each is what `hooks.install` takes."""
        count = self.processes
        many = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
        many |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
        started = []
        for rank in range(count):
            environment = {"ACCELERATE_USE_CPU": "true"}
            if count > 1:
                environment = {**many, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            plan = plans[rank] if rank < len(plans) else {}
            (self.path / f"text{rank}").touch()  # a process may be killed before it writes
            child = os.fork()
            if not child:
                self._be_script(rank, environment, plan)
            started.append(child)
        return started

    def run(self, plans: Sequence[dict[str, Any]] = (), grace: float = 0.0) -> Ended:
        """A run to its end; `grace` seconds after one process has failed, the others are killed."""
        return self.wait(self.start(plans), grace)

    def wait(self, children: Sequence[int], grace: float, timeout: float = TIMEOUT) -> Ended:
        """The end of what `start` started; what runs for too long is killed."""
        began, codes = time.monotonic(), dict.fromkeys(children)
        failed: float | None = None
        left, late = set(children), False
        while left:
            for child in list(left):
                ended, status = os.waitpid(child, os.WNOHANG)
                if ended:
                    left.discard(child)
                    codes[child] = os.waitstatus_to_exitcode(status)
                    _kill_group(child)  # its own workers
                    if codes[child]:
                        failed = failed or time.monotonic()
            if failed is not None and time.monotonic() >= failed + grace:
                for child in left:
                    _kill_group(child)
            if time.monotonic() - began > timeout and not late:
                late = True
                for child in left:
                    _kill_group(child)
            time.sleep(0.002)
        text = "".join(
            (self.path / f"text{rank}").read_text(errors="replace")
            for rank in range(self.processes)
        )
        if late:
            text += f"\nkilled after {timeout:.0f} s"
        notes = tuple(_read_notes(self.path / f"notes{rank}") for rank in range(self.processes))
        ends = tuple(int(code or 0) for code in codes.values())
        return Ended(ends, time.monotonic() - began, text, notes)

    def run_as_users_do(self) -> Ended:
        """A run in a new python."""
        launcher = [str(ROOT / f"{self.script}.py")]
        environment = {**os.environ, **ENVIRONMENT, **self.environment}
        environment |= {"TMPDIR": str(self.path / "temporary")}
        if self.processes > 1:
            torchrun = "-m torch.distributed.run --standalone --nproc_per_node"
            launcher = [*torchrun.split(), str(self.processes), *launcher]
        else:
            environment |= {"ACCELERATE_USE_CPU": "true"}
        began = time.monotonic()
        ended = subprocess.run(
            [sys.executable, *launcher, *self.words], cwd=self.path, env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=TIMEOUT,
        )  # fmt: skip
        return Ended((ended.returncode,), time.monotonic() - began, ended.stdout)

    def _be_script(self, rank: int, environment: dict[str, str], plan: dict[str, Any]) -> None:
        code = 1
        try:
            os.setsid()  # to be killed with its own processes
            target = os.open(self.path / f"text{rank}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
            for descriptor in (1, 2):
                os.dup2(target, descriptor)
            os.environ |= {**environment, **self.environment}
            os.environ["TMPDIR"], tempfile.tempdir = str(self.path / "temporary"), None
            os.chdir(self.path)
            script = str(ROOT / f"{self.script}.py")
            sys.argv = [script, *self.words]
            hooks.install(plan, self.path / f"notes{rank}", self.script)
            runpy.run_path(script, run_name="__main__")
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def contents(self) -> dict[str, Any]:
        """All files that a run has left, by path, without what is about time and memory."""
        found = {}
        for folder in (self.output, self.path / "temporary"):
            for path in sorted(folder.rglob("*")):
                name = str(path.relative_to(self.path))
                found[name] = None if path.is_dir() else comparable(path)
        return found


def comparable(path: Path) -> Any:
    """The bytes of a file; of a log its records without what is about time and memory.

    Of a video the shape: libx264 reads memory that nobody wrote where the width is not a multiple
    of 128, and the same frames become other bytes.
    """
    if path.suffix == ".mp4":
        import av

        with av.open(str(path)) as container:
            return [frame.to_ndarray().shape for frame in container.decode(video=0)]
    if path.name != "metrics.jsonl":
        return path.read_bytes()
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return [
        {key: value for key, value in record.items() if key not in NEVER_EQUAL}
        for record in records
    ]


def differences(expected: dict[str, Any], came: dict[str, Any]) -> tuple[list[str], list[str]]:
    """What differs from the expected contents, and what should not be there at all."""
    wrong = [f"{name} is missing" for name in expected.keys() - came.keys()]
    wrong += [f"{name} differs" for name in expected if came.get(name) != expected[name]
              and name in came]  # fmt: skip
    return sorted(wrong), sorted(came.keys() - expected.keys())


def preload() -> None:
    """Imports what the scripts import, in this process, and nothing else."""
    os.environ |= ENVIRONMENT
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(ROOT))
    # ruff: noqa: F401
    import diffusion.cache_writer
    import diffusion.pipeline
    import diffusion.schedulers
    import diffusion.training
    import vidtwin.building
    import vidtwin.media
    import vidtwin.metrics
    import vidtwin_lab.language.training
    import vidtwin_lab.runtime.run

    hooks.check(SCRIPTS)


@contextmanager
def workers(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that fork runs; to be used after `preload`."""
    with ProcessPoolExecutor(jobs, mp_context=get_context("fork")) as executor:
        yield executor


@contextmanager
def new_box(folder: Path, script: str, *options: str, processes: int = 1) -> Iterator[Box]:
    """A box that is removed afterwards."""
    path = Path(tempfile.mkdtemp(dir=folder))
    try:
        yield Box(path, script, options, processes).make()
    finally:
        shutil.rmtree(path)


def _kill_group(process: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)
        return
    with suppress(ProcessLookupError):  # it has not yet made its group, or it is gone
        os.kill(process, signal.SIGKILL)


def _read_notes(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]


def _free_port() -> int:
    from torch.distributed.elastic.utils.distributed import get_free_port

    return int(get_free_port())
