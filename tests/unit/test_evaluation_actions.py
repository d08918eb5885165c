"""Probes find what is there and nothing else; the baseline and the judge learn what they should."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vidtwin_lab.evaluation.actions.clips import ActionClips, pixel_features, targets_of
from vidtwin_lab.evaluation.actions.config import NetworkConfig, ProbesConfig
from vidtwin_lab.evaluation.actions.networks import train_judge, train_latent_actions
from vidtwin_lab.evaluation.actions.probes import probe, r_squared

RNG = np.random.default_rng(0)


def dots(count: int, frames: int = 6) -> ActionClips:
    """Clips of a white square that moves sideways by its action, on a ground of its own gray."""
    rng = np.random.default_rng(count)
    actions = rng.integers(-3, 4, (count, frames, 1)).astype(np.float32)
    places = 13 + np.cumsum(np.pad(actions, ((0, 0), (1, 0), (0, 0)))[:, :-1, 0], axis=1)
    places = np.clip(places, 0, 26).astype(int)
    video = np.zeros((count, frames, 3, 32, 32), np.uint8)
    video += rng.integers(0, 120, (count, 1, 1, 1, 1)).astype(np.uint8)
    for clip in range(count):
        for frame in range(frames):
            place = places[clip, frame]
            video[clip, frame, :, 13:19, place : place + 6] = 255
    states = np.stack([places, np.gradient(places, axis=1)], axis=-1).astype(np.float32)
    nothing = np.zeros((count, 8), np.float32)
    return ActionClips(nothing, nothing, video, actions, states)


@pytest.mark.parametrize("kind", ["linear", "network"])
def test_a_probe_finds_what_a_feature_says_and_nothing_in_noise(kind: str) -> None:
    features = RNG.normal(size=(200, 6, 4)).astype(np.float32)
    features[..., 3] = 7  # says nothing
    change = np.diff(features[..., :1], axis=1)  # to the next frame: needs the frames around
    targets = {
        "velocities": change,
        "frame": np.tile(np.arange(5.0)[:, None], (200, 1, 1)),
        "noise": RNG.normal(size=(200, 5, 1)),
    }
    train = {name: each[:150] for name, each in targets.items()}
    config = ProbesConfig(steps=400, hidden_size=64)
    probed = probe([features[:150], features[150:]], train, config, kind, seed=0)
    (predicted,) = probed.predictions
    scores = {name: r_squared(predicted[name], targets[name][150:]) for name in targets}
    for name in ("velocities", "frame"):
        assert scores[name]["value"] > 0.95
        assert scores[name]["low"] <= scores[name]["value"] <= scores[name]["high"]
    assert scores["noise"]["value"] < 0.05
    again = probe([features[:150], features[150:]], train, config, kind, seed=0)
    assert np.array_equal(again.predictions[0]["velocities"], predicted["velocities"])
    blind = probe([features[:150, :1], features[150:, :1]], train, config, kind, seed=0)
    assert r_squared(blind.predictions[0]["velocities"], change[150:])["value"] < 0.5


def test_r_squared_is_what_its_formula_says() -> None:
    true = RNG.normal(size=(9, 4, 2))
    guess = true + RNG.normal(size=true.shape) * [0.1, 1.0]
    found = r_squared(guess, true)
    for number in range(2):
        error = np.square(guess[..., number] - true[..., number])
        spread = np.square(true[..., number] - true[..., number].mean())
        np.testing.assert_allclose(found["each"][number], 1 - error.sum() / spread.sum())
        np.testing.assert_allclose(found["rmse"][number], np.sqrt(error.mean()))
    blind = np.broadcast_to(true.mean((0, 1)), true.shape)
    np.testing.assert_allclose(r_squared(blind, true)["value"], 0, atol=1e-12)


def test_targets_are_told_apart_by_their_names_and_the_last_action_is_left_out() -> None:
    clips = dots(5)
    found = targets_of(clips, ("x", "x velocity"))
    assert found["actions"].shape == (5, 5, 1)
    assert np.array_equal(found["positions"], clips.states[:, :-1, :1])
    assert np.array_equal(found["velocities"], clips.states[:, :-1, 1:])
    bare = ActionClips(
        clips.structure, clips.dynamics, clips.frames, clips.actions, clips.states[..., :0]
    )
    assert set(targets_of(bare, ())) == {"actions"}


def test_pixel_features_are_principal_components_of_the_training_frames() -> None:
    train, test = dots(40), dots(20)
    found = pixel_features(train, [test], size=8)
    for name in ("pixels", "frame differences"):
        own, other = found[name]
        assert (own.shape, other.shape) == ((40, 6, 8), (20, 6, 8))
        rows = own.reshape(-1, 8)
        covariance = rows.T @ rows
        strength = np.diag(covariance)
        np.testing.assert_allclose(covariance, np.diag(strength), atol=0.01 * strength[0])
        assert (np.diff(strength) <= 1e-3).all()  # the strongest first


def score(kind: str) -> float:
    config = NetworkConfig(steps=250, batch_size=32, channels=8)
    train, test = dots(100), dots(40)
    if kind == "judge":
        judge = train_judge(train.frames, train.states[..., :1], config, seed=0)
        found: dict[str, Any] = r_squared(judge.read(test.frames), test.states[..., :1])
    else:
        network = train_latent_actions(train, 40, config, seed=0)
        features = [network.features(clips) for clips in (train, test)]
        assert features[0].shape == (100, 6, 8)  # 40 values for five steps
        targets = {"velocities": np.diff(train.states[..., :1], axis=1)}
        (predicted,) = probe(features, targets, ProbesConfig(), "linear", 0).predictions
        found = r_squared(predicted["velocities"], np.diff(test.states[..., :1], axis=1))
    return float(found["value"])


@pytest.mark.parametrize(("kind", "least"), [("judge", 0.8), ("latent actions", 0.4)])
def test_networks_learn_what_they_are_for(kind: str, least: float) -> None:
    assert score(kind) > least
