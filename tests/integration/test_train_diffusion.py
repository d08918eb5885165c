"""train_diffusion.py as its users run it, on the CPU: moving shapes, a tiny autoencoder."""

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
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from safetensors.torch import load_file
from torch.testing import assert_close

import runtime
from diffusion import LatentStats, VidTwinPipeline
from vidtwin.data import TooManyBadFiles
from vidtwin.media import write_video
from vidtwin.shapes import MovingShapes, ShapesConfig

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs" / "diffusion").glob("*.yaml"))
DEBUG = "configs/diffusion/shapes_debug.yaml"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
CONDITIONS = {"class": (), "text": ("class_conditional=false", "sample_classes=[]")}
QUIET = ("validation_samples=0", "sample_classes=[]", "sample_prompts=[]", "log_every=1")


def script(name: str) -> ModuleType:
    """A script as a module, to be run in this process where that is all the same."""
    spec = importlib.util.spec_from_file_location(f"{name}_script", ROOT / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def models(build_pipeline, tmp_path_factory) -> Path:
    """A folder with the frozen models: autoencoder, another one, and text."""
    folder = tmp_path_factory.mktemp("models")
    pipeline = build_pipeline()
    pipeline.autoencoder.save_pretrained(folder / "autoencoder")
    pipeline.text_encoder.save_pretrained(folder / "text")
    pipeline.tokenizer.save_pretrained(folder / "text")
    with torch.no_grad():
        next(pipeline.autoencoder.parameters()).add_(0.1)
    pipeline.autoencoder.save_pretrained(folder / "other")
    return folder


def call(name: str, *arguments: object) -> int:
    """Runs a script in this process: its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            runtime.run_main(script(name).main, TooManyBadFiles)
    AcceleratorState._reset_state(True)
    PartialState._reset_state()
    return end.value.code


@pytest.fixture
def run(models, capsys) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """Runs the training of a tiny model: exit code, standard output and standard error."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the processes that are started, to the bit

    def train(*arguments: object) -> tuple[int, str, str]:
        code = call("train_diffusion", *tiny(models), *arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    yield train
    torch.set_num_threads(threads)


def tiny(models: Path) -> tuple[str, ...]:
    return (
        "--config", DEBUG, f"autoencoder={models / 'autoencoder'}", "model.hidden_size=16",
        "model.depth=1", "model.structure_patch_size=1",
        "model.dynamics_patch_size=1",
    )  # fmt: skip


def command(models: Path, *arguments: object, launcher: tuple[str, ...] = ()) -> list[str]:
    script = "train_diffusion.py"
    return [sys.executable, *launcher, script, *tiny(models), *map(str, arguments)]


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The averaged weights that a run leaves."""
    return load_file(folder / "pipeline/transformer/diffusion_pytorch_model.safetensors")


def assert_same_weights(one: Path, other: Path, rtol: float = 0.0, atol: float = 0.0) -> None:
    expected, came = weights(one), weights(other)
    assert expected.keys() == came.keys()
    for key, value in expected.items():
        assert_close(came[key], value, rtol=rtol, atol=atol, msg=lambda text, key=key: key + text)


def encode(models: Path, folder: Path, *arguments: object) -> Path:
    """The latents of some of the shapes."""
    options = ("--config", "configs/encode/shapes_debug.yaml", f"output={folder}", *arguments)
    assert call("encode", *options, f"autoencoder={models / 'autoencoder'}") == 0
    return folder


@pytest.fixture(scope="module")
def cache(models, tmp_path_factory) -> Path:
    """Posteriors of 16 clips, and of 4 to validate on."""
    return encode(models, tmp_path_factory.mktemp("latents"))


class TestRuns:
    @pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
    def test_every_config_is_read(self, config) -> None:
        train_config = script("train_diffusion").TrainConfig
        assert runtime.load_config(train_config, config, ["steps=99999"]).steps == 99999

    def test_dry_run_describes_and_writes_nothing(self, run, models, tmp_path) -> None:
        text = f"text_encoder={models / 'text'}"
        code, out, err = run("--dry-run", f"output={tmp_path / 'run'}", text)
        assert code == 0, err
        # 2 queries on a grid of 2 x 3, 8 frames of 3 columns and of 2 rows.
        assert "52 tokens: structure 12, dynamics_x 24, dynamics_y 16" in out
        assert re.search(r"clips: 32; classes: .*moving left", out)
        assert not list(tmp_path.iterdir())

    def test_leaves_a_pipeline_that_samples_by_class(self, run, tmp_path) -> None:
        options = ("validate_every=4", "steps=4", "data.shapes_size=16")
        code, _, err = run(f"output={tmp_path}", *options)
        assert code == 0, err
        training = [record for record in records(tmp_path) if "loss/total" in record]
        for key in ("loss/structure", "loss/dynamics", "gradient_norm", "learning_rate",
                    "samples_per_second", "data_wait", "nonfinite_steps"):  # fmt: skip
            assert all(key in record for record in training), key
        validated = [record for record in records(tmp_path) if "validation/structure" in record]
        assert len(validated) == 1
        for name in ("structure", "dynamics"):
            quarters = [validated[0][f"validation/{name}_q{n}"] for n in (1, 2, 3, 4)]
            assert validated[0][f"validation/{name}"] == pytest.approx(sum(quarters) / 4)
        assert validated[0]["validation/clips"] == 4
        assert len(list((tmp_path / "videos").rglob("*.mp4"))) == 1
        pipeline = VidTwinPipeline.from_pretrained(tmp_path / "pipeline")
        pipeline.set_progress_bar_config(disable=True)
        video = pipeline(class_labels="growing", num_inference_steps=2, seed=0).videos
        assert video.shape == (1, 3, 8, 16, 24)
        assert video.isfinite().all()
        assert pipeline.text_encoder is None
        assert (pipeline.latent_stats.structure_std != 1).any()

    def test_leaves_a_pipeline_that_samples_by_prompt(self, run, models, cache, tmp_path) -> None:
        options = (*CONDITIONS["text"], f"text_encoder={models / 'text'}", f"cache={cache}",
                   "sample_prompts=[a red circle, a blue square]", "steps=3", "validate_every=3",
                   "optimizer.warmup_steps=1")  # fmt: skip
        code, _, err = run(f"output={tmp_path}", *options)
        assert code == 0, err
        assert any("validation/structure_q1" in record for record in records(tmp_path))
        assert list((tmp_path / "videos").rglob("*.mp4"))
        pipeline = VidTwinPipeline.from_pretrained(tmp_path / "pipeline")
        pipeline.set_progress_bar_config(disable=True)
        made = pipeline("a red circle", num_inference_steps=2, seed=0).videos
        assert made.shape == (1, 3, 8, 16, 24)
        stored = LatentStats.from_pretrained(cache / "train" / "latent_stats")
        for name, value in stored.state_dict().items():
            assert torch.equal(pipeline.latent_stats.state_dict()[name], value)

    @pytest.mark.parametrize("prediction", ["epsilon", "v"])
    def test_other_objectives(self, run, tmp_path, prediction) -> None:
        options = (f"flow.prediction={prediction}", "flow.min_snr_gamma=5.0", "steps=3", *QUIET)
        code, _, err = run(f"output={tmp_path}", *options, "mixed_precision=bf16")
        assert code == 0, err
        pipeline = VidTwinPipeline.from_pretrained(tmp_path / "pipeline")
        pipeline.set_progress_bar_config(disable=True)
        out = pipeline(num_inference_steps=2, seed=0, output_type="latent")
        assert out.latents.structure.isfinite().all()

    def test_overfit_learns_its_clips(self, run, models, tmp_path) -> None:
        # At their mode: what is drawn from a posterior can't be known by heart.
        cache = encode(models, tmp_path / "latents", "store=mode", "parts=[train]")
        code, _, err = run(
            "--overfit", 2, f"output={tmp_path / 'run'}", f"cache={cache}", "steps=100",
            "batch_size=16", "log_every=1", "validate_every=100", "optimizer.learning_rate=0.01",
            "model.hidden_size=32", "ema.decay=0.9", "sample_classes=[]",
        )  # fmt: skip
        assert code == 0, err
        logged = records(tmp_path / "run")
        losses = [record["loss/total"] for record in logged if "loss/total" in record]
        assert sum(losses[-10:]) < 0.3 * sum(losses[:10])
        assert logged[-1]["validation/clips"] == 2
        assert logged[-1]["validation/structure"] < 0.3


class TestTheSameRun:
    def test_killed_at_any_step_and_run_again(self, run, models, cache, tmp_path) -> None:
        # Classes, text, dropout, EMA, accumulation and a worker: all that could remember.
        options = (f"text_encoder={models / 'text'}", "save_every=2", "steps=40", "accumulation=2",
                   f"cache={cache}", "num_workers=1", *QUIET)  # fmt: skip
        whole, killed = tmp_path / "whole", tmp_path / "killed"
        code, _, err = run(*options, f"output={whole}")
        assert code == 0, err
        process = subprocess.Popen(
            command(models, *options, f"output={killed}"),
            cwd=ROOT,
            env=ENVIRONMENT,
            start_new_session=True,
        )
        stop_at = random.randint(2, 30)
        log = killed / "metrics.jsonl"
        deadline = time.monotonic() + 240
        while not (log.exists() and len(log.read_text().splitlines()) >= stop_at):
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert not (killed / "checkpoints" / "step_000000040").exists()
        code, _, err = run(*options, f"output={killed}")
        assert code == 0, err
        assert_same_weights(whole, killed)
        last = "checkpoints/step_000000040/model.safetensors"
        expected, came = load_file(whole / last), load_file(killed / last)
        assert all(torch.equal(value, came[key]) for key, value in expected.items())
        assert [r["step"] for r in records(killed)] == list(range(1, 41))
        losses = [[r["loss/total"] for r in records(folder)] for folder in (whole, killed)]
        assert losses[0] == losses[1]

    def test_two_processes_equal_one(self, run, models, cache, tmp_path) -> None:
        options = ("steps=6", "log_every=1", "validate_every=6", f"cache={cache}",
                   f"text_encoder={models / 'text'}", "validation_samples=3")  # fmt: skip
        one, two = tmp_path / "one", tmp_path / "two"
        code, _, err = run(*options, f"output={one}")
        assert code == 0, err
        launcher = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2")
        subprocess.run(
            command(models, *options, f"output={two}", launcher=launcher),
            cwd=ROOT,
            env=ENVIRONMENT,
            check=True,
            timeout=240,
        )
        progress = json.loads((two / "checkpoints/step_000000006/progress.json").read_text())
        assert progress["num_processes"] == 2
        for first, second in zip(records(one), records(two), strict=True):
            for key, value in first.items():
                if key.startswith(("loss/", "validation/", "gradient_norm")):
                    assert second[key] == pytest.approx(value, rel=2e-4, abs=2e-5), key
        assert_same_weights(one, two, rtol=1e-3, atol=2e-5)

    def test_micro_batches_equal_the_whole_batch(self, run, models, tmp_path) -> None:
        options = (f"text_encoder={models / 'text'}", "steps=3", *QUIET)
        for parts in (1, 4):
            code, _, err = run(*options, f"output={tmp_path / str(parts)}", f"accumulation={parts}")
            assert code == 0, err
        assert_same_weights(tmp_path / "1", tmp_path / "4", rtol=1e-3, atol=1e-5)

    def test_gradient_checkpointing_changes_nothing(self, run, tmp_path) -> None:
        for value in (False, True):
            options = (f"output={tmp_path / str(value)}", f"gradient_checkpointing={value}")
            assert run(*options, "steps=3", *QUIET)[0] == 0
        assert_same_weights(tmp_path / "False", tmp_path / "True")

    def test_run_again_after_the_end_restores_lost_weights(self, run, tmp_path) -> None:
        options = (f"output={tmp_path}", "steps=3", *QUIET)
        assert run(*options)[0] == 0
        shutil.copytree(tmp_path / "pipeline", tmp_path / "kept" / "pipeline")
        (tmp_path / "pipeline" / "transformer").rename(tmp_path / "lost")
        assert run(*options)[0] == 0
        assert_same_weights(tmp_path / "kept", tmp_path)

    def test_resume_from_another_run_then_from_its_own(self, run, tmp_path) -> None:
        """The other run's statistics come along, and the pipeline is whole."""
        first, second = tmp_path / "first", tmp_path / "second"
        options = ("save_every=2", *QUIET)
        assert run(*options, "steps=4", f"output={first}", "stats_samples=3")[0] == 0
        again = (*options, "steps=6", f"output={second}", "--resume", first, "stats_samples=3")
        code, _, err = run(*again)
        assert code == 0, err
        assert [r["step"] for r in records(second)] == [5, 6]
        assert run(*again)[0] == 0  # goes on from its own newest: nothing is left to do
        assert [r["step"] for r in records(second)] == [5, 6]
        name = "pipeline/latent_stats/diffusion_pytorch_model.safetensors"
        for key, value in load_file(first / name).items():
            assert torch.equal(load_file(second / name)[key], value)
        VidTwinPipeline.from_pretrained(second / "pipeline")

    def test_a_pipeline_that_was_begun_by_a_killed_run_is_replaced(
        self, run, models, tmp_path
    ) -> None:
        assert run(f"output={tmp_path}", "steps=3", *QUIET)[0] == 0
        shutil.rmtree(tmp_path / "checkpoints")  # as if the kill had come before the first
        other = f"autoencoder={models / 'other'}"
        assert run(f"output={tmp_path}", "steps=3", "seed=1", other, *QUIET)[0] == 0
        name = "diffusion_pytorch_model.safetensors"
        expected = load_file(models / "other" / name)
        came = load_file(tmp_path / "pipeline" / "autoencoder" / name)
        assert all(torch.equal(value, came[key]) for key, value in expected.items())


class TestBadInput:
    """One clear line, exit code 2, and nothing written."""

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["model.hiden_size=32"], r"model.hiden_size.*model\.hidden_size"),
            (["model.num_heads=3"], "`num_heads`=3 must divide `hidden_size`=16"),
            (["model.structure_patch_size=2"], "`structure_patch_size`=2 must divide"),
            (["flow.min_snr_gamma=5"], "`min_snr_gamma` belongs to prediction=epsilon or v"),
            (["flow.independent=0.95"], "sum to at most 1"),
            (["class_dropout=1.5"], r"`class_dropout` must lie in \[0, 1\], got 1.5"),
            (["autoencoder=nowhere"], "nowhere does not exist"),
            (["cache=nowhere"], "nowhere.*no latent cache"),
            (["text_encoder=./nowhere"], "nowhere"),
            (["data.height=99"], "data.height=99 differs"),
            (["batch_size=3", "accumulation=2"], "`batch_size` must be a multiple of 2"),
            (["optimizer.warmup_steps=99"], "`warmup_steps` must be less than"),
            (["init_from=nowhere"], "init_from=nowhere holds no transformer"),
            (["sample_prompts=[a red circle]"], "`sample_prompts` are asked of a run without text"),
            (["class_conditional=false"], "`sample_classes` are asked of a run without class_cond"),
            (["sample_classes=[growin]"], "no class 'growin'; the nearest names are growing"),
            (["sample_guidance_scale=0.5"], "guidance_scale` must be at least 1.0"),
            (["--resume", "nowhere"], "checkpoint nowhere does not exist"),
        ],
        ids=lambda value: value[-1] if isinstance(value, list) else "",
    )
    def test_message(self, run, tmp_path, arguments, message) -> None:
        code, _, err = run(f"output={tmp_path / 'run'}", *arguments)
        assert code == 2, err
        assert re.search(message, err), err
        assert "Traceback" not in err
        assert not list(tmp_path.rglob("*.safetensors"))

    def test_a_folder_without_classes_or_captions(self, run, models, tmp_path) -> None:
        clips = tmp_path / "clips"
        clips.mkdir()
        video = MovingShapes(ShapesConfig(height=32, width=32)).clip(0).video
        for index in range(3):
            write_video(clips / f"{index}.mp4", video, 8.0)
        folder = ("data.source=folder", f"data.path={clips}", "data.shapes_size=20000")
        options = (*folder, f"output={tmp_path / 'run'}", *QUIET)
        code, _, err = run(*options)
        assert code == 2
        assert "class_conditional=true, but the clips of this data set have no labels" in err
        code, _, err = run(*options, "class_conditional=false", f"text_encoder={models / 'text'}")
        assert code == 2
        assert "the clips of this data set have no captions" in err
        assert not list((tmp_path / "run").rglob("*.safetensors"))

    def test_a_cache_of_another_autoencoder(self, run, models, cache, tmp_path) -> None:
        other = f"autoencoder={models / 'other'}"
        code, _, err = run(f"output={tmp_path}", f"cache={cache}", other)
        assert code == 2
        assert "the weights of the autoencoder have the digest" in err
        assert not list(tmp_path.rglob("*.safetensors"))

    def test_a_cache_of_other_clips(self, run, cache, tmp_path) -> None:
        asked = ("data.shapes_textured_fraction=0.9", "data.shapes_seed=0")
        code, _, err = run(f"output={tmp_path}", f"cache={cache}", *asked)
        assert code == 2
        assert re.search(r"data.shapes_textured_fraction .*0\.15.*0\.9", err)
        assert "shapes_seed" not in err
        assert not list(tmp_path.rglob("*.safetensors"))

    def test_a_cache_without_a_validation_part(self, run, cache, tmp_path) -> None:
        """Said at once, not at the first validation."""
        shutil.copytree(cache / "train", tmp_path / "cache" / "train")
        options = (f"output={tmp_path / 'run'}", f"cache={tmp_path / 'cache'}", "steps=3")
        code, _, err = run(*options)
        assert code == 2
        assert re.search("validation.* is no latent cache", err)
        assert not list((tmp_path / "run").rglob("*.safetensors"))
        assert run(*options, *QUIET)[0] == 0

    def test_another_autoencoder_in_the_same_run(self, run, models, tmp_path) -> None:
        assert run(f"output={tmp_path}", "steps=3", *QUIET)[0] == 0
        moved = shutil.copytree(models / "autoencoder", tmp_path / "moved")
        longer = (f"output={tmp_path}", "steps=4", *QUIET)
        assert run(*longer, f"autoencoder={moved}")[0] == 0  # where it lies does not matter
        code, _, err = run(*longer, "steps=5", f"autoencoder={models / 'other'}")
        assert code == 2
        assert "the run's autoencoder has the digest" in err

    def test_folder_of_another_run(self, run, tmp_path) -> None:
        options = (f"output={tmp_path}", "steps=3", *QUIET)
        assert run(*options)[0] == 0
        code, _, err = run(*options, "model.depth=2", "flow.prediction=v")
        assert code == 2
        assert "belongs to a run with another config" in err
        assert "model.depth" in err
        assert "flow.prediction" in err
