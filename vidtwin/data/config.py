"""Which clips, and how they are read; what one source alone knows stands in its own section."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, ClassVar

# A source registers itself when its module is imported: a new one needs a line here.
import vidtwin.data.file_sources
import vidtwin.data.lerobot.config
import vidtwin.data.shards.config
import vidtwin.data.synthetic.physics.config
import vidtwin.data.synthetic.shapes.config
import vidtwin.data.synthetic.sprites.config  # noqa: F401
from vidtwin.data.registry import SourceOptions, registered_sources, section_types
from vidtwin.files import nearest_name

__all__ = ["DataConfig"]

# What a sample may bring along besides its video -> the key that says how often.
PAIRED_AUGMENTATIONS = {
    "appearance_swap": "appearance_swap_fraction",
    "motion_swap": "motion_swap_fraction",
}
CHOICES = {
    "start": ("random", "first", "center"),
    "short": ("skip", "error", "repeat_last"),
    "resize": ("cover", "stretch", "cover_uint8", "stretch_uint8"),
    "crop": ("random", "center"),
    "backend": ("auto", "decord", "pyav"),
}
# Key -> smallest value; a key that may be None is checked where it is set.
AT_LEAST = {"num_frames": 1, "height": 1, "width": 1, "stride": 1, "max_clips": 1, "seed": 0}
# Bytes of one clip as floats, far beyond what a model can take.
MOST_BYTES = 2**36
AT_LEAST |= {"max_pixels": 1, "max_frames": 1}


def _plain(value: Any) -> Any:
    """With lists for tuples, as YAML and JSON give it back."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, (list, tuple)) else value


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(each) if isinstance(each, list) else each for key, each in values.items()}


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which clips, and how they are read.

    In YAML and on the command line a source's own keys stand in a section of its name, such as
    `data.shapes.size`; from Python, `DataConfig(sections={"shapes": ShapesOptions(size=64)})`.

    Args:
        source: "shapes" (procedural, needs no files), "physics" (simulated, likewise), "sprites"
            (drawn from a folder of sheets), "list", "classes", "folder", "glob", "ucf101" or
            "files" (see `vidtwin.data.file_sources`), "shards" (tar files, see docs/data.md), or
            one that was added with `register_source`.
        path: the list, folder, pattern or file of the source.
        files: the videos of the source "files", when there are several.
        root: folder that relative paths of a list start from; None is the list's own folder.
        captions: for folders, patterns and files: a JSON file of path -> caption or captions, or
            None for the `.txt` beside each clip where there is one. For a list in a .txt also a
            file of captions, line for line.
        split: official split of UCF-101: 1, 2 or 3.
        part: "train", "validation" or "all"; for sprites also "test".
        max_clips: use the first n clips alone; None for all.
        validation_fraction: share of the clips that is the validation part, chosen by a digest of
            the clip's path; for sprites, of the characters that are not for testing. Leave it 0
            for "shapes" and "ucf101", which have parts of their own.
        content_factors, motion_factors: for a list its columns, for "classes" and "ucf101" the word
            "class": which labels say what a clip shows, and which what happens in it; see
            `vidtwin.data.dataset.Factors`.
        num_frames: T, frames of a clip.
        height: H in pixels.
        width: W in pixels.
        fps: frames per second of the clip, sampled by time; None to use `stride`.
        stride: take every n-th frame instead; None to use `fps`.
        start: where the window starts: "random", "first" or "center".
        short: a video shorter than the clip: "skip" it, "error", or "repeat_last" frame.
        resize: "cover" (short side, then crop) or "stretch"; bilinear with antialias. With
            "_uint8" behind it, the same in whole gray levels: faster, and not quite exact.
        crop: "random" or "center".
        flip: mirror half of the clips; off by default, it breaks captions with left and right.
        backend: "auto" (which is PyAV), "pyav", or "decord", checked against PyAV.
        timeout: seconds that reading one clip may take.
        max_pixels: of a frame as it lies in the file; one with larger ones is unusable.
        max_frames: of a file; one with more is unusable.
        max_bad_fraction: share of the files that may be unusable before the run stops; above 0, up
            to three files may be while they are at most a quarter of all.
        seed: of every random choice.
        appearance_swap_fraction: paired augmentation: share of the training clips that bring along
            a clip with their motion in another look, for "shapes", "physics" and "sprites".
        motion_swap_fraction: the same for their look in another motion.
        sections: name of a source -> its own config; those of other sources are checked and not
            used.
    Raises:
        ValueError: for a value that is out of range; the message names the keyword.
    """

    RENAMED_KEYS: ClassVar[dict[str, str]] = {
        f"{source}_{key}": f"{source}.{key}"
        for source, keys in {
            "shapes": "size seed split max_objects two_object_fraction textured_fraction "
            "without_background_fraction motions",
            "sprites": "actions directions variants split shoes label",
        }.items()
        for key in keys.split()
    } | {
        "recast_fraction": "appearance_swap_fraction",
        "reenact_fraction": "motion_swap_fraction",
    }

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
    max_pixels: int = 8192 * 4320
    max_frames: int = 1_000_000
    max_bad_fraction: float = 0.05
    seed: int = 0
    appearance_swap_fraction: float = 0.0
    motion_swap_fraction: float = 0.0
    sections: Mapping[str, SourceOptions] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        sources = registered_sources()
        choices = {"source": tuple(sources)} | CHOICES
        if self.source in sources:
            choices["part"] = sources[self.source].parts
        for name, allowed in choices.items():
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(
                    f"data.{name} must be one of {', '.join(allowed)}, got {value!r}; "
                    f"did you mean {nearest_name(value, allowed)!r}?"
                )
        for name, least in AT_LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                bound = "must not be negative" if least == 0 else f"must be at least {least}"
                raise ValueError(f"data.{name} {bound}, got {value}")
        size = 12 * self.num_frames * self.height * self.width
        if size > MOST_BYTES:
            raise ValueError(
                f"data.num_frames={self.num_frames}, data.height={self.height} and data.width="
                f"{self.width} make clips of {size / 2**30:,.0f} GiB, expected at most "
                f"{MOST_BYTES / 2**30:.0f}"
            )
        if (self.fps is None) == (self.stride is None):
            raise ValueError(
                f"exactly one of data.fps and data.stride must be set, got fps={self.fps} and "
                f"stride={self.stride}; set the other to null"
            )
        if self.fps is not None and not self.fps > 0:
            raise ValueError(f"data.fps must be above 0, got {self.fps}")
        if not self.timeout > 0:
            raise ValueError(f"data.timeout must be above 0 seconds, got {self.timeout}")
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(
                f"data.validation_fraction must be in [0, 1), got {self.validation_fraction}"
            )
        for name in ("max_bad_fraction", *PAIRED_AUGMENTATIONS.values()):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"data.{name} must be in [0, 1], got {getattr(self, name)}")
        self._check_sections()
        for name in PAIRED_AUGMENTATIONS.values():
            if getattr(self, name) > 0 and not self.options.paired:
                raise ValueError(
                    f"data.{name}={getattr(self, name)} needs clips that can be drawn again with a "
                    f"change, of data.source=shapes, physics or sprites; got {self.source}"
                )
        self.options.check(self)

    def _check_sections(self) -> None:
        types = section_types()
        for name, options in self.sections.items():
            if name not in types:
                raise ValueError(
                    f"data.{name} is no section of a data source; did you mean "
                    f"data.{nearest_name(name, types)}?"
                )
            if type(options) is not types[name]:
                raise ValueError(
                    f"data.{name} must be a {types[name].__name__}, got {type(options).__name__}"
                )

    def __eq__(self, other: object) -> bool:
        # Sections of other sources change no clip.
        return isinstance(other, DataConfig) and self.to_dict() == other.to_dict()

    @property
    def options(self) -> SourceOptions:
        """The config of the chosen source alone."""
        return self.sections.get(self.source) or registered_sources()[self.source]()

    @staticmethod
    def section_types() -> Mapping[str, type]:
        """Name -> config class of each section, for those who load configs."""
        return section_types()

    def with_options(self, **changes: Any) -> DataConfig:
        """The same config with other values in the section of its source."""
        sections = {**self.sections, self.source: replace(self.options, **changes)}
        return replace(self, sections=sections)

    def check_files(self) -> None:
        """Raises ValueError if what `path` names is not there; reads no clip."""
        self.options.check_files(self)

    def to_dict(self) -> dict[str, Any]:
        """As it stands in YAML: plain values, and the chosen source's section by its name."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        del values["sections"]
        if fields(self.options):
            values[self.source] = asdict(self.options)
        return _plain(values)

    def changed(self) -> dict[str, Any]:
        """The part of `to_dict` that differs from the defaults."""
        values = self.to_dict()
        section, default = values.pop(self.source, {}), _plain(asdict(type(self.options)()))
        defaults = {each.name: each.default for each in fields(self)}
        found = {name: value for name, value in values.items() if value != _plain(defaults[name])}
        own = {name: value for name, value in section.items() if value != default[name]}
        return found | ({self.source: own} if own else {})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DataConfig:
        """The config that `to_dict` gave, for instance from the manifest of a latent cache.

        Raises:
            ValueError: for a key that is not known, or was renamed.
        """
        types = section_types()
        known = {each.name for each in fields(cls)} - {"sections"} | types.keys()
        for name in values:
            if name in cls.RENAMED_KEYS:
                raise ValueError(f"data.{name} is now data.{cls.RENAMED_KEYS[name]}")
            if name not in known:
                raise ValueError(
                    f"unknown key data.{name}; the nearest is data.{nearest_name(name, known)}"
                )
        sections = {n: types[n](**_tuples(values[n])) for n in types if n in values}
        shared = {name: value for name, value in values.items() if name not in types}
        return cls(**_tuples(shared), sections=sections)

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
        unpaired = replace(self, appearance_swap_fraction=0.0, motion_swap_fraction=0.0)
        return replace(unpaired, start="center", crop="center", flip=False)

    def first(self, clips: int) -> DataConfig:
        """The first clips alone, each with one window and one crop, to be learned by heart."""
        return replace(self.centered(), max_clips=clips)
