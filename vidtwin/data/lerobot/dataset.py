"""Episodes of robots in LeRobot's format, versions 2 and 3, as clips with actions and states.

    version 2   meta/episodes.jsonl; a parquet file and a video for each episode
    version 3   meta/episodes/**/*.parquet; many episodes one after another in each file

Axes: T frames, A actions, S values of the state.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vidtwin.data.bad_files import UnusableVideo
from vidtwin.data.clips import Clip, split_clips
from vidtwin.data.config import DataConfig
from vidtwin.data.dataset import Draws
from vidtwin.data.file_dataset import FileDataset, warn_of_shared_clips
from vidtwin.data.lerobot.config import LeRobotOptions
from vidtwin.data.readers import VideoInfo

__all__ = ["LeRobotDataset", "build_lerobot_dataset"]

VERSIONS = ("v2.", "v3.")


@dataclass(frozen=True, kw_only=True)
class Episode:
    """Where an episode lies.

    Args:
        number: its `episode_index`.
        clip: its video, with its tasks as captions.
        table: the parquet file with its rows.
        start, end: seconds within the video; end is None for a video of its own.
    """

    number: int
    clip: Clip
    table: Path
    start: float = 0.0
    end: float | None = None


class LeRobotDataset(FileDataset):
    """Episodes with their tasks as captions, "actions" (T, A) and "states" (T, S) float32.

    Actions and states are those of the rows of the frames that were taken.

    Args:
        config: how clips are read.
        episodes: which there are.
        columns: "actions" and "states" -> column of the tables.
        names: the same -> names of its values.
    """

    def __init__(
        self,
        config: DataConfig,
        episodes: list[Episode],
        columns: Mapping[str, str],
        names: Mapping[str, tuple[str, ...]],
    ):
        super().__init__(config, [episode.clip for episode in episodes], [])
        self.episodes, self.columns = episodes, columns
        self.action_names, self.state_names = names.get("actions", ()), names.get("states", ())

    def _within(self, index: int, info: VideoInfo) -> tuple[int, VideoInfo]:
        """The first frame of an episode in its file, and what is known of its frames alone."""
        episode = self.episodes[index]
        if episode.end is None:
            return 0, info
        # Half a frame of tolerance: times in the tables are rounded.
        edges = np.array([episode.start, episode.end]) - 0.5 / info.fps
        first, last = np.searchsorted(info.timestamps, edges)
        if last <= first:
            raise UnusableVideo(info.path, f"has no frames of episode {episode.number}")
        timestamps = info.timestamps[first:last] - info.timestamps[first]
        duration = float(timestamps[-1] + 1 / info.fps)
        own = {"timestamps": timestamps, "duration": duration, "num_frames": len(timestamps)}
        return int(first), replace(info, **own)

    def info(self, index: int) -> VideoInfo:
        """What is known about an episode's frames."""
        return self._within(index, super().info(index))[1]

    def read(
        self,
        index: int,
        choose: Callable[[VideoInfo], np.ndarray],
        crop: tuple[float, float] = (0.5, 0.5),
        flip: bool = False,
    ) -> dict[str, Any]:
        """As of `FileDataset`, from the frames of the episode."""
        first = 0

        def choose_within(info: VideoInfo) -> np.ndarray:
            nonlocal first
            first, own = self._within(index, info)
            return first + choose(own)

        sample = super().read(index, choose_within, crop, flip)
        return sample | self._rows(index, sample["frame_indices"].numpy() - first)

    def load(self, index: int, draws: Draws) -> dict[str, Any]:
        """The sample of an episode; its path names the episode too."""
        sample = super().load(index, draws)
        return sample | {"path": f"{sample['path']}#{self.episodes[index].number}"}

    def _rows(self, index: int, frames: np.ndarray) -> dict[str, torch.Tensor]:
        """Actions and states of some frames of an episode."""
        import pyarrow.parquet as parquet
        from pyarrow import ArrowException

        if not self.columns:
            return {}
        episode = self.episodes[index]
        try:
            table = parquet.read_table(
                episode.table,
                columns=list(self.columns.values()),
                filters=[("episode_index", "=", episode.number)],
            )
        except (OSError, ArrowException) as error:
            reason = str(error).splitlines()[0]
            raise UnusableVideo(str(episode.table), f"can't be read: {reason}") from error
        if frames.max() >= table.num_rows:
            raise UnusableVideo(
                str(episode.table),
                f"has {table.num_rows} rows of episode {episode.number}, but its video has frame "
                f"{frames.max()}",
            )
        rows = table.take(frames)
        return {
            name: torch.tensor(rows[column].to_pylist(), dtype=torch.float32).reshape(
                len(frames), -1
            )
            for name, column in self.columns.items()
        }


def build_lerobot_dataset(config: DataConfig, options: LeRobotOptions) -> LeRobotDataset:
    """The episodes of the part that the config names.

    Raises:
        ValueError: if the folder is no data set in a version that is known, has no videos, or
            lacks what the options name.
    """
    assert config.path is not None
    root = Path(config.path).expanduser()
    info = json.loads((root / "meta" / "info.json").read_text(encoding="utf-8"))
    version = str(info.get("codebase_version"))
    if not version.startswith(VERSIONS):
        raise ValueError(
            f"{root}: LeRobot data sets of the versions 2 and 3 are read, got {version}; convert "
            "it with LeRobot's own scripts"
        )
    features = info["features"]
    cameras = [name for name, feature in features.items() if feature["dtype"] == "video"]
    if not cameras:
        raise ValueError(
            f"{root}: no feature of the data set is a video, got {', '.join(features)}"
        )
    camera = options.camera or cameras[0]
    if camera not in cameras:
        raise ValueError(
            f"data.lerobot.camera must be one of {', '.join(cameras)} of {root}, got {camera!r}"
        )
    columns = {"actions": options.action, "states": options.state}
    for key, column in (("action", options.action), ("state", options.state)):
        if column is not None and column not in features:
            raise ValueError(
                f"data.lerobot.{key} must be one of {', '.join(features)} of {root}, or null; got "
                f"{column!r}"
            )
    listing = _episodes_3 if version.startswith("v3.") else _episodes_2
    episodes = {each.clip.name: each for each in listing(root, info, camera)}
    warn_of_shared_clips(config)
    clips = [episode.clip for episode in episodes.values()]
    clips = split_clips(clips, config.part, config.validation_fraction)[: config.max_clips]
    used = {name: column for name, column in columns.items() if column is not None}
    names = {name: _names(features[column]) for name, column in used.items()}
    return LeRobotDataset(config, [episodes[clip.name] for clip in clips], used, names)


def _names(feature: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of a feature's values, by whatever the data set calls them; else numbers."""
    names, size = feature.get("names"), int(np.prod(feature["shape"]))
    if isinstance(names, dict):
        names = [name for value in names.values() for name in value]
    if not isinstance(names, list) or len(names) != size:
        return tuple(str(number) for number in range(size))
    return tuple(map(str, names))


def _clip(path: Path, number: int, tasks: list[str]) -> Clip:
    caption, *others = tasks or [""]
    return Clip(
        path=str(path),
        name=f"episode_{number:06d}",
        caption=caption,
        other_captions=tuple(others),
    )


def _episodes_2(root: Path, info: Mapping[str, Any], camera: str) -> Iterator[Episode]:
    """Those of version 2."""
    for line in (root / "meta" / "episodes.jsonl").read_text(encoding="utf-8").splitlines():
        if line.strip():
            row = json.loads(line)
            number = row["episode_index"]
            place = {
                "episode_chunk": number // info["chunks_size"],
                "episode_index": number,
                "video_key": camera,
            }
            yield Episode(
                number=number,
                clip=_clip(root / info["video_path"].format(**place), number, row["tasks"]),
                table=root / info["data_path"].format(**place),
            )


def _episodes_3(root: Path, info: Mapping[str, Any], camera: str) -> Iterator[Episode]:
    """Those of version 3."""
    import pyarrow.parquet as parquet

    video = f"videos/{camera}/"
    keys = ("chunk_index", "file_index")
    needed = ["episode_index", "tasks", *(f"data/{key}" for key in keys)]
    needed += [f"{video}{key}" for key in (*keys, "from_timestamp", "to_timestamp")]
    for file in sorted((root / "meta" / "episodes").glob("**/*.parquet")):
        for row in parquet.read_table(file, columns=needed).to_pylist():
            data = {key: row[f"data/{key}"] for key in keys}
            place = {key: row[video + key] for key in keys} | {"video_key": camera}
            number = row["episode_index"]
            yield Episode(
                number=number,
                clip=_clip(root / info["video_path"].format(**place), number, row["tasks"]),
                table=root / info["data_path"].format(**data),
                start=row[f"{video}from_timestamp"],
                end=row[f"{video}to_timestamp"],
            )
