"""Run folders that were damaged, are in use, or whose training was told to stop."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from script_runs import ROOT, contents, records, run

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


@pytest.mark.parametrize("script", [*SCRIPTS, "encode"])
def test_the_second_of_two_on_one_folder_is_refused(script, tmp_path):
    folder = tmp_path / ("train" if script == "encode" else "")
    arguments: tuple[str, ...] = ("--config", "configs/encode/shapes_debug.yaml")
    arguments = (*arguments, f"output={tmp_path}", "max_samples=2")
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
