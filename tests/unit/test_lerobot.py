"""Data sets in LeRobot's format, versions 2 and 3: the right frames with the right actions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vidtwin.data import DataConfig, TooManyBadFiles, build_dataset, build_loader
from vidtwin.data.lerobot.config import LeRobotOptions
from vidtwin.media import write_video

parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
import pyarrow  # noqa: E402

CAMERA = "observation.images.top"
LENGTHS = (12, 9, 15)
TASKS = (["pick the cube"], ["open the drawer", "pull the handle"], ["pick the cube"])
FPS = 10
FEATURES: dict[str, Any] = {
    "observation.state": {"dtype": "float32", "shape": [2], "names": {"motors": ["a", "b"]}},
    "action": {"dtype": "float32", "shape": [3], "names": ["x", "y", "grip"]},
    CAMERA: {"dtype": "video", "shape": [32, 32, 3], "names": ["height", "width", "channel"]},
    "next.done": {"dtype": "bool", "shape": [1], "names": None},
}


def frames(episode: int) -> np.ndarray:
    """Gray frames whose brightness names the episode and the frame."""
    levels = 60 * episode + 5 * np.arange(LENGTHS[episode])
    return np.broadcast_to(levels[:, None, None, None], (len(levels), 32, 32, 3)).astype(np.uint8)


def rows(episode: int) -> dict[str, list[Any]]:
    """Actions that name the episode and the frame."""
    count = range(LENGTHS[episode])
    return {
        "action": [[episode, frame, 0.5] for frame in count],
        "observation.state": [[frame, -episode] for frame in count],
        "episode_index": [episode] * LENGTHS[episode],
        "frame_index": list(count),
    }


def write_table(path: Path, columns: dict[str, list[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(columns), path)


def write_info(root: Path, version: str, **paths: str) -> None:
    info = {"codebase_version": version, "fps": FPS, "chunks_size": 1000, "features": FEATURES}
    (root / "meta").mkdir(parents=True)
    (root / "meta" / "info.json").write_text(json.dumps(info | paths))


def version_2(root: Path) -> Path:
    name = "chunk-{episode_chunk:03d}/"
    write_info(
        root,
        "v2.1",
        data_path=f"data/{name}episode_{{episode_index:06d}}.parquet",
        video_path=f"videos/{name}{{video_key}}/episode_{{episode_index:06d}}.mp4",
    )
    lines = []
    for episode, tasks in enumerate(TASKS):
        lines.append({"episode_index": episode, "tasks": tasks, "length": LENGTHS[episode]})
        write_table(root / f"data/chunk-000/episode_{episode:06d}.parquet", rows(episode))
        video = root / f"videos/chunk-000/{CAMERA}/episode_{episode:06d}.mp4"
        video.parent.mkdir(parents=True, exist_ok=True)
        write_video(video, frames(episode), FPS)
    (root / "meta" / "episodes.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return root


def version_3(root: Path) -> Path:
    """All episodes in one video and one table."""
    name = "chunk-{chunk_index:03d}/file-{file_index:03d}"
    write_info(
        root,
        "v3.0",
        data_path=f"data/{name}.parquet",
        video_path=f"videos/{{video_key}}/{name}.mp4",
    )
    both = [rows(episode) for episode in range(len(TASKS))]
    merged = {key: [row for each in both for row in each[key]] for key in both[0]}
    write_table(root / "data/chunk-000/file-000.parquet", merged)
    video = root / f"videos/{CAMERA}/chunk-000/file-000.mp4"
    video.parent.mkdir(parents=True)
    write_video(video, np.concatenate([frames(n) for n in range(len(TASKS))]), FPS)
    ends = np.cumsum(LENGTHS) / FPS
    place = {"chunk_index": [0] * 3, "file_index": [0] * 3}
    episodes: dict[str, list[Any]] = {"episode_index": [0, 1, 2], "tasks": list(TASKS)}
    for key, zeros in place.items():
        episodes |= {f"data/{key}": zeros, f"videos/{CAMERA}/{key}": zeros}
    episodes[f"videos/{CAMERA}/from_timestamp"] = [0.0, *ends[:2].tolist()]
    episodes[f"videos/{CAMERA}/to_timestamp"] = ends.tolist()
    write_table(root / "meta/episodes/chunk-000/file-000.parquet", episodes)
    return root


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
