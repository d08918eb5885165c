"""What the studio does, without its page: samples, swaps, limits of uploads, curves of runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vidtwin.data.readers import iter_frames
from vidtwin.media import write_video
from vidtwin_lab.studio.curves import draw_curves, find_runs, labelled, page_of, read_log
from vidtwin_lab.studio.plot import main as plot
from vidtwin_lab.studio.workbench import (
    CancelledError,
    Limits,
    Made,
    Preview,
    Request,
    Workbench,
)

FRAMES = (8, 16, 24, 3)  # of the tests' pipeline


@pytest.fixture
def workbench(build_pipeline: Callable[..., Any], tmp_path: Path) -> Workbench:
    build_pipeline().save_pretrained(tmp_path / "pipeline")
    return Workbench({"tiny": str(tmp_path / "pipeline")}, tmp_path / "out")


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    frames = np.random.default_rng(0).integers(0, 255, FRAMES, np.uint8)
    return write_video(tmp_path / "clip.mp4", frames, 8)


def results(workbench: Workbench) -> list[Path]:
    return sorted(path for path in workbench.folder.rglob("*") if path.is_file())


def test_a_video_with_its_previews(workbench) -> None:
    *previews, made = workbench.sample("tiny", Request(prompt="a star", num_inference_steps=3))
    assert [(each.step, each.total) for each in previews] == [(1, 3), (2, 3), (3, 3)]
    assert all(each.picture.shape == FRAMES[1:] for each in previews)
    assert isinstance(made, Made)
    assert len(list(iter_frames(made.video))) == FRAMES[0]
    assert set(results(workbench)) == {*made.files}
    written = json.loads((made.video.parent / "sample.json").read_text())
    assert (written["prompt"], written["seed"]) == ("a star", 0)


def test_the_same_request_is_the_same_video(workbench) -> None:
    request = Request(prompt="a star", seed=3, num_inference_steps=2)
    first, second = ([*workbench.sample("tiny", request)][-1] for _ in range(2))
    assert first.video != second.video
    assert first.video.read_bytes() == second.video.read_bytes()


@pytest.mark.parametrize("how", ["cancel", "close"])
def test_a_stopped_job_writes_nothing(workbench, how: str) -> None:
    job = workbench.sample("tiny", Request(prompt="a star", num_inference_steps=50))
    assert isinstance(next(job), Preview)
    if how == "close":
        job.close()
    else:
        workbench.cancel()
        with pytest.raises(CancelledError, match="nothing was written"):
            list(job)
    assert results(workbench) == []
    assert isinstance([*workbench.sample("tiny", Request(num_inference_steps=1))][-1], Made)


def test_what_the_pipeline_refuses_is_raised_here(workbench) -> None:
    with pytest.raises(ValueError, match="not trained with classes"):
        list(workbench.sample("tiny", Request(class_label="wave")))
    with pytest.raises(ValueError, match="no pipeline is called 'other'; there are tiny"):
        list(workbench.sample("other", Request()))


def test_a_given_clip_is_measured(workbench, clip) -> None:
    request = Request(structure_from=str(clip), num_inference_steps=1)
    made = [*workbench.sample("tiny", request)][-1]
    assert "passes through the autoencoder at" in made.told
    assert "trained on other clips" in made.told


def test_four_combinations(workbench, clip) -> None:
    videos = workbench.swap("tiny", clip, clip)
    assert len({path.name for path in videos.values()}) == 4
    # Of a clip with itself they are all its reconstruction.
    assert len({path.read_bytes() for path in videos.values()}) == 1


def test_inside(workbench, clip) -> None:
    found = workbench.inside("tiny", clip)
    assert [*found.videos] == ["the clip", "reconstruction", "structure alone", "dynamics alone"]
    assert {"PSNR", "PSNR of as many cosines", "rate"} < {name for name, _ in found.numbers}
    assert found.heat_maps.stat().st_size > 0


def test_limits_of_uploads(clip, tmp_path) -> None:
    Limits().check(clip)
    with pytest.raises(ValueError, match=r"clip.mp4 lasts 1 s; at most 0.5 s are read"):
        Limits(seconds=0.5).check(clip)
    with pytest.raises(ValueError, match=r"at most 0.0001 are read"):
        Limits(megabytes=1e-4).check(clip)
    with pytest.raises(ValueError, match="is no video that the studio reads; it reads mp4, "):
        Limits().check(clip.rename(tmp_path / "clip.ffconcat"))


@pytest.fixture
def run_folder(tmp_path: Path, clip: Path) -> Path:
    """A run that is going on: a step logged twice, a gap, a half-written last line."""
    run = tmp_path / "runs" / "one"
    (run / "videos" / "validation").mkdir(parents=True)
    lines: list[dict[str, Any]] = [{"step": n, "loss/total": 2.0 * n} for n in (1, 2, 2, 3)]
    lines += [{"step": 2, "loss/total": 9.0}, {"step": 3, "validation/structure_q1": 0.5}]
    log = "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 4, "lo'
    (run / "metrics.jsonl").write_text(log)
    clip.rename(run / "videos" / "validation" / "first_000000003.mp4")
    return run


def test_a_log_is_read_while_it_is_written(run_folder) -> None:
    steps, values = read_log(run_folder)["loss/total"]
    assert steps.tolist() == [1, 2, 3]
    assert values.tolist() == [2.0, 9.0, 6.0]
    assert find_runs(run_folder.parent) == [run_folder]
    assert [*labelled([run_folder])] == ["one"]


def test_curves(run_folder) -> None:
    figure = draw_curves({"one": run_folder})
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    assert titles == ["validation/structure by noise level", "loss/total"]
    assert figure.axes[1].lines[0].get_ydata().tolist() == [2.0, 9.0, 6.0]
    assert "data:video/mp4;base64," in page_of(figure, {"one": run_folder})
    with pytest.raises(ValueError, match=r"no name that begins with accuracy is logged yet"):
        draw_curves({"one": run_folder}, ["accuracy"])


def test_plot_writes_its_files(run_folder, tmp_path, capsys) -> None:
    assert plot([str(run_folder), "--output", str(tmp_path / "curves")]) == 0
    names = {path.name for path in (tmp_path / "curves").iterdir()}
    assert names == {"curves.png", "curves.html", "samples.png"}
    with pytest.raises(ValueError, match="is not a folder"):
        plot([str(tmp_path / "nothing")])
    with pytest.raises(ValueError, match="holds no run"):
        plot([str(tmp_path / "curves")])
