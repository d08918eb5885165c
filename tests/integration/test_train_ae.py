"""train_ae.py as its users run it: on small models, on the CPU."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from safetensors.torch import load_file

import runtime
from vidtwin import VidTwinAutoencoder
from vidtwin.data import TooManyBadFiles
from vidtwin.media import write_video
from vidtwin.shapes import MovingShapes, ShapesConfig

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs" / "ae").glob("*.yaml"))
DEBUG = "configs/ae/shapes_debug.yaml"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module")
def script():
    """train_ae.py as a module, to be run in this process where that is all the same."""
    spec = importlib.util.spec_from_file_location("train_ae_script", ROOT / "train_ae.py")
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

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["train_ae.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            runtime.run_main(script.main, TooManyBadFiles)
        captured = capsys.readouterr()
        return end.value.code, captured.out, captured.err

    yield call
    AcceleratorState._reset_state(True)
    PartialState._reset_state()


def command(*arguments: object, launcher: tuple[str, ...] = ()) -> list[str]:
    return [sys.executable, *launcher, "train_ae.py", *map(str, arguments)]


def weights(folder: Path, name: str = "autoencoder") -> dict[str, torch.Tensor]:
    return load_file(folder / name / "diffusion_pytorch_model.safetensors")


def folder_with_a_bad_clip(path: Path, good: int) -> Path:
    clips = path / "clips"
    clips.mkdir()
    video = MovingShapes(ShapesConfig(height=32, width=32)).clip(0).video
    for index in range(good):
        write_video(clips / f"good{index}.mp4", video, 8.0)
    (clips / "bad.mp4").write_text("not a video")
    return clips


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_config_describes_itself(run, config, tmp_path):
    code, out, _ = run("--config", config, "--dry-run", f"output={tmp_path / 'run'}")
    assert code == 0
    assert "autoencoder: " in out
    assert "latent values per clip, rate" in out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["official", "paper", "small", "shapes"])
def test_every_debug_config_trains_validates_and_saves(run, name, tmp_path):
    code, _, err = run("--config", f"configs/ae/{name}_debug.yaml", f"output={tmp_path}")
    assert code == 0, err
    logged = records(tmp_path)
    training = [record for record in logged if "loss/total" in record]
    for key in ("loss/kl", "gradient_norm", "learning_rate", "samples_per_second", "data_wait",
                "memory_gib", "loss/reconstruction"):  # fmt: skip
        assert all(key in record for record in training)
    assert "loss/adversarial" in training[-1]
    assert "discriminator/hinge" in training[-1]
    assert "loss/adversarial" not in training[0]
    assert any("validation/psnr" in record for record in logged)
    assert list((tmp_path / "videos").rglob("*.mp4"))
    for folder in ("autoencoder", "autoencoder_ema"):
        model = VidTwinAutoencoder.from_pretrained(tmp_path / folder)
        assert model.sizes.num_frames == training[0].get("num_frames", model.sizes.num_frames)


def test_killed_at_any_step_and_run_again_equals_uninterrupted(tmp_path):
    # Dropout, adversarial loss, EMA and a worker: everything that could remember something.
    options = ("--config", DEBUG, "save_every=2", "steps=14", "model.query_dropout=0.1",
               "validation_samples=0", "log_every=1", "num_workers=1",
               "accumulation=2")  # fmt: skip
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(
        command(*options, f"output={whole}"), cwd=ROOT, env=ENVIRONMENT, check=True, timeout=240
    )
    stop_at = random.randint(2, 12)
    process = subprocess.Popen(
        command(*options, f"output={killed}"), cwd=ROOT, env=ENVIRONMENT, start_new_session=True
    )
    log = killed / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while not (log.exists() and len(log.read_text().splitlines()) >= stop_at):
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (killed / "checkpoints" / "step_000000014").exists()
    subprocess.run(
        command(*options, f"output={killed}"), cwd=ROOT, env=ENVIRONMENT, check=True, timeout=240
    )
    for name in ("autoencoder", "autoencoder_ema"):
        expected, came = weights(whole, name), weights(killed, name)
        assert expected.keys() == came.keys()
        for key, value in expected.items():
            assert torch.equal(value, came[key]), f"{key}, killed at step {stop_at}"
    last = "checkpoints/step_000000014/model_1.safetensors"
    expected, came = load_file(whole / last), load_file(killed / last)
    assert all(torch.equal(value, came[key]) for key, value in expected.items())
    assert [r["step"] for r in records(killed)] == list(range(1, 15))
    assert [r["loss/total"] for r in records(killed)] == [r["loss/total"] for r in records(whole)]


def test_a_structure_off_shuffled_frames_trains_otherwise(run, tmp_path):
    options = ("--config", DEBUG, "steps=4", "validation_samples=0")
    for name, share in (("plain", 0), ("shuffled", 1)):
        code, _, err = run(*options, f"output={tmp_path / name}", f"frame_shuffle.share={share}")
        assert code == 0, err
    plain, shuffled = weights(tmp_path / "plain"), weights(tmp_path / "shuffled")
    assert plain.keys() == shuffled.keys()
    assert any(not torch.equal(value, shuffled[key]) for key, value in plain.items())


def test_two_processes_equal_one(run, tmp_path):
    options = ("--config", DEBUG, "steps=8", "batch_size=4", "log_every=1", "model.query_dropout=0",
               "loss.learn_logvar=true", "loss.lecam_weight=0.01", "validate_every=8")  # fmt: skip
    one, two = tmp_path / "one", tmp_path / "two"
    code, _, err = run(*options, f"output={one}")
    assert code == 0, err
    launcher = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2")
    subprocess.run(
        command(*options, f"output={two}", launcher=launcher),
        cwd=ROOT,
        env=ENVIRONMENT,
        check=True,
        timeout=240,
    )
    progress = json.loads((two / "checkpoints/step_000000008/progress.json").read_text())
    assert progress["num_processes"] == 2
    for first, second in zip(records(one), records(two), strict=True):
        for key, value in first.items():
            if key.startswith(("loss/", "discriminator/", "validation/", "gradient_norm")):
                assert second[key] == pytest.approx(value, rel=2e-4, abs=2e-5), key
    expected, came = weights(one), weights(two)
    for key, value in expected.items():
        assert torch.allclose(value, came[key], rtol=1e-3, atol=2e-5), key


def test_micro_batches_equal_the_whole_batch(run, tmp_path):
    options = ("--config", DEBUG, "steps=3", "batch_size=4", "log_every=1", "validation_samples=0",
               "loss.discriminator_weight=0", "model.query_dropout=0")  # fmt: skip
    for parts in (1, 2):
        code, _, err = run(*options, f"output={tmp_path / str(parts)}", f"accumulation={parts}")
        assert code == 0, err
    expected, came = weights(tmp_path / "1"), weights(tmp_path / "2")
    assert all(torch.allclose(v, came[k], rtol=1e-4, atol=1e-5) for k, v in expected.items())


def test_overfit_learns_its_clips(run, tmp_path):
    code, _, err = run(
        "--config", DEBUG, "--overfit", 2, f"output={tmp_path}", "steps=40",
        "loss.discriminator_weight=0", "validate_every=40", "save_every=40", "log_every=1",
        "ema.decay=0.5",
    )  # fmt: skip
    assert code == 0, err
    losses = [r["loss/reconstruction"] for r in records(tmp_path) if "loss/total" in r]
    assert losses[-1] < 0.5 * losses[0]
    validated = [r for r in records(tmp_path) if "validation/psnr" in r]
    assert validated[-1]["validation/clips"] == 2


def poisoned(script, monkeypatch, bad_steps):
    """Makes the videos of some batches not finite."""
    original = script.build_loader

    def build(*arguments, **options):
        for step, batch in enumerate(original(*arguments, **options), options["start_batch"]):
            if step in bad_steps:
                batch["video"][0, 0, 0, 0, 0] = float("nan")
            yield batch

    monkeypatch.setattr(script, "build_loader", build)


def test_a_step_that_is_not_finite_changes_no_weight(run, script, monkeypatch, tmp_path):
    options = ("--config", DEBUG, "validation_samples=0", "log_every=1", "save_every=1",
               "keep_checkpoints=null", "loss.discriminator_start=0")  # fmt: skip
    poisoned(script, monkeypatch, {3})
    code, _, err = run(*options, "steps=5", "optimizer.warmup_steps=0",
                       "discriminator_optimizer.warmup_steps=0", f"output={tmp_path}")  # fmt: skip
    assert code == 0, err
    checkpoints = tmp_path / "checkpoints"
    for name in ("model.safetensors", "model_1.safetensors"):
        before = load_file(checkpoints / "step_000000003" / name)
        after = load_file(checkpoints / "step_000000004" / name)
        later = load_file(checkpoints / "step_000000005" / name)
        kept = [k for k in before if "running_" not in k and "num_batches" not in k]
        assert all(torch.equal(before[key], after[key]) for key in kept)
        assert not all(torch.equal(after[key], later[key]) for key in kept)
    assert [r["nonfinite_steps"] for r in records(tmp_path)] == [0, 0, 0, 1, 1]


def test_too_many_bad_steps_stop_the_run(run, script, monkeypatch, tmp_path):
    poisoned(script, monkeypatch, set(range(1, 12)))
    code, _, err = run("--config", DEBUG, "max_nonfinite_steps=3", f"output={tmp_path}")
    assert code == 2
    assert "3 steps in a row had a loss or gradient that is not finite" in err
    assert "Traceback" not in err


def test_compiled_with_the_adversarial_loss(run, script, monkeypatch, tmp_path):
    # The adaptive weight takes two gradients of one compiled graph before the backward pass.
    compile_with = torch.compile
    monkeypatch.setattr(torch, "compile", lambda m: compile_with(m, backend="aot_eager"))
    options = ("--config", DEBUG, "steps=3", "loss.discriminator_start=1", "log_every=1",
               "validate_every=3", "save_every=3", "optimizer.warmup_steps=0",
               "discriminator_optimizer.warmup_steps=0")  # fmt: skip
    for name, value in (("compiled", True), ("plain", False)):
        code, _, err = run(*options, f"output={tmp_path / name}", f"compile={value}")
        assert code == 0, err
    compiled, plain = records(tmp_path / "compiled"), records(tmp_path / "plain")
    for first, second in zip(compiled, plain, strict=True):
        for key in ("loss/total", "loss/adaptive_weight", "validation/psnr"):
            if key in first:
                assert first[key] == pytest.approx(second[key], rel=1e-3), key
    assert "loss/adaptive_weight" in compiled[1]


def test_run_again_after_the_end_restores_lost_weights(run, tmp_path):
    options = ("--config", DEBUG, "steps=2", "optimizer.warmup_steps=0",
               "discriminator_optimizer.warmup_steps=0", "validation_samples=0",
               f"output={tmp_path}")  # fmt: skip
    assert run(*options)[0] == 0
    expected = weights(tmp_path)
    (tmp_path / "autoencoder").rename(tmp_path / "lost")
    assert run(*options)[0] == 0
    assert all(torch.equal(value, weights(tmp_path)[key]) for key, value in expected.items())


def test_resume_from_another_run_then_from_its_own(run, tmp_path):
    options = ("--config", DEBUG, "validation_samples=0", "save_every=2", "log_every=1")
    first, second = tmp_path / "first", tmp_path / "second"
    assert run(*options, "steps=4", f"output={first}")[0] == 0
    again = (*options, "steps=6", f"output={second}", "--resume", first)
    assert run(*again)[0] == 0
    assert [r["step"] for r in records(second)] == [5, 6]
    assert run(*again)[0] == 0  # goes on from its own newest: nothing is left to do
    assert [r["step"] for r in records(second)] == [5, 6]
    earlier = second / "checkpoints" / "step_000000006"
    assert run(*options, "steps=8", f"output={second}")[0] == 0
    code, _, err = run(*options, "steps=8", f"output={second}", "--resume", earlier)
    assert code == 2
    assert "holds later checkpoints than step_000000006" in err


def test_a_bad_validation_clip_stops_nothing(run, tmp_path, caplog):
    clips = folder_with_a_bad_clip(tmp_path, good=6)
    code, _, err = run(
        "--config", DEBUG, "data.source=folder", f"data.path={clips}", "data.part=all",
        "data.shapes_size=20000", "data.validation_fraction=0", "steps=2", "log_every=1",
        "data.max_bad_fraction=0.2", "optimizer.warmup_steps=0", "validation_samples=7",
        "discriminator_optimizer.warmup_steps=0", f"output={tmp_path / 'run'}",
    )  # fmt: skip
    assert code == 0, err
    assert records(tmp_path / "run")[-1]["validation/clips"] == 6
    assert "bad.mp4" in caplog.text


class TestBadInput:
    """One clear line, exit code 2, and nothing written."""

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["model.hiden_size=32"], r"model.hiden_size.*model\.hidden_size"),
            (["model.hidden_size=wide"], "hidden_size"),
            (["model.height=50"], "`height` must be a multiple of the patch size 8, got 50"),
            (["data.height=128"], "data.height=128 differs from model.height=32"),
            (["batch_size=3", "accumulation=2"], "`batch_size` must be a multiple of 2"),
            (["steps=0"], "`steps` must be at least 1, got 0"),
            (["optimizer.warmup_steps=99"], "`warmup_steps` must be less than"),
            (["mixed_precision=fp8"], "mixed_precision"),
            (["tracker=mlflow"], "`tracker` must be one of none, tensorboard, wandb"),
            (["data.source=folder", "data.shapes_size=20000"], "data.path"),
            (["--resume", "nowhere"], "checkpoint nowhere does not exist"),
            (["--config", "nowhere.yaml"], r"nowhere\.yaml"),
            (["init_from=nowhere.ckpt"], r"no checkpoint file at nowhere\.ckpt"),
            (["discriminator.layers=5"], "needs frames of at least 96 pixels"),
        ],
        ids=lambda value: value[-1] if isinstance(value, list) else "",
    )
    def test_message(self, run, tmp_path, arguments, message):
        config = [] if "--config" in arguments else ["--config", DEBUG]
        code, _, err = run(*config, f"output={tmp_path / 'run'}", *arguments)
        assert code == 2, err
        assert re.search(message, err), err
        assert "Traceback" not in err
        assert not list(tmp_path.rglob("*.safetensors"))

    def test_folder_that_cant_be_written(self, run, tmp_path):
        (tmp_path / "file").write_text("in the way")
        code, _, err = run("--config", DEBUG, f"output={tmp_path / 'file' / 'run'}")
        assert code == 2
        assert "can't be written" in err

    def test_folder_of_another_run(self, run, tmp_path):
        options = ("--config", DEBUG, f"output={tmp_path}", "steps=4", "validation_samples=0")
        assert run(*options)[0] == 0
        code, _, err = run(*options, "model.dynamics_channels=2", "seed=3")
        assert code == 2
        assert "belongs to a run with another config" in err
        assert "model.dynamics_channels" in err
        assert "seed" in err
        assert run(*options, "steps=6", "log_every=1")[0] == 0  # a longer run is the same run

    def test_perceptual_weights_that_cant_be_had(self, run, tmp_path, monkeypatch):
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))

        def no_network(*_arguments, **_options):
            raise OSError("no network")

        monkeypatch.setattr(torch.hub, "load_state_dict_from_url", no_network)
        monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", no_network)
        code, _, err = run("--config", DEBUG, f"output={tmp_path / 'run'}",
                           "loss.perceptual_weight=0.05")  # fmt: skip
        assert code == 2
        assert "perceptual_weight=0" in err

    def test_too_many_bad_files(self, run, tmp_path):
        clips = folder_with_a_bad_clip(tmp_path, good=3)
        options = ("--config", DEBUG, "data.source=folder", f"data.path={clips}",
                   "data.shapes_size=20000", "validation_samples=0", "steps=4")  # fmt: skip
        code, _, err = run(*options, f"output={tmp_path / 'strict'}")
        assert code == 2
        assert "1 of 4 files can't be used" in err
        assert "bad.mp4" in err
        code, _, err = run(*options, f"output={tmp_path / 'lax'}", "data.max_bad_fraction=0.5")
        assert code == 0, err
