"""Damaged checkpoints: found by their sums, named, and passed over."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from vidtwin_lab.runtime import (
    DamagedCheckpointError,
    EMAConfig,
    NonFiniteGuard,
    RunFolder,
    resume,
    save_config,
)
from vidtwin_lab.runtime.processes import write_frozen

FILES = ("model.safetensors", "optimizer.bin", "custom_checkpoint_0.pkl", "random_states_0.pkl",
         "config.yaml", "progress.json")  # fmt: skip


def cut(size: int) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.write_bytes((path.read_bytes() * 200)[:size])

    return damage


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {"empty": cut(0), "5000": cut(5000), "flipped": flip, "missing": os.unlink}


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[SimpleNamespace, Path]:
    """A run with two checkpoints, of weights 1 and 2."""
    path = tmp_path_factory.mktemp("run")
    accelerator = Accelerator(cpu=True)
    model = nn.Linear(20, 20)
    optimizer = torch.optim.AdamW(model.parameters())
    model, optimizer = accelerator.prepare(model, optimizer)
    accelerator.register_for_checkpointing(NonFiniteGuard())
    folder = RunFolder(path)
    folder.checkpoints.config = EMAConfig()
    for step in (1, 2):
        nn.init.constant_(model.weight, step)
        folder.checkpoints.save(accelerator, step)
    return SimpleNamespace(accelerator=accelerator, weight=model.weight), path


@pytest.fixture
def copy(written, tmp_path) -> tuple[SimpleNamespace, RunFolder]:
    run, path = written
    shutil.copytree(path, tmp_path / "run")
    nn.init.zeros_(run.weight)
    return run, RunFolder(tmp_path / "run")


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_checkpoint_is_named_and_passed_over(copy, caplog, file, damage):
    run, folder = copy
    newest = folder.checkpoints.path / "step_000000002"
    DAMAGES[damage](newest / file)
    with pytest.raises(DamagedCheckpointError, match=rf"step_000000002 is damaged: {file} "):
        resume(run.accelerator, folder, None, refuse_damaged=True)
    assert not run.weight.any()
    with caplog.at_level(logging.WARNING):
        assert resume(run.accelerator, folder, None) == 1
    assert (run.weight == 1).all()
    assert f"step_000000002 is damaged: {file} " in caplog.text
    assert "going on from the checkpoint before it" in caplog.text
    names = ["step_000000001", "step_000000002.damaged"]
    assert sorted(os.listdir(folder.checkpoints.path)) == names
    # Once the run has passed it, it goes.
    folder.checkpoints.keep = 1
    folder.checkpoints.save(run.accelerator, 2)
    assert os.listdir(folder.checkpoints.path) == ["step_000000002"]


def test_a_run_without_a_whole_checkpoint_is_refused_not_begun_anew(copy):
    run, folder = copy
    for checkpoint in folder.checkpoints.all():
        flip(checkpoint / "model.safetensors")
    with pytest.raises(DamagedCheckpointError, match=r"model.saf.*none before it is whole"):
        resume(run.accelerator, folder, None)
    assert not run.weight.any()
    assert len(folder.checkpoints.all()) == 2


def test_another_runs_damaged_checkpoint_stays_where_it_is(copy, tmp_path, caplog):
    run, folder = copy
    newest = folder.checkpoints.path / "step_000000002"
    flip(newest / "optimizer.bin")
    other = RunFolder(tmp_path / "other")
    assert resume(run.accelerator, other, str(folder.path)) == 1
    assert newest.is_dir()
    assert "optimizer.bin" in caplog.text
    with pytest.raises(DamagedCheckpointError, match=r"optimizer\.bin"):
        resume(run.accelerator, other, str(newest))


@pytest.mark.parametrize("file", FILES[:-1])
def test_a_checkpoint_without_sums_loads_and_its_damage_is_one_line(copy, file):
    run, folder = copy
    newest = folder.checkpoints.path / "step_000000002"
    (newest / "progress.json").write_text(json.dumps({"step": 2, "num_processes": 1}))
    assert folder.checkpoints.load(run.accelerator, newest) == 2
    assert (run.weight == 2).all()
    cut(0)(newest / file)
    if file != "config.yaml":
        with pytest.raises(ValueError, match=r"step_000000002 (can't be read|does not fit)"):
            folder.checkpoints.load(run.accelerator, newest)


class Saved:
    def save_pretrained(self, folder: Path) -> None:
        (folder / "trained").mkdir()
        (folder / "trained" / "weights").write_text("first")
        (folder / "frozen").write_text("frozen")


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_frozen_parts_are_written_again(tmp_path, caplog, damage):
    folder = tmp_path / "pipeline"
    write_frozen(folder, Saved(), "trained")
    (folder / "trained" / "weights").write_text("later")
    write_frozen(folder, Saved(), "trained")
    assert (folder / "trained" / "weights").read_text() == "later"
    assert not caplog.records
    DAMAGES[damage](folder / "frozen")
    write_frozen(folder, Saved(), "trained")
    assert (folder / "frozen").read_text() == "frozen"
    assert "pipeline again: frozen " in caplog.text
    assert sorted(os.listdir(tmp_path)) == ["pipeline", "pipeline.sha256"]


def test_a_run_folder_keeps_no_litter_of_killed_writers(tmp_path):
    for name in (".pipeline.writing", ".autoencoder.old", "checkpoints/.step_000000001.writing",
                 "pipeline/.transformer.writing"):  # fmt: skip
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / ".config.yaml.77.partial").touch()
    (tmp_path / "videos" / "validation").mkdir(parents=True)
    (tmp_path / "videos" / "validation" / ".first.mp4.77.partial").touch()
    RunFolder(tmp_path).claim(EMAConfig())
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        *("autoencoder", "checkpoints", "config.yaml", "pipeline", "validation", "videos"),
    ]


def test_a_run_folder_that_was_killed_before_its_oldest_checkpoint_went(tmp_path):
    """Run again, it has nothing more to save, and yet keeps no more than it may."""
    for step in (2, 4, 6):
        folder = tmp_path / "checkpoints" / f"step_{step:09d}"
        folder.mkdir(parents=True)
        (folder / "progress.json").write_text(json.dumps({"step": step}))
    run = RunFolder(tmp_path, keep=2)
    save_config(EMAConfig(), run.config_path)
    run.claim(EMAConfig())
    assert [path.name for path in run.checkpoints.all()] == ["step_000000004", "step_000000006"]
