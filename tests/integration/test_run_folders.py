"""Run folders that were damaged, are in use, or whose training was told to stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from script_runs import (
    ENVIRONMENT,
    ROOT,
    assert_same_records,
    assert_same_weights,
    contents,
    records,
    run,
    run_apart,
)

SCRIPTS = {
    "train_ae": ("configs/ae/shapes_debug.yaml", "autoencoder_ema"),
    "train_diffusion": ("configs/diffusion/shapes_debug.yaml", "pipeline/transformer"),
    "train_language": ("configs/language/shapes_bert_debug.yaml", "language_model"),
}


def options(script: str, output: Path) -> tuple[str, ...]:
    return ("--config", SCRIPTS[script][0], f"output={output}", "steps=6", "save_every=2",
            "log_every=1", "validation_samples=0", "num_workers=0",
            "optimizer.warmup_steps=2")  # fmt: skip


def change(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9] + b"!damaged!")


@pytest.mark.parametrize("script", SCRIPTS)
def test_damage_in_a_run_folder_is_named_and_mended(script, tmp_path):
    whole = run(script, *options(script, tmp_path / "run"))
    whole.done()
    before = contents(tmp_path / "run")
    exported = tmp_path / "run" / SCRIPTS[script][1]
    change(next(exported.glob("*.safetensors")))
    change(tmp_path / "run" / "checkpoints" / "step_000000006" / "model.safetensors")
    if script == "train_diffusion":
        change(tmp_path / "run" / "pipeline" / "autoencoder" / "config.json")
    again = run(script, *options(script, tmp_path / "run"))
    again.done()
    assert "Traceback" not in again.err
    after = contents(tmp_path / "run")
    assert after.keys() == before.keys()
    for name in before.keys() - {"metrics.jsonl"}:
        if name.endswith((".safetensors", "pipeline/autoencoder/config.json")):
            assert after[name] == before[name], name
    assert [record["step"] for record in records(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("script", [*SCRIPTS, "encode", "sample", "shards"])
def test_the_second_of_two_on_one_folder_is_refused(script, write_clips, tmp_path):
    folder = tmp_path / ("train" if script == "encode" else "")
    arguments: tuple[str, ...] = ("--config", "configs/encode/shapes_debug.yaml")
    arguments = (*arguments, f"output={tmp_path}", "max_samples=2")
    if script == "sample":
        arguments = ("--steps", "1", "--device", "cpu", "--output", str(tmp_path))
    if script == "shards":
        clips = write_clips(tmp_path / "clips", [4])
        arguments = (f"data.path={clips}", f"output={tmp_path}")
    if script in SCRIPTS:
        arguments = options(script, tmp_path)
    command = f"from vidtwin.files import folder_lock as lock; import pathlib, sys; \
lock(pathlib.Path({str(folder)!r})); print(flush=True); sys.stdin.read()"
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", command], cwd=ROOT, stdin=pipe, stdout=pipe
    ) as first:
        assert first.stdout is not None
        first.stdout.readline()
        (folder / "metrics.jsonl").write_text("whole\n")
        before = contents(tmp_path)
        line = run(script, *arguments).refused()
        assert f"is in use by process {first.pid} on " in line
        assert contents(tmp_path) == before
        first.communicate()
    (folder / "metrics.jsonl").unlink()
    run(script, *arguments).done()
    assert not list(tmp_path.rglob(".lock"))


@pytest.mark.parametrize(
    ("script", "number", "processes"),
    [
        ("train_ae", signal.SIGTERM, 1),
        ("train_ae", signal.SIGINT, 2),
        ("train_diffusion", signal.SIGINT, 1),
        ("train_language", signal.SIGTERM, 2),
    ],
)
def test_a_run_told_to_stop_saves_and_goes_on_bit_for_bit(script, number, processes, tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    many = [*options(script, whole), "steps=40", "save_every=1000", "num_workers=1"]
    run_apart(script, *many, processes=processes).done()
    many[2] = f"output={stopped}"
    log = stopped / "metrics.jsonl"
    command = [sys.executable, f"{script}.py", *many]
    if processes > 1:
        torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
        command[1:1] = torchrun
    with subprocess.Popen(
        command, cwd=ROOT, text=True, stderr=subprocess.PIPE, start_new_session=True,
        env={**os.environ, **ENVIRONMENT},
    ) as process:  # fmt: skip
        while not (log.exists() and len(log.read_text().splitlines()) >= 3):
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            time.sleep(0.01)
        os.killpg(process.pid, number)  # as a terminal and schedulers do
        told = time.time()
        err = process.communicate()[1]
    (saved,) = (stopped / "checkpoints").iterdir()
    assert (saved / "progress.json").stat().st_mtime - told < 20, err
    assert f": saved {saved}; the same command goes on" in err
    if processes == 1:
        assert process.returncode == 128 + number
        assert "Traceback" not in err
    assert not (stopped / ".lock").exists()
    run_apart(script, *many, processes=processes).done()
    assert_same_records(whole, stopped)
    newest = "checkpoints/step_000000040/model.safetensors"
    assert_same_weights(whole / newest, stopped / newest)
