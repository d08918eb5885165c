"""Small data sets in LeRobot's format, whose frames and actions name their episode and frame."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from vidtwin.media import write_video

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
    import pyarrow
    import pyarrow.parquet as parquet

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
