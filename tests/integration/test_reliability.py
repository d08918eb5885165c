"""Disks that fail in the middle of a run, signals in a validation, and kills by the sweep."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from script_runs import (
    assert_same_records,
    assert_same_weights,
    contents,
    records,
    run,
    run_python,
)

import diffusion.training
import vidtwin.files
import vidtwin.metrics
import vidtwin_lab.language.training
import vidtwin_lab.runtime.run
from vidtwin.files import damaged_file

COMMON = ("steps=4", "save_every=2", "validate_every=4", "log_every=1", "validation_samples=2",
          "num_workers=0", "optimizer.warmup_steps=1")  # fmt: skip
SCRIPTS: dict[str, tuple[str, ...]] = {
    "train_ae": ("--config", "configs/ae/shapes_debug.yaml", *COMMON),
    "train_diffusion": ("--config", "configs/diffusion/shapes_debug.yaml", *COMMON),
    "train_language": ("--config", "configs/language/shapes_bert_debug.yaml", *COMMON),
}

MEASURES = {
    "train_ae": (vidtwin.metrics, "measure_reconstructions"),
    "train_diffusion": (diffusion.training, "measure_losses"),
    "train_language": (vidtwin_lab.language.training, "measure_language_model"),
}


def full(patch: pytest.MonkeyPatch) -> str:
    """What torch meets on a full disk, whose error names neither disk nor folder."""
    save = torch.save
    patch.setattr(torch, "save", lambda what, _, **options: save(what, "/dev/full"))
    return "MB are free on its disk"


def read_only(patch: pytest.MonkeyPatch) -> str:
    """Everything that we write whole."""

    def refuse(_: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    patch.setattr(vidtwin.files, "_flush_to_disk", refuse)
    return "Read-only file system"


def gone(patch: pytest.MonkeyPatch) -> str:
    """The run folder without its lock: another disk, or none, lies there now."""
    for lock in vidtwin.files._held:
        lock.unlink()
    return "is gone, or is another than before"


def from_step(patch: pytest.MonkeyPatch, step: int, what: Callable[[], Any]) -> None:
    """Calls `what` once, when a step begins."""
    seed = vidtwin_lab.runtime.run.seed_step

    def seed_step(*place: int) -> None:
        if place[-1] == step:
            what()
        seed(*place)

    patch.setattr(vidtwin_lab.runtime.run, "seed_step", seed_step)


@pytest.fixture(scope="module", params=SCRIPTS)
def trained(request: Any, tmp_path_factory: Any) -> tuple[str, Path]:
    """A training script, and the folder of its whole run."""
    folder = tmp_path_factory.mktemp(request.param)
    run(request.param, *SCRIPTS[request.param], f"output={folder}").done()
    return request.param, folder


def assert_ends_as(whole: Path, script: str, folder: Path) -> None:
    """That the same command goes on and leaves what the whole run has left."""
    run(script, *SCRIPTS[script], f"output={folder}").done()
    assert_same_records(whole, folder)
    newest = "checkpoints/step_000000004/model.safetensors"
    assert_same_weights(whole / newest, folder / newest)
    assert contents(folder).keys() == contents(whole).keys()


@pytest.mark.parametrize("fail", [full, read_only, gone])
def test_a_failing_disk_ends_a_training_with_one_line(trained, tmp_path, monkeypatch, fail):
    script, whole = trained
    told = []
    with monkeypatch.context() as patch:
        from_step(patch, 2, lambda: told.append(fail(patch)))
        line = run(script, *SCRIPTS[script], f"output={tmp_path}").refused()
    assert str(tmp_path) in line
    assert told[0] in line
    (checkpoint,) = (tmp_path / "checkpoints").iterdir()
    assert checkpoint.name == "step_000000002"
    record = json.loads((checkpoint / "progress.json").read_text())
    assert damaged_file(checkpoint, record["files"]) is None
    assert_ends_as(whole, script, tmp_path)


def test_a_full_disk_ends_an_encoding_with_one_line(tmp_path, monkeypatch):
    options = ("--config", "configs/encode/shapes_debug.yaml", "max_samples=6", "shard_size=2",
               "max_validation_samples=2", "batch_size=2")  # fmt: skip
    run("encode", *options, f"output={tmp_path / 'whole'}").done()
    calls, save = [], np.save

    def save_some(path: Path, array: np.ndarray, **options: Any) -> None:
        calls.append(path)
        if len(calls) < 6:  # the second shard's last
            return save(path, array, **options)
        with open("/dev/full", "wb") as disk:
            save(disk, array, **options)

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", save_some)
        line = run("encode", *options, f"output={tmp_path / 'full'}").refused()
    assert "MB are free on its disk" in line
    assert str(tmp_path / "full" / "train") in line
    assert len(list((tmp_path / "full" / "train" / "shards").iterdir())) == 1
    run("encode", *options, f"output={tmp_path / 'full'}").done()
    assert contents(tmp_path / "full") == contents(tmp_path / "whole")


@pytest.mark.parametrize("moment", ["before", "during"])
def test_a_validation_that_a_signal_meets_is_made_up_for(trained, tmp_path, monkeypatch, moment):
    script, whole = trained

    def stop() -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        if moment == "before":
            from_step(patch, 3, stop)
        else:
            module, name = MEASURES[script]
            measure = getattr(module, name)

            def measure_half(*arguments: Any, **options: Any) -> Any:
                measure(*arguments, **options)
                stop()

            patch.setattr(module, name, measure_half)
        ended = run(script, *SCRIPTS[script], f"output={tmp_path}")
    assert ended.code == 143
    newest = tmp_path / "checkpoints" / "step_000000004"
    assert f"terminated: saved {newest}; the same command goes on from there" in ended.err
    assert not any("validation/" in key for record in records(tmp_path) for key in record)
    assert_ends_as(whole, script, tmp_path)


def test_the_kill_sweep_finds_nothing():
    found = run_python("tools/reliability.py", "--quick", "--only", "kills_encode").done()
    assert re.search(r"(\d+) kills .*: \1 ended equal, 0 left litter", found)
