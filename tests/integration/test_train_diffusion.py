"""train_diffusion.py as its users run it, on the CPU: moving shapes, a tiny autoencoder."""

from __future__ import annotations

import json
import pkgutil
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from script_runs import (
    ROOT,
    Ended,
    assert_same_weights,
    records,
    run,
    train_killed_and_again,
    train_on_one_and_two,
)

from diffusion import LatentStats, VidTwinPipeline
from vidtwin_lab import runtime

CONFIGS = sorted((ROOT / "configs" / "diffusion").glob("*.yaml"))
DEBUG = "configs/diffusion/shapes_debug.yaml"
CONDITIONS = {"class": (), "text": ("class_conditional=false", "sample_classes=[]")}
QUIET = ("validation_samples=0", "sample_classes=[]", "sample_prompts=[]", "log_every=1")
TRANSFORMER = "pipeline/transformer"


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


@pytest.fixture(scope="module")
def tiny(models) -> tuple[str, ...]:
    """The options of a tiny model's training."""
    return (
        "--config", DEBUG, f"autoencoder={models / 'autoencoder'}", "model.hidden_size=16",
        "model.depth=1", "model.structure_patch_size=1",
        "model.dynamics_patch_size=1",
    )  # fmt: skip


@pytest.fixture(scope="module")
def train(tiny) -> Callable[..., Ended]:
    """Runs the training of a tiny model."""
    return lambda *arguments: run("train_diffusion", *tiny, *arguments)


def encode(models: Path, folder: Path, *arguments: object) -> Path:
    """The latents of some of the shapes."""
    options = ("--config", "configs/encode/shapes_debug.yaml", f"output={folder}", *arguments)
    run("encode", *options, f"autoencoder={models / 'autoencoder'}").done()
    return folder


@pytest.fixture(scope="module")
def cache(models, tmp_path_factory) -> Path:
    """Posteriors of 16 clips, and of 4 to validate on."""
    return encode(models, tmp_path_factory.mktemp("latents"))


class TestRuns:
    @pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
    def test_every_config_is_read(self, config) -> None:
        train_config = pkgutil.resolve_name("train_diffusion:TrainConfig")
        assert runtime.load_config(train_config, config, ["steps=99999"]).steps == 99999

    def test_dry_run_describes_and_writes_nothing(self, train, models, tmp_path) -> None:
        text = f"text_encoder={models / 'text'}"
        out = train("--dry-run", f"output={tmp_path / 'run'}", text).done()
        # 2 queries on a grid of 2 x 3, 8 frames of 3 columns and of 2 rows.
        assert "52 tokens: structure 12, dynamics_x 24, dynamics_y 16" in out
        assert re.search(r"clips: 32; classes: .*moving left", out)
        assert not list(tmp_path.iterdir())

    def test_leaves_a_pipeline_that_samples_by_class(self, train, tmp_path) -> None:
        options = ("validate_every=4", "steps=4", "data.shapes.size=16")
        train(f"output={tmp_path}", *options).done()
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

    def test_leaves_a_pipeline_that_samples_by_prompt(self, train, models, cache, tmp_path) -> None:
        options = (*CONDITIONS["text"], f"text_encoder={models / 'text'}", f"cache={cache}",
                   "sample_prompts=[a red circle, a blue square]", "steps=3", "validate_every=3",
                   "optimizer.warmup_steps=1")  # fmt: skip
        train(f"output={tmp_path}", *options).done()
        assert any("validation/structure_q1" in record for record in records(tmp_path))
        assert list((tmp_path / "videos").rglob("*.mp4"))
        pipeline = VidTwinPipeline.from_pretrained(tmp_path / "pipeline")
        pipeline.set_progress_bar_config(disable=True)
        made = pipeline("a red circle", num_inference_steps=2, seed=0).videos
        assert made.shape == (1, 3, 8, 16, 24)
        stored = LatentStats.from_pretrained(cache / "train" / "latent_stats")
        for name, value in stored.state_dict().items():
            assert torch.equal(pipeline.latent_stats.state_dict()[name], value)

    def test_adapters_are_trained_resumed_and_sampled_with(self, models, tmp_path) -> None:
        from safetensors.torch import load_file

        text, output = CONDITIONS["text"], tmp_path / "run"
        small = ("data.source=shapes", "data.shapes.size=16", "data.short=skip", "batch_size=2",
                 "optimizer.warmup_steps=1", "save_every=2", "validate_every=4")  # fmt: skip
        config = ("--config", "configs/diffusion/lora.yaml", *small, *text, f"output={output}")
        run("train_diffusion", *config, "steps=2").done()
        first = load_file(output / "lora" / "pytorch_lora_weights.safetensors")
        run("train_diffusion", *config, "steps=4", "sample_prompts=[a star]").done()
        second = load_file(output / "lora" / "pytorch_lora_weights.safetensors")
        assert first.keys() == second.keys()
        assert any(not torch.equal(first[name], second[name]) for name in first)
        # Nothing but the adapters is trained: the pipeline beside them is the one they came from.
        shipped = VidTwinPipeline.from_pretrained(ROOT / "checkpoints" / "shapes")
        beside = VidTwinPipeline.from_pretrained(output / "pipeline")
        for part in ("transformer", "latent_stats"):
            found, expected = (getattr(one, part).state_dict() for one in (beside, shipped))
            assert all(torch.equal(found[name], value) for name, value in expected.items())

        def latents(*adapters: str) -> torch.Tensor:
            folder = tmp_path / f"made{len(list(tmp_path.iterdir()))}"
            run(
                "sample", "--prompt", "a star", "--steps", "1", "--output", folder, *adapters
            ).done()
            return load_file(folder / "sample_0000.latents.safetensors")["structure"]

        plain, changed = latents(), latents("--lora", f"{output / 'lora'}:4")
        assert not torch.equal(plain, changed)
        asked = run("sample", "--prompt", "a star", "--lora", tmp_path / "none")
        assert "--lora" in asked.refused()

    def test_adapters_need_a_transformer_to_adapt(self, train, tmp_path) -> None:
        assert "init_from" in train(f"output={tmp_path / 'run'}", "lora.rank=4").refused()

    def test_a_student_of_few_steps_samples_as_it_was_trained(self, train, tmp_path) -> None:
        config = ("--config", "configs/diffusion/shapes_few_steps_debug.yaml")
        output = tmp_path / "run"
        run("train_diffusion", *config, f"output={output}", "steps=2").done()
        student = f"init_from={output / TRANSFORMER}"
        told = run("train_diffusion", *config, f"output={output}", "steps=3", student).refused()
        assert "the run's teacher has the digest" in told
        run("train_diffusion", *config, f"output={output}", "steps=3").done()
        assert [record["step"] for record in records(output) if "loss/total" in record] == [1, 2, 3]
        pipeline = VidTwinPipeline.from_pretrained(output / "pipeline")
        pipeline.set_progress_bar_config(disable=True)
        teacher = VidTwinPipeline.from_pretrained(ROOT / "checkpoints" / "shapes")
        for name, value in teacher.latent_stats.state_dict().items():
            assert torch.equal(pipeline.latent_stats.state_dict()[name], value)
        pipeline("a star", seed=0, output_type="latent")
        assert pipeline.num_timesteps == 2
        asked = ("sample", "--pipeline", output / "pipeline", "--prompt", "a star", "--output")
        assert (
            "--steps must be 2, which this pipeline was distilled to"
            in run(*asked, tmp_path / "a", "--steps", 8).refused()
        )
        for other in ({"guidance_scale": 3.0}, {"class_guidance_scale": 2.0}, {"num_frames": 20}):
            with pytest.raises(ValueError, match=r"distilled|class_guidance_scale"):
                pipeline("a star", seed=0, **other)
        told = train(f"output={tmp_path / 'b'}", "distill.steps=2").refused()
        assert "`distill.steps` is 2; set init_from" in told

    def test_the_length_of_the_average_is_chosen_after_training(
        self, train, cache, tmp_path
    ) -> None:
        train(
            f"output={tmp_path}", f"cache={cache}", "steps=8", "validate_every=8", "save_every=8",
            "ema.kind=power", "ema.stds=[0.1,0.2]", "ema.snapshot_every=2", "sample_classes=[]",
            "optimizer.learning_rate=0.01",
        ).done()  # fmt: skip
        names = sorted(path.name for path in (tmp_path / "ema_snapshots").iterdir())
        assert len(names) == 8 and names[-1] == "step_000000008_std_0.2000.safetensors"
        run("tools/posthoc_ema", "--run", tmp_path, "--stds", 0.05, 0.1, 0.2).done()
        told = json.loads((tmp_path / "posthoc_ema" / "posthoc_ema.json").read_text())
        assert [each["std"] for each in told["lengths"]] == [0.05, 0.1, 0.2]
        losses = [each["total"] for each in told["lengths"]]
        assert len(set(losses)) == 3
        assert told["best"] == told["lengths"][losses.index(min(losses))]["std"]
        # What the run itself measured of the average that it exports.
        validated = records(tmp_path)[-1]
        for name in ("structure", "dynamics_q4"):
            assert told["lengths"][1][name] == pytest.approx(
                validated[f"validation/{name}"], rel=1e-4
            )
        best = VidTwinPipeline.from_pretrained(tmp_path / "posthoc_ema" / "pipeline")
        kept = VidTwinPipeline.from_pretrained(tmp_path / "pipeline")
        assert best.class_indices("growing") == kept.class_indices("growing")
        told = run("tools/posthoc_ema", "--run", tmp_path, "--step", 1).refused()
        assert "has no averages until step 1 in ema_snapshots" in told
        assert "0.005 to 0.28" in run("tools/posthoc_ema", "--run", ".", "--stds", 2).refused()

    @pytest.mark.parametrize(
        "options",
        [
            ("flow.prediction=epsilon", "flow.min_snr_gamma=5.0"),
            ("flow.prediction=v", "flow.min_snr_gamma=5.0"),
            ("flow.prediction=x0", "flow.loss=velocity"),
        ],
    )
    def test_other_objectives(self, train, tmp_path, options) -> None:
        options = (*options, "steps=3", *QUIET)
        train(f"output={tmp_path}", *options, "mixed_precision=bf16").done()
        pipeline = VidTwinPipeline.from_pretrained(tmp_path / "pipeline")
        pipeline.set_progress_bar_config(disable=True)
        out = pipeline(num_inference_steps=2, seed=0, output_type="latent")
        assert out.latents.structure.isfinite().all()

    def test_overfit_learns_its_clips(self, train, models, tmp_path) -> None:
        # At their mode: what is drawn from a posterior can't be known by heart.
        cache = encode(models, tmp_path / "latents", "store=mode", "parts=[train]")
        train(
            "--overfit", 2, f"output={tmp_path / 'run'}", f"cache={cache}", "steps=100",
            "batch_size=16", "log_every=1", "validate_every=100", "optimizer.learning_rate=0.01",
            "model.hidden_size=32", "ema.decay=0.9", "sample_classes=[]",
        ).done()  # fmt: skip
        logged = records(tmp_path / "run")
        losses = [record["loss/total"] for record in logged if "loss/total" in record]
        assert sum(losses[-10:]) < 0.3 * sum(losses[:10])
        assert logged[-1]["validation/clips"] == 2
        assert logged[-1]["validation/structure"] < 0.3


class TestTheSameRun:
    def test_killed_at_any_step_and_run_again(self, tiny, models, cache, tmp_path) -> None:
        # Classes, text, dropout, EMA, accumulation and a worker: all that could remember.
        options = (*tiny, f"text_encoder={models / 'text'}", "save_every=2", "accumulation=2",
                   f"cache={cache}", "num_workers=1", *QUIET)  # fmt: skip
        whole, killed = train_killed_and_again("train_diffusion", tmp_path, *options, steps=14)
        for name in (TRANSFORMER, "checkpoints/step_000000014/model.safetensors"):
            assert_same_weights(whole / name, killed / name)

    def test_two_processes_equal_one(self, tiny, models, cache, tmp_path) -> None:
        options = (*tiny, "steps=6", "log_every=1", "validate_every=6", f"cache={cache}",
                   f"text_encoder={models / 'text'}", "validation_samples=3")  # fmt: skip
        one, two = train_on_one_and_two("train_diffusion", tmp_path, *options)
        assert_same_weights(one / TRANSFORMER, two / TRANSFORMER, rtol=1e-3, atol=2e-5)

    def test_micro_batches_equal_the_whole_batch(self, train, models, tmp_path) -> None:
        options = (f"text_encoder={models / 'text'}", "steps=3", *QUIET)
        for parts in (1, 4):
            train(*options, f"output={tmp_path / str(parts)}", f"accumulation={parts}").done()
        one, four = (tmp_path / parts / TRANSFORMER for parts in ("1", "4"))
        assert_same_weights(one, four, rtol=1e-3, atol=1e-5)

    def test_gradient_checkpointing_changes_nothing(self, train, tmp_path) -> None:
        for value in (False, True):
            options = (f"output={tmp_path / str(value)}", f"gradient_checkpointing={value}")
            train(*options, "steps=3", *QUIET).done()
        assert_same_weights(*(tmp_path / value / TRANSFORMER for value in ("False", "True")))

    def test_run_again_after_the_end_restores_lost_weights(self, train, tmp_path) -> None:
        options = (f"output={tmp_path}", "steps=3", *QUIET)
        train(*options).done()
        (tmp_path / TRANSFORMER).rename(tmp_path / "lost")
        train(*options).done()
        assert_same_weights(tmp_path / "lost", tmp_path / TRANSFORMER)

    def test_resume_from_another_run_then_from_its_own(self, train, tmp_path) -> None:
        """The other run's statistics come along, and the pipeline is whole."""
        first, second = tmp_path / "first", tmp_path / "second"
        options = ("save_every=2", *QUIET)
        train(*options, "steps=4", f"output={first}", "stats_samples=3").done()
        again = (*options, "steps=6", f"output={second}", "--resume", first, "stats_samples=3")
        for _ in range(2):  # goes on from its own newest the second time: nothing is left to do
            train(*again).done()
            assert [r["step"] for r in records(second)] == [5, 6]
        assert_same_weights(*(run / "pipeline/latent_stats" for run in (first, second)))
        VidTwinPipeline.from_pretrained(second / "pipeline")

    def test_a_pipeline_that_was_begun_by_a_killed_run_is_replaced(
        self, train, models, tmp_path
    ) -> None:
        train(f"output={tmp_path}", "steps=3", *QUIET).done()
        shutil.rmtree(tmp_path / "checkpoints")  # as if the kill had come before the first
        other = f"autoencoder={models / 'other'}"
        train(f"output={tmp_path}", "steps=3", "seed=1", other, *QUIET).done()
        assert_same_weights(models / "other", tmp_path / "pipeline" / "autoencoder")


class TestBadInput:
    """One clear line, exit code 2, and nothing written."""

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["model.hiden_size=32"], r"model.hiden_size.*model\.hidden_size"),
            (["model.num_heads=3"], "`num_heads`=3 must divide `hidden_size`=16"),
            (["model.structure_patch_size=2"], "`structure_patch_size`=2 must divide"),
            (["flow.min_snr_gamma=5"], "`min_snr_gamma` belongs to prediction=epsilon, v or"),
            (["flow.independent=0.95"], "sum to at most 1"),
            (["class_dropout=1.5"], r"`class_dropout` must lie in \[0, 1\], got 1.5"),
            (["autoencoder=nowhere"], "nowhere does not exist"),
            (["cache=nowhere"], "nowhere.*no latent cache"),
            (["text_encoder=./nowhere"], "nowhere"),
            (["data.height=99"], "data.height=99 differs"),
            (["batch_size=3", "accumulation=2"], "`batch_size` must be a multiple of 2"),
            (["optimizer.warmup_steps=99"], "`optimizer.warmup_steps` must be less than"),
            (["init_from=nowhere"], "init_from=nowhere holds no transformer"),
            (["sample_prompts=[a red circle]"], "`sample_prompts` are asked of a run without text"),
            (
                ["sample_prompts=['']", "text_encoder=x"],
                "`sample_prompts` must be a text that says",
            ),
            (["sample_steps=2000", "flow.prediction=v"], "`sample_steps` .* at most 1000 for"),
            (["class_conditional=false"], "`sample_classes` are asked of a run without class_cond"),
            (["sample_classes=[growin]"], "no class 'growin'; the nearest names are growing"),
            (["sample_guidance_scale=0.5"], "guidance_scale` must be at least 1.0"),
            (["--resume", "nowhere"], "checkpoint nowhere does not exist"),
        ],
        ids=lambda value: value[-1] if isinstance(value, list) else "",
    )
    def test_message(self, train, tmp_path, arguments, message) -> None:
        told = train(f"output={tmp_path / 'run'}", *arguments).refused()
        assert re.search(message, told), told
        assert not list(tmp_path.rglob("*.safetensors"))

    def test_a_folder_without_classes_or_captions(
        self, train, models, write_clips, tmp_path
    ) -> None:
        clips = write_clips(tmp_path / "clips", [16] * 3, size=(32, 32))
        folder = ("data.source=folder", f"data.path={clips}")
        options = (*folder, f"output={tmp_path / 'run'}", *QUIET)
        told = train(*options).refused()
        assert "class_conditional=true, but the clips of this data set have no labels" in told
        told = train(
            *options, "class_conditional=false", f"text_encoder={models / 'text'}"
        ).refused()
        assert "the clips of this data set have no captions" in told
        assert not list((tmp_path / "run").rglob("*.safetensors"))

    def test_a_cache_of_another_autoencoder(self, train, models, cache, tmp_path) -> None:
        other = f"autoencoder={models / 'other'}"
        told = train(f"output={tmp_path}", f"cache={cache}", other).refused()
        assert "the encoder's weights have the digest" in told
        assert not list(tmp_path.rglob("*.safetensors"))

    def test_a_cache_of_other_clips(self, train, cache, tmp_path) -> None:
        asked = ("data.shapes.textured_fraction=0.9", "data.shapes.seed=0")
        told = train(f"output={tmp_path}", f"cache={cache}", *asked).refused()
        assert re.search(r"data.shapes.textured_fraction .*0\.15.*0\.9", told)
        assert "shapes_seed" not in told
        assert not list(tmp_path.rglob("*.safetensors"))

    def test_a_cache_without_a_validation_part(self, train, cache, tmp_path) -> None:
        """Said at once, not at the first validation."""
        shutil.copytree(cache / "train", tmp_path / "cache" / "train")
        options = (f"output={tmp_path / 'run'}", f"cache={tmp_path / 'cache'}", "steps=3")
        told = train(*options).refused()
        assert re.search("validation.* is no latent cache", told)
        assert not list((tmp_path / "run").rglob("*.safetensors"))
        train(*options, *QUIET).done()

    def test_another_autoencoder_in_the_same_run(self, train, models, tmp_path) -> None:
        train(f"output={tmp_path}", "steps=3", *QUIET).done()
        moved = shutil.copytree(models / "autoencoder", tmp_path / "moved")
        longer = (f"output={tmp_path}", "steps=4", *QUIET)
        train(*longer, f"autoencoder={moved}").done()  # where it lies does not matter
        told = train(*longer, "steps=5", f"autoencoder={models / 'other'}").refused()
        assert "the run's autoencoder has the digest" in told

    def test_another_cache_in_the_same_run(self, train, cache, tmp_path) -> None:
        run = tmp_path / "run"
        train(f"output={run}", f"cache={cache}", "steps=3", *QUIET).done()
        moved = shutil.copytree(cache, tmp_path / "moved")
        longer = (f"output={run}", f"cache={moved}", *QUIET)
        train(*longer, "steps=4").done()  # where it lies does not matter
        manifest = moved / "train" / "manifest.json"
        of_others = json.loads(manifest.read_text()) | {"clips_digest": "of other clips"}
        manifest.write_text(json.dumps(of_others))
        told = train(*longer, "steps=5", "verify=false").refused()
        assert "the run's cache has the digest" in told

    def test_folder_of_another_run(self, train, tmp_path) -> None:
        options = (f"output={tmp_path}", "steps=3", *QUIET)
        train(*options).done()
        told = train(*options, "model.depth=2", "flow.prediction=v").refused()
        assert "belongs to a run with another config" in told
        assert "model.depth" in told
        assert "flow.prediction" in told
