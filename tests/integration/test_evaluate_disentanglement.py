"""evaluate.py disentanglement as its users run it: on small models, on the CPU."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState, PartialState

import runtime
from vidtwin import VidTwinAutoencoder
from vidtwin.data import TooManyBadFiles

ROOT = Path(__file__).parents[2]
DEBUG = "configs/evaluation/disentanglement_debug.yaml"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
TWO_PROCESSES = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2")
SHIPPED = ROOT / "checkpoints" / "shapes"


def evaluate(*arguments: object, launcher: tuple[str, ...] = ()) -> None:
    """One run in processes of its own, which must succeed."""
    command = [sys.executable, *launcher, "evaluate.py", "disentanglement", "--config", DEBUG]
    ended = subprocess.run(
        [*command, *map(str, arguments)],
        cwd=ROOT, env=ENVIRONMENT, timeout=500, capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the script in this process: its exit code, standard output and standard error."""
    spec = importlib.util.spec_from_file_location("evaluate_script", ROOT / "evaluate.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, script)
    spec.loader.exec_module(script)
    monkeypatch.chdir(ROOT)

    def call(*arguments: object) -> tuple[int, str, str]:
        words = ["evaluate.py", "disentanglement", "--config", DEBUG, *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as end:
            runtime.run_main(script.main, TooManyBadFiles)
        captured = capsys.readouterr()
        return end.value.code, captured.out, captured.err

    yield call
    AcceleratorState._reset_state(True)
    PartialState._reset_state()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """A new autoencoder: what it makes is noise, which the judge must take."""
    folder = tmp_path_factory.mktemp("autoencoder")
    VidTwinAutoencoder(
        num_frames=8, height=32, width=32, patch_size=(1, 8, 8), hidden_size=16, encoder_depth=1,
        decoder_depth=1, encoder_heads=2, decoder_heads=2, num_queries=3, query_hidden_size=8,
        query_layers=1, query_heads=2, query_intermediate_size=8, structure_base_channels=8,
        structure_channels=2, dynamics_channels=2,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def test_one_and_two_processes_write_the_same_scorecard(tiny, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    evaluate(f"autoencoder={tiny}", f"output={one}")
    evaluate(f"autoencoder={tiny}", f"output={two}", launcher=TWO_PROCESSES)
    for name in ("disentanglement.json", "disentanglement.csv", "disentanglement.md"):
        assert (one / name).read_text() == (two / name).read_text(), name
    report = json.loads((one / "disentanglement.json").read_text())
    assert report["protocol"]["pairs"]["pairs"] == 12
    assert report["protocol"]["data"]["resolution"] == [32, 32]
    assert len(report["protocol"]["weights_digest"]) == 16
    assert report["found"]["generation"] == {"reason": "no pipeline was given"}
    # Real clips are read right, whatever the autoencoder makes of them.
    for group in ("content", "motion"):
        assert report["found"]["swap"][group]["all"]["real"]["value"] > 0.9
    with (one / "disentanglement.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    for row in rows:
        for name in ("color", "shape", "background", "motion"):
            assert row[f"{name}_of_structure"] != row[f"{name}_of_dynamics"]
    assert (one / "disentanglement.png").stat().st_size > 10_000


@pytest.mark.skipif(not SHIPPED.is_dir(), reason="the shipped pipeline is not here")
def test_with_a_pipeline_held_latents_are_measured(tmp_path):
    evaluate(f"autoencoder={SHIPPED / 'autoencoder'}", f"pipeline={SHIPPED}",
             f"output={tmp_path}", "samples=24", "pairs=4")  # fmt: skip
    found = json.loads((tmp_path / "disentanglement.json").read_text())["found"]
    for held, group in (("structure", "content"), ("dynamics", "motion")):
        assert found["generation"][held]["videos"] == 4
        assert f"sampled to held {held}: {group} kept" in found["scorecard"]
    with (tmp_path / "disentanglement.csv").open() as file:
        measured = [row["measurement"] for row in csv.DictReader(file)]
    assert measured == ["swap"] * 4 + ["structure held"] * 4 + ["dynamics held"] * 4
    # Plain reconstructions of the shipped weights are read right: the ceiling of all else.
    assert found["swap"]["content"]["all"]["reconstruction"]["value"] > 0.8


def test_what_can_t_be_measured_is_said_in_one_line(run, tiny, tmp_path):
    output = f"output={tmp_path / 'out'}"
    for arguments, expected in (
        (("autoencoder=/nowhere",), "does not exist"),
        ((f"autoencoder={tiny}", "samples=100"), "the data have 64"),
        ((f"autoencoder={tiny}", "factors=[colour]"), "did you mean 'color'"),
        ((f"autoencoder={tiny}", "data.shapes_max_objects=2"), "shapes_max_objects=1"),
        ((f"autoencoder={tiny}", f"judge={tmp_path}"), "holds no classifier"),
    ):
        code, _, err = run(*arguments, output)
        assert code == 2
        assert expected in err.splitlines()[-1] and err.count("error: ") == 1
    assert not (tmp_path / "out").exists()


def test_dry_run_tells_the_plan_and_writes_nothing(run, tiny, tmp_path):
    code, out, err = run(f"autoencoder={tiny}", f"output={tmp_path / 'out'}", "--dry-run")
    assert code == 0, err
    assert "clips: 48" in out and "compression_rate" in out
    assert not (tmp_path / "out").exists()
