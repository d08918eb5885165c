"""Video clips for training and evaluation: data sets, the order of samples, loaders.

Which clip, window, crop, flip and noise a sample gets follows from (seed, epoch, index) alone,
never from workers, ranks or batch size. A file that can't be used is skipped, counted and logged;
too many of them stop the run.

Axes: B batch, C colour channels, T frames, H W pixels.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch.utils.data import Dataset, get_worker_info

from vidtwin.data.bad_files import BadFileLog, SkippedFile, UnusableVideo
from vidtwin.data.factors import Factors
from vidtwin.data.frames import fit_frame, frames_by_stride, frames_by_time, frames_repeating_last
from vidtwin.data.readers import VideoInfo, read_clip
from vidtwin.data.sources import (
    SOURCES,
    Clip,
    ClipList,
    find_clips,
    nearest_name,
    split_clips,
)
from vidtwin.shapes import (
    BACKGROUNDS,
    COLORS,
    LABELS,
    MOTIONS,
    SHAPES,
    MovingShapes,
    ShapesConfig,
)
from vidtwin.sprites import LABELS as SPRITES_LABELS
from vidtwin.sprites import PARTS, TEST_FRACTION, Sprites, SpritesConfig

logger = logging.getLogger(__name__)

START_POSITIONS = {"first": 0.0, "center": 0.5}
PARTS_OF_DATA = ("train", "validation", "all", "test")
FACTOR_KEYS = ("content_factors", "motion_factors")
MAX_ATTEMPTS = 100
VALIDATION_SEED = 1_000_003


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which clips, and how they are read.

    Args:
        source: "shapes" (procedural, needs no files), "sprites" (drawn from a folder of sheets),
            "csv", "classes", "folder", "glob", "ucf101" or "files"; see
            `vidtwin.data.sources.find_clips`.
        path: the CSV file, folder, pattern or file of the source.
        files: the videos of the source "files", when there are several.
        root: folder that relative paths of a CSV start from; None is the CSV's own folder.
        captions: for folders, patterns and files: a JSON file of path -> caption, or None for the
            `.txt` beside each clip where there is one.
        split: official split of UCF-101: 1, 2 or 3.
        part: "train", "validation" or "all"; for sprites also "test".
        max_clips: use the first n clips alone; None for all.
        validation_fraction: share of the clips that is the validation part, chosen by a digest of
            the clip's path; for sprites, of the characters that are not for testing. Leave it 0
            for "shapes" and "ucf101", which have parts of their own.
        content_factors, motion_factors: for a CSV its columns, for "classes" and "ucf101" the word
            "class": which labels say what a clip shows, and which what happens in it; see
            `vidtwin.data.factors`.
        num_frames: T, frames of a clip.
        height: H in pixels.
        width: W in pixels.
        fps: frames per second of the clip, sampled by time; None to use `stride`.
        stride: take every n-th frame instead; None to use `fps`.
        start: where the window starts: "random", "first" or "center".
        short: a video shorter than the clip: "skip" it, "error", or "repeat_last" frame.
        resize: "cover" (short side, then crop) or "stretch"; bilinear with antialias.
        crop: "random" or "center".
        flip: mirror half of the clips; off by default, it breaks captions with left and right.
        backend: "auto" (decord, then PyAV), "decord" or "pyav".
        timeout: seconds that reading one clip may take.
        max_bad_fraction: share of the files that may be unusable before the run stops.
        seed: of every random choice.
        shapes_size: number of clips of the source "shapes".
        shapes_seed: of the clips of the source "shapes"; `seed` only orders them.
        shapes_split: see `ShapesConfig.split`; None follows `part`: "train" combinations of shape,
            colour and motion, or for "validation" the "test" ones, which "train" never shows.
        shapes_max_objects, shapes_two_object_fraction, shapes_textured_fraction,
            shapes_without_background_fraction, shapes_motions: see `ShapesConfig`.
        sprites_actions, sprites_directions, sprites_variants, sprites_split, sprites_shoes: see
            `vidtwin.sprites.SpritesConfig`.
        sprites_label: what a clip's label is: "motion" (action and direction), "action",
            "direction", "skin", "bottomwear", "topwear" or "hair".
    Raises:
        ValueError: for a value that is out of range; the message names the keyword.
    """

    source: str = "shapes"
    path: str | None = None
    files: tuple[str, ...] = ()
    root: str | None = None
    captions: str | None = None
    split: int | None = None
    part: str = "train"
    validation_fraction: float = 0.0
    content_factors: tuple[str, ...] = ()
    motion_factors: tuple[str, ...] = ()
    max_clips: int | None = None
    num_frames: int = 16
    height: int = 224
    width: int = 224
    fps: float | None = 8.0
    stride: int | None = None
    start: str = "random"
    short: str = "skip"
    resize: str = "cover"
    crop: str = "random"
    flip: bool = False
    backend: str = "auto"
    timeout: float = 30.0
    max_bad_fraction: float = 0.05
    seed: int = 0
    shapes_size: int = 20000
    shapes_seed: int = 0
    shapes_split: str | None = None
    shapes_max_objects: int = ShapesConfig.max_objects
    shapes_two_object_fraction: float = ShapesConfig.two_object_fraction
    shapes_textured_fraction: float = ShapesConfig.textured_fraction
    shapes_without_background_fraction: float = ShapesConfig.without_background_fraction
    shapes_motions: tuple[str, ...] = ShapesConfig.motions
    sprites_actions: tuple[str, ...] = SpritesConfig.actions
    sprites_directions: tuple[str, ...] = SpritesConfig.directions
    sprites_variants: int | None = SpritesConfig.variants
    sprites_split: str = SpritesConfig.split
    sprites_shoes: bool = SpritesConfig.shoes
    sprites_label: str = "motion"

    def __post_init__(self) -> None:
        choices = {
            "source": ("shapes", "sprites", *SOURCES),
            "part": PARTS_OF_DATA if self.source == "sprites" else PARTS_OF_DATA[:3],
            "start": ("random", "first", "center"),
            "short": ("skip", "error", "repeat_last"),
            "resize": ("cover", "stretch"),
            "crop": ("random", "center"),
            "backend": ("auto", "decord", "pyav"),
            "sprites_label": SPRITES_LABELS,
        }
        for name, allowed in choices.items():
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(
                    f"data.{name} must be one of {', '.join(allowed)}, got {value!r}; "
                    f"did you mean {nearest_name(value, allowed)!r}?"
                )
        for name in ("num_frames", "height", "width", "shapes_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.{name} must be at least 1, got {getattr(self, name)}")
        if (self.fps is None) == (self.stride is None):
            raise ValueError(
                f"exactly one of data.fps and data.stride must be set, got fps={self.fps} and "
                f"stride={self.stride}; set the other to null"
            )
        if self.fps is not None and not self.fps > 0:
            raise ValueError(f"data.fps must be above 0, got {self.fps}")
        if self.stride is not None and self.stride < 1:
            raise ValueError(f"data.stride must be at least 1, got {self.stride}")
        if self.max_clips is not None and self.max_clips < 1:
            raise ValueError(f"data.max_clips must be at least 1 or null, got {self.max_clips}")
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(
                f"data.validation_fraction must be in [0, 1), got {self.validation_fraction}"
            )
        if not 0 <= self.max_bad_fraction <= 1:
            raise ValueError(
                f"data.max_bad_fraction must be in [0, 1], got {self.max_bad_fraction}"
            )
        if not self.timeout > 0:
            raise ValueError(f"data.timeout must be above 0 seconds, got {self.timeout}")
        if self.seed < 0 or self.shapes_seed < 0:
            raise ValueError(
                f"data.seed and data.shapes_seed must not be negative, got {self.seed} and "
                f"{self.shapes_seed}"
            )
        if self.source == "shapes":
            self._check_shapes()
        if self.source == "sprites":
            self._check_sprites()
        if self.source in ("shapes", "sprites") and self.flip:
            raise ValueError(
                f"data.flip=true would make the captions and labels of the moving {self.source} "
                "untrue (left and right); set data.flip=false"
            )

    def _check_shapes(self) -> None:
        if self.validation_fraction > 0:
            raise ValueError(
                "data.validation_fraction is for files: the moving shapes have a validation part "
                f"of their own, got {self.validation_fraction}; set it to 0"
            )
        for name in ("path", "files", "root", "captions", "split", *FACTOR_KEYS):
            if getattr(self, name):
                raise ValueError(
                    f"data.source=shapes reads no files, got data.{name}={getattr(self, name)!r}; "
                    f"set data.source to one of {', '.join(SOURCES)}"
                )

    def _check_sprites(self) -> None:
        for name in ("files", "root", "captions", "split", *FACTOR_KEYS):
            if getattr(self, name):
                raise ValueError(
                    f"data.source=sprites takes a folder of sheets alone, got data.{name}="
                    f"{getattr(self, name)!r}; remove it"
                )
        if not self.path:
            raise ValueError(
                f"data.path must name a folder of sprite sheets ({', '.join(PARTS.values())}), "
                f"got {self.path!r}"
            )
        self.sprites_config()
        if self.part == "validation" and self.validation_fraction == 0:
            raise ValueError(
                "the validation part of data.source=sprites is a share of the characters that are "
                "not for testing; set data.validation_fraction=0.05, or data.part=test"
            )

    def sprites_config(self) -> SpritesConfig:
        """Which clips of the sprites, but for their size, which may not be known yet.

        Raises:
            ValueError: for a value that is out of range.
        """
        return SpritesConfig(
            actions=self.sprites_actions,
            directions=self.sprites_directions,
            variants=self.sprites_variants,
            split=self.sprites_split,
            shoes=self.sprites_shoes,
        )

    def sized(self, num_frames: int, height: int, width: int) -> DataConfig:
        """The same clips in a model's sizes.

        Raises:
            ValueError: if this config asks for other sizes (its defaults ask for none).
        """
        sizes = {"num_frames": num_frames, "height": height, "width": width}
        for name, size in sizes.items():
            asked = getattr(self, name)
            if asked not in (size, DataConfig.__dataclass_fields__[name].default):
                raise ValueError(
                    f"data.{name}={asked} differs from model.{name}={size}; "
                    f"remove data.{name}, it follows the model's"
                )
        return replace(self, num_frames=num_frames, height=height, width=width)

    def centered(self) -> DataConfig:
        """The same clips with nothing random in them, as evaluation wants them."""
        return replace(self, start="center", crop="center", flip=False)

    def first(self, clips: int) -> DataConfig:
        """The first clips alone, each with one window and one crop, to be learned by heart."""
        return replace(self.centered(), max_clips=clips)


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

    @property
    def bad_files(self) -> dict[str, str]:
        """Path -> reason of the files that could not be used, as far as this process knows."""
        return dict(self.bad_file_log.files)

    @abstractmethod
    def load(self, index: int, draws: Draws) -> dict[str, Any]:
        """The sample of one clip, without noise seed and skipped files.

        Raises:
            UnusableVideo: if the file can't be used.
        """

    @abstractmethod
    def captions(self, index: int, count: int) -> list[str]:
        """The captions of one clip in epochs 0 to count - 1; just one where epochs change none.

        Args:
            index: of the clip, from 0.
            count: number of epochs, at least 1.
        """

    def factor_classes(self) -> Factors:
        """The factors of content and motion with their classes; see `vidtwin.data.factors`."""
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
        sample["noise_seed"] = noise_seed_for(self.config.seed, epoch, index)
        sample["skipped"] = []
        return sample

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
                sample["noise_seed"] = noise_seed_for(self.config.seed, epoch, index)
                sample["skipped"] = skipped
                return sample
        return {"skipped": skipped}

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        """A sample; a clip that can't be used is replaced by another and named in "skipped".

        Args:
            key: (epoch, index), or the index in epoch 0.
        Returns:
            dict: video (3, T, H, W) float32 in [-1, 1], caption str, label int (-1 for none), index
            int of the clip that was used, noise_seed int, path str, fps float, frame_indices (T,)
            int64 within the file, skipped list of `SkippedFile`.
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


class ShapesDataset(VideoDataset):
    """The moving shapes; every clip is finite, labelled and captioned, and can't be unusable."""

    def __init__(self, config: DataConfig):
        super().__init__(config, min(config.shapes_size, config.max_clips or config.shapes_size))
        self.label_names = list(LABELS)
        wordings = {"train": "train", "validation": "test", "all": "all"}[config.part]
        # With one split for all parts, only another seed keeps validation clips unseen.
        repeats = config.part == "validation" and config.shapes_split not in (None, "test")
        self.shapes = MovingShapes(
            ShapesConfig(
                num_frames=config.num_frames,
                height=config.height,
                width=config.width,
                size=config.shapes_size,
                seed=config.shapes_seed + repeats * VALIDATION_SEED,
                max_objects=config.shapes_max_objects,
                two_object_fraction=config.shapes_two_object_fraction,
                textured_fraction=config.shapes_textured_fraction,
                without_background_fraction=config.shapes_without_background_fraction,
                motions=config.shapes_motions,
                split=config.shapes_split or wordings,
                wordings=wordings,
            )
        )

    def load(self, index: int, draws: Draws) -> dict[str, Any]:
        clip = self.shapes.clip(index, draws.epoch)
        frames = torch.from_numpy(clip.video).float()
        return {
            "video": rearrange(frames, "T H W C -> C T H W").contiguous() / 127.5 - 1,
            "caption": clip.caption,
            "label": clip.label,
            "index": index,
            "path": f"shapes/{self.shapes.config.split}/{self.config.shapes_seed}/{index}",
            "fps": self.config.fps or 8.0,
            "frame_indices": torch.arange(self.config.num_frames),
        }

    def captions(self, index: int, count: int) -> list[str]:
        """The wordings of a clip's caption in the first epochs, without rendering it."""
        return self.shapes.captions(index, count)

    def factor_classes(self) -> Factors:
        """Those of the one object.

        Raises:
            ValueError: if a clip may have two.
        """
        config = self.shapes.config
        if config.max_objects > 1 and config.two_object_fraction > 0:
            raise ValueError(
                "labels of content and motion are those of one object, but some clips of the "
                "shapes have two; set data.shapes_max_objects=1"
            )
        return Factors(
            content={
                "color": tuple(COLORS),
                "shape": tuple(SHAPES),
                "background": tuple(BACKGROUNDS),
            },
            motion={"motion": tuple(MOTIONS)},
        )

    def factors(self, index: int) -> dict[str, int]:
        """Those of the one object, and the background."""
        attributes = self.shapes.attributes(index)
        seen = {**vars(attributes.objects[0]), "background": attributes.background}
        classes = self.factor_classes().all
        return {name: names.index(seen[name]) for name, names in classes.items()}

    def label_factors(self, label: int) -> dict[str, int]:
        """The motion."""
        return {"motion": label} if label >= 0 else {}


class SpritesDataset(VideoDataset):
    """Every motion of every character of a part; labelled, captioned, and never unusable.

    A character comes with all its motions one after another; the order of the characters is mixed,
    so that the first clips show all there is.
    """

    def __init__(self, config: DataConfig):
        assert config.path is not None
        sizes = {name: getattr(config, name) for name in ("num_frames", "height", "width")}
        self.sprites = Sprites(config.path, replace(config.sprites_config(), **sizes))
        self.characters = self._characters(config)
        total = len(self.characters) * len(self.sprites.motions)
        super().__init__(config, min(total, config.max_clips or total))
        labels = {"motion": [" ".join(motion) for motion in self.sprites.motions]}
        self.label_names = list((labels | self.factor_classes().all)[config.sprites_label])

    def _characters(self, config: DataConfig) -> list[tuple[int, ...]]:
        """The characters of the config's part."""

        def split(keys: Sequence[str], name: str, fraction: float) -> list[list[str]]:
            # With its name: the digests that fall below one fraction must not decide the other.
            clips = [Clip(path=key, name=f"{name}/{key}") for key in keys]
            sides = (split_clips(clips, part, fraction) for part in ("train", "validation"))
            return [[clip.path for clip in side] for side in sides]

        by_key = {self.sprites.key(one): one for one in self.sprites.characters}
        if config.part == "all":
            return list(by_key.values())
        if config.sprites_split == "published":
            train, test = (
                [self.sprites.key(one) for one in side] for side in self.sprites.published_sides()
            )
        else:
            train, test = split(list(by_key), "test", TEST_FRACTION)
        validation: list[str] = []
        if config.validation_fraction > 0:
            train, validation = split(train, "validation", config.validation_fraction)
        chosen = {"train": train, "validation": validation, "test": test}[config.part]
        return [by_key[key] for key in chosen]

    def describe(self, index: int) -> tuple[tuple[int, ...], int]:
        """The character of a clip, and the number of its motion."""
        character, motion = divmod(index, len(self.sprites.motions))
        return self.characters[character], motion

    def load(self, index: int, draws: Draws) -> dict[str, Any]:
        character, number = self.describe(index)
        motion = self.sprites.motions[number]
        frames = torch.from_numpy(self.sprites.clip(character, motion)).float()
        labels = {**self.factors(index), "motion": number}
        return {
            "video": rearrange(frames, "T H W C -> C T H W").contiguous() / 127.5 - 1,
            "caption": self.sprites.caption(character, motion),
            "label": labels[self.config.sprites_label],
            "index": index,
            "path": f"sprites/{self.sprites.key(character)}/{'-'.join(motion)}",
            "fps": self.config.fps or 8.0,
            "frame_indices": torch.arange(self.config.num_frames),
        }

    def captions(self, index: int, count: int) -> list[str]:
        """The one caption of a clip."""
        character, number = self.describe(index)
        return [self.sprites.caption(character, self.sprites.motions[number])]

    def factor_classes(self) -> Factors:
        """Content: what the character is and wears; motion: action and direction."""
        config = self.sprites.config
        return Factors(
            content={factor: self.sprites.sheets.names(factor) for factor in PARTS},
            motion={"action": config.actions, "direction": config.directions},
        )

    def factors(self, index: int) -> dict[str, int]:
        """What the character is and wears, what it does and in which direction."""
        character, number = self.describe(index)
        action, direction = divmod(number, len(self.sprites.config.directions))
        worn = dict(zip(PARTS, character, strict=True))
        return {**worn, "action": action, "direction": direction}

    def label_factors(self, label: int) -> dict[str, int]:
        """Action and direction, or the one factor that `sprites_label` names."""
        if label < 0:
            return {}
        if self.config.sprites_label != "motion":
            return {self.config.sprites_label: label}
        action, direction = divmod(label, len(self.sprites.config.directions))
        return {"action": action, "direction": direction}


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


def _factors_of(config: DataConfig, listing: ClipList) -> Factors:
    """The factors that a config names, with the classes that the clips of a list have.

    Raises:
        ValueError: for a factor that is named twice, or that the source does not have.
    """
    content, motion = config.content_factors, config.motion_factors
    classes: dict[str, tuple[str, ...]] = {"class": tuple(listing.label_names)}
    if config.source == "csv":
        classes = {
            name: tuple(sorted({clip.factors[name] for clip in listing.clips} - {""}))
            for name in (*content, *motion)
        }
    elif not listing.label_names:
        classes = {}
    elif not content and not motion:
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


def build_dataset(config: DataConfig) -> VideoDataset:
    """The data set a config describes.

    Raises:
        ValueError: if the source can't be used: nothing there, no videos, a malformed list.
    """
    if config.source == "shapes":
        return ShapesDataset(config)
    if config.source == "sprites":
        return SpritesDataset(config)
    listing = find_clips(
        config.source,
        config.path,
        files=config.files,
        root=config.root,
        captions=config.captions,
        split=config.split,
        part=config.part,
        columns=(*config.content_factors, *config.motion_factors),
    )
    if config.source == "ucf101" and config.validation_fraction > 0:
        raise ValueError(
            "data.source=ucf101 has an official validation part, got data.validation_fraction="
            f"{config.validation_fraction}; set it to 0, or take data.source=classes"
        )
    own_parts = config.source == "ucf101"
    if config.part == "validation" and config.validation_fraction == 0 and not own_parts:
        logger.warning("data.validation_fraction is 0: the validation clips are the training clips")
    clips = split_clips(listing.clips, config.part, config.validation_fraction)
    factors = _factors_of(config, listing)
    return FileDataset(config, clips[: config.max_clips], listing.label_names, factors)
