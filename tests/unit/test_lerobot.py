"""Data sets in LeRobot's format, versions 2 and 3: the right frames with the right actions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot_folders import (
    CAMERA,
    LENGTHS,
    TASKS,
    rows,
    version_2,
    version_3,
    write_info,
    write_table,
)

from vidtwin.data import DataConfig, TooManyBadFiles, build_dataset, build_loader
from vidtwin.data.lerobot.config import LeRobotOptions

pytest.importorskip("pyarrow", reason="pyarrow is not installed")

VERSIONS: dict[str, Callable[[Path], Path]] = {"v2": version_2, "v3": version_3}


def config(root: Path, options: dict[str, Any] | None = None, **changes: Any) -> DataConfig:
    settings = {"num_frames": 4, "height": 16, "width": 16, "fps": 5.0, "start": "center"}
    sections = {"lerobot": LeRobotOptions(**options or {})}
    return DataConfig(source="lerobot", path=str(root), sections=sections, **settings | changes)


@pytest.mark.parametrize("version", VERSIONS)
def test_frames_and_actions_belong_together(version: str, tmp_path: Path) -> None:
    data = build_dataset(config(VERSIONS[version](tmp_path / "robot")))
    assert (len(data), data.action_names, data.state_names) == (3, ("x", "y", "grip"), ("a", "b"))
    for episode, length in enumerate(LENGTHS):
        sample = data[episode]
        own = sample["actions"][:, 1].int()  # frame within the episode, by the table
        assert sample["actions"][:, 0].unique().tolist() == [episode]
        assert own.diff().tolist() == [2, 2, 2]  # 5 of 10 frames a second
        assert own[0] >= 0
        assert own[-1] < length
        assert sample["states"].tolist() == [[frame, -episode] for frame in own.tolist()]
        levels = (sample["video"].mean((0, 2, 3)) + 1) * 127.5
        expected = 60 * episode + 5.0 * own
        torch.testing.assert_close(levels, expected, atol=2.5, rtol=0)  # the codec's
        assert sample["caption"] in TASKS[episode]
        assert sample["path"].endswith(f"#{episode}")
    assert {data.get(1, epoch)["caption"] for epoch in range(2)} == set(TASKS[1])
    assert data.info(1).num_frames == LENGTHS[1]


def test_batches_parts_and_missing_columns(tmp_path: Path) -> None:
    root = version_3(tmp_path / "robot")
    names = [
        {
            clip.name
            for clip in build_dataset(config(root, part=part, validation_fraction=0.4)).clips
        }
        for part in ("train", "validation")
    ]
    assert not names[0] & names[1] and len(names[0] | names[1]) == 3
    batch = next(iter(build_loader(build_dataset(config(root)), batch_size=3, seed=0)))
    assert batch["actions"].shape == (3, 4, 3) and batch["states"].shape == (3, 4, 2)
    plain = build_dataset(config(root, {"action": None, "state": None}))[0]
    assert "actions" not in plain and "states" not in plain
    with pytest.raises(TooManyBadFiles, match=r"too short: 12 frames, 1\.200 s"):
        build_dataset(config(root, num_frames=16))[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"camera": "left"}, rf"data.lerobot.camera must be one of {CAMERA} .*got 'left'"),
        ({"action": "actions"}, r"data.lerobot.action must be one of .*action.* or null"),
    ],
)
def test_wrong_names_are_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        build_dataset(config(version_2(tmp_path / "robot"), options))


def test_what_is_no_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must name a data set in LeRobot's format.*info\.json"):
        config(tmp_path).check_files()
    with pytest.raises(ValueError, match=r"set data\.flip=false"):
        config(tmp_path, flip=True)
    write_info(tmp_path / "old", "v1.6")
    with pytest.raises(ValueError, match=r"versions 2 and 3 are read, got v1\.6"):
        build_dataset(config(tmp_path / "old"))
    root = version_2(tmp_path / "cut")
    table = root / "data/chunk-000/episode_000000.parquet"
    write_table(table, {key: values[:3] for key, values in rows(0).items()})
    data = build_dataset(config(root, max_bad_fraction=0.5))
    data[0]
    assert data.bad_file_log.files[str(table)].startswith("has 3 rows of episode 0")
