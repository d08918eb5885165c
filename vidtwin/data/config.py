"""Which clips, and how they are read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from vidtwin.data.sources import SOURCES
from vidtwin.data.synthetic.shapes import ShapesConfig
from vidtwin.data.synthetic.sprites import LABELS as SPRITES_LABELS
from vidtwin.data.synthetic.sprites import PARTS, SpritesConfig
from vidtwin.files import nearest_name

__all__ = ["DataConfig"]

PARTS_OF_DATA = ("train", "validation", "all", "test")
# What a sample may bring along besides its video -> the key that says how often.
PAIRS = {"appearance_swap": "appearance_swap_fraction", "motion_swap": "motion_swap_fraction"}
FACTOR_KEYS = ("content_factors", "motion_factors")


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
        appearance_swap_fraction: share of the training clips that bring along a clip with their
            motion in another look, for sources that are drawn: "shapes" and "sprites".
        motion_swap_fraction: the same for their look in another movement.
        shapes_size: number of clips of the source "shapes".
        shapes_seed: of the clips of the source "shapes"; `seed` only orders them.
        shapes_split: see `ShapesConfig.split`; None follows `part`: "train" combinations of shape,
            colour and motion, or for "validation" the "test" ones, which "train" never shows.
        shapes_max_objects, shapes_two_object_fraction, shapes_textured_fraction,
            shapes_without_background_fraction, shapes_motions: see `ShapesConfig`.
        sprites_actions, sprites_directions, sprites_variants, sprites_split, sprites_shoes: see
            `vidtwin.data.synthetic.sprites.SpritesConfig`.
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
    appearance_swap_fraction: float = 0.0
    motion_swap_fraction: float = 0.0
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

    RENAMED_KEYS: ClassVar[dict[str, str]] = {
        "recast_fraction": "appearance_swap_fraction",
        "reenact_fraction": "motion_swap_fraction",
    }

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
        for name in PAIRS.values():
            share = getattr(self, name)
            if not 0 <= share <= 1:
                raise ValueError(f"data.{name} must be in [0, 1], got {share}")
            if share > 0 and self.source in SOURCES:
                raise ValueError(
                    f"data.{name}={share} needs clips that can be drawn again with a change, of "
                    f"data.source=shapes or sprites; got {self.source}"
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
        plain = replace(self, appearance_swap_fraction=0.0, motion_swap_fraction=0.0)
        return replace(plain, start="center", crop="center", flip=False)

    def first(self, clips: int) -> DataConfig:
        """The first clips alone, each with one window and one crop, to be learned by heart."""
        return replace(self.centered(), max_clips=clips)
