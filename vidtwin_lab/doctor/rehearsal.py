"""A few steps of a script with its own config, in a folder that is removed afterwards."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from vidtwin.files import root_folder
from vidtwin_lab import runtime
from vidtwin_lab.doctor.environment import GIB, available_memory
from vidtwin_lab.doctor.page import Page

STEPS = 3
# Of a training: nothing but its steps and one checkpoint.
BRIEF = (
    f"steps={STEPS}",
    f"save_every={STEPS}",
    f"validate_every={STEPS}",
    "log_every=1",
    "validation_samples=0",
    "keep_checkpoints=1",
    "tracker=none",
    "overfit=null",
    "optimizer.warmup_steps=0",
    "optimizer.warmup_start=0",
)


class Script(NamedTuple):
    """A script whose config the doctor knows.

    Args:
        config: name of the class in it.
        folder: of its configs below configs/.
        brief: further overrides that leave nothing but a few steps.
    """

    config: str
    folder: str
    brief: tuple[str, ...]


SCRIPTS = {
    # The discriminator from the first step on: most runs have it nearly all the time.
    "train_ae": Script(
        "TrainConfig",
        "ae",
        (
            *BRIEF,
            "loss.discriminator_start=0",
            "discriminator_optimizer.warmup_steps=0",
            "discriminator_optimizer.warmup_start=0",
        ),
    ),
    "train_diffusion": Script(
        "TrainConfig",
        "diffusion",
        (*BRIEF, "stats_samples=8", "sample_prompts=[]", "sample_classes=[]"),
    ),
    "train_language": Script("TrainConfig", "language", BRIEF),
    "encode": Script("EncodeConfig", "encode", ("parts=[train]",)),
}


def find_config(path: str, overrides: Sequence[str], script: str | None) -> tuple[str, Any]:
    """The script that a config is for, and the config.

    Args:
        script: its name, where the config alone does not tell.
    Raises:
        ConfigError: what is wrong with it.
    """
    found: dict[str, Any] = {}
    errors: dict[str, runtime.ConfigError] = {}
    for name in (script,) if script else SCRIPTS:
        try:
            found[name] = runtime.load_config(_config_class(name), path, overrides)
        except runtime.ConfigError as error:
            errors[name] = error
    folders = Path(path).absolute().parts
    named = [name for name, each in SCRIPTS.items() if each.folder in folders]
    chosen = [name for name in named if name in found] or list(found)
    if len(chosen) == 1 or (chosen and named):
        return chosen[0], found[chosen[0]]
    if chosen:
        raise runtime.ConfigError(f"{path} suits {' and '.join(chosen)}; say which with --script")
    raise errors[next((name for name in named if name in errors), next(iter(errors)))]


def _config_class(script: str) -> type:
    """The config class of a script, which is loaded for it and not run."""
    name = f"vidtwin_script_{script}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, root_folder() / f"{script}.py")
        assert spec is not None and spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    found: type = getattr(sys.modules[name], SCRIPTS[script].config)
    return found


def rehearse(
    page: Page, script: str, file: str, overrides: Sequence[str], config: Any, timeout: float
) -> None:
    """Runs a few steps, and tells what they took and what the whole run will.

    Args:
        config: of the `file` with the overrides.
        timeout: seconds for all of it.
    """
    page.begin(f"A few steps of {script}.py")
    steps = _Steps(script, config)
    with _beside(Path(config.output)) as folder:
        output, record = folder / "run", folder / "peaks.json"
        words = [*overrides, *SCRIPTS[script].brief, *steps.brief, f"output={output}"]
        command = [
            sys.executable,
            "-m",
            "vidtwin_lab.doctor.measured",
            str(record),
            str(root_folder() / f"{script}.py"),
            "--config",
            file,
            *words,
        ]
        # Of a checkout that is not installed, too.
        path = filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")])
        began = time.perf_counter()
        try:
            ended = subprocess.run(
                command,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout,
                check=False,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
            )
        except subprocess.TimeoutExpired:
            page.fault(
                "steps",
                f"not done in {timeout:.0f} s",
                "a smaller batch_size or model, or more patience: --timeout SECONDS",
            )
            return
        if ended.returncode:
            page.fault("steps", *_diagnosis(ended, config))
            return
        seconds = time.perf_counter() - began
        peaks = json.loads(record.read_text(encoding="utf-8"))
        _tell_memory(page, peaks)
        steps.tell(page, output, seconds)


@contextmanager
def _beside(output: Path) -> Iterator[Path]:
    """An empty folder on the disk of the results, that is removed in the end."""
    parent = next(each for each in output.absolute().parents if each.is_dir())
    folder = Path(tempfile.mkdtemp(prefix=".vidtwin_doctor_", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _diagnosis(ended: subprocess.CompletedProcess[str], config: Any) -> tuple[str, str]:
    """What went wrong, and its cure."""
    lines = [line.strip() for line in ended.stderr.splitlines() if line.strip()]
    told = next((line for line in reversed(lines) if line.startswith("error: ")), "")
    last = told.removeprefix("error: ") or (lines[-1] if lines else "no word of it")
    less = f"lower batch_size (now {config.batch_size})"
    if hasattr(config, "accumulation"):
        less += ", raise accumulation, or set gradient_checkpointing=true"
    if "out of memory" in ended.stderr.lower():
        return f"the GPU's memory is too small: {last}", less
    if ended.returncode in (-9, 137):
        return "killed by the system: most likely the memory is too small", less
    if told:
        return last, "change what the message names"
    return f"a failure of the program (exit code {ended.returncode}): {last}", (
        "run the script itself for the whole message, and report it"
    )


def _tell_memory(page: Page, peaks: dict[str, int]) -> None:
    text = f"{peaks['memory'] / GIB:.1f} GiB"
    if peaks["worker_memory"]:
        text += f", and up to {peaks['worker_memory'] / GIB:.1f} GiB for each process that reads"
    if "gpu_memory" in peaks:
        text += f"; {peaks['gpu_memory'] / GIB:.1f} GiB of the GPU"
    if peaks["memory"] > available_memory():
        page.fault(
            "memory",
            f"{text}, more than the {available_memory() / GIB:.1f} GiB that are free",
            "end other programs, or lower batch_size",
        )
    else:
        page.tell("memory", text, **peaks)


class _Steps:
    """How long a script's steps take, by what it has left in its folder."""

    def __init__(self, script: str, config: Any) -> None:
        self.encodes, self.config = script == "encode", config
        size = getattr(config, "batch_size", 1)
        # A shard for each batch, whose times tell how long it took.
        shards = (f"max_samples={STEPS * size}", f"shard_size={size}", "variants=1")
        self.brief = (*shards, "caption_variants=1") if self.encodes else ()

    def tell(self, page: Page, output: Path, seconds: float) -> None:
        """Tells of the time of a step, of the whole run, and of the disk that it needs."""
        if self.encodes:
            self._tell_encoding(page, output, seconds)
        else:
            self._tell_training(page, output)

    def _tell_training(self, page: Page, output: Path) -> None:
        config = self.config
        lines = (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        last = json.loads(lines[-1])
        each = config.batch_size / last["samples_per_second"]
        text = f"{each:.3g} s each, {last['samples_per_second']:.3g} samples/s"
        page.tell("steps", f"{text}, {last['data_wait']:.0%} of it waiting for data", seconds=each)
        if last["data_wait"] > 0.5 and each > 0.05:
            page.fault(
                "reading",
                f"{last['data_wait']:.0%} of a step is waiting for clips",
                f"raise num_workers (now {config.num_workers}), or shrink the videos beforehand",
            )
        total = each * config.steps
        page.tell(
            "the run",
            f"about {duration(total)} for {config.steps:,} steps on one process; "
            "validation and checkpoints come on top",
            seconds=total,
        )
        size = sum(f.stat().st_size for f in (output / "checkpoints").rglob("*") if f.is_file())
        kept = config.keep_checkpoints or -(-config.steps // config.save_every)
        others = sum(f.stat().st_size for f in output.rglob("*") if f.is_file()) - size
        _tell_disk(
            page,
            size * (kept + 1) + others,
            output,
            f"{kept} checkpoints of "
            f"{size / GIB:.2f} GiB, one more while it is written, and the weights",
        )

    def _tell_encoding(self, page: Page, output: Path, seconds: float) -> None:
        written = {file.parent: file.stat().st_mtime for file in (output / "train").rglob("*.npy")}
        times = sorted(written.values())
        if len(times) < 2:
            page.tell("steps", f"all of it in {seconds:.0f} s with start and end", seconds=seconds)
            return
        each = (times[-1] - times[0]) / (len(times) - 1) / self.config.batch_size
        page.tell(
            "steps", f"{each:.3g} s a clip, in batches of {self.config.batch_size}", seconds=each
        )
        clips = json.loads((output / "train" / "manifest.json").read_text(encoding="utf-8"))
        size = clips["bytes"] / max(clips["rows"], 1)
        page.tell(
            "the cache",
            f"{size / 1e3:,.0f} kB and {each:.3g} s for each clip and variant; "
            "--dry-run of encode.py says how many there are",
        )


def _tell_disk(page: Page, needed: int, output: Path, what: str) -> None:
    free = shutil.disk_usage(output).free
    text = f"{needed / GIB:.2f} GiB: {what}"
    if needed > free:
        page.fault(
            "disk",
            f"{text}; {free / GIB:.2f} GiB are free",
            "free some, lower keep_checkpoints, or name another folder: output=FOLDER",
        )
    else:
        page.tell("disk", text, needed=needed, free=free)


def duration(seconds: float) -> str:
    """Seconds as one would say them."""
    for size, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {name}"
    return f"{seconds:.0f} seconds"
