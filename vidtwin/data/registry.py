"""Data sources by name, each with a small config of its own. Imports no torch.

A source is a frozen dataclass that is registered by name and builds a data set:

    @register_source("noise")
    @dataclass(frozen=True, kw_only=True)
    class NoiseOptions(SourceOptions):
        size: int = 100                      # data.noise.size

        def build(self, data):               # data: the DataConfig, what all sources share
            return NoiseClips(self.size, data.num_frames, data.height, data.width)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

if TYPE_CHECKING:
    from vidtwin.data.config import DataConfig

__all__ = [
    "SourceOptions",
    "check_choice",
    "refuse_file_habits",
    "refuse_keys",
    "register_source",
    "registered_sources",
    "section_types",
]

OptionsType = TypeVar("OptionsType", bound="type[SourceOptions]")


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """Base of a source's config: its fields are the keys of the section named after the source.

    `parts` are the values that `data.part` may have, `reads_files` says whether clips are decoded
    from video files, and `paired` whether a clip can be drawn again with a change, as
    `data.appearance_swap_fraction` and `data.motion_swap_fraction` need it.
    """

    parts: ClassVar[tuple[str, ...]] = ("train", "validation", "all")
    reads_files: ClassVar[bool] = False
    paired: ClassVar[bool] = False

    def check(self, data: DataConfig) -> None:
        """Refuses what this source can't do; runs whenever a `DataConfig` names it.

        Raises:
            ValueError: naming the key.
        """

    def check_files(self, data: DataConfig) -> None:
        """Refuses a path that is not there; runs before anything heavy is imported.

        Raises:
            ValueError: naming the key.
        """

    def build(self, data: DataConfig) -> Any:
        """The data set: a `VideoDataset`, or anything with a length whose items are samples.

        Import what needs torch in here. For the samples of a plain data set see
        `vidtwin.data.dataset.PlainDataset`.

        Raises:
            ValueError: if there is nothing to read, or what is there can't be used.
        """
        raise ValueError(
            f"{type(self).__name__} has no `build`: data.source={data.source} stands for a data "
            "set that is given from Python, to build_loader"
        )


# "dataset" stands for a data set that comes without a config; see `PlainDataset`.
_SOURCES: dict[str, type[SourceOptions]] = {"dataset": SourceOptions}


def register_source(*names: str) -> Callable[[OptionsType], OptionsType]:
    """Class decorator: makes `data.source=NAME` mean this config, and `data.NAME` its section.

    Raises:
        ValueError: if a name is taken by another class.
        TypeError: if the class is not a dataclass of `SourceOptions`.
    """

    def register(options: OptionsType) -> OptionsType:
        if not issubclass(options, SourceOptions) or "__dataclass_fields__" not in vars(options):
            raise TypeError(f"{options.__name__} must be a dataclass derived from SourceOptions")
        for name in names:
            known = _SOURCES.setdefault(name, options)
            # A module that is executed again defines the same class anew.
            if (known.__module__, known.__qualname__) != (options.__module__, options.__qualname__):
                raise ValueError(f"the data source {name!r} is registered by {known.__qualname__}")
            _SOURCES[name] = options
        return options

    return register


def registered_sources() -> Mapping[str, type[SourceOptions]]:
    """Name -> config class of every source."""
    return MappingProxyType(_SOURCES)


def section_types() -> dict[str, type[SourceOptions]]:
    """Name -> config class of the sources that have keys of their own."""
    return {name: options for name, options in _SOURCES.items() if fields(options)}


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Raises a ValueError that lists the choices, unless `value` is one of them."""
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(choices)}; got {value!r}")


def refuse_file_habits(data: DataConfig, things: str, told: str) -> None:
    """Refuses what suits clips of files, and not those of a source that makes its own.

    Args:
        data: as it was given.
        things: that the source shows, such as "the moving shapes".
        told: what of them knows left and right, such as "captions and labels".
    """
    if data.flip:
        raise ValueError(
            f"data.flip=true would make the {told} of {things} untrue "
            "(left and right); set data.flip=false"
        )
    if data.validation_fraction > 0:
        raise ValueError(
            f"data.validation_fraction is for files: {things} have a validation part "
            f"of their own, got {data.validation_fraction}; set it to 0"
        )


def refuse_keys(data: DataConfig, names: tuple[str, ...], why: str) -> None:
    """Raises a ValueError for the first of these keys that is set."""
    for name in names:
        if getattr(data, name):
            raise ValueError(
                f"data.source={data.source} {why}, got data.{name}={getattr(data, name)!r}; "
                "remove it, or set another data.source"
            )
