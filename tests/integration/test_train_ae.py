"""train_ae.py as its users run it: on small models, on the CPU."""

from __future__ import annotations

import functools
import math
import re

import pytest
import torch
from script_runs import (
    ROOT,
    assert_same_weights,
    records,
    run,
    train_killed_and_again,
    train_on_one_and_two,
    weights,
)

import vidtwin.data
import vidtwin.losses
from vidtwin import VidTwinAutoencoder

CONFIGS = sorted((ROOT / "configs" / "ae").glob("*.yaml"))
DEBUG = "configs/ae/shapes_debug.yaml"

train = functools.partial(run, "train_ae")


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_config_describes_itself(config, tmp_path):
    # The released weights that it starts from are not in the repository.
    words = ["init_from=null"] if config.stem == "robot_finetune" else []
    out = train("--config", config, "--dry-run", f"output={tmp_path / 'run'}", *words).done()
    assert "autoencoder: " in out
    assert "latent values per clip, rate" in out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "name", ["official", "paper", "small", "shapes", "ablations/no_disentanglement"]
)
def test_every_debug_config_trains_validates_and_saves(name, tmp_path):
    train("--config", f"configs/ae/{name}_debug.yaml", f"output={tmp_path}").done()
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
    options = ("--config", DEBUG, "save_every=2", "model.query_dropout=0.1",
               "validation_samples=0", "log_every=1", "num_workers=1",
               "accumulation=2")  # fmt: skip
    whole, killed = train_killed_and_again("train_ae", tmp_path, *options, steps=14)
    discriminator = "checkpoints/step_000000014/model_1.safetensors"
    for name in ("autoencoder", "autoencoder_ema", discriminator):
        assert_same_weights(whole / name, killed / name)


def test_a_structure_off_shuffled_frames_trains_otherwise(tmp_path):
    options = ("--config", DEBUG, "steps=4", "validation_samples=0")
    for name, share in (("plain", 0), ("shuffled", 1)):
        train(*options, f"output={tmp_path / name}", f"frame_shuffle.share={share}").done()
    plain, shuffled = (weights(tmp_path / name / "autoencoder") for name in ("plain", "shuffled"))
    assert plain.keys() == shuffled.keys()
    assert any(not torch.equal(value, shuffled[key]) for key, value in plain.items())


def test_a_frozen_encoder_stays_what_it_is(tmp_path):
    options = ("--config", DEBUG, "validation_samples=0")
    one, two = tmp_path / "first", tmp_path / "second"
    train(*options, f"output={one}", "steps=3").done()
    options += (
        "freeze_encoder=true",
        "data.appearance_swap_fraction=1",
        f"init_from={one / 'autoencoder'}",
    )
    train(*options, f"output={two}", "steps=3").done()
    first, second = (weights(folder / "autoencoder") for folder in (one, two))
    for name, value in first.items():
        encodes = name.startswith(("patch_embedding", "encoder", "structure_enc", "dynamics_enc"))
        assert torch.equal(value, second[name]) == encodes, name


def test_two_processes_equal_one(tmp_path):
    options = ("--config", DEBUG, "steps=8", "batch_size=4", "log_every=1", "model.query_dropout=0",
               "loss.learn_logvar=true", "loss.lecam_weight=0.01", "validate_every=8")  # fmt: skip
    one, two = train_on_one_and_two("train_ae", tmp_path, *options)
    assert_same_weights(one / "autoencoder", two / "autoencoder", rtol=1e-3, atol=2e-5)


def test_micro_batches_equal_the_whole_batch(tmp_path):
    options = ("--config", DEBUG, "steps=3", "batch_size=4", "log_every=1", "validation_samples=0",
               "loss.discriminator_weight=0", "model.query_dropout=0")  # fmt: skip
    for parts in (1, 2):
        train(*options, f"output={tmp_path / str(parts)}", f"accumulation={parts}").done()
    one, two = (tmp_path / parts / "autoencoder" for parts in ("1", "2"))
    assert_same_weights(one, two, rtol=1e-4, atol=1e-5)


def test_a_run_with_a_discriminator_keeps_its_micro_batches(tmp_path):
    """What the discriminator normalises over and is weighed by is a micro-batch."""
    options = ("--config", DEBUG, f"output={tmp_path}", "validation_samples=0")
    train(*options, "steps=2", "save_every=2", "optimizer.warmup_steps=1",
          "discriminator_optimizer.warmup_steps=1").done()  # fmt: skip
    more = ("steps=3", "optimizer.warmup_steps=1", "discriminator_optimizer.warmup_steps=1")
    assert "accumulation" in train(*options, *more, "accumulation=2").refused()


def test_a_run_without_a_discriminator_may_change_its_micro_batches(tmp_path):
    options = ("--config", DEBUG, f"output={tmp_path}", "validation_samples=0",
               "loss.discriminator_weight=0", "optimizer.warmup_steps=1",
               "discriminator_optimizer.warmup_steps=1")  # fmt: skip
    train(*options, "steps=2").done()
    train(*options, "steps=3", "accumulation=2").done()


def test_overfit_learns_its_clips(tmp_path):
    train(
        "--config", DEBUG, "--overfit", 2, f"output={tmp_path}", "steps=40",
        "loss.discriminator_weight=0", "validate_every=40", "save_every=40", "log_every=1",
        "ema.decay=0.5",
    ).done()  # fmt: skip
    losses = [r["loss/reconstruction"] for r in records(tmp_path) if "loss/total" in r]
    assert losses[-1] < 0.5 * losses[0]
    validated = [r for r in records(tmp_path) if "validation/psnr" in r]
    assert validated[-1]["validation/clips"] == 2


def poison(monkeypatch, bad_steps):
    """Makes the videos of some batches not finite."""
    original = vidtwin.data.build_loader

    def build(*arguments, **options):
        for step, batch in enumerate(original(*arguments, **options), options["start_batch"]):
            if step in bad_steps:
                batch["video"][0, 0, 0, 0, 0] = float("nan")
            yield batch

    monkeypatch.setattr(vidtwin.data, "build_loader", build)


def test_a_step_that_is_not_finite_changes_no_weight(monkeypatch, tmp_path):
    options = ("--config", DEBUG, "validation_samples=0", "log_every=1", "save_every=1",
               "keep_checkpoints=null", "loss.discriminator_start=0",
               "max_skipped_share=0.2")  # fmt: skip
    poison(monkeypatch, {3})
    train(*options, "steps=5", "optimizer.warmup_steps=0",
          "discriminator_optimizer.warmup_steps=0", f"output={tmp_path}").done()  # fmt: skip
    checkpoints = tmp_path / "checkpoints"
    for name in ("model.safetensors", "model_1.safetensors"):
        before, after, later = (
            weights(checkpoints / f"step_00000000{step}" / name) for step in (3, 4, 5)
        )
        # The discriminator's running statistics as well.
        assert all(torch.equal(before[key], after[key]) for key in before)
        assert not all(torch.equal(after[key], later[key]) for key in before)
    assert [r["nonfinite_steps"] for r in records(tmp_path)] == [0, 0, 0, 1, 1]


def test_a_discriminator_step_that_is_not_finite_changes_no_statistic(monkeypatch, tmp_path):
    original = vidtwin.losses.AutoencoderLoss.discriminator_loss

    def loss(self, discriminator, video, reconstruction, step, **options):
        video = video * float("nan") if step == 3 else video
        return original(self, discriminator, video, reconstruction, step, **options)

    monkeypatch.setattr(vidtwin.losses.AutoencoderLoss, "discriminator_loss", loss)
    train("--config", DEBUG, "validation_samples=0", "log_every=1", "save_every=1", "steps=5",
          "keep_checkpoints=null", "loss.discriminator_start=0", "loss.lecam_weight=0.1",
          "optimizer.warmup_steps=0", "discriminator_optimizer.warmup_steps=0",
          f"output={tmp_path}", "max_skipped_share=0.2").done()  # fmt: skip
    rows = records(tmp_path)
    assert rows[3]["discriminator/total"] == "nan"
    assert all(math.isfinite(row["discriminator/total"]) for row in (*rows[:3], rows[4]))
    for step in (4, 5):
        model = weights(tmp_path / "checkpoints" / f"step_00000000{step}" / "model_1.safetensors")
        assert all(value.isfinite().all() for value in model.values())


def test_a_run_that_skips_more_than_its_share_ends_with_an_error(monkeypatch, tmp_path):
    options = ("--config", DEBUG, "validation_samples=0", "steps=6", f"output={tmp_path}")
    poison(monkeypatch, {1, 3, 5})
    assert "3 of the run's 6 steps had a loss or gradient" in train(*options).refused()
    assert (tmp_path / "checkpoints" / "step_000000006").is_dir()
    assert "3 of the run's 6 steps" in train(*options).refused()
    train(*options, "max_skipped_share=0.5").done()


def test_too_many_bad_steps_stop_the_run(monkeypatch, tmp_path):
    poison(monkeypatch, set(range(1, 12)))
    told = train("--config", DEBUG, "max_nonfinite_steps=3", f"output={tmp_path}").refused()
    assert "3 steps in a row had a loss or gradient that is not finite" in told


def test_compiled_with_the_adversarial_loss(monkeypatch, tmp_path):
    # The adaptive weight takes two gradients of one compiled graph before the backward pass.
    compile_with = torch.compile
    monkeypatch.setattr(torch, "compile", lambda m: compile_with(m, backend="aot_eager"))
    options = ("--config", DEBUG, "steps=3", "loss.discriminator_start=1", "log_every=1",
               "validate_every=3", "save_every=3", "optimizer.warmup_steps=0",
               "discriminator_optimizer.warmup_steps=0")  # fmt: skip
    for name, value in (("compiled", True), ("plain", False)):
        train(*options, f"output={tmp_path / name}", f"compile={value}").done()
    compiled, plain = records(tmp_path / "compiled"), records(tmp_path / "plain")
    for first, second in zip(compiled, plain, strict=True):
        for key in ("loss/total", "loss/adaptive_weight", "validation/psnr"):
            if key in first:
                assert first[key] == pytest.approx(second[key], rel=1e-3), key
    assert "loss/adaptive_weight" in compiled[1]


def test_run_again_after_the_end_restores_lost_weights(tmp_path):
    options = ("--config", DEBUG, "steps=2", "optimizer.warmup_steps=0",
               "discriminator_optimizer.warmup_steps=0", "validation_samples=0",
               f"output={tmp_path}")  # fmt: skip
    train(*options).done()
    (tmp_path / "autoencoder").rename(tmp_path / "lost")
    train(*options).done()
    assert_same_weights(tmp_path / "lost", tmp_path / "autoencoder")


def test_resume_from_another_run_then_from_its_own(tmp_path):
    options = ("--config", DEBUG, "validation_samples=0", "save_every=2", "log_every=1")
    first, second = tmp_path / "first", tmp_path / "second"
    train(*options, "steps=4", f"output={first}").done()
    again = (*options, "steps=6", f"output={second}", "--resume", first)
    for _ in range(2):  # goes on from its own newest the second time: nothing is left to do
        train(*again).done()
        assert [r["step"] for r in records(second)] == [5, 6]
    earlier = second / "checkpoints" / "step_000000006"
    train(*options, "steps=8", f"output={second}").done()
    told = train(*options, "steps=8", f"output={second}", "--resume", earlier).refused()
    assert "holds later checkpoints than step_000000006" in told


def test_a_bad_validation_clip_stops_nothing(write_clips, tmp_path, caplog):
    clips = write_clips(tmp_path / "clips", [16] * 6, size=(32, 32), bad="bad.mp4")
    train(
        "--config", DEBUG, "data.source=folder", f"data.path={clips}", "data.part=all",
        "data.validation_fraction=0", "steps=2", "log_every=1",
        "data.max_bad_fraction=0.2", "optimizer.warmup_steps=0", "validation_samples=7",
        "discriminator_optimizer.warmup_steps=0", f"output={tmp_path / 'run'}",
    ).done()  # fmt: skip
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
            (["optimizer.warmup_steps=99"], "`optimizer.warmup_steps` must be less than"),
            (["mixed_precision=fp8"], "mixed_precision"),
            (["tracker=mlflow"], "`tracker` must be one of none, tensorboard, wandb"),
            (["data.source=folder"], "data.path"),
            (["--resume", "nowhere"], "checkpoint nowhere does not exist"),
            (["--config", "nowhere.yaml"], r"nowhere\.yaml"),
            (["init_from=nowhere.ckpt"], r"no checkpoint file at nowhere\.ckpt"),
            (["discriminator.layers=5"], "needs frames of at least 96 pixels"),
        ],
        ids=lambda value: value[-1] if isinstance(value, list) else "",
    )
    def test_message(self, tmp_path, arguments, message):
        config = [] if "--config" in arguments else ["--config", DEBUG]
        told = train(*config, f"output={tmp_path / 'run'}", *arguments).refused()
        assert re.search(message, told), told
        assert not list(tmp_path.rglob("*.safetensors"))

    def test_folder_that_cant_be_written(self, tmp_path):
        (tmp_path / "file").write_text("in the way")
        told = train("--config", DEBUG, f"output={tmp_path / 'file' / 'run'}").refused()
        assert "can't write to the folder" in told

    def test_folder_of_another_run(self, tmp_path):
        options = ("--config", DEBUG, f"output={tmp_path}", "steps=4", "validation_samples=0")
        train(*options).done()
        told = train(*options, "model.dynamics_channels=2", "seed=3").refused()
        assert "belongs to a run with another config" in told
        assert "model.dynamics_channels" in told
        assert "seed" in told
        train(*options, "steps=6", "log_every=1").done()  # a longer run is the same run

    def test_perceptual_weights_that_cant_be_had(self, tmp_path, monkeypatch):
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))

        def no_network(*_arguments, **_options):
            raise OSError("no network")

        monkeypatch.setattr(torch.hub, "load_state_dict_from_url", no_network)
        monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", no_network)
        options = ("--config", DEBUG, f"output={tmp_path / 'run'}")
        told = train(*options, "loss.perceptual_weight=0.05").refused()
        assert "perceptual_weight=0" in told

    def test_too_many_bad_files(self, write_clips, tmp_path):
        clips = write_clips(tmp_path / "clips", [16] * 2, size=(32, 32), bad="bad.mp4")
        options = ("--config", DEBUG, "data.source=folder", f"data.path={clips}",
                   "validation_samples=0", "steps=4")  # fmt: skip
        told = train(*options, f"output={tmp_path / 'strict'}").refused()
        assert "1 of 3 files can't be used" in told
        assert "bad.mp4" in told
        train(*options, f"output={tmp_path / 'lax'}", "data.max_bad_fraction=0.5").done()
