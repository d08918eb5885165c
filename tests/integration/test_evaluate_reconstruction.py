"""evaluate.py as its users run it: on small models, on the CPU."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState

import runtime
from vidtwin import VidTwinAutoencoder
from vidtwin.data import TooManyBadFiles
from vidtwin.media import write_video
from vidtwin.shapes import MovingShapes, ShapesConfig

ROOT = Path(__file__).parents[2]
CONFIGS = [
    ROOT / "configs" / "evaluation" / f"{name}.yaml"
    for name in ("reconstruction", "reconstruction_debug", "clips_64", "mcl_jcv", "mcl_jcv_native")
]
DEBUG = "configs/evaluation/reconstruction_debug.yaml"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
ENVIRONMENT["ACCELERATE_USE_CPU"] = "true"


@pytest.fixture(scope="module")
def script():
    """evaluate.py as a module, to be run in this process where that is all the same."""
    spec = importlib.util.spec_from_file_location("evaluate_script", ROOT / "evaluate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(script, monkeypatch, capsys):
    """Runs the script in this process: its exit code, standard output and standard error."""
    monkeypatch.chdir(ROOT)

    def call(*arguments: object) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            runtime.run_main(script.main, TooManyBadFiles)
        captured = capsys.readouterr()
        return end.value.code, captured.out, captured.err

    yield call
    AcceleratorState._reset_state(True)
    PartialState._reset_state()


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory) -> Path:
    """A saved model with weights away from special values."""
    torch.manual_seed(0)
    model = VidTwinAutoencoder(
        num_frames=4, height=16, width=16, patch_size=(1, 4, 4), hidden_size=16, encoder_depth=1,
        decoder_depth=1, encoder_heads=2, decoder_heads=2, num_queries=2, query_hidden_size=8,
        query_layers=2, query_heads=2, query_intermediate_size=16, structure_base_channels=8,
        structure_channels=3, dynamics_channels=2,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    folder = tmp_path_factory.mktemp("model") / "autoencoder"
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """Seven clips of different lengths, and one file that is none."""
    folder = tmp_path_factory.mktemp("clips")
    shapes = MovingShapes(ShapesConfig(num_frames=14, height=24, width=32))
    for index, length in enumerate((14, 5, 9, 4, 12, 6, 8)):
        write_video(folder / f"clip{index}.mp4", shapes.clip(index).video[:length], 8.0)
    (folder / "clip2b.mp4").write_text("not a video")
    return folder


def content(folder: Path) -> dict[str, bytes]:
    endings = (".json", ".csv", ".md")
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.suffix in endings}


def test_two_processes_equal_one(autoencoder, clips, tmp_path):
    # Every window of clips of several lengths, a bad file among them, and features.
    options = (
        "reconstruction", "--config", DEBUG, f"autoencoder={autoencoder}", "data.source=folder",
        f"data.path={clips}", "data.part=all", "data.max_clips=null", "data.fps=null",
        "data.stride=1", "data.max_bad_fraction=0.5", "windows=all", "batch_size=2",
        "num_workers=1", "reencode=h264@20", "distance_resamples=20",
        "features.name=evaluation.features:random_convolutions", "features.path='8'",
    )  # fmt: skip
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    # What glibc fills new memory with: encoders have been seen to read what nobody had written.
    for name, prefix, memory in (("one", (), "0"), ("two", launcher, "85")):
        subprocess.run(
            [sys.executable, *prefix, "evaluate.py", *options, f"output={tmp_path / name}"],
            cwd=ROOT,
            env={**ENVIRONMENT, "MALLOC_PERTURB_": memory},
            check=True,
            timeout=300,
        )
    expected = content(tmp_path / "one")
    assert content(tmp_path / "two") == expected
    assert set(expected) == {"reconstruction.json", "reconstruction.csv", "reconstruction.md"}
    report = json.loads(expected["reconstruction.json"])
    assert report["found"]["videos"] == 7
    assert report["found"]["windows"] == 3 + 1 + 2 + 1 + 3 + 1 + 2
    assert report["skipped"]["n"] == 1
    assert report["skipped"]["files"][0]["path"].endswith("clip2b.mp4")
    assert report["found"]["rfvd"]["name"].startswith("rFVD@13[")
    assert (tmp_path / "two" / "reconstruction.png").is_file()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_config_describes_itself(run, config, autoencoder, clips, tmp_path):
    data = [] if "debug" in config.stem else [f"data.path={clips}"]
    if "mcl_jcv" in config.stem:
        data += ["data.num_frames=4", "data.height=16", "data.width=16"]
    code, out, err = run(
        "reconstruction", "--config", config, "--dry-run", f"autoencoder={autoencoder}", *data,
        f"output={tmp_path / 'out'}",
    )  # fmt: skip
    assert code == 0, err
    assert "compression_rate" in out
    assert "weights_digest" in out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["adherence", "adherence_debug"])
def test_adherence_describes_itself(run, name, autoencoder, tmp_path):
    code, out, err = run(
        "adherence", "--config", f"configs/evaluation/{name}.yaml", "--dry-run",
        "mode=reconstruction", f"pipeline={autoencoder}", f"output={tmp_path / 'out'}",
    )  # fmt: skip
    assert code == 0, err
    assert "examples" in out


def test_adherence_of_a_pipeline(run, build_pipeline, tmp_path):
    build_pipeline().save_pretrained(tmp_path / "pipeline")
    for mode in ("prompt", "structure-from", "dynamics-from"):
        code, out, err = run(
            "adherence", "--config", "configs/evaluation/adherence_debug.yaml", f"mode={mode}",
            f"pipeline={tmp_path / 'pipeline'}", f"output={tmp_path / mode}", "samples=3",
        )  # fmt: skip
        assert code == 0, err
        report = json.loads((tmp_path / mode / "adherence.json").read_text())
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
    def test_is_refused(self, run, autoencoder, tmp_path, monkeypatch, arguments, message):
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
        name, *rest = arguments or ("",)
        model = [f"autoencoder={autoencoder}"] if name == "reconstruction" else []
        options = [name, *model, *rest, f"output={tmp_path / 'out'}"] if name else []
        code, _, err = run(*options)
        assert code == 2
        line = err.strip().splitlines()[-1]
        assert "error: " in line
        assert message in line
        assert "Traceback" not in err
        assert not (tmp_path / "out").exists()

    def test_an_output_that_is_a_file(self, run, autoencoder, tmp_path):
        (tmp_path / "file").write_text("")
        code, _, err = run(
            "reconstruction", f"autoencoder={autoencoder}", f"output={tmp_path / 'file'}"
        )
        assert code == 2
        line = err.strip().splitlines()[-1]
        assert "can't write to the folder" in line
        assert "choose another with output=FOLDER" in line

    def test_an_empty_folder(self, run, autoencoder, tmp_path):
        (tmp_path / "empty").mkdir()
        code, _, err = run(
            "reconstruction", f"autoencoder={autoencoder}", "data.source=folder",
            f"data.path={tmp_path / 'empty'}", "data.part=all", f"output={tmp_path / 'out'}",
        )  # fmt: skip
        assert code == 2
        assert err.strip().splitlines()[-1].startswith("error: no videos found in ")

    def test_a_folder_of_which_nothing_can_be_read(self, run, autoencoder, tmp_path):
        for name in ("a.mp4", "b.webm"):
            (tmp_path / "bad").mkdir(exist_ok=True)
            (tmp_path / "bad" / name).write_text("not a video")
        options = [
            "reconstruction", f"autoencoder={autoencoder}", "data.source=folder", "lpips=null",
            f"data.path={tmp_path / 'bad'}", "data.part=all", f"output={tmp_path / 'out'}",
        ]  # fmt: skip
        code, _, err = run(*options)
        assert code == 2
        assert "2 of 2 files can't be used" in err.strip().splitlines()[-1]
        code, _, err = run(*options, "data.max_bad_fraction=1", "windows=all")
        assert code == 2
        assert "no video could be used" in err.strip().splitlines()[-1]
        assert not (tmp_path / "out").exists()
