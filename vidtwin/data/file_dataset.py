"""Clips that are read from video files: data sets of them, and one window of a single file.

Axes: T frames, H W pixels.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vidtwin.data.bad_files import UnusableVideo
from vidtwin.data.clips import Clip, ClipList, split_clips
from vidtwin.data.config import DataConfig
from vidtwin.data.dataset import Draws, Factors, VideoDataset, draws_for
from vidtwin.data.file_sources import LIST_SOURCES, find_clips
from vidtwin.data.frames import fit_frame, frames_by_stride, frames_by_time, frames_repeating_last
from vidtwin.data.readers import Limits, VideoInfo, read_clip, read_video_info

__all__ = [
    "FileDataset",
    "build_file_dataset",
    "choose_factors",
    "read_first_window",
    "warn_of_shared_clips",
]

logger = logging.getLogger(__name__)

# Behind the reason of a clip that is left out.
SHORT_CURE = "; data.short=repeat_last would hold its last frame"
START_POSITIONS = {"first": 0.0, "center": 0.5}


class FileDataset(VideoDataset):
    """Clips read from video files.

    Args:
        config: how they are read.
        clips: which they are.
        label_names: the name of each label.
        factors: of content and motion, that the clips have.
    """

    def __init__(
        self,
        config: DataConfig,
        clips: Sequence[Clip],
        label_names: Sequence[str],
        factors: Factors | None = None,
    ):
        super().__init__(config, len(clips))
        self.clips = clips
        self.label_names = list(label_names)
        self._factor_classes = factors or Factors()

    def fetch(self, index: int) -> Callable[[], bytes] | None:
        """What gives the bytes of a clip that is no file of its own; see `read_clip`."""
        return None

    @property
    def limits(self) -> Limits:
        """What a file may ask for."""
        return Limits(pixels=self.config.max_pixels, frames=self.config.max_frames)

    def info(self, index: int) -> VideoInfo:
        """What is known about a clip's video; raises UnusableVideo for a file that is none."""
        path, fetch = self.clips[index].path, self.fetch(index)
        return read_video_info(path, timeout=self.config.timeout, limits=self.limits, fetch=fetch)

    def describe_unusable(self, most: int) -> str:
        """One line of how many files can't give their clip, and what is wrong with the first.

        Reads packets and first frames, so damage further on is not seen.

        Args:
            most: files that are looked at, spread evenly.
        """
        places = np.unique(np.linspace(0, len(self) - 1, min(most, len(self))).round().astype(int))
        found = []
        for index in places.tolist():
            try:
                self.choose_frames(self.info(index), draws_for(self.config.seed, 0, index))
            except UnusableVideo as error:
                found.append(str(error))
        told = [f"{len(found)} of {len(places):,} files looked at can't be used", *found[:3]]
        return "; ".join(told)

    def version(self, index: int) -> object:
        """What changes when a clip's file is exchanged under the same name."""
        file = Path(self.clips[index].path)
        state = file.stat() if file.exists() else None
        return (state.st_size, state.st_mtime_ns) if state else None

    def choose_frames(self, info: VideoInfo, draws: Draws) -> np.ndarray:
        """The frames of the sample's window.

        Raises:
            UnusableVideo: if the video is too short.
            ValueError: the same, when `short` is "error".
        """
        config = self.config
        position = START_POSITIONS.get(config.start, draws.start)
        if config.stride is not None:
            chosen = frames_by_stride(info.num_frames, config.num_frames, config.stride, position)
            wanted = f"{config.num_frames} frames, every {config.stride}."
        else:
            assert config.fps is not None
            chosen = frames_by_time(
                info.timestamps, info.duration, config.num_frames, config.fps, position
            )
            wanted = f"{config.num_frames} frames at {config.fps:g} fps"
        if chosen is not None:
            return chosen
        if config.short == "repeat_last":
            return frames_repeating_last(
                info.timestamps, config.num_frames, config.fps, config.stride
            )
        came = f"too short: {info.num_frames} frames, {info.duration:.3f} s, for {wanted}"
        if config.short == "error":
            raise ValueError(f"{info.path}: {came}; set data.short to skip or repeat_last")
        raise UnusableVideo(info.path, came + SHORT_CURE)

    def load(self, index: int, draws: Draws) -> dict[str, Any]:
        """The sample of one clip; raises UnusableVideo for a file that can't give it."""
        sample = self.read(
            index,
            lambda info: self.choose_frames(info, draws),
            (0.5, 0.5) if self.config.crop == "center" else (draws.top, draws.left),
            self.config.flip and draws.flip < 0.5,
        )
        captions = self._shuffled_captions(index)
        return sample | {"caption": captions[draws.epoch % len(captions)]}

    def _shuffled_captions(self, index: int) -> list[str]:
        """All captions of a clip, in the order in which the epochs take them."""
        captions = self.clips[index].captions
        if len(captions) == 1:
            return list(captions)
        order = np.random.default_rng([self.config.seed, 0, index, 0, 5]).permutation(len(captions))
        return [captions[place] for place in order]

    def read(
        self,
        index: int,
        choose: Callable[[VideoInfo], np.ndarray],
        crop: tuple[float, float] = (0.5, 0.5),
        flip: bool = False,
    ) -> dict[str, Any]:
        """The sample of one clip from the frames that the caller chooses.

        Args:
            index: of the clip, from 0.
            choose: gives the (T,) indices, from what is known about the video.
            crop: see `fit_frame`.
            flip: mirror left and right.
        Raises:
            UnusableVideo: if the file can't be used.
        """
        clip, config = self.clips[index], self.config

        def fit(frame: np.ndarray) -> torch.Tensor:
            return fit_frame(frame, config.height, config.width, config.resize, crop, flip)

        info, indices, frames = read_clip(
            clip.path,
            choose,
            fit,
            backend=config.backend,
            timeout=config.timeout,
            limits=self.limits,
            fetch=self.fetch(index),
        )
        fps = config.fps if config.stride is None else info.fps / config.stride
        return {
            "video": torch.stack(frames, dim=1).div_(127.5).sub_(1),
            "caption": self.captions(index, 1)[0],
            "label": clip.label,
            "index": index,
            "path": clip.path,
            "fps": float(fps or 0),
            "backend": info.backend,
            "frame_indices": torch.from_numpy(indices.astype(np.int64)),
        }

    def captions(self, index: int, count: int) -> list[str]:
        """Those of a clip, each once."""
        return self._shuffled_captions(index)[:count]

    def factor_classes(self) -> Factors:
        """Those that the config names."""
        return self._factor_classes

    def factors(self, index: int) -> dict[str, int]:
        """Those of the clip's row or folder."""
        values = self.clips[index].factors
        return {
            name: names.index(values[name]) if values.get(name) else -1
            for name, names in self._factor_classes.all.items()
        }

    def label_factors(self, label: int) -> dict[str, int]:
        """The class, or the column `label` of a CSV, where it is one of the factors."""
        return {
            name: names.index(self.label_names[label])
            for name, names in self._factor_classes.all.items()
            if label >= 0 and name in ("class", "label") and self.label_names[label] in names
        }


def build_file_dataset(config: DataConfig) -> FileDataset:
    """The clips of a source of files, of the part that the config names.

    Raises:
        ValueError: if there is nothing there, no videos, or a malformed list.
    """
    listing = find_clips(config)
    if config.source != "ucf101":  # which has parts of its own
        warn_of_shared_clips(config)
    clips = split_clips(listing.clips, config.part, config.validation_fraction)
    factors = choose_factors(config, _factor_classes(config, listing))
    return FileDataset(config, clips[: config.max_clips], listing.label_names, factors)


def warn_of_shared_clips(config: DataConfig) -> None:
    """Says so where the validation clips are the training clips."""
    if config.part == "validation" and config.validation_fraction == 0:
        logger.warning("data.validation_fraction is 0: the validation clips are the training clips")


def _factor_classes(config: DataConfig, listing: ClipList) -> dict[str, tuple[str, ...]]:
    """The factors that a list of clips may have, with the classes of its clips."""
    if config.source in LIST_SOURCES:
        return {
            name: tuple(sorted({clip.factors[name] for clip in listing.clips} - {""}))
            for name in (*config.content_factors, *config.motion_factors)
        }
    return {"class": tuple(listing.label_names)} if listing.label_names else {}


def choose_factors(config: DataConfig, classes: Mapping[str, tuple[str, ...]]) -> Factors:
    """The factors that a config names; the class is the motion where it names none.

    Args:
        classes: name of each factor that the clips have -> its classes.
    Raises:
        ValueError: for a factor that is named twice, or that the source does not have.
    """
    content, motion = config.content_factors, config.motion_factors
    if "class" in classes and not content and not motion:
        motion = ("class",)
    named = (*content, *motion)
    if len(set(named)) < len(named) or not set(named) <= set(classes):
        raise ValueError(
            "data.content_factors and data.motion_factors must name columns of a CSV, or the word "
            f"class for class folders and UCF-101, each once; got {list(named)} with "
            f"data.source={config.source}"
        )
    return Factors(
        content={name: classes[name] for name in content},
        motion={name: classes[name] for name in motion},
    )


def read_first_window(
    path: str | Path, num_frames: int, height: int, width: int, fps: float | None = None
) -> torch.Tensor:
    """The first frames of a video, scaled until they cover the size, the centre cut out.

    Args:
        path: the file.
        num_frames: T.
        height: H in pixels.
        width: W in pixels.
        fps: take the frames nearest to instants 1 / fps apart; None takes every frame.
    Returns:
        torch.Tensor: (3, T, H, W) float32 in [-1, 1].
    Raises:
        ValueError: if there is no such file, or (UnusableVideo) it can't be read or is too short.
    """
    if not Path(path).is_file():
        raise ValueError(f"expected a video, but {str(path)!r} is not a file")
    config = DataConfig(
        source="files",
        path=str(path),
        part="all",
        num_frames=num_frames,
        height=height,
        width=width,
        fps=fps,
        stride=None if fps is not None else 1,
        start="first",
        crop="center",
    )
    try:
        video: torch.Tensor = build_file_dataset(config).get(0)["video"]
    except UnusableVideo as error:
        raise UnusableVideo(error.path, error.reason.removesuffix(SHORT_CURE)) from error
    return video
