"""Trainings split over processes by FSDP2, on CPUs: equal to one process, resumed on any number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from script_runs import (
    ROOT,
    assert_same_records,
    assert_same_weights,
    contents,
    read_json,
    records,
    run,
    run_apart,
    run_until,
    weights,
)

FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
HYBRID = {
    **FSDP2,
    "ACCELERATE_USE_PARALLELISM_CONFIG": "true",
    "PARALLELISM_CONFIG_DP_REPLICATE_SIZE": "2",
    "PARALLELISM_CONFIG_DP_SHARD_SIZE": "2",
}
STEPS = 8
COMMON = ("log_every=1", f"steps={STEPS}", "save_every=4", f"validate_every={STEPS}")
AUTOENCODER: tuple[object, ...] = (
    *("train_ae", "--config", "configs/ae/official_debug.yaml", *COMMON, "batch_size=4"),
    # Dropout is drawn by each process for itself.
    *("model.query_dropout=0", "loss.learn_logvar=true", "loss.lecam_weight=0.01"),
)
DIFFUSION = ("train_diffusion", "--config", "configs/diffusion/shapes_debug.yaml", *COMMON)


def language(name: str, *options: str) -> tuple[object, ...]:
    config = f"configs/language/wikitext_{name}_debug.yaml"
    return ("train_language", "--config", config, *COMMON, "model.dropout=0", *options)


def sharded(*command: Any, processes: int = 2, environment: dict[str, str] = FSDP2) -> None:
    run_apart(*command, processes=processes, environment=environment).done()


def assert_alike(one: Path, two: Path, **tolerance: float) -> None:
    """That two runs logged and left the same but for rounding."""
    assert_same_records(one, two, rel=2e-4, abs=2e-5)
    models = sorted({path.parent.relative_to(one) for path in one.rglob("config.json")})
    assert models
    for model in models:
        if any((one / model).glob("*.safetensors")):
            assert_same_weights(one / model, two / model, **{"rtol": 1e-3, "atol": 2e-5})
    for average in (one / "ema_snapshots").glob("*"):
        assert_same_weights(average, two / "ema_snapshots" / average.name, rtol=1e-3, atol=2e-5)


@pytest.fixture(scope="module")
def autoencoders(tmp_path_factory: Any) -> tuple[Path, Path]:
    """The same training in one process, and split over two."""
    one, two = (tmp_path_factory.mktemp(name) for name in ("one", "two"))
    run(*AUTOENCODER, f"output={one}").done()  # type: ignore[arg-type]
    sharded(*AUTOENCODER, f"output={two}")
    return one, two


def test_autoencoder_equals_one_process(autoencoders):
    one, two = autoencoders
    assert_alike(one, two)
    # What it wrote reads the same, whoever reads it.
    for name in ("autoencoder", "autoencoder_ema"):
        assert read_json(one / name / "config.json") == read_json(two / name / "config.json")
    step = f"checkpoints/step_{STEPS:09d}"
    assert contents(one / step).keys() < contents(two / step).keys()  # and a random state more
    for file in ("model.safetensors", "model_1.safetensors"):
        assert_same_weights(one / step / file, two / step / file, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(DIFFUSION, id="diffusion"),
        pytest.param((*DIFFUSION, "accumulation=2", "gradient_checkpointing=true"), id="micro"),
        pytest.param(
            (
                *(*DIFFUSION, "optimizer.fused=true", "optimizer.decay_norms_and_biases=false"),
                *("ema.kind=power", "ema.snapshot_every=4"),
            ),
            id="fused_power_ema",
        ),
        pytest.param(language("mlm", "ema.enabled=true"), id="bert"),  # tied embeddings
        pytest.param(language("albert"), id="albert"),  # one block, called for every layer
        pytest.param(language("rtd"), id="electra"),  # two models that share embeddings
    ],
)
def test_training_equals_one_process(command, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    run(*command, f"output={one}").done()
    sharded(*command, f"output={two}")
    assert_alike(one, two)


@pytest.mark.parametrize(("processes", "environment"), [(2, FSDP2), (2, {}), (1, {}), (4, FSDP2)])
def test_checkpoint_fits_any_number_of_processes(autoencoders, tmp_path, processes, environment):
    _, two = autoencoders
    middle = two / "checkpoints" / "step_000000004"
    command = (*AUTOENCODER, f"output={tmp_path}", "--resume", middle)
    sharded(*command, processes=processes, environment=environment)
    if (processes, environment) == (2, FSDP2):
        for name in ("autoencoder", "autoencoder_ema"):
            assert_same_weights(two / name, tmp_path / name)  # bit for bit
    expected = {r["step"]: r for r in records(two) if "loss/total" in r}
    came = [r for r in records(tmp_path) if "loss/total" in r]
    assert [record["step"] for record in came] == list(range(5, STEPS + 1))
    for record in came:
        for key in ("loss/total", "gradient_norm", "discriminator/total", "learning_rate"):
            if key in record:
                assert record[key] == pytest.approx(expected[record["step"]][key], rel=2e-4)
    assert_same_weights(two / "autoencoder", tmp_path / "autoencoder", rtol=1e-3, atol=2e-5)


def test_killed_run_goes_on_bit_for_bit(autoencoders, tmp_path):
    _, two = autoencoders
    log = tmp_path / "metrics.jsonl"
    run_until(
        lambda: log.exists() and len(log.read_text().splitlines()) >= 5,
        *(*AUTOENCODER, f"output={tmp_path}"),  # type: ignore[arg-type]
        processes=2,
        environment=FSDP2,
    )
    assert not (tmp_path / "checkpoints" / f"step_{STEPS:09d}").exists()
    sharded(*AUTOENCODER, f"output={tmp_path}")
    assert_same_records(two, tmp_path)
    assert_same_weights(two / "autoencoder", tmp_path / "autoencoder")
    assert_same_weights(two / "autoencoder_ema", tmp_path / "autoencoder_ema")


def test_hybrid_sharding_equals_one_process(autoencoders, tmp_path):
    one, _ = autoencoders
    sharded(*AUTOENCODER, f"output={tmp_path}", processes=4, environment=HYBRID)
    assert_alike(one, tmp_path)


def test_bf16_equals_data_parallel_training(tmp_path):
    ddp, fsdp = tmp_path / "ddp", tmp_path / "fsdp"
    for folder, environment in ((ddp, {}), (fsdp, FSDP2)):
        command = (*AUTOENCODER, "mixed_precision=bf16", f"output={folder}")
        sharded(*command, environment=environment)
    assert_alike(ddp, fsdp)
    assert {str(value.dtype) for value in weights(fsdp / "autoencoder").values()} == {
        "torch.float32"
    }


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "configs/accelerate/fsdp2.yaml"),
        ({**FSDP2, "FSDP_VERSION": "1"}, "fsdp_version: 2"),
        ({**FSDP2, "FSDP_OFFLOAD_PARAMS": "true"}, "fsdp_offload_params"),
        ({**FSDP2, "FSDP_TRANSFORMER_CLS_TO_WRAP": "Blok"}, "Blok"),
    ],
)
def test_what_is_not_done_is_refused(environment, told, tmp_path):
    command = (*DIFFUSION, f"output={tmp_path / 'run'}")
    ended = run_apart(*command, processes=1 if "Blok" not in told else 2, environment=environment)
    lines = [line for line in ended.err.splitlines() if "error: " in line]
    assert ended.code == 2 and lines and all(told in line for line in lines), ended.err[-2000:]
    assert "Traceback" not in ended.err


def test_processes_without_a_device_are_one_run(tmp_path):
    command = (*DIFFUSION, f"output={tmp_path}", "steps=2", "optimizer.warmup_steps=0")
    run_apart(*command, processes=2).done()
    (checkpoint,) = (tmp_path / "checkpoints").iterdir()
    assert read_json(checkpoint / "progress.json")["num_processes"] == 2


# The third loss of one process is not finite.
POISONED = """
import os, runpy, sys
from diffusion import training

def losses_of(*arguments):
    losses = original(*arguments)
    steps.append(len(steps) + 1)
    if os.environ["RANK"] == "1" and steps[-1] == 3:
        losses = losses._replace(total=losses.total * float("nan"))
    return losses

original, training.losses_of, steps = training.losses_of, losses_of, []
runpy.run_path("train_diffusion.py", run_name="__main__")
"""


@pytest.mark.parametrize("environment", [FSDP2, {}], ids=["fsdp2", "ddp"])
def test_a_loss_of_one_process_that_is_not_finite_skips_the_step_on_all(environment, tmp_path):
    script, output = tmp_path / "poisoned", tmp_path / "run"
    script.with_suffix(".py").write_text(POISONED)
    options = (*DIFFUSION[1:], "steps=4", "save_every=1", "validate_every=4", "sample_classes=[]",
               "keep_checkpoints=null", "optimizer.warmup_steps=0", "max_skipped_share=0.25",
               f"output={output}")  # fmt: skip
    sharded(str(script), *options, environment=environment)
    assert [r["nonfinite_steps"] for r in records(output) if "loss/total" in r] == [0, 0, 1, 1]
    before, after, later = (
        weights(output / "checkpoints" / f"step_00000000{step}" / "model.safetensors")
        for step in (2, 3, 4)
    )
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not all(torch.equal(after[name], later[name]) for name in after)


def test_muon_sharded_goes_on_as_it_began(tmp_path):
    one, two, again = (tmp_path / name for name in ("one", "two", "again"))
    command = (*DIFFUSION, "optimizer.name=muon", "optimizer.weight_decay=0.1")
    run(*command, f"output={one}").done()
    sharded(*command, f"output={two}")
    # Muon's iteration is in bfloat16, whose rounding is what the two differ by.
    assert_same_records(one, two, rel=2e-2, abs=2e-3)
    middle = two / "checkpoints" / "step_000000004"
    sharded(*command, f"output={again}", "--resume", middle)
    last = f"checkpoints/step_{STEPS:09d}/model.safetensors"
    assert_same_weights(two / last, again / last)


def test_eight_bit_states_are_not_sharded(tmp_path):
    command = (*DIFFUSION, f"output={tmp_path}", "optimizer.name=adamw_8bit")
    ended = run_apart(*command, processes=2, environment=FSDP2)
    lines = [line for line in ended.err.splitlines() if "error: " in line]
    assert ended.code == 2 and "Traceback" not in ended.err
    assert lines and all("does not work with FSDP2; set optimizer.name=adamw" in x for x in lines)


@pytest.mark.parametrize("asked", [FSDP2, {"ACCELERATE_USE_DEEPSPEED": "true"}])
@pytest.mark.parametrize(
    "command",
    [
        ("encode", "--config", "configs/encode/shapes_debug.yaml", "output={}"),
        ("sample", "--prompt", "a red circle", "--output", "{}"),
        (
            "evaluate",
            "adherence",
            "--config",
            "configs/evaluation/adherence_debug.yaml",
            "output={}",
        ),
    ],
    ids=lambda command: command[0],
)
def test_sharding_is_for_trainings(command, asked, tmp_path, monkeypatch):
    for name, value in asked.items():
        monkeypatch.setenv(name, value)
    words = [word.format(tmp_path / "out") for word in command]
    line = run(*words).refused()
    assert "FSDP2" in line


def test_the_configs_ask_for_what_we_do(monkeypatch):
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    from vidtwin_lab.runtime.sharding import Sharding, take_sharding

    for name, expected in (
        ("fsdp2", Sharding()),
        ("fsdp2_hybrid", Sharding(replicas=2, shards=8)),
    ):
        file = ROOT / "configs" / "accelerate" / f"{name}.yaml"
        words = ["--config_file", str(file), "train_ae.py"]
        arguments, *_ = _validate_launch_command(launch_command_parser().parse_args(words))
        with monkeypatch.context() as patch:
            for key, value in prepare_multi_gpu_env(arguments).items():
                patch.setenv(key, value)
            assert take_sharding() == expected
