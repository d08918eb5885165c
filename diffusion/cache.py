"""Reading a latent cache: a data set of raw latents, and its loaders; see `cache_format`.

Axes: B batch, C channels, Q structure queries, T frames, h w latent grid.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from diffusion.cache_format import (
    SAMPLES_FOLLOW_FROM,
    STATS_FOLDER,
    check_sums,
    differences,
    lasting,
    plain,
    read_manifest,
    read_shard,
    restricted,
    shards_of,
)
from diffusion.latent_stats import LatentStats
from vidtwin import (
    AutoencoderConfig,
    DiagonalGaussian,
    GlobalBatchSampler,
    VidTwinLatents,
    draw_noise,
    noise_seed_for,
)
from vidtwin.seams import seam_options

# Each open shard holds three file descriptors, of which a process commonly has 1,024.
MAX_OPEN_SHARDS = 128


class LatentCache(Dataset[dict[str, Any]]):
    """The clips of a finished cache, as a data set of raw latents; see `__getitem__`.

    As far as the cache holds variants and captions of as many epochs, a sample is what encoding
    clip and epoch anew would give, up to the precision of the storage; later epochs repeat them.

    Args:
        folder: of one part of a data set, as `encode.py` wrote it.
        sample_posterior: draw the latents from the stored posterior instead of taking its mode;
            None draws them where moments are stored.
        seed: of the samples' noise; None for that of the data the cache was made from.
        verify: read everything once, compare it with the digests that were stored, and look for
            values that are not finite.
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
        verify: bool = True,
    ) -> None:
        self.folder = Path(folder).expanduser()
        self.manifest = read_manifest(self.folder)
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
        if verify:
            check_sums(self.folder)

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
            now = AutoencoderConfig.from_dict(plain(autoencoder_config))
            known = (plain(config) for config in (self.autoencoder_config, now))
            # A cache older than a key has its default; seams are mended by the decoder alone.
            saved, current = (config | seam_options(AutoencoderConfig()) for config in known)
            found += differences(saved, current, "autoencoder.")
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
            **dict(zip(VidTwinLatents.names, latents, strict=True)),
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
        arrays = tuple(self._map(number, name) for name in VidTwinLatents.names)
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
    batch: dict[str, Any] = {
        name: torch.stack([s[name] for s in samples]) for name in VidTwinLatents.names
    }
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
