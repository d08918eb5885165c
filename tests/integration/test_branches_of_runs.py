"""What the config of a resumed run or of a branch says is what runs, from the first step."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from script_runs import assert_same_weights, records, run

from vidtwin_lab.runtime import OptimizerConfig, learning_rate_at

OPTIONS: dict[str, tuple[object, ...]] = {
    "train_ae": ("--config", "configs/ae/shapes_debug.yaml", "loss.discriminator_start=0"),
    "train_diffusion": ("--config", "configs/diffusion/shapes_debug.yaml"),
    "train_language": ("--config", "configs/language/shapes_bert_debug.yaml", "ema.enabled=true"),
}
COMMON = ("log_every=1", "save_every=2", "validation_samples=0", "keep_checkpoints=null",
          "optimizer.learning_rate=0.001", "optimizer.warmup_steps=1")  # fmt: skip
DIFFUSION = ("sample_prompts=[]", "sample_classes=[]")


def train(script: str, output: Path, *options: object) -> Any:
    words = (*OPTIONS[script], *COMMON, *(DIFFUSION if script == "train_diffusion" else ()))
    return run(script, *words, f"output={output}", *options)


@pytest.fixture(scope="module", params=OPTIONS)
def trained(request: Any, tmp_path_factory: Any) -> tuple[str, Path]:
    """A training script, and the folder of a run of four steps."""
    folder = tmp_path_factory.mktemp(request.param)
    train(request.param, folder, "steps=4").done()
    return request.param, folder


def load(checkpoint: Path, name: str) -> Any:
    return torch.load(checkpoint / name, weights_only=True)


def rates(folder: Path, key: str = "learning_rate") -> dict[int, float]:
    return {record["step"]: record[key] for record in records(folder) if key in record}


def expected_rate(step: int, rate: float, steps: int) -> Any:
    config = OptimizerConfig(learning_rate=rate, warmup_steps=1)
    return pytest.approx(learning_rate_at(step, config, steps), rel=1e-6)


def test_more_steps_and_another_rate_hold_from_the_first_step(trained, tmp_path, caplog):
    script, before = trained
    folder = shutil.copytree(before, tmp_path / "run")
    for steps in (3, 4):
        train(script, folder, f"steps={steps}").done()
        assert f"has done 4 steps, so steps={steps} leaves nothing to train" in caplog.text
    assert len(records(folder)) == 4
    changes = ("steps=6", "optimizer.learning_rate=0.01")
    if script == "train_ae":
        changes = (*changes, "discriminator_optimizer.learning_rate=0.02")
    train(script, folder, *changes).done()
    logged = rates(folder)
    for step in range(4):
        assert logged[step + 1] == expected_rate(step, 0.001, 4)
    for step in (4, 5):
        assert logged[step + 1] == expected_rate(step, 0.01, 6)
    if script == "train_ae":
        assert rates(folder, "discriminator/learning_rate")[5] > 1e-3


def test_a_branch_has_its_own_settings(trained, tmp_path):
    script, before = trained
    middle = before / "checkpoints" / "step_000000002"
    changes = ["optimizer.betas=[0.3,0.6]", "optimizer.weight_decay=0.25",
               "optimizer.epsilon=0.001", "ema.decay=0.5"]  # fmt: skip
    if script == "train_ae":
        changes.append("discriminator_optimizer.betas=[0.2,0.4]")
    train(script, tmp_path, "--resume", middle, *changes, "steps=4").done()
    last = tmp_path / "checkpoints" / "step_000000004"
    for group in load(last, "optimizer.bin")["param_groups"]:
        found = {name: group[name] for name in ("betas", "weight_decay", "eps")}
        assert found == {"betas": (0.3, 0.6), "weight_decay": 0.25, "eps": 0.001}
    if script == "train_ae":
        (group,) = load(last, "optimizer_1.bin")["param_groups"]
        assert group["betas"] == (0.2, 0.4)
    states = load(last, "custom_checkpoint_0.pkl")
    assert (states["ema"]["decay"], states["ema"]["optimization_step"]) == (0.5, 4)


def test_a_branch_that_changes_nothing_is_the_run_itself(trained, tmp_path):
    script, before = trained
    train(script, tmp_path, "--resume", before / "checkpoints" / "step_000000002", "steps=4").done()
    last = Path("checkpoints") / "step_000000004" / "model.safetensors"
    assert_same_weights(before / last, tmp_path / last)


def test_a_branch_may_turn_the_average_off_and_on(trained, tmp_path):
    script, before = trained
    off, on = tmp_path / "off", tmp_path / "on"
    train(script, off, "--resume", before, "steps=6", "ema.enabled=false").done()
    states = load(off / "checkpoints" / "step_000000006", "custom_checkpoint_0.pkl")
    assert "ema" not in states
    assert not list(off.glob("*_ema"))
    train(script, on, "--resume", off, "steps=8", "ema.decay=0.999").done()
    checkpoint = on / "checkpoints" / "step_000000008"
    average = load(checkpoint, "custom_checkpoint_0.pkl")["ema"]
    assert average["optimization_step"] == 2
    # It began with the weights of then, to which it is near, and not with new ones.
    first, last = (
        load_weights(folder / "checkpoints" / name)
        for folder, name in ((off, "step_000000006"), (on, "step_000000008"))
    )
    name, moved = max(
        ((name, (last[name] - first[name]).abs().max()) for name in first if "weight" in name),
        key=lambda pair: pair[1],
    )
    assert moved > 0
    (shadow,) = [s for s in average["shadow_params"] if near(s, first[name], 2 * float(moved))]
    assert not torch.equal(shadow, first[name])


def load_weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(checkpoint / "model.safetensors")


def near(one: torch.Tensor, other: torch.Tensor, distance: float) -> bool:
    return one.shape == other.shape and float((one - other).abs().max()) <= distance


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("optimizer.name=muon", "optimizer.name was 'adamw', now 'muon'"),
        (
            "optimizer.decay_norms_and_biases=false",
            "optimizer.decay_norms_and_biases was True, now False",
        ),
    ],
)
def test_what_a_branch_cannot_change_is_refused_by_name(trained, tmp_path, change, told):
    script, before = trained
    line = train(script, tmp_path, "--resume", before, "steps=6", change).refused()
    assert told in line
    assert "init_from" in line


def test_another_model_is_refused_by_name(trained, tmp_path):
    script, before = trained
    key = {"train_ae": "encoder_depth", "train_diffusion": "depth", "train_language": "num_layers"}
    change = f"model.{key[script]}=3"
    line = train(script, tmp_path, "--resume", before, "steps=6", change).refused()
    assert f"model.{key[script]} was " in line
    assert ", now 3" in line


def test_a_part_that_was_not_trained_before_is_refused_by_name(tmp_path):
    before, after = tmp_path / "before", tmp_path / "after"
    train("train_ae", before, "steps=2", "loss.discriminator_weight=0").done()
    line = train("train_ae", after, "--resume", before, "steps=4").refused()
    assert "loss.discriminator_weight was 0.0, now 0.05" in line
    frozen = tmp_path / "frozen"
    start = (f"init_from={before / 'autoencoder'}", "freeze_encoder=true")
    line = train(
        *("train_ae", frozen, "--resume", before, "steps=4", *start),
        "loss.discriminator_weight=0",
    ).refused()
    assert "freeze_encoder was False, now True" in line
