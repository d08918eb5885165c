"""What measurements hand back, and the files and intervals made of it."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from vidtwin.data import DataConfig, SkippedFile
from vidtwin_lab.evaluation import Processes, Report, write_report
from vidtwin_lab.evaluation.intervals import mean_interval, share_interval
from vidtwin_lab.evaluation.report import (
    batches_of,
    data_protocol,
    markdown_table,
    merge_skipped,
    new_figure,
    rounded,
    save_figure,
)


def report(**changes) -> Report:
    fields = {
        "name": "trial",
        "protocol": {"seed": 0},
        "found": {"psnr": {"value": 1 / 3, "low": None, "high": math.inf, "n": 2}},
        "rows": [{"index": 0, "psnr": 1 / 3}, {"index": 1, "psnr": None, "extra": [1, 2]}],
        "skipped": [{"path": "a.mp4", "reason": "empty file"}],
        "markdown": [("model", "a|b"), ("PSNR", "0.33")],
    }
    return Report(**fields | changes)


def test_a_report_becomes_its_files_and_nothing_else(tmp_path) -> None:
    def draw(path) -> None:
        figure, (panel,) = new_figure()
        panel.plot([1, 2], [3, 4])
        save_figure(figure, path)

    paths = write_report(report(draw=draw, pictures={"worst": draw}), tmp_path / "new" / "folder")
    assert [path.name for path in paths] == [
        "trial.json", "trial.csv", "trial.md", "trial.png", "trial.worst.png",
    ]  # fmt: skip
    assert sorted(path.name for path in paths[0].parent.iterdir()) == sorted(
        path.name for path in paths
    )
    content = json.loads(paths[0].read_text())
    assert content["found"]["psnr"] == {"value": 0.333333333, "low": None, "high": "inf", "n": 2}
    assert content["skipped"] == {"n": 1, "files": [{"path": "a.mp4", "reason": "empty file"}]}
    rows = list(csv.DictReader(paths[1].read_text().splitlines()))
    assert rows == [
        {"index": "0", "psnr": "0.333333333", "extra": ""},
        {"index": "1", "psnr": "", "extra": "[1, 2]"},
    ]
    assert paths[2].read_text() == "| model | PSNR |\n| - | - |\n| a\\|b | 0.33 |\n"
    assert Image.open(paths[3]).size[0] > 300


def test_a_figure_that_fails_leaves_nothing_behind(tmp_path) -> None:
    def draw(path) -> None:
        path.write_bytes(b"half")
        raise ValueError("no ink")

    with pytest.raises(ValueError, match="no ink"):
        write_report(report(draw=draw), tmp_path)
    assert not list(tmp_path.glob("*.png"))
    assert not list(tmp_path.glob(".*"))
    assert not (tmp_path / "trial.json").exists()


def test_written_numbers_forget_the_last_bits() -> None:
    value = 0.1 + 0.2
    assert rounded({"a": (value, np.float64(value)), "b": torch.tensor([value])}) == {
        "a": [0.3, 0.3],
        "b": [pytest.approx(0.3, abs=1e-7)],
    }
    assert rounded([True, 3, None, float("nan"), -math.inf]) == [True, 3, None, "nan", "-inf"]
    assert rounded(1234567890123) == 1234567890123
    assert rounded(DataConfig(num_frames=4))["num_frames"] == 4
    assert json.loads(json.dumps(rounded({"x": 2.5e-17}))) == {"x": 2.5e-17}


def test_any_number_of_processes_shares_the_same_batches() -> None:
    batches = batches_of(11, 3)
    assert [list(batch) for batch in batches] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10]]
    for count in (1, 2, 3, 7):
        shares = [Processes(rank=rank, count=count).share(batches) for rank in range(count)]
        assert sorted((b for share in shares for b in share), key=lambda b: b.start) == batches
    assert batches_of(0, 3) == []
    with pytest.raises(ValueError, match=r"rank must be in \[0, 2\)"):
        Processes(rank=2, count=2)


def test_gathered_rows_come_in_order() -> None:
    processes = Processes(gather=lambda rows: [*rows, {"index": 1}])
    assert processes.gather_sorted([{"index": 2}, {"index": 0}]) == [
        {"index": 0}, {"index": 1}, {"index": 2},
    ]  # fmt: skip
    assert processes.main


def test_skipped_files_count_once() -> None:
    skipped = [SkippedFile("b", "no such file"), ("a", "empty file"), ("b", "no such file")]
    assert merge_skipped(skipped) == [
        {"path": "a", "reason": "empty file"},
        {"path": "b", "reason": "no such file"},
    ]


def test_rows_of_other_columns_do_not_share_a_table() -> None:
    with pytest.raises(ValueError, match="different protocols"):
        markdown_table([[("PSNR", "1")], [("SSIM", "1")]])


def test_the_protocol_of_drawn_clips_names_no_reader() -> None:
    drawn = data_protocol(DataConfig(part="validation"), 7)
    assert drawn["reader"] is None
    assert drawn["n"] == 7
    read = data_protocol(DataConfig(source="folder", path="x", backend="pyav"), 7)
    assert list(read["reader"]["versions"]) == ["av"]
    assert read["path"] == "x"


def test_wilson_agrees_with_its_equation() -> None:
    # The ends are where the share lies 1.96 standard deviations of itself away.
    for right, number in ((1, 9), (0, 5), (7, 7), (30, 64)):
        found = share_interval(right, number)
        for end in (found["low"], found["high"]):
            if 0 < end < 1:
                distance = abs(right / number - end) / math.sqrt(end * (1 - end) / number)
                assert distance == pytest.approx(1.959964, rel=1e-9)
        assert found["low"] <= found["value"] <= found["high"]
    assert share_interval(0, 0) == {"value": None, "low": None, "high": None, "n": 0}


def test_a_bootstrap_of_a_mean_agrees_with_the_normal_interval() -> None:
    values = np.random.default_rng(0).normal(5, 2, 400).tolist()
    found = mean_interval(values, resamples=4000)
    half = 1.96 * np.std(values) / math.sqrt(400)
    assert found["value"] == pytest.approx(np.mean(values))
    assert found["high"] - found["value"] == pytest.approx(half, rel=0.1)
    assert found["value"] - found["low"] == pytest.approx(half, rel=0.1)
    assert found == mean_interval(values, resamples=4000)
    assert mean_interval([3.0]) == {"value": 3.0, "low": None, "high": None, "n": 1}
    assert mean_interval([]) == {"value": None, "low": None, "high": None, "n": 0}
    assert mean_interval([1.0, 2.0], resamples=0)["low"] is None
