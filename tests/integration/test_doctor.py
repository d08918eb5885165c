"""`vidtwin doctor` with configs: a few real steps in a folder that is gone afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest
from script_runs import ROOT, read_json, run_python

PACKAGE = {"PYTHONPATH": str(ROOT)}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("diffusion/shapes_debug.yaml", ("batch_size=2",)),
        ("encode/shapes_debug.yaml", ("batch_size=2",)),
    ],
)
def test_steps_are_measured_and_leave_nothing(config, words, tmp_path: Path) -> None:
    output = tmp_path / "runs" / "run"
    output.parent.mkdir()
    doctor = ("-m", "vidtwin_lab.cli", "doctor", "--config", config, *words, f"output={output}")
    ended = run_python(*doctor, "--files", 2, "--json", tmp_path / "found.json",
                       environment=PACKAGE)  # fmt: skip
    assert ended.code == 0, ended.out + ended.err
    assert not list(output.parent.iterdir())
    (steps,) = [part for name, part in read_json(tmp_path / "found.json")["parts"].items()
                if "steps" in name]  # fmt: skip
    found = {each["name"]: each for each in steps}
    assert found["steps"]["seconds"] > 0
    assert found["memory"]["memory"] > 50e6
    if config.startswith("diffusion"):
        assert found["the run"]["seconds"] == pytest.approx(12 * found["steps"]["seconds"])
        assert found["disk"]["needed"] > 1e5


def test_steps_that_fail_are_told_with_their_line(tmp_path: Path) -> None:
    words = ("batch_size=4", "accumulation=3", f"output={tmp_path / 'run'}", "--files", 1)
    doctor = ("-m", "vidtwin_lab.cli", "doctor", "--config", "ae/shapes_debug.yaml", *words)
    ended = run_python(*doctor, environment=PACKAGE)
    assert ended.code == 1, ended.out + ended.err
    told = " ".join(ended.out.split())
    assert "! steps `batch_size` must be a multiple of 3" in told
    assert not list(tmp_path.iterdir())
