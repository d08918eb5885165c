"""evaluate.py as its users run it: on small models, on the CPU."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
from script_runs import ROOT, contents, read_json, run, run_python

CONFIGS = [
    ROOT / "configs" / "evaluation" / f"{name}.yaml"
    for name in ("reconstruction", "reconstruction_debug", "clips_64", "mcl_jcv", "mcl_jcv_native")
]
DEBUG = "configs/evaluation/reconstruction_debug.yaml"

evaluate = functools.partial(run, "evaluate")


@pytest.fixture(scope="module")
def clips(write_clips, tmp_path_factory) -> Path:
    """Seven clips of different lengths, and one file that is none."""
    lengths = (14, 5, 9, 4, 12, 6, 8)
    return write_clips(tmp_path_factory.mktemp("clips"), lengths, bad="clip02b.mp4")


def test_two_processes_equal_one(autoencoder, clips, tmp_path):
    # Every window of clips of several lengths, a bad file among them, and features.
    options = (
        "reconstruction", "--config", DEBUG, f"autoencoder={autoencoder}", "data.source=folder",
        f"data.path={clips}", "data.part=all", "data.max_clips=null", "data.fps=null",
        "data.stride=1", "data.max_bad_fraction=0.5", "windows=all", "batch_size=2",
        "num_workers=1", "reencode=h264@20", "distance_resamples=20",
        "features.name=vidtwin_lab.evaluation.features:random_convolutions", "features.path='8'",
    )  # fmt: skip
    evaluate(*options, f"output={tmp_path / 'one'}").done()
    run_python(
        *("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
        *("evaluate.py", *options, f"output={tmp_path / 'two'}"),
        # What glibc fills new memory with: encoders have been seen to read what nobody had written.
        environment={"MALLOC_PERTURB_": "85"},
    ).done()
    expected, came = (
        {path: written for path, written in contents(tmp_path / name).items() if path[-3:] != "png"}
        for name in ("one", "two")
    )
    assert came == expected
    assert set(expected) == {"reconstruction.json", "reconstruction.csv", "reconstruction.md"}
    report = json.loads(expected["reconstruction.json"])
    assert report["found"]["videos"] == 7
    assert report["found"]["windows"] == 3 + 1 + 2 + 1 + 3 + 1 + 2
    assert report["skipped"]["n"] == 1
    assert report["skipped"]["files"][0]["path"].endswith("clip02b.mp4")
    assert report["found"]["rfvd"]["name"].startswith("rFVD@13[")
    assert (tmp_path / "two" / "reconstruction.png").is_file()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_config_describes_itself(config, autoencoder, clips, tmp_path):
    data = [] if "debug" in config.stem else [f"data.path={clips}"]
    if "mcl_jcv" in config.stem:
        data += ["data.num_frames=4", "data.height=16", "data.width=16"]
    out = evaluate(
        "reconstruction", "--config", config, "--dry-run", f"autoencoder={autoencoder}", *data,
        f"output={tmp_path / 'out'}",
    ).done()  # fmt: skip
    assert "compression_rate" in out
    assert "weights_digest" in out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["adherence", "adherence_debug"])
def test_adherence_describes_itself(name, autoencoder, tmp_path):
    out = evaluate(
        "adherence", "--config", f"configs/evaluation/{name}.yaml", "--dry-run",
        "mode=reconstruction", f"pipeline={autoencoder}", f"output={tmp_path / 'out'}",
    ).done()  # fmt: skip
    assert "examples" in out


def test_adherence_of_a_pipeline(build_pipeline, tmp_path):
    build_pipeline().save_pretrained(tmp_path / "pipeline")
    for mode in ("prompt", "structure-from", "dynamics-from"):
        out = evaluate(
            "adherence", "--config", "configs/evaluation/adherence_debug.yaml", f"mode={mode}",
            f"pipeline={tmp_path / 'pipeline'}", f"output={tmp_path / mode}", "samples=3",
        ).done()  # fmt: skip
        report = read_json(tmp_path / mode / "adherence.json")
        assert report["found"]["all_videos"]["all"]["n"] == 3
        assert report["protocol"]["steps"] == 2
        assert f"| {mode} | test | 3 |" in out


class TestBadInput:
    """One clear line, exit code 2, and nothing written."""

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((), "the following arguments are required: NAME"),
            (("restoration",), "invalid choice: 'restoration'"),
            (("reconstruction", "autoencoders=x"), "nearest known key is `autoencoder`"),
            (("reconstruction", "autoencoder=nowhere"), "the model nowhere does not exist"),
            (("reconstruction", "windows=some"), "windows must be one of one, all"),
            (("reconstruction", "codec.crfs=[20]"), "at least two rising qualities"),
            (("reconstruction", "data.source=folder", "data.path=nowhere"), "does not exist"),
            (("reconstruction", "data.height=32"), "data.height=32 differs from model.height=16"),
            (("reconstruction", "features.name=i3d"), "features.path=FILE"),
            (("adherence", "pipeline=nowhere"), "nowhere is no pipeline"),
            (("adherence", "mode=swap"), "mode must be one of prompt"),
        ],
    )
    def test_is_refused(self, autoencoder, tmp_path, monkeypatch, arguments, message):
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
        name, *rest = arguments or ("",)
        model = [f"autoencoder={autoencoder}"] if name == "reconstruction" else []
        options = [name, *model, *rest, f"output={tmp_path / 'out'}"] if name else []
        assert message in evaluate(*options).refused()
        assert not (tmp_path / "out").exists()

    def test_an_output_that_is_a_file(self, autoencoder, tmp_path):
        (tmp_path / "file").write_text("")
        options = ("reconstruction", f"autoencoder={autoencoder}", f"output={tmp_path / 'file'}")
        told = evaluate(*options).refused()
        assert "can't write to the folder" in told
        assert "choose another with output=FOLDER" in told

    def test_an_empty_folder(self, autoencoder, tmp_path):
        (tmp_path / "empty").mkdir()
        told = evaluate(
            "reconstruction", f"autoencoder={autoencoder}", "data.source=folder",
            f"data.path={tmp_path / 'empty'}", "data.part=all", f"output={tmp_path / 'out'}",
        ).refused()  # fmt: skip
        assert told.startswith("error: no videos found in ")

    def test_a_folder_of_which_nothing_can_be_read(self, autoencoder, tmp_path):
        for name in ("a.mp4", "b.webm"):
            (tmp_path / "bad").mkdir(exist_ok=True)
            (tmp_path / "bad" / name).write_text("not a video")
        options = [
            "reconstruction", f"autoencoder={autoencoder}", "data.source=folder", "lpips=null",
            f"data.path={tmp_path / 'bad'}", "data.part=all", f"output={tmp_path / 'out'}",
        ]  # fmt: skip
        assert "2 of 2 files can't be used" in evaluate(*options).refused()
        told = evaluate(*options, "data.max_bad_fraction=1", "windows=all").refused()
        assert "no video could be used" in told
        assert not (tmp_path / "out").exists()
