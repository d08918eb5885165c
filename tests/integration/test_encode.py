"""encode.py as its users run it: on small models, on the CPU."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, PartialState

import runtime
from diffusion import LatentCache, LatentStats
from vidtwin import VidTwinAutoencoder, draw_noise
from vidtwin.data import DataConfig, TooManyBadFiles, build_dataset
from vidtwin.media import write_video
from vidtwin.reconstruction import weights_digest
from vidtwin.shapes import LABELS, MovingShapes, ShapesConfig

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs" / "encode").glob("*.yaml"))
DEBUG = "configs/encode/shapes_debug.yaml"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
NAMES = ("structure", "dynamics_x", "dynamics_y")


@pytest.fixture(scope="module")
def script():
    """encode.py as a module, to be run in this process where that is all the same."""
    spec = importlib.util.spec_from_file_location("encode_script", ROOT / "encode.py")
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
        monkeypatch.setattr(sys, "argv", ["encode.py", *map(str, arguments)])
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
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    folder = tmp_path_factory.mktemp("model") / "autoencoder"
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """Ten clips with captions, and one file that is none."""
    folder = tmp_path_factory.mktemp("clips")
    shapes = MovingShapes(ShapesConfig(num_frames=12, height=24, width=32))
    for index in range(10):
        clip = shapes.clip(index)
        write_video(folder / f"clip{index:02d}.mp4", clip.video, 8.0)
        (folder / f"clip{index:02d}.txt").write_text(clip.caption)
    (folder / "clip05b.mp4").write_text("not a video")
    return folder


def command(*arguments: object, launcher: tuple[str, ...] = ()) -> list[str]:
    return [sys.executable, *launcher, "encode.py", *map(str, arguments)]


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_config_describes_itself(run, config, autoencoder, clips, tmp_path):
    data = [] if "shapes" in config.stem else [f"data.path={clips}"]
    code, out, err = run(
        "--config", config, "--dry-run", f"autoencoder={autoencoder}", *data,
        f"output={tmp_path / 'run'}",
    )  # fmt: skip
    assert code == 0, err
    assert "shards to do" in out
    assert "'structure': [6, 2, 2, 2]" in out
    assert not (tmp_path / "run").exists()


def test_a_sample_is_what_encoding_it_anew_gives(run, autoencoder, tmp_path):
    code, out, err = run(
        "--config", DEBUG, f"autoencoder={autoencoder}", f"output={tmp_path}", "dtype=float32"
    )
    assert code == 0, err
    assert "train: 16 clips, 16 encodings, 48 captions" in out
    model = VidTwinAutoencoder.from_pretrained(autoencoder)
    sized: dict[str, Any] = {"num_frames": 4, "height": 16, "width": 16, "shapes_size": 200000}
    for part, count in (("train", 16), ("validation", 4)):
        cache = LatentCache(tmp_path / part)
        assert len(cache) == count
        assert cache.label_names == list(LABELS)
        dataset = build_dataset(DataConfig(**cache.manifest["data"]))
        cache.check(weights_digest(model), model.sizes, {"part": part, **sized})
        for epoch in range(3):
            for index in range(count):
                expected, came = dataset.get(index, epoch), cache[epoch, index]
                for name in ("caption", "label", "index", "noise_seed", "path"):
                    assert came[name] == expected[name]
                with torch.no_grad():
                    posterior = model.encode(expected["video"][None])
                noise = draw_noise(model.sizes, [expected["noise_seed"]])
                for name in NAMES:
                    latent = getattr(posterior.sample(noise=noise), name)[0]
                    assert torch.allclose(came[name], latent, atol=1e-5)
        everything = [model.encode(dataset.get(i)["video"][None]) for i in range(count)]
        stats = LatentStats.measure(everything).state_dict()
        saved = LatentStats.from_pretrained(tmp_path / part / "latent_stats").state_dict()
        assert all(torch.allclose(value, saved[key], rtol=1e-4) for key, value in stats.items())


def test_variants_of_files_and_bad_files(run, autoencoder, clips, tmp_path, caplog):
    code, out, err = run(
        "--config", "configs/encode/clips.yaml", f"autoencoder={autoencoder}",
        f"data.path={clips}", f"output={tmp_path}", "variants=3", "parts=[all]", "shard_size=4",
        "batch_size=5", "num_workers=1", "data.validation_fraction=0", "data.flip=true",
        "data.max_bad_fraction=0.1", "dtype=float32",
    )  # fmt: skip
    assert code == 0, err
    assert "10 clips, 30 encodings, 10 captions" in out
    assert "1 files skipped" in out
    assert "clip05b.mp4" in caplog.text
    cache = LatentCache(tmp_path / "all", sample_posterior=False)
    (skipped,) = cache.manifest["skipped"]
    assert skipped["path"].endswith("clip05b.mp4")
    assert skipped["reason"]
    assert not any("clip05b" in path for path in cache.paths)
    model = VidTwinAutoencoder.from_pretrained(autoencoder)
    dataset = build_dataset(
        DataConfig(
            source="folder", path=str(clips), part="all", num_frames=4, height=16, width=16,
            flip=True,
        )
    )  # fmt: skip
    seen = set()
    for position in range(len(cache)):
        for epoch in range(3):
            came = cache[epoch, position]
            expected = dataset.get(came["index"], epoch)
            assert came["path"] == expected["path"]
            assert came["caption"] == expected["caption"] != ""
            with torch.no_grad():
                latents = model.encode(expected["video"][None]).mode()
            for name in NAMES:
                assert torch.allclose(came[name], getattr(latents, name)[0], atol=1e-4)
            seen.add(np.asarray(came["structure"]).tobytes())
    assert len(seen) > 20  # of 30: a window may be drawn twice, and some shapes stay still


def test_too_many_bad_files_stop_it(run, autoencoder, clips, tmp_path):
    options = ("--config", "configs/encode/clips.yaml", f"autoencoder={autoencoder}",
               f"data.path={clips}", f"output={tmp_path}", "parts=[all]", "num_workers=1",
               "data.validation_fraction=0", "shard_size=4")  # fmt: skip
    for _ in range(2):  # again: what was skipped before is known before the work begins
        start = time.monotonic()
        code, _, err = run(*options, "data.max_bad_fraction=0.05")
        assert code == 2
        assert "1 of 11 files can't be used" in err
        assert "clip05b.mp4" in err
        assert "Traceback" not in err
        assert time.monotonic() - start < 60
        assert not (tmp_path / "all" / "manifest.json").exists()
    code, _, err = run(*options, "data.max_bad_fraction=0.5")
    assert code == 0, err


def test_killed_and_run_again_equals_uninterrupted(autoencoder, tmp_path):
    options = ("--config", DEBUG, f"autoencoder={autoencoder}", "shard_size=1", "max_samples=60",
               "num_workers=1")  # fmt: skip
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(
        command(*options, f"output={whole}"), cwd=ROOT, env=ENVIRONMENT, check=True, timeout=240
    )
    stop_at = random.randint(1, 50)
    process = subprocess.Popen(
        command(*options, f"output={killed}"), cwd=ROOT, env=ENVIRONMENT, start_new_session=True
    )
    deadline = time.monotonic() + 240
    while len(list((killed / "train" / "shards").glob("shard-*"))) < stop_at:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (killed / "train" / "manifest.json").exists()
    subprocess.run(
        command(*options, f"output={killed}"), cwd=ROOT, env=ENVIRONMENT, check=True, timeout=240
    )
    assert content(killed) == content(whole), f"killed after {stop_at} shards"


def test_two_processes_equal_one(autoencoder, clips, tmp_path):
    # With a bad file, which moves the clips behind it, and several parts.
    options = ("--config", "configs/encode/clips.yaml", f"autoencoder={autoencoder}",
               f"data.path={clips}", "variants=2", "shard_size=2", "batch_size=3", "num_workers=1",
               "data.validation_fraction=0.3", "data.max_bad_fraction=0.5")  # fmt: skip
    launcher = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2")
    for name, prefix in (("one", ()), ("two", launcher)):
        subprocess.run(
            command(*options, f"output={tmp_path / name}", launcher=prefix),
            cwd=ROOT,
            env=ENVIRONMENT,
            check=True,
            timeout=240,
        )
    expected = content(tmp_path / "one")
    assert len([name for name in expected if name.endswith("shard.json")]) >= 6
    assert content(tmp_path / "two") == expected


def test_run_again_does_nothing_and_more_clips_extend_it(run, autoencoder, tmp_path):
    options = ("--config", DEBUG, f"autoencoder={autoencoder}", "parts=[train]")
    assert run(*options, "max_samples=6", f"output={tmp_path / 'a'}")[0] == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    code, out, _ = run(*options, "max_samples=6", f"output={tmp_path / 'a'}")
    assert code == 0
    assert "is complete: 6 clips" in out
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    assert run(*options, "max_samples=10", f"output={tmp_path / 'a'}")[0] == 0
    assert run(*options, "max_samples=10", f"output={tmp_path / 'b'}")[0] == 0
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_the_batch_size_changes_next_to_nothing(run, autoencoder, tmp_path):
    options = ("--config", DEBUG, f"autoencoder={autoencoder}", "parts=[train]", "dtype=float32")
    for size in (1, 3):
        assert run(*options, f"batch_size={size}", f"output={tmp_path / str(size)}")[0] == 0
    one, three = (LatentCache(tmp_path / str(size) / "train") for size in (1, 3))
    for index in range(len(one)):
        for name in NAMES:
            assert torch.allclose(one[index][name], three[index][name], atol=1e-5)


class TestBadInput:
    """One clear line, exit code 2, and nothing written."""

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["stores=mode"], "stores.*store"),
            (["store=all"], "`store` must be one of moments, mode, got 'all'"),
            (["dtype=int8"], "`dtype` must be one of float16, float32, got 'int8'"),
            (["batch_size=0"], "`batch_size` must be at least 1, got 0"),
            (["max_samples=0"], "`max_samples` must be at least 1 or null, got 0"),
            (["parts=[test]"], r"`parts` must name some of train, validation, all"),
            (["parts=[]"], r"`parts` must name some of train, validation, all"),
            (["data.part=all"], r"set parts=\[all\]"),
            (["variants=4"], "variants=4 would store the same pixels again: the moving shapes"),
            (
                ["variants=2", "data.source=glob", "data.start=first", "data.crop=center"],
                "nothing is random in data.start, data.crop and data.flip",
            ),
            (["data.height=64"], "data.height=64 differs from model.height=16"),
            (["autoencoder=nowhere"], "nowhere does not exist"),
            (["mixed_precision=fp8"], "`mixed_precision` must be"),
            (["data.source=folder"], "data.path"),
            (["--config", "nowhere.yaml"], r"nowhere\.yaml"),
        ],
        ids=lambda value: value[-1] if isinstance(value, list) else "",
    )
    def test_message(self, run, autoencoder, tmp_path, arguments, message):
        config = [] if "--config" in arguments else ["--config", DEBUG]
        model = [] if "autoencoder" in arguments[0] else [f"autoencoder={autoencoder}"]
        code, _, err = run(*config, *model, f"output={tmp_path / 'run'}", *arguments)
        assert code == 2, err
        lines = [line for line in err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1
        assert re.search(message, lines[0]), lines[0]
        assert "Traceback" not in err
        assert not (tmp_path / "run").exists()

    def test_another_cache_in_the_folder(self, run, autoencoder, tmp_path):
        options = ("--config", DEBUG, f"autoencoder={autoencoder}", f"output={tmp_path}")
        assert run(*options)[0] == 0
        before = content(tmp_path)
        code, _, err = run(*options, "data.shapes_seed=1", "store=mode")
        assert code == 2
        assert "data.shapes_seed is 0 in the cache, now 1" in err
        assert "store is 'moments' in the cache, now 'mode'" in err
        model = VidTwinAutoencoder.from_pretrained(autoencoder)
        with torch.no_grad():
            next(model.parameters()).add_(1)
        model.save_pretrained(tmp_path / "other")
        code, _, err = run(*options, f"autoencoder={tmp_path / 'other'}")
        assert code == 2
        digest = json.loads(before["train/manifest.json"])["autoencoder_digest"]
        assert f"autoencoder_digest is '{digest}' in the cache, now '" in err
        shutil.rmtree(tmp_path / "other")
        assert content(tmp_path) == before

    def test_an_output_that_can_not_be_written(self, run, autoencoder, tmp_path):
        (tmp_path / "file").write_text("")
        code, _, err = run(
            "--config", DEBUG, f"autoencoder={autoencoder}", f"output={tmp_path / 'file'}"
        )
        assert code == 2
        assert "can't be written" in err
