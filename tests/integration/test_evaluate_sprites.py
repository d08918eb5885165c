"""The sprites from sheets to scores, as users run it: judge, accuracy, autoencoder, on drawn
sheets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
TWO_PROCESSES = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2")
CLASSIFIER = "configs/evaluation/classifier_sprites_debug.yaml"
ACCURACY = "configs/evaluation/accuracy_sprites_debug.yaml"
CONFIGS = sorted((ROOT / "configs" / "evaluation").glob("*_sprites*.yaml"))


def run(script: str, *arguments: object, launcher: tuple[str, ...] = (), code: int = 0) -> str:
    """The output of one run, which must end with `code`."""
    ended = subprocess.run(
        [sys.executable, *launcher, script, *map(str, arguments)],
        cwd=ROOT, env=ENVIRONMENT, timeout=280, capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode == code, ended.stderr
    return ended.stderr if code else ended.stdout


def evaluate(name: str, config: str, *arguments: object, **options) -> str:
    return run("evaluate.py", name, "--config", config, *arguments, **options)


@pytest.fixture(scope="module")
def judged(sheets, tmp_path_factory) -> Path:
    """The output of a tiny judge's training."""
    output = tmp_path_factory.mktemp("judge")
    evaluate("classifier", CLASSIFIER, f"data.path={sheets}", f"output={output}")
    return output


def test_one_and_two_processes_train_and_judge_alike(sheets, judged, tmp_path):
    path = f"data.path={sheets}"
    evaluate("classifier", CLASSIFIER, path, f"output={tmp_path}", launcher=TWO_PROCESSES)
    one, two = (
        (folder / "classifier.json").read_text().replace(str(folder), "OUTPUT")
        for folder in (judged, tmp_path)
    )
    assert one == two
    for name in ("classifier.csv", "classifier/diffusion_pytorch_model.safetensors"):
        assert (judged / name).read_bytes() == (tmp_path / name).read_bytes(), name
    report = json.loads(one)
    assert report["found"]["accuracy"]["all"]["n"] == 18
    assert report["protocol"]["test"]["part"] == "test"


def test_from_sheets_to_the_scores_of_a_swap(sheets, judged, tmp_path):
    run("train_ae.py", "--config", "configs/ae/sprites_debug.yaml", f"data.path={sheets}",
        f"output={tmp_path / 'ae'}", "steps=3", "validate_every=3", "save_every=3")  # fmt: skip
    shown = evaluate(
        "accuracy", ACCURACY, f"data.path={sheets}", f"classifier={judged / 'classifier'}",
        "videos=swap", f"model={tmp_path / 'ae'}", f"output={tmp_path / 'swap'}",
    )  # fmt: skip
    assert "H(y|x) of motion" in shown
    report = json.loads((tmp_path / "swap" / "accuracy.json").read_text())
    measures = report["found"]["measures"]["all motion"]
    assert 1 <= measures["inception_score"] <= 9
    assert report["protocol"]["videos"]["kind"] == "swap"
    for ending in ("csv", "md", "png"):
        assert (tmp_path / "swap" / f"accuracy.{ending}").stat().st_size > 0


def test_what_is_missing_is_said_in_one_line(sheets, tmp_path):
    said = evaluate("classifier", CLASSIFIER, "data.path=/nowhere", "--dry-run", code=2)
    assert "'/nowhere' is not a folder" in said
    assert said.strip().count("\n") == 0
    said = evaluate("accuracy", ACCURACY, f"data.path={sheets}", "classifier=/nowhere", code=2)
    assert "make one with evaluate.py classifier" in said
