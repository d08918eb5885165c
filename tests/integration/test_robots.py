"""What robot learners run: the fine-tuning recipe, evaluate.py actions, the example."""

from __future__ import annotations

import csv
import runpy
import sys
from pathlib import Path

import pytest
from lerobot_folders import version_3
from script_runs import ROOT, read_json, run

DEBUG = ("evaluate", "actions", "--config", "configs/evaluation/actions_debug.yaml")


@pytest.fixture(scope="module")
def tiny(build_autoencoder, tmp_path_factory) -> Path:
    """A new autoencoder: what it makes is noise, but its latents do depend on the clip."""
    pytest.importorskip("mujoco", reason="MuJoCo is not installed")
    folder = tmp_path_factory.mktemp("autoencoder")
    build_autoencoder(height=32, width=32, jitter=0.2).save_pretrained(folder)
    return folder


def test_the_recipe_describes_itself_and_learns_from_lerobot_data(tmp_path):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    recipe = ("train_ae", "--config", "configs/ae/robot_finetune.yaml")
    told = run(*recipe, "--dry-run").done()
    assert "kl_weight: 1.0e-06" in told
    assert "source: lerobot" in told
    assert "8,064 latent values per clip" in told
    root = version_3(tmp_path / "robot")
    told = run(*recipe, f"data.path={root}").refused()
    assert "no checkpoint file at vidtwin_structure" in told
    run(
        *("train_ae", "--config", "configs/ae/robot_finetune_debug.yaml", "steps=3"),
        *("data.source=lerobot", f"data.path={root}", "data.fps=10", "validation_samples=0"),
        f"output={tmp_path / 'run'}",
    ).done()
    assert (tmp_path / "run" / "autoencoder" / "config.json").is_file()


def test_training_on_the_arm_starts_from_the_shipped_autoencoder(tiny, tmp_path):
    """From any folder; `tiny` skips where nothing can be simulated."""
    words = ("steps=2", "compile=false", "optimizer.warmup_steps=1", "validation_samples=0")
    config = ("train_ae", "--config", ROOT / "configs/ae/physics_paired.yaml")
    run(*config, *words, "output=run", folder=tmp_path).done()
    saved = read_json(tmp_path / "run" / "autoencoder" / "config.json")
    assert (saved["structure_frame"], saved["hidden_size"]) == (0, 128)


def test_actions_are_probed_beside_baselines_of_the_same_size(tiny, tmp_path):
    run(*DEBUG, f"autoencoder={tiny}", f"output={tmp_path}").done()
    report = read_json(tmp_path / "actions.json")
    found, sizes = report["found"], report["protocol"]["features"]
    assert sizes["dynamics"] == [8, 2 * 2 * 4]  # 8 frames; both axes, 2 channels of 4
    assert sizes["pixels"] == sizes["frame differences"] == sizes["dynamics"]
    assert sizes["latent actions"] == [8, 8 * 16 // 7]
    assert sizes["structure"][0] == 1
    for probes in found["probes"].values():
        for kind in ("linear", "network"):
            for looks in ("seen", "unseen"):
                assert set(probes[kind][looks]) == {"actions", "positions", "velocities"}
                assert len(probes[kind][looks]["velocities"]["each"]) == 2
    for looks in ("seen", "unseen"):
        swaps = found["swaps"][looks]
        assert swaps["motion_of_b"]["n"] == swaps["look_of_a"]["n"] == 4
    with (tmp_path / "actions.csv").open() as file:
        kinds = [row["measurement"] for row in csv.DictReader(file)]
    assert kinds == ["probe"] * 6 * 2 * 2 * 3 + ["swap"] * 8
    assert (tmp_path / "actions.png").stat().st_size > 10_000


def test_what_has_no_actions_is_refused(tiny, tmp_path):
    words = (f"autoencoder={tiny}", f"output={tmp_path / 'out'}")
    told = run(*DEBUG, *words, "data.source=shapes").refused()
    assert "data.source=shapes has no actions" in told
    told = run(*DEBUG, *words, "data.physics.scenes=[arm,pusher]").refused()
    assert "set data.physics.scenes=[arm]" in told
    assert not (tmp_path / "out").exists()


def test_the_example_runs(tiny, tmp_path, monkeypatch, capsys):
    words = ("--autoencoder", tiny, "--clips", 10, "--output", tmp_path)
    monkeypatch.setattr(sys, "argv", ["robot_actions.py", *map(str, words)])
    runpy.run_path(str(ROOT / "examples" / "robot_actions.py"), run_name="__main__")
    assert "R² of the shoulder's direction on 2 clips" in capsys.readouterr().out
    assert (tmp_path / "look_motion_swap.mp4").stat().st_size > 500


@pytest.fixture(scope="module")
def world(tiny, tmp_path_factory) -> Path:
    """A run that has learned two steps of what follows from torques."""
    folder = tmp_path_factory.mktemp("world")
    config = ("train_diffusion", "--config", "configs/diffusion/physics_actions_debug.yaml")
    words = ("model.dynamics_patch_size=2", "model.structure_patch_size=1", "steps=3")
    run(*config, *words, f"autoencoder={tiny}", f"output={folder}").done()
    return folder


def test_a_world_model_is_trained_and_measured_beside_baselines(world, tmp_path):
    pipeline = world / "pipeline"
    index = read_json(pipeline / "model_index.json")
    assert index["action_names"] == ["shoulder torque", "elbow torque"]
    command = ("evaluate", "world", "--config", "configs/evaluation/world_debug.yaml")
    run(*command, f"pipeline={pipeline}", f"output={tmp_path}").done()
    found = read_json(tmp_path / "world.json")["found"]
    for name in ("real", "reconstruction", "world", "no_actions", "other_actions"):
        assert found[name]["error_m"]["n"] == 4
        assert len(found[name]["error_m_by_frame"]) == 8 - 2
    assert found["world"]["error_m"] != found["no_actions"]["error_m"]
    told = run(*command, "pipeline=checkpoints/shapes", f"output={tmp_path}").refused()
    assert "takes no actions" in told


def test_a_video_by_a_table_of_torques(world, tmp_path):
    def made(name: str, *words: object) -> tuple[dict, bytes]:
        common = ("--pipeline", world / "pipeline", "--steps", 2, "--output", tmp_path / name)
        run("sample", *common, *words).done()
        latents = (tmp_path / name / "sample_0000.latents.safetensors").read_bytes()
        return read_json(tmp_path / name / "sample.json")["made_by"], latents

    table = tmp_path / "torques.csv"
    table.write_text("elbow torque,shoulder torque\n" + "0.5,-1\n" * 8)
    told, pushed = made("pushed", "--actions", table)
    assert told["actions"] == str(table)
    assert made("free")[1] != pushed
    table.write_text("elbow torque,shoulder torque\n" + "0.5,-1\n" * 7)
    words = ("sample", "--pipeline", world / "pipeline", "--actions", table)
    assert "for each of the 8 frames, got 7" in run(*words).refused()
    words = ("sample", "--actions", table)
    assert "not trained with actions" in run(*words).refused()


def test_policies_are_cloned_and_act_in_the_simulator(tiny, tmp_path):
    command = ("evaluate", "policy", "--config", "configs/evaluation/policy_debug.yaml")
    run(*command, f"autoencoder={tiny}", f"output={tmp_path}").done()
    found = read_json(tmp_path / "policy.json")["found"]
    assert set(found) == {"dynamics", "pixels", "nothing", "actions"}
    for told in found.values():
        assert told["success"]["n"] == 4
        assert [each["n"] for each in told["success_of_each_seed"]] == [4, 4]
    with (tmp_path / "policy.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * 2 * 4
    # Where an arm ends follows from its torques alone: other policies end elsewhere.
    assert len({row["gap"] for row in rows}) == len(rows)
    told = run(*command, f"autoencoder={tiny}", "data.source=shapes").refused()
    assert "data.source must be physics" in told
