"""What all data sets of clips have in common: samples by (epoch, index), and their factors.

Which clip, window, crop, flip and noise a sample gets follows from (seed, epoch, index) alone,
never from workers, ranks or batch size. A file that can't be used is skipped, counted and logged;
too many of them stop the run.

Axes: T frames, H W pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

from vidtwin.data.bad_files import BadFileLog, SkippedFile, UnusableVideo
from vidtwin.data.config import PAIRED_AUGMENTATIONS, DataConfig
from vidtwin.media import from_uint8

__all__ = [
    "Draws",
    "Factors",
    "PlainDataset",
    "VideoDataset",
    "as_video_dataset",
    "build_dataset",
    "draws_for",
    "factor_labels",
    "noise_seed_for",
]

MAX_ATTEMPTS = 100


@dataclass(frozen=True, kw_only=True)
class Factors:
    """What varies between the clips of a data set, in a fixed order; the same in all its parts.

    Where they come from:
        shapes      content color, shape, background; motion: of the one object
                    (data.shapes.max_objects=1)
        physics     content color, second, floor; motion direction: of one scene
        sprites     content skin, bottomwear, topwear, hair; motion action, direction
        classes, ucf101     the class, as motion "class" or content "class" (data.motion_factors,
                    data.content_factors; motion if neither is set)
        list        the columns that data.content_factors and data.motion_factors name

    Args:
        content: what stays the same during a clip: name -> names of its classes.
        motion: what happens in it, likewise.
    """

    content: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    motion: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def all(self) -> dict[str, tuple[str, ...]]:
        """Content, then motion: name -> names of its classes."""
        return {**self.content, **self.motion}


class Draws(NamedTuple):
    """Every random number of one sample, uniform in [0, 1); unused ones are drawn all the same."""

    epoch: int
    start: float
    top: float
    left: float
    flip: float


def draws_for(seed: int, epoch: int, index: int, attempt: int = 0) -> Draws:
    """The random numbers of a sample, from nothing but the arguments."""
    return Draws(epoch, *np.random.default_rng([seed, epoch, index, attempt, 0]).random(4).tolist())


def noise_seed_for(seed: int, epoch: int, index: int) -> int:
    """The seed of a sample's noise, 63 bits, so that it fits in an int64 tensor."""
    state = np.random.SeedSequence([seed, epoch, index, 0, 1]).generate_state(1, np.uint64)
    return int(state[0]) >> 1


class VideoDataset(Dataset[dict[str, Any]], ABC):
    """Clips as the model takes them; see `__getitem__`."""

    label_names: list[str]

    def __init__(self, config: DataConfig, size: int):
        self.config = config
        self.size = size
        self.bad_file_log = BadFileLog(size, config.max_bad_fraction)

    def __len__(self) -> int:
        return self.size

    @abstractmethod
    def load(self, index: int, draws: Draws) -> dict[str, Any]:
        """The sample of one clip: its video, caption, label and path, see `__getitem__`.

        What is drawn as it is asked for, not sampled from a file, needs no fps and frame_indices.

        Raises:
            UnusableVideo: if the file can't be used.
        """

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """(size,) all clips in the order of a training epoch, from nothing but the arguments."""
        return np.random.default_rng([seed, epoch]).permutation(self.size)

    def draw_pair(self, change: str, index: int, rng: np.random.Generator) -> torch.Tensor:
        """(3, T, H, W) in [-1, 1]: a clip drawn again with a change, for paired augmentation.

        Args:
            change: "appearance_swap", its motion in another look, or "motion_swap", its look in
                another motion.
            index: of the clip.
            rng: draws the change.
        Raises:
            NotImplementedError: for clips that are not drawn.
        """
        raise NotImplementedError(f"the clips of {type(self).__name__} are not drawn")

    def finish(self, sample: dict[str, Any], clip: int, index: int, epoch: int) -> dict[str, Any]:
        """A sample of `load` with all that follows from its clip and its place (epoch, index)."""
        seed = self.config.seed
        sample |= {"index": clip, "noise_seed": noise_seed_for(seed, epoch, index)}
        sample.setdefault("fps", self.config.fps or 8.0)
        sample.setdefault("frame_indices", torch.arange(self.config.num_frames))
        for purpose, (change, key) in enumerate(PAIRED_AUGMENTATIONS.items(), start=3):
            share = getattr(self.config, key)
            if share > 0:
                rng = np.random.default_rng([seed, epoch, clip, 0, purpose])
                drawn = rng.random() < share
                sample[change] = self.draw_pair(change, clip, rng) if drawn else sample["video"]
        return sample

    @abstractmethod
    def captions(self, index: int, count: int) -> list[str]:
        """The captions of one clip in epochs 0 to count - 1; just one where epochs change none.

        Args:
            index: of the clip, from 0.
            count: number of epochs, at least 1.
        """

    def factor_classes(self) -> Factors:
        """The factors of content and motion with their classes."""
        return Factors()

    def factors(self, index: int) -> dict[str, int]:
        """Factor -> class of one clip, without making its video; -1 where it is not known.

        Args:
            index: of the clip, from 0.
        """
        return {}

    def label_factors(self, label: int) -> dict[str, int]:
        """What a label alone says: factor -> class; nothing for -1.

        Args:
            label: index into `label_names`, or -1.
        """
        return {}

    def get(self, index: int, epoch: int = 0) -> dict[str, Any]:
        """The sample of exactly this clip.

        Args:
            index: of the clip, from 0.
            epoch: varies window, crop, flip and noise.
        Raises:
            UnusableVideo: if the file can't be used.
        """
        if not 0 <= index < self.size:
            raise IndexError(f"index must be in [0, {self.size}), got {index}")
        sample = self.load(index, draws_for(self.config.seed, epoch, index))
        sample["skipped"] = []
        return self.finish(sample, index, index, epoch)

    def fill(self, index: int, epoch: int = 0) -> dict[str, Any]:
        """The sample of this clip, or of another where this one can't be used.

        The other is drawn from (seed, epoch, index, attempt): what fills a slot never depends on
        what the process met before. Without a "video" when too many files are bad.
        """
        skipped: list[SkippedFile] = []
        candidate = index
        for attempt in range(MAX_ATTEMPTS):
            try:
                draws = draws_for(self.config.seed, epoch, index, attempt)
                sample = self.load(candidate, draws)
            except UnusableVideo as error:
                skipped.append(SkippedFile(error.path, error.reason))
                self.bad_file_log.record(skipped)
                if self.bad_file_log.too_many:
                    break
                entropy = [self.config.seed, epoch, index, attempt, 2]
                candidate = int(np.random.default_rng(entropy).integers(self.size))
            else:
                sample["skipped"] = skipped
                return self.finish(sample, candidate, index, epoch)
        return {"skipped": skipped}

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        """A sample; a clip that can't be used is replaced by another and named in "skipped".

        Args:
            key: (epoch, index), or the index in epoch 0.
        Returns:
            dict: video (3, T, H, W) float32 in [-1, 1], caption str, label int (-1 for none), index
            int of the clip that was used, noise_seed int, path str, fps float, frame_indices (T,)
            int64 within the file, skipped list of `SkippedFile`.
            Where the data set knows them also actions (T, A) and states (T, S) float32.
            With an `appearance_swap_fraction` also appearance_swap (3, T, H, W), the motion in
            another look (for the other clips the video), and with a `motion_swap_fraction`
            motion_swap, the look in another motion.
        Raises:
            TooManyBadFiles: when more than `max_bad_fraction` of the files are bad.
        """
        epoch, index = key if isinstance(key, tuple) else (0, key)
        if not 0 <= index < self.size:
            raise IndexError(f"index must be in [0, {self.size}), got {index}")
        sample = self.fill(index, epoch)
        # In a worker the failed slot travels to the main process, which has the whole list and
        # raises a readable error.
        if "video" not in sample and get_worker_info() is None:
            self.bad_file_log.fail(sample["skipped"])
        return sample


class PlainDataset(VideoDataset):
    """Any object with a length and items by index, as a `VideoDataset`.

    An item is a dict with "video": (T, H, W, 3) uint8 in an array, or (3, T, H, W) float in
    [-1, 1] in a tensor; and if it has them "caption" str, "label" int, "path" str, "fps" float. An
    item may raise `UnusableVideo`. The data set's `label_names` and `captions(index, count)` are
    used where it has them.

    Args:
        items: the data set.
        config: sizes, seed and limits; None takes the sizes of the first item.
    """

    def __init__(self, items: Any, config: DataConfig | None = None):
        if config is None:
            frames, height, width = self._video(items[0]).shape[1:]
            config = DataConfig(source="dataset", num_frames=frames, height=height, width=width)
        super().__init__(config, min(len(items), config.max_clips or len(items)))
        self.items = items
        self.label_names = list(getattr(items, "label_names", []))

    @staticmethod
    def _video(item: Mapping[str, Any]) -> torch.Tensor:
        video = item["video"]
        return video if isinstance(video, torch.Tensor) else from_uint8(video)

    def load(self, index: int, draws: Draws) -> dict[str, Any]:
        """The item with what it leaves out."""
        item = self.items[index]
        video, config = self._video(item), self.config
        expected = (3, config.num_frames, config.height, config.width)
        if tuple(video.shape) != expected or not video.is_floating_point():
            raise ValueError(
                f"item {index} of {type(self.items).__name__} must have a float video of shape "
                f"{expected} or uint8 frames of shape {(*expected[1:], 3)}, got "
                f"{video.dtype} {tuple(video.shape)}"
            )
        return {
            "video": video,
            "caption": item.get("caption", ""),
            "label": int(item.get("label", -1)),
            "path": item.get("path", f"{type(self.items).__name__}/{index}"),
            "fps": float(item.get("fps", config.fps or 8.0)),
        }

    def captions(self, index: int, count: int) -> list[str]:
        """The captions that the data set tells, or the item's one."""
        if hasattr(self.items, "captions"):
            return list(self.items.captions(index, count))
        return [self.items[index].get("caption", "")]


def as_video_dataset(dataset: Any, config: DataConfig | None = None) -> VideoDataset:
    """The data set as it is, or as a `PlainDataset` if it is none of ours."""
    return dataset if isinstance(dataset, VideoDataset) else PlainDataset(dataset, config)


def build_dataset(config: DataConfig) -> VideoDataset:
    """The data set a config describes.

    Raises:
        ValueError: if the source can't be used: nothing there, no videos, a malformed list.
    """
    return as_video_dataset(config.options.build(config), config)


def factor_labels(dataset: VideoDataset) -> Factors:
    """The factors of a data set; `dataset.factors(index)` gives those of a clip.

    Raises:
        ValueError: if the data set knows none, saying how to name some.
    """
    factors = dataset.factor_classes()
    if not factors.all:
        raise ValueError(
            f"data.source={dataset.config.source} has no labels of content or motion here; take "
            "shapes, physics, sprites or classes, or a list and name its columns in "
            "data.content_factors and data.motion_factors"
        )
    return factors
