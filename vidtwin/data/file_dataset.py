"""Clips that are read from video files.

Axes: T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from vidtwin.data.bad_files import UnusableVideo
from vidtwin.data.config import DataConfig
from vidtwin.data.factors import Factors
from vidtwin.data.frames import fit_frame, frames_by_stride, frames_by_time, frames_repeating_last
from vidtwin.data.readers import VideoInfo, read_clip
from vidtwin.data.sources import Clip
from vidtwin.data.video_dataset import Draws, VideoDataset

__all__ = ["FileDataset"]

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
        self.clips = list(clips)
        self.label_names = list(label_names)
        self._factor_classes = factors or Factors()

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
        raise UnusableVideo(info.path, came)

    def load(self, index: int, draws: Draws) -> dict[str, Any]:
        """The sample of one clip; raises UnusableVideo for a file that can't give it."""
        return self.read(
            index,
            lambda info: self.choose_frames(info, draws),
            (0.5, 0.5) if self.config.crop == "center" else (draws.top, draws.left),
            self.config.flip and draws.flip < 0.5,
        )

    def read(
        self,
        index: int,
        choose: Callable[[VideoInfo], np.ndarray],
        crop: tuple[float, float] = (0.5, 0.5),
        flip: bool = False,
    ) -> dict[str, Any]:
        """The sample of one clip from frames of one's own choice.

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
        )
        fps = config.fps if config.stride is None else info.fps / config.stride
        return {
            "video": torch.stack(frames, dim=1) / 127.5 - 1,
            "caption": clip.caption,
            "label": clip.label,
            "index": index,
            "path": clip.path,
            "fps": float(fps or 0),
            "backend": info.backend,
            "frame_indices": torch.from_numpy(indices.astype(np.int64)),
        }

    def captions(self, index: int, count: int) -> list[str]:
        """The one caption of a clip."""
        return [self.clips[index].caption]

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
