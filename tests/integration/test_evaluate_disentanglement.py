"""evaluate.py disentanglement as its users run it: on small models, on the CPU."""

from __future__ import annotations

import csv
import functools
from pathlib import Path

import pytest
from script_runs import ROOT, read_json, run, run_apart

DEBUG = "configs/evaluation/disentanglement_debug.yaml"
SHIPPED = ROOT / "checkpoints" / "shapes"

WORDS = ("evaluate", "disentanglement", "--config", DEBUG)
evaluate = functools.partial(run, *WORDS)


@pytest.fixture(scope="module")
def tiny(build_autoencoder, tmp_path_factory) -> Path:
    """A new autoencoder: what it makes is noise, which the judge must take."""
    folder = tmp_path_factory.mktemp("autoencoder")
    build_autoencoder(
        height=32, width=32, num_queries=3, query_intermediate_size=8, structure_base_channels=8,
        structure_downsamples=1, dynamics_downsamples=1,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def test_one_and_two_processes_write_the_same_scorecard(tiny, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    evaluate(f"autoencoder={tiny}", f"output={one}").done()
    run_apart(*WORDS, f"autoencoder={tiny}", f"output={two}", processes=2).done()
    for name in ("disentanglement.json", "disentanglement.csv", "disentanglement.md"):
        assert (one / name).read_text() == (two / name).read_text(), name
    report = read_json(one / "disentanglement.json")
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
             f"output={tmp_path}", "samples=24", "pairs=4").done()  # fmt: skip
    found = read_json(tmp_path / "disentanglement.json")["found"]
    for held, group in (("structure", "content"), ("dynamics", "motion")):
        assert found["generation"][held]["videos"] == 4
        assert f"sampled to held {held}: {group} kept" in found["scorecard"]
    with (tmp_path / "disentanglement.csv").open() as file:
        measured = [row["measurement"] for row in csv.DictReader(file)]
    assert measured == ["swap"] * 4 + ["structure held"] * 4 + ["dynamics held"] * 4
    # Plain reconstructions of the shipped weights are read right: the ceiling of all else.
    assert found["swap"]["content"]["all"]["reconstruction"]["value"] > 0.8


def test_what_can_t_be_measured_is_said_in_one_line(tiny, tmp_path):
    output = f"output={tmp_path / 'out'}"
    for arguments, expected in (
        (("autoencoder=/nowhere",), "does not exist"),
        ((f"autoencoder={tiny}", "samples=100"), "the data have 64"),
        ((f"autoencoder={tiny}", "factors=[colour]"), "did you mean 'color'"),
        ((f"autoencoder={tiny}", "data.shapes.max_objects=2"), "shapes.max_objects=1"),
        ((f"autoencoder={tiny}", f"judge={tmp_path}"), "holds no classifier"),
    ):
        assert expected in evaluate(*arguments, output).refused()
    assert not (tmp_path / "out").exists()


def test_dry_run_tells_the_plan_and_writes_nothing(tiny, tmp_path):
    out = evaluate(f"autoencoder={tiny}", f"output={tmp_path / 'out'}", "--dry-run").done()
    assert "clips: 48" in out and "compression_rate" in out
    assert not (tmp_path / "out").exists()
