"""The latents of a data set on disk, encoded once: the format, reading it, loading batches.

A cache is a folder:

    manifest.json            what is in it and what made it; there once the cache is complete
    latent_stats/            `LatentStats` of all its latents
    shards/shard-00000/      shard_size clips in the order of the data set
        structure.npy        (R, C_s or 2 C_s, Q, h, w): the mode, or mean and logvar on axis 1
        dynamics_x.npy       (R, C_d or 2 C_d, T, w)
        dynamics_y.npy       (R, C_d or 2 C_d, T, h)
        shard.json           the clips: index, path, label, captions, variants; what was skipped

A row is one variant (window, crop, flip) of one clip; the rows of a clip stand together.
`diffusion.cache_writer` writes it.

Axes: R rows of a shard, B batch, C channels, Q structure queries, T frames, h w latent grid.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from diffusion.latent_stats import LATENT_NAMES, LatentStats
from vidtwin import (
    AutoencoderConfig,
    DiagonalGaussian,
    GlobalBatchSampler,
    draw_noise,
    file_digest,
    noise_seed_for,
)

FORMAT = 2
MANIFEST = "manifest.json"
STATS_FOLDER = "latent_stats"
SHARDS_FOLDER = "shards"
SHARD_RECORD = "shard.json"
# Of the data's description: where the clips lie, and what no clip depends on.
DATA_MAY_CHANGE = ("path", "root", "timeout", "max_bad_fraction", "shapes.size")
# What else of a manifest the samples follow from.
SAMPLES_FOLLOW_FROM = (
    *("autoencoder_digest", "clips_digest", "samples", "rows", "captions"),
    *("store", "dtype", "mixed_precision"),
)
STORES = ("moments", "mode")
DTYPES = ("float16", "float32")
# Each open shard holds three file descriptors, of which a process commonly has 1,024.
MAX_OPEN_SHARDS = 128


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
    for name, value, allowed in (("store", store, STORES), ("dtype", dtype, DTYPES)):
        if value not in allowed:
            raise ValueError(f"`{name}` must be one of {', '.join(allowed)}, got {value!r}")


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


def read_shard(shard: Shard, verify: bool = False) -> dict[str, Any]:
    """The record of a complete shard.

    Args:
        verify: compare the digests of the files as well, which reads all of them.
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
        for name in LATENT_NAMES:
            _check_file(shard.path / f"{name}.npy", record["files"][f"{name}.npy"], verify)
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
    if verify and file_digest(path) != expected["sha256"]:
        raise ValueError(f"shard {path.parent} is damaged: the bytes of {path.name} have changed")


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


class LatentCache(Dataset[dict[str, Any]]):
    """The clips of a finished cache, as a data set of raw latents; see `__getitem__`.

    As far as the cache holds variants and captions of as many epochs, a sample is what encoding
    clip and epoch anew would give, up to the precision of the storage; later epochs repeat them.

    Args:
        folder: of one part of a data set, as `encode.py` wrote it.
        sample_posterior: draw the latents from the stored posterior instead of taking its mode;
            None draws them where moments are stored.
        seed: of the samples' noise; None for that of the data the cache was made from.
        verify: read everything once and compare it with the digests that were stored.
    Raises:
        ValueError: if the cache is missing, unfinished or damaged, naming the file or shard, or
            `sample_posterior` is asked of a cache of modes.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        sample_posterior: bool | None = None,
        seed: int | None = None,
        verify: bool = False,
    ) -> None:
        self.folder = Path(folder).expanduser()
        self.manifest = self._read_manifest()
        self.autoencoder_config = AutoencoderConfig.from_dict(self.manifest["autoencoder_config"])
        self.label_names: list[str] = list(self.manifest["label_names"])
        has_moments = self.manifest["store"] == "moments"
        if sample_posterior and not has_moments:
            raise ValueError(
                f"the cache {self.folder} stores modes, got sample_posterior=True; encode with "
                "store=moments to draw from the posterior"
            )
        self.sample_posterior = has_moments if sample_posterior is None else sample_posterior
        self.seed = int(self.manifest["data"]["seed"]) if seed is None else seed
        self.captions: list[list[str]] = []
        self.paths: list[str] = []
        self._places: list[tuple[int, int, int]] = []  # shard, first row, number of rows
        self._clips: list[tuple[int, int]] = []  # index in the data set, label
        self._rows: list[int] = []  # of each shard
        self._shards = shards_of(self.folder, self.manifest["clips"], self.manifest["shard_size"])
        self._open: OrderedDict[int, tuple[NDArray[Any], ...]] = OrderedDict()
        for shard in self._shards:
            self._add(read_shard(shard, verify))
        if len(self._clips) != self.manifest["samples"]:
            raise ValueError(
                f"the cache {self.folder} is damaged: its shards hold {len(self._clips)} clips, "
                f"its manifest {self.manifest['samples']}"
            )
        self.stats = self._read_stats()

    def _read_manifest(self) -> dict[str, Any]:
        path = self.folder / MANIFEST
        if not path.is_file():
            if (self.folder / SHARDS_FOLDER).is_dir():
                raise ValueError(
                    f"the cache {self.folder} is unfinished: run encode.py once more with the "
                    "same config and it goes on"
                )
            parts = sorted(found.parent.name for found in self.folder.glob(f"*/{MANIFEST}"))
            hint = f"; it holds the caches {', '.join(parts)}: name one of them" if parts else ""
            raise ValueError(f"{self.folder} is no latent cache, {MANIFEST} is missing{hint}")
        manifest = read_json(path, "the manifest")
        if manifest.get("format") != FORMAT:
            raise ValueError(
                f"the cache {self.folder} has format {manifest.get('format')!r}, expected "
                f"{FORMAT}; encode again into another folder"
            )
        return manifest

    def _read_stats(self) -> LatentStats:
        folder = self.folder / STATS_FOLDER
        try:
            stats = LatentStats.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"the statistics {folder} can't be read; run encode.py once more: {error}"
            ) from error
        return stats

    def _add(self, record: Mapping[str, Any]) -> None:
        number, row = len(self._rows), 0
        for clip in record["clips"]:
            self._places.append((number, row, len(clip["variants"])))
            self._clips.append((clip["index"], clip["label"]))
            self.paths.append(clip["path"])
            self.captions.append(clip["captions"])
            row += len(clip["variants"])
        self._rows.append(row)

    def __len__(self) -> int:
        return len(self._clips)

    def __getstate__(self) -> dict[str, Any]:
        # A worker opens the files anew: pickling them would copy the latents.
        return {**self.__dict__, "_open": OrderedDict()}

    def first(self, count: int) -> LatentCache:
        """The same cache with its first clips alone."""
        if count < 1:
            raise ValueError(f"`count` must be at least 1, got {count}")
        short = copy.copy(self)
        for name in ("captions", "paths", "_places", "_clips"):
            setattr(short, name, getattr(self, name)[:count])
        return short

    def all_captions(self) -> list[str]:
        """Every caption once, sorted: for a text encoder to read in advance."""
        return sorted({caption for captions in self.captions for caption in captions})

    def digest(self) -> str:
        """Hex digest of what was encoded and how: equal for a cache that was made again.

        Where the clips lay, how they are cut into shards and which versions read them is left out.
        """
        kept = {name: self.manifest.get(name) for name in SAMPLES_FOLLOW_FROM}
        kept["data"] = lasting(self.manifest["data"])
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]

    def check(
        self,
        autoencoder_digest: str | None = None,
        autoencoder_config: AutoencoderConfig | Mapping[str, Any] | None = None,
        data: Any = None,
    ) -> None:
        """Refuse a cache that was made by another autoencoder, or from other data.

        Args:
            autoencoder_digest: of the run's autoencoder, see `CacheWriter`.
            autoencoder_config: its sizes.
            data: keys of the run's data config, as a mapping or dataclass, that must agree.
        Raises:
            ValueError: naming what differs.
        """
        found = []
        if autoencoder_config is not None:
            saved = self.manifest["autoencoder_config"]
            found += differences(saved, plain(autoencoder_config), "autoencoder.")
        saved_digest = self.manifest["autoencoder_digest"]
        if autoencoder_digest is not None and autoencoder_digest != saved_digest:
            found.append(
                f"the encoder's weights have the digest {saved_digest} in the cache, now "
                f"{autoencoder_digest}"
            )
        if data is not None:
            asked = plain(data)
            found += differences(restricted(self.manifest["data"], asked), asked, "data.")
        if found:
            raise ValueError(
                f"the cache {self.folder} does not fit this run: {'; '.join(found)}; encode "
                "again into another folder, or take what it was made with"
            )

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        """A sample.

        Args:
            key: (epoch, index), or the index in epoch 0; the epoch chooses variant, caption and
                noise.
        Returns:
            dict: structure (C_s, Q, h, w), dynamics_x (C_d, T, w), dynamics_y (C_d, T, h) raw
            float32 latents; caption str, label int (-1 for none), index int of the clip in the
            data set that was encoded, noise_seed int, path str.
        Raises:
            ValueError: if the shard's files have been damaged since the cache was opened.
        """
        epoch, position = key if isinstance(key, tuple) else (0, key)
        if not 0 <= position < len(self):
            raise IndexError(f"index must be in [0, {len(self)}), got {position}")
        number, first_row, num_rows = self._places[position]
        index, label = self._clips[position]
        captions = self.captions[position]
        noise_seed = noise_seed_for(self.seed, epoch, index)
        latents = self._latents(number, first_row + epoch % num_rows, noise_seed)
        return {
            **dict(zip(LATENT_NAMES, latents, strict=True)),
            "caption": captions[epoch % len(captions)],
            "label": label,
            "index": index,
            "noise_seed": noise_seed,
            "path": self.paths[position],
        }

    def _latents(self, number: int, row: int, noise_seed: int) -> list[Tensor]:
        # A copy, in float32: the maps are read-only, and batches must not keep them open.
        rows = [torch.from_numpy(np.array(a[row], np.float32)) for a in self._arrays(number)]
        if self.manifest["store"] == "mode":
            return rows
        parts = [DiagonalGaussian.from_moments(row[None]) for row in rows]
        if not self.sample_posterior:
            return [part.mode()[0] for part in parts]
        noise = draw_noise(self.autoencoder_config, [noise_seed]).tensors()
        return [part.sample(noise=n)[0] for part, n in zip(parts, noise, strict=True)]

    def _arrays(self, number: int) -> tuple[NDArray[Any], ...]:
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        arrays = tuple(self._map(number, name) for name in LATENT_NAMES)
        self._open[number] = arrays
        if len(self._open) > MAX_OPEN_SHARDS:
            self._open.popitem(last=False)
        return arrays

    def _map(self, number: int, name: str) -> NDArray[Any]:
        path = self._shards[number].path / f"{name}.npy"
        expected = (self._rows[number], *self.manifest["shapes"][name])
        try:
            array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ValueError(f"shard {path.parent} is damaged: {path.name}: {error}") from error
        if array.shape != expected or array.dtype != np.dtype(self.manifest["dtype"]):
            raise ValueError(
                f"shard {path.parent} is damaged: {path.name} holds {array.dtype} "
                f"{array.shape}, expected {self.manifest['dtype']} {expected}"
            )
        return array


def collate_latents(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A batch of samples: latents and numbers stacked, strings in lists."""
    batch: dict[str, Any] = {name: torch.stack([s[name] for s in samples]) for name in LATENT_NAMES}
    for name in ("label", "index", "noise_seed"):
        batch[name] = torch.tensor([sample[name] for sample in samples], dtype=torch.int64)
    for name in ("caption", "path"):
        batch[name] = [sample[name] for sample in samples]
    return batch


def build_latent_loader(
    cache: LatentCache,
    *,
    batch_size: int,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    start_batch: int = 0,
    num_workers: int = 0,
) -> DataLoader[dict[str, Any]]:
    """The endless training loader of this rank; the union over ranks is the same for any number.

    Args:
        batch_size: of the global batch, over all ranks.
        seed: of the order of the samples.
        start_batch: batches to leave out, those an interrupted run has done.
        num_workers: processes that read; 0 reads in this one, which is mostly enough.
    Returns:
        A loader of dicts: structure (B, C_s, Q, h, w), dynamics_x (B, C_d, T, w), dynamics_y
        (B, C_d, T, h) raw float32; label, index, noise_seed (B,) int64; caption, path lists.
    Raises:
        ValueError: if the batch can't be divided over the ranks, or a number is out of range.
    """
    if num_workers < 0:
        raise ValueError(f"num_workers must not be negative, got {num_workers}")
    sampler = GlobalBatchSampler(len(cache), batch_size, seed, rank, world_size, start_batch)
    return DataLoader(
        cache,
        batch_sampler=sampler,
        collate_fn=collate_latents,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
    )


def iterate_latents(
    cache: LatentCache,
    *,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    max_samples: int | None = None,
) -> Iterator[dict[str, Any]]:
    """Every clip exactly once over all ranks, in order, in epoch 0: for validation.

    Args:
        batch_size: of this rank; the last batch may be smaller.
        max_samples: the first clips alone; None for all.
    """
    total = len(cache) if max_samples is None else min(max_samples, len(cache))
    mine = range(rank, total, world_size)
    for start in range(0, len(mine), batch_size):
        yield collate_latents([cache[index] for index in mine[start : start + batch_size]])
