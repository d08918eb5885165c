"""The sprites from sheets to scores, as users run it: judge, accuracy, autoencoder, on drawn
sheets."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
from script_runs import read_json, run, run_apart

CLASSIFIER = ("classifier", "--config", "configs/evaluation/classifier_sprites_debug.yaml")
ACCURACY = ("accuracy", "--config", "configs/evaluation/accuracy_sprites_debug.yaml")

evaluate = functools.partial(run, "evaluate")


@pytest.fixture(scope="module")
def judged(sheets, tmp_path_factory) -> Path:
    """The output of a tiny judge's training."""
    output = tmp_path_factory.mktemp("judge")
    evaluate(*CLASSIFIER, f"data.path={sheets}", f"output={output}").done()
    return output


def test_one_and_two_processes_train_and_judge_alike(sheets, judged, tmp_path):
    options = (*CLASSIFIER, f"data.path={sheets}", f"output={tmp_path}")
    run_apart("evaluate", *options, processes=2).done()
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
    run("train_ae", "--config", "configs/ae/sprites_debug.yaml", f"data.path={sheets}",
        f"output={tmp_path / 'ae'}", "steps=3", "validate_every=3",
        "save_every=3").done()  # fmt: skip
    shown = evaluate(
        *ACCURACY, f"data.path={sheets}", f"classifier={judged / 'classifier'}",
        "videos=swap", f"model={tmp_path / 'ae'}", f"output={tmp_path / 'swap'}",
    ).done()  # fmt: skip
    assert "H(y|x) of motion" in shown
    report = read_json(tmp_path / "swap" / "accuracy.json")
    measures = report["found"]["measures"]["all motion"]
    assert 1 <= measures["inception_score"] <= 9
    assert report["protocol"]["videos"]["kind"] == "swap"
    for ending in ("csv", "md", "png"):
        assert (tmp_path / "swap" / f"accuracy.{ending}").stat().st_size > 0


def test_what_is_missing_is_said_in_one_line(sheets, tmp_path):
    said = evaluate(*CLASSIFIER, "data.path=/nowhere", "--dry-run")
    assert "'/nowhere' is not a folder" in said.refused()
    assert said.err.strip().count("\n") == 0
    said = evaluate(*ACCURACY, f"data.path={sheets}", "classifier=/nowhere")
    assert "train one with evaluate.py classifier" in said.refused()
