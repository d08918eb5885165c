"""evaluate.py generation: clips and a pipeline to four files, and what it says of bad input."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from script_runs import ROOT, Ended, read_json, run, run_apart

from vidtwin.media import write_video
from vidtwin_lab.runtime import load_config

CLASSES = ["bend", "jump", "wave"]
FRAMES, HEIGHT, WIDTH = 8, 16, 24  # of the tiny pipeline
SAMPLES, CLIPS = 9, 12
RANDOM = "vidtwin_lab.evaluation.features:random_convolutions"
NAME = f"FVD@{SAMPLES}[{RANDOM}]"

FEATURES = """
import torch

class Judge(torch.nn.Module):
    probabilities = True

    def forward(self, video):
        colours = video.mean((2, 3, 4))
        return colours, (8 * colours).softmax(1)

def judge():
    return Judge()

def breaks_on_bright():
    def run(video):
        colours = video.mean((2, 3, 4))
        return torch.where(colours > 0.95, torch.nan, colours)
    return run
"""


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, build_pipeline) -> Path:
    """A folder with a pipeline of three classes, clips of them and a module of features."""
    folder = tmp_path_factory.mktemp("generation")
    build_pipeline(text=False, classes=True).save_pretrained(folder / "pipeline")
    rng = np.random.default_rng(0)
    for index in range(CLIPS):
        low = rng.integers(0, 200, 3)
        video = rng.integers(low, low + 50, (FRAMES + 2, HEIGHT, WIDTH, 3)).astype(np.uint8)
        target = folder / "clips" / CLASSES[index % 3] / f"{index}.mp4"
        target.parent.mkdir(parents=True, exist_ok=True)
        write_video(target, video, 8)
    bright = np.full((FRAMES, HEIGHT, WIDTH, 3), 255, np.uint8)
    (folder / "bright" / "bend").mkdir(parents=True)
    for name in ("0", "1"):
        write_video(folder / "bright" / "bend" / f"{name}.mp4", bright, 8)
    (folder / "my_features.py").write_text(FEATURES)
    (folder / "config.yaml").write_text(
        f"""
data: {{source: classes, path: clips, part: all, start: first, crop: center,
       num_frames: {FRAMES}, height: {HEIGHT}, width: {WIDTH}}}
generated: {{path: pipeline, num_inference_steps: 2, guidance_scale: 2.0}}
features: {{name: "{RANDOM}", path: "5"}}
metrics: [fvd, kvd, fvd_per_class]
num_videos: {SAMPLES}
num_real: {CLIPS}
allow_few: true
batch_size: 2
bootstrap: 10
cache: null
"""
    )
    return folder


@pytest.fixture
def evaluate(monkeypatch, workdir) -> Callable[..., Ended]:
    """Runs the evaluation in the folder, whose module of features can be imported."""
    monkeypatch.syspath_prepend(workdir)

    def call(*arguments: object, runner: Callable = run, **options) -> Ended:
        words = ("generation", "--config", "config.yaml", *arguments)
        return runner("evaluate", *words, folder=workdir, **options)

    return call


def result(folder: Path) -> dict[str, Any]:
    return read_json(folder / "generation.json")


def test_four_files_with_numbers_and_protocol(evaluate, tmp_path) -> None:
    printed = evaluate(f"output={tmp_path}", "reencode=h264@40", "eight_bit=true").done()
    assert {path.name for path in tmp_path.iterdir()} == {
        f"generation.{ending}" for ending in ("json", "csv", "md", "png")
    }
    assert NAME in printed
    report = result(tmp_path)
    fvd, kvd = report["found"][NAME], report["found"][NAME.replace("FVD", "KVD")]
    assert fvd["low"] <= fvd["value"] <= fvd["high"] and fvd["n"] == SAMPLES
    assert kvd["low"] < kvd["value"] < kvd["high"]
    classes = report["found"]["FVD per class"]["classes"]
    assert list(classes) == CLASSES
    assert {(each["n"], each["n_real"]) for each in classes.values()} == {(3, 4)}
    assert report["found"]["reencoded"][NAME]["change"] != 0
    seams = report["found"]["blockiness"]
    assert seams["n"] == SAMPLES and 0 < seams["low"] <= seams["value"]
    protocol = report["protocol"]
    real, generated = protocol["real"], protocol["generated"]
    assert (real["n"], real["resolution"], real["frames"]) == (CLIPS, [HEIGHT, WIDTH], FRAMES)
    assert real["reader"]["backend"] == "auto" and real["start"] == "first"
    assert generated["seeds"] == [0, SAMPLES - 1] and generated["classes"] == "balanced"
    assert set(generated["weights_digests"]) == {"autoencoder", "transformer", "latent_stats"}
    assert protocol["features"]["name"] == RANDOM and protocol["features"]["size"] == 5
    assert "rounded to 8 bits" in protocol["values"]
    lines = (tmp_path / "generation.csv").read_text().splitlines()
    assert len(lines) == SAMPLES + 1
    assert "class jump" in lines[2] and "clips/" in lines[2]
    with Image.open(tmp_path / "generation.png") as figure:
        assert figure.width > figure.height


def test_one_and_two_processes_write_the_same(evaluate, workdir, tmp_path) -> None:
    (workdir / "clips" / "bend" / "broken.mp4").write_text("not a video")
    options = ("num_real=null", "data.max_bad_fraction=0.5", f"cache={tmp_path / 'cache'}")
    evaluate(f"output={tmp_path / 'one'}", *options).done()
    assert len(list((tmp_path / "cache").iterdir())) == 1
    evaluate(f"output={tmp_path / 'cached'}", *options).done()
    evaluate(
        *(f"output={tmp_path / 'two'}", *options[:2], f"cache={tmp_path / 'other cache'}"),
        runner=run_apart,
        processes=2,
    ).done()
    (workdir / "clips" / "bend" / "broken.mp4").unlink()
    skipped = result(tmp_path / "one")["skipped"]
    assert skipped["n"] == 1 and skipped["files"][0]["path"].endswith("broken.mp4")
    for name in ("cached", "two"):
        for ending in ("json", "csv", "md"):
            file = f"generation.{ending}"
            assert (tmp_path / name / file).read_text() == (tmp_path / "one" / file).read_text()
    names = [path.name for path in (tmp_path / "cache").iterdir()]
    assert names == [path.name for path in (tmp_path / "other cache").iterdir()]


def test_saved_samples_are_as_good_as_new_ones(evaluate, workdir, tmp_path) -> None:
    """The latents that sample.py wrote give the distance of the same samples made on the fly."""
    samples = tmp_path / "samples"
    run(
        *("sample", "--pipeline", "pipeline", "--num-samples", SAMPLES, "--steps", 2),
        *("--guidance-scale", 2, "--device", "cpu", "--batch-size", 2, "--output", samples),
        *(word for name in CLASSES for word in ("--class-label", name)),
        folder=workdir,
    ).done()
    values = {}
    for kind in ("pipeline", "latents", "videos"):
        path = "pipeline" if kind == "pipeline" else samples
        evaluate(
            *(f"output={tmp_path / kind}", f"generated.kind={kind}", f"generated.path={path}"),
            "generated.autoencoder=pipeline",
        ).done()
        values[kind] = result(tmp_path / kind)["found"]
    for name in (NAME, NAME.replace("FVD", "KVD")):
        expected = values["pipeline"][name]["value"]
        assert values["latents"][name]["value"] == pytest.approx(expected, rel=1e-3)
        assert values["videos"][name]["value"] == pytest.approx(expected, rel=0.5)
    per_class = [values[kind]["FVD per class"]["mean"] for kind in ("pipeline", "latents")]
    assert per_class[1] == pytest.approx(per_class[0], rel=1e-3)
    made_by = result(tmp_path / "latents")["protocol"]["generated"]["made_by"]
    assert made_by["num_inference_steps"] == 2 and "seconds" not in made_by


def test_real_videos_against_themselves_are_at_zero(evaluate, tmp_path) -> None:
    same = "{source: classes, path: clips, part: all, start: first, crop: center}"
    evaluate(
        *(f"output={tmp_path}", "generated.kind=data", "generated.path=null"),
        *(f"generated.data={same}", f"num_videos={CLIPS}", "metrics=[fvd,is]"),
        *("features.name=my_features:judge", "features.path=null", "is_splits=2"),
    ).done()
    found = result(tmp_path)["found"]
    assert found[f"FVD@{CLIPS}[my_features:judge]"]["value"] == pytest.approx(0, abs=1e-9)
    score = found[f"IS@{CLIPS}[my_features:judge]"]
    assert 1 < score["value"] < 3 and score["one_split"]["low"] >= 1
    rows = (tmp_path / "generation.csv").read_text().splitlines()[1:]
    assert all(float(row.rsplit(",", 1)[1]) < 1e-5 for row in rows)  # each is its own nearest


def test_memory_is_flat_for_the_distance_alone(evaluate, tmp_path) -> None:
    evaluate(f"output={tmp_path}", "metrics=[fvd]", "bootstrap=0").done()
    report = result(tmp_path)
    assert set(report["found"][NAME]) == {"value", "n"}
    assert not (tmp_path / "generation.png").exists()
    evaluate(f"output={tmp_path / 'kept'}").done()
    kept = result(tmp_path / "kept")["found"][NAME]
    assert kept["value"] == report["found"][NAME]["value"]


def test_a_few_own_clips_take_a_run_folder_and_one_command(
    evaluate, workdir, tmp_path, caplog, build_pipeline
) -> None:
    build_pipeline(text=False, classes=True).save_pretrained(tmp_path / "run" / "pipeline")
    out, of_run = tmp_path / "out", f"generated.path={tmp_path / 'run'}"
    words = ("generation", "--config", ROOT / "configs/evaluation/generation_own.yaml")
    few = ("data.path=clips", "num_videos=4", "generated.num_inference_steps=2", "cache=null")
    run("evaluate", *words, of_run, *few, f"output={out}", folder=workdir).done()
    protocol = result(out)["protocol"]
    assert protocol["real"]["n"] == CLIPS
    assert "nothing of whether a video looks real" in protocol["features"]["about"]
    assert "random weights: colours and rough motion alone" in caplog.text
    sizes = (f"data.num_frames={FRAMES}", f"data.height={HEIGHT}", f"data.width={WIDTH}")
    judge = ("steps=2", "batch_size=2", "data.source=classes", "data.validation_fraction=0.3")
    made = f"output={tmp_path / 'judge'}"
    run("evaluate", "classifier", *judge, "data.path=clips", *sizes, made, folder=workdir).done()
    name = "features.name=vidtwin_lab.evaluation.features:trained_classifier"
    own = (name, f"features.path={tmp_path / 'judge'}", "metrics=[fvd,is]", "is_splits=2")
    run("evaluate", *words, of_run, *few, *own, f"output={out}", folder=workdir).done()
    assert result(out)["protocol"]["features"]["about"].startswith("a classifier of its own clips")
    metrics = result(out)["protocol"]["metric"]
    assert "FVD@4[vidtwin_lab.evaluation.features:trained_classifier]" in metrics
    assert any(metric.startswith("IS") for metric in metrics)
    assert "needs features.path" in evaluate(name, "features.path=null").refused()
    lost = evaluate(name, "features.path=nowhere", f"output={tmp_path / 'no'}").refused()
    assert "features.path=nowhere holds no classifier" in lost


def test_dry_run_says_what_would_be_done(evaluate, tmp_path) -> None:
    dry = (f"output={tmp_path / 'out'}", "--dry-run")
    printed = evaluate(*dry, "protocol=ucf101-tats").done()
    assert f"clips: {CLIPS}" in printed and "ucf101-tats" in printed
    assert f"data.height is {HEIGHT}, the protocol has 128" in printed
    assert "missing: []" in printed
    away = ("data.path=away", "features.name=i3d", "features.path=away.pt")
    printed = evaluate(*dry, *away).done()
    assert "data.path=away is not there" in printed and "dropbox" in printed
    assert not (tmp_path / "out").exists()


BAD_INPUT: dict[str, tuple[tuple[str, ...], str]] = {
    "too few": (("allow_few=false",), "set allow_few=true"),
    "fewer real than asked": (("num_real=13",), "there are 12"),
    "fewer samples than asked": (
        ("generated.kind=videos", "generated.path=bright", "num_videos=3"),
        "there are 2",
    ),
    "unequal sizes": (("data.height=32",), "differs from model.height=16"),
    "unequal sizes of files": (
        ("generated.kind=videos", "generated.path=clips", "data.width=32", "metrics=[fvd]"),
        "16x24 pixels, the real videos are measured at 16x32",
    ),
    "an empty class": (("num_videos=5",), "2 generated videos of it, and 'wave' has 1"),
    "no classes": (("data.source=folder", "generated.conditions=none"), "needs classes"),
    "no features file": (
        ("features.name=i3d", "features.path=nothing.pt", "metrics=[fvd]"),
        "features.download=true",
    ),
    "features that are not finite": (
        ("features.name=my_features:breaks_on_bright", "features.path=null", "metrics=[fvd]")
        + ("data.path=bright", "num_real=2", "generated.conditions=none"),
        "real video 0 (bright/bend/",
    ),
    "score without classes": (("metrics=[is]", "is_splits=2"), "gives none"),
    "score of i3d": (("metrics=[is]", "features.name=i3d"), "set classifier.name=c3d"),
    "unknown metric": (("metrics=[fid]",), "fvd, kvd, is, fvd_per_class"),
    "unknown protocol": (("protocol=ucf",), "ucf101-tats"),
    "codec": (("reencode=h265@3",), "h264@CRF"),
    "no pipeline": (("generated.path=nothing/at/all",), "does not exist"),
    "subsets": (("kvd_subset_size=10",), "kvd_subset_size must be from 2 to the 9 videos"),
    "splits": (("metrics=[is]", "features.name=my_features:judge"), "is_splits must be at most"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_takes_one_line_and_leaves_nothing(evaluate, tmp_path, case) -> None:
    options, reason = BAD_INPUT[case]
    assert reason in evaluate(f"output={tmp_path / 'out'}", *options).refused()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["generation", "generation_debug", "generation_own", "ucf101_fvd"])
def test_the_configs_that_come_with_it_are_read(name: str) -> None:
    from vidtwin_lab.evaluation.generation_protocols import compared
    from vidtwin_lab.evaluation.measurement_configs import GenerationConfig

    config = load_config(GenerationConfig, ROOT / "configs" / "evaluation" / f"{name}.yaml")
    if name == "ucf101_fvd":
        said = compared(config)
        assert said is not None
        assert [line.split()[0] for line in said["differences"]] == ["data.height", "data.width"]
