"""Simulated bodies: exact pairs, true actions and captions, the same clips everywhere."""

from __future__ import annotations

import importlib.util
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from vidtwin.data import DataConfig, build_dataset, build_loader
from vidtwin.data.synthetic.physics import engine
from vidtwin.data.synthetic.physics.config import SCENES, PhysicsOptions
from vidtwin.data.synthetic.physics.looks import COLORS, HELD_OUT_COLORS

FRAMES = 6


def make(part: str = "train", **options: Any) -> Any:
    sections = {"physics": PhysicsOptions(**{"size": 64} | options)}
    sizes = {"num_frames": FRAMES, "height": 32, "width": 32}
    return build_dataset(DataConfig(source="physics", part=part, sections=sections, **sizes))


def end_engine() -> None:
    running = engine._ENGINES.pop(os.getpid(), None)
    if running is not None:
        running.close()


@pytest.fixture(scope="module")
def draws() -> None:
    """Skips where nothing can be drawn."""
    pytest.importorskip("mujoco", reason="MuJoCo is not installed")
    try:
        make()
    except ValueError as error:
        pytest.skip(str(error))


def test_a_clip_follows_from_its_seed_bit_for_bit(draws: None) -> None:
    first = [make()[index] for index in range(4)]
    end_engine()  # another process, another graphics context
    again = make()
    again[9]  # what was drawn before changes nothing
    for index, sample in enumerate(first):
        same = again[index]
        assert sample["caption"] == same["caption"]
        for name in ("video", "actions", "states"):
            assert torch.equal(sample[name], same[name]), name
    assert not torch.equal(first[0]["video"], make(seed=1)[0]["video"])
    assert not torch.equal(first[0]["actions"], make("validation", looks="seen")[0]["actions"])


@pytest.mark.parametrize("scene", SCENES)
def test_pairs_are_exact(scene: str, draws: None) -> None:
    data = make(scenes=(scene,))
    clip, rng = data.clip(3), np.random.default_rng(0)
    other_look = data.swapped("appearance_swap", clip, rng)
    other_motion = data.swapped("motion_swap", clip, rng)
    base, same_motion, same_look = map(data.simulated, (clip, other_look, other_motion))
    assert np.array_equal(base.recording.qpos, same_motion.recording.qpos)
    assert (base.recording.video != same_motion.recording.video).mean() > 0.2
    assert not np.allclose(base.positions, same_look.positions, atol=0.05)
    # The corner that no body reaches shows the same floor (or wall) under the same light.
    corner = (slice(None), slice(0, 3), slice(0, 3))
    assert np.array_equal(base.recording.video[corner], same_look.recording.video[corner])


@pytest.mark.parametrize("scene", SCENES)
def test_actions_lead_from_each_frame_to_the_next(scene: str, draws: None) -> None:
    """From the state of frame 2 on, the actions alone give the rest of the clip."""
    data = make(scenes=(scene,))
    clip = data.clip(5)
    whole = data.simulated(clip, draw=False).recording
    mjcf, substeps = clip.scene.mjcf(clip.body, clip.look, data.fps)
    start = whole.qpos[2], whole.qvel[2]
    motion = clip.motion
    rest = engine.simulate(mjcf, start, motion.controls[2:], motion.gravity[2:], substeps)
    # Contacts forget what their solver started from, hence not bit for bit.
    np.testing.assert_allclose(rest.qpos, whole.qpos[2:], atol=1e-4)
    still = engine.simulate(
        mjcf, start, 0 * motion.controls[2:], motion.gravity[:1].repeat(4, 0), substeps
    )
    assert np.abs(still.qvel[1] - whole.qvel[3]).max() > 1e-3


def test_captions_say_what_is_seen(draws: None) -> None:
    data = make(scenes=("arm",), camera_range=0.0)
    found = {"left": 0, "right": 0}
    for index in range(24):
        sample, look = data[index], data.clip(index).look
        factors = data.factors(index)
        assert look.color in sample["caption"] and f"{look.second} hand" in sample["caption"]
        assert tuple(COLORS)[factors["color"]] == look.color
        direction = data.label_names[sample["label"]].split()[1]
        if direction in found:
            found[direction] += 1
            assert f"to the {direction}" in sample["caption"]
            hue = torch.tensor(COLORS[look.second])[:, None, None, None]
            near = (sample["video"].div(2).add(0.5).sub(hue).abs().amax(0) < 0.25).float()
            mass = near.sum((1, 2))  # (T,) pixels in the colour of the hand
            if mass[0] > 4 and mass[-1] > 4:
                place = (near * torch.arange(32)).sum((1, 2)) / mass
                assert (place[-1] < place[0]) == (direction == "left")
    assert min(found.values()) >= 2
    assert make().captions(0, 3) == [make().get(0, epoch)["caption"] for epoch in range(3)]


def test_unseen_looks_share_no_colour_and_no_camera(draws: None) -> None:
    seen, unseen = make(), make("validation")
    turns = {}
    for data in (seen, unseen):
        looks = [data.clip(index).look for index in range(64)]
        turns[data.looks] = [look.azimuth for look in looks]
        colors = {look.color for look in looks}
        assert colors == set(HELD_OUT_COLORS) if data is unseen else not colors & {*HELD_OUT_COLORS}
    assert max(turns["seen"]) < min(turns["unseen"])


def test_mixed_scenes_have_columns_for_all_and_workers_draw_the_same(draws: None) -> None:
    data = make(size=8)
    batches = [next(iter(build_loader(data, batch_size=8, seed=0, num_workers=n))) for n in (0, 1)]
    assert batches[0]["actions"].shape == (8, FRAMES, 4)
    assert batches[0]["states"].shape == (8, FRAMES, 14)
    for name in ("video", "actions", "states"):
        assert torch.equal(batches[0][name], batches[1][name])
    with pytest.raises(ValueError, match=r"data\.physics\.scenes=\[arm\]"):
        data.factor_classes()


def test_an_interrupted_clip_leaves_nothing_behind(
    draws: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next clip is its own, after an interrupt, a dead process, and among threads."""
    data = make()
    expected = [data[index]["video"] for index in range(4)]

    def interrupted(self: engine.Engine) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(engine.Engine, "_header", interrupted)
        with pytest.raises(KeyboardInterrupt):
            data[0]
    assert torch.equal(data[1]["video"], expected[1])
    running = engine._ENGINES[os.getpid()].process
    running.kill()
    running.wait()
    assert torch.equal(data[2]["video"], expected[2])
    with ThreadPoolExecutor(4) as threads:
        videos = list(threads.map(lambda index: data[index]["video"], range(4)))
    assert all(map(torch.equal, videos, expected))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flip": True}, "set data.flip=false"),
        ({"validation_fraction": 0.1}, "set it to 0"),
        ({"path": "clips"}, "reads no files"),
        ({"fps": None, "stride": 2}, "simulates data.fps"),
    ],
)
def test_what_would_be_untrue_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataConfig(source="physics", **options)
    with pytest.raises(ValueError, match="`scenes` must be one of arm, pusher"):
        PhysicsOptions(scenes=("walker",))


def test_a_missing_package_and_renderer_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs the package mujoco: pip install 'vidtwin\[phys"):
        DataConfig(source="physics").check_files()
    monkeypatch.undo()
    if importlib.util.find_spec("mujoco"):
        end_engine()
        monkeypatch.setenv("MUJOCO_GL", "disable")
        with pytest.raises(ValueError, match=r"finds no renderer .*tried disable.*MUJOCO_GL"):
            make()
