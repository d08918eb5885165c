"""The format of a latent cache: the latents of a data set on disk, encoded once.

A cache is a folder:

    manifest.json            what is in it and what made it; there once the cache is complete
    sums.json                SHA-256 of every other file but the arrays, whose are in shard.json
    latent_stats/            `LatentStats` of all its latents
    shards/shard-00000/      shard_size clips in the order of the data set
        structure.npy        (R, C_s or 2 C_s, Q, h, w): the mode, or mean and logvar on axis 1
        dynamics_x.npy       (R, C_d or 2 C_d, T, w)
        dynamics_y.npy       (R, C_d or 2 C_d, T, h)
        shard.json           the clips: index, path, label, captions, variants; what was skipped

A row is one variant (window, crop, flip) of one clip; the rows of a clip stand together.
`diffusion.cache_writer` writes it, `diffusion.cache` reads it.

Axes: R rows of a shard, C channels, Q structure queries, T frames, h w latent grid.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vidtwin import AutoencoderConfig, file_digest
from vidtwin.files import damaged_file

__all__ = ["DATA_MAY_CHANGE", "check_storage", "read_manifest", "stored_shapes"]

# The names of `VidTwinLatents`, which imports torch.
LATENT_NAMES = ("structure", "dynamics_x", "dynamics_y")
LATENT_FILES = tuple(f"{name}.npy" for name in LATENT_NAMES)
FORMAT = 2
MANIFEST = "manifest.json"
SUMS = "sums.json"
STATS_FOLDER = "latent_stats"
SHARDS_FOLDER = "shards"
SHARD_RECORD = "shard.json"
# Of the data's description: where the clips lie, and what no clip depends on.
DATA_MAY_CHANGE = (
    *("path", "root", "timeout", "max_pixels", "max_frames", "max_bad_fraction", "shapes.size"),
)
# What else of a manifest the samples follow from.
SAMPLES_FOLLOW_FROM = (
    *("autoencoder_digest", "clips_digest", "samples", "rows", "captions"),
    *("store", "dtype", "mixed_precision"),
)
STORES = ("moments", "mode")
STORED_DTYPES = ("float16", "float32")


@dataclass(frozen=True)
class Shard:
    """The clips of one shard, from `first` to before `end`, and its folder."""

    path: Path
    first: int
    end: int


def check_storage(store: str, dtype: str) -> None:
    """Raises unless latents can be stored so.

    Raises:
        ValueError: naming what is allowed.
    """
    for name, value, allowed in (("store", store, STORES), ("dtype", dtype, STORED_DTYPES)):
        if value not in allowed:
            raise ValueError(f"`{name}` must be one of {', '.join(allowed)}, got {value!r}")


def stored_shapes(autoencoder: AutoencoderConfig, store: str) -> dict[str, list[int]]:
    """The shape of each latent of a row: moments have mean and logvar on the channel axis."""
    factor = 2 if store == "moments" else 1
    shapes = {name: getattr(autoencoder, f"{name}_shape") for name in LATENT_NAMES}
    return {name: [factor * shape[0], *shape[1:]] for name, shape in shapes.items()}


def shards_of(folder: Path, num_clips: int, shard_size: int) -> list[Shard]:
    """The shards of a cache: their bounds follow from the clips' indices alone."""
    return [
        Shard(
            folder / SHARDS_FOLDER / f"shard-{number:05d}",
            first,
            min(first + shard_size, num_clips),
        )
        for number, first in enumerate(range(0, num_clips, shard_size))
    ]


def read_json(path: Path, what: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: if it is not there, or not one; `what` says what it is.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{what} {path} is missing") from None
    except (ValueError, OSError) as error:
        raise ValueError(f"{what} {path} can't be read: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{what} {path} must hold a JSON object, got {type(content).__name__}")
    return content


def read_manifest(folder: Path) -> dict[str, Any]:
    """What is in a complete cache, and what made it.

    Raises:
        ValueError: if the folder holds none, or an unfinished one.
    """
    path = folder / MANIFEST
    if not path.is_file():
        if (folder / SHARDS_FOLDER).is_dir():
            raise ValueError(
                f"the cache {folder} is unfinished: run encode.py once more with the "
                "same config and it goes on"
            )
        parts = sorted(found.parent.name for found in folder.glob(f"*/{MANIFEST}"))
        hint = f"; it holds the caches {', '.join(parts)}: name one of them" if parts else ""
        raise ValueError(f"{folder} is no latent cache, {MANIFEST} is missing{hint}")
    manifest = read_json(path, "the manifest")
    if manifest.get("format") != FORMAT:
        raise ValueError(
            f"the cache {folder} has format {manifest.get('format')!r}, expected "
            f"{FORMAT}; encode again into another folder"
        )
    return manifest


def read_shard(shard: Shard, verify: bool = False) -> dict[str, Any]:
    """The record of a complete shard.

    Args:
        verify: also compare the digests of the arrays, and look for values that are not finite,
            which reads all of them.
    Raises:
        ValueError: naming the shard's folder and what is wrong with it.
    """
    if not shard.path.is_dir():
        raise ValueError(f"shard {shard.path} is missing")
    record = read_json(shard.path / SHARD_RECORD, "the record of a shard")
    try:
        bounds = (record["first_clip"], record["end_clip"])
        if bounds != (shard.first, shard.end):
            raise ValueError(
                f"shard {shard.path} holds the clips {bounds[0]} to {bounds[1]}, expected "
                f"{shard.first} to {shard.end}"
            )
        for name in LATENT_FILES:
            _check_file(shard.path / name, record["files"][name], verify)
    except (KeyError, TypeError) as error:
        raise ValueError(f"the record of shard {shard.path} lacks {error}") from error
    return record


def _check_file(path: Path, expected: Mapping[str, Any], verify: bool) -> None:
    if not path.is_file():
        raise ValueError(f"shard {path.parent} is damaged: {path.name} is missing")
    if path.stat().st_size != expected["bytes"]:
        raise ValueError(
            f"shard {path.parent} is damaged: {path.name} has {path.stat().st_size:,} bytes, "
            f"expected {expected['bytes']:,}"
        )
    if not verify:
        return
    if file_digest(path) != expected["sha256"]:
        raise ValueError(f"shard {path.parent} is damaged: the bytes of {path.name} have changed")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"shard {path.parent} is damaged: {path.name}: {error}") from error
    if not all(np.isfinite(row).all() for row in array):
        raise ValueError(f"shard {path.parent} is damaged: {path.name} has values such as NaN")


def small_files(folder: Path, shards: Sequence[Shard]) -> list[Path]:
    """The files that `sums.json` is about besides the manifest."""
    stats = sorted(path for path in (folder / STATS_FOLDER).rglob("*") if path.is_file())
    records = [shard.path / SHARD_RECORD for shard in shards]
    return [*stats, *records]


def check_sums(folder: Path) -> None:
    """Raises ValueError, naming the file, unless all that `sums.json` lists is as it was written.

    A cache from before there were such sums has none to compare with.
    """
    if not (folder / SUMS).is_file():
        return
    if damage := damaged_file(folder, read_json(folder / SUMS, "the sums of a cache")):
        raise ValueError(f"the cache {folder} is damaged: {damage}; run encode.py once more")


def lasting(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """What of the data's description the clips depend on."""
    return {
        name: lasting(value, f"{name}.") if isinstance(value, Mapping) else value
        for name, value in data.items()
        if f"{prefix}{name}" not in DATA_MAY_CHANGE
    }


def restricted(saved: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """What is saved of the keys that are asked for."""
    return {
        name: restricted(saved.get(name, {}), value)
        if isinstance(value, Mapping)
        else saved.get(name)
        for name, value in asked.items()
    }


def differences(
    saved: Mapping[str, Any], current: Mapping[str, Any], prefix: str = ""
) -> list[str]:
    """ "key: of the cache != now" for every value that differs, in dotted keys."""
    lines = []
    for key in sorted(saved.keys() | current.keys()):
        before, now = saved.get(key), current.get(key)
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            lines += differences(before, now, f"{prefix}{key}.")
        elif before != now:
            lines.append(f"{prefix}{key} is {before!r} in the cache, now {now!r}")
    return lines


def plain(values: Any) -> Any:
    """A config or mapping as JSON gives it back: dicts, lists, no tuples."""
    values = asdict(values) if is_dataclass(values) and not isinstance(values, type) else values
    return json.loads(json.dumps(values))
