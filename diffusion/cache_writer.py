"""Writes a latent cache shard by shard, so that it can be killed and go on at any moment.

A shard is written under another name and renamed when it is whole. The manifest is written last:
a cache that has one is complete.

Axes: B batch, R rows of a shard, C channels.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from diffusion.cache_format import (
    FORMAT,
    MANIFEST,
    SHARD_RECORD,
    SHARDS_FOLDER,
    STATS_FOLDER,
    SUMS,
    Shard,
    check_storage,
    check_sums,
    differences,
    lasting,
    plain,
    read_json,
    read_shard,
    shards_of,
    small_files,
    stored_shapes,
)
from diffusion.latent_stats import LatentStats, LatentStatsAccumulator
from vidtwin import (
    AutoencoderConfig,
    DiagonalGaussian,
    VidTwinLatents,
    VidTwinPosterior,
    file_digest,
)
from vidtwin.data import FileDataset, VideoDataset
from vidtwin.files import folder_written_whole, remove_leftovers, written_whole

logger = logging.getLogger(__name__)

IDENTITY = "encoding.json"
# How the reason begins with which a short clip was skipped.
TOO_SHORT = "too short"


class CacheWriter:
    """The cache of one part of a data set while it is being made.

    Args:
        folder: of the cache; made by `claim`.
        autoencoder_config: sizes of the autoencoder.
        autoencoder_digest: of the weights that latents depend on, its `encoder_parts`.
        data: the data config, as plain values.
        num_clips: clips of the data set; more of them than before extend a cache.
        label_names: the name of each label.
        clips_digest: of the list of clips, for data sets of files.
        store: "moments" or "mode".
        dtype: "float16" or "float32".
        shard_size: clips in a shard.
        options: further plain values that the latents depend on.
        versions: of the software; may change once the cache is complete.
        about: plain values for the manifest that identify nothing.
    Raises:
        ValueError: if a value is out of range.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        autoencoder_config: AutoencoderConfig,
        autoencoder_digest: str,
        data: Mapping[str, Any],
        num_clips: int,
        label_names: Sequence[str] = (),
        clips_digest: str | None = None,
        store: str = "moments",
        dtype: str = "float16",
        shard_size: int = 512,
        options: Mapping[str, Any] | None = None,
        versions: Mapping[str, str] | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        check_storage(store, dtype)
        for name, number in (("num_clips", num_clips), ("shard_size", shard_size)):
            if number < 1:
                raise ValueError(f"`{name}` must be at least 1, got {number}")
        self.folder = Path(folder).expanduser()
        self.num_clips, self.store, self.dtype = num_clips, store, dtype
        self.about = dict(about or {})
        self.shards = shards_of(self.folder, num_clips, shard_size)
        self._sound: set[Path] = set()  # shards whose sums were right; they are read once
        self.identity: dict[str, Any] = plain(
            {
                "format": FORMAT,
                "autoencoder_digest": autoencoder_digest,
                "autoencoder_config": plain(autoencoder_config),
                "data": dict(data),
                "clips_digest": clips_digest,
                "label_names": list(label_names),
                "store": store,
                "dtype": dtype,
                "shapes": stored_shapes(autoencoder_config, store),
                "shard_size": shard_size,
                **(options or {}),
                "versions": dict(versions or {}),
            }
        )

    def check(self) -> None:
        """Refuse a folder that holds another cache; writes nothing.

        Raises:
            ValueError: naming what differs.
        """
        path = self.folder / IDENTITY
        if not path.is_file():
            return
        saved = read_json(path, "the description of a cache")
        ignored = () if self.missing() else ("versions",)
        before, now = _comparable(saved, ignored), _comparable(self.identity, ignored)
        if _lengthens(saved, self.identity):
            before["data"].pop("short"), now["data"].pop("short")
        found = differences(before, now)
        if found:
            raise ValueError(
                f"the folder {self.folder} holds a cache of something else: {'; '.join(found)}; "
                "take the changes back or choose another output"
            )

    def claim(self) -> None:
        """Make this the cache's folder; to be called by one process, before any work.

        Raises:
            ValueError: if it holds another cache, or can't be written.
        """
        self.check()
        try:
            (self.folder / SHARDS_FOLDER).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            raise ValueError(
                f"the cache folder {self.folder} can't be written ({error.strerror or error}); "
                "choose another output"
            ) from error
        for folder in (self.folder, self.folder / SHARDS_FOLDER):
            remove_leftovers(folder)
        for shard in self.shards:
            if shard.path.exists() and (why := self._unfit(shard)):
                logger.warning("encoding again: %s", why)
        if not self.complete():
            # What is written from here on makes an old manifest untrue.
            for name in (MANIFEST, SUMS):
                (self.folder / name).unlink(missing_ok=True)
        path = self.folder / IDENTITY
        if not path.is_file():
            _write_json(path, self.identity)
        elif (saved := read_json(path, "the description of a cache")) and _lengthens(
            saved, self.identity
        ):
            _write_json(path, saved | {"data": saved["data"] | {"short": "repeat_last"}})

    def missing(self) -> list[Shard]:
        """The shards that have still to be made, damaged ones among them."""
        return [shard for shard in self.shards if self._unfit(shard)]

    def _unfit(self, shard: Shard) -> str | None:
        """Why a shard must be made: it is not there, damaged, or skipped what can be read now."""
        try:
            record = read_shard(shard, verify=shard.path not in self._sound)
        except ValueError as error:
            self._sound.discard(shard.path)
            return str(error)
        self._sound.add(shard.path)
        held = self.identity["data"].get("short") == "repeat_last"
        written = (shard.path / SHARD_RECORD).stat().st_mtime
        for skip in record["skipped"]:
            if held and skip["reason"].startswith(TOO_SHORT):
                return f"{skip['path']} was too short, and is held to the end now"
            file = Path(skip["path"])
            if file.is_file() and file.stat().st_mtime > written:
                return f"{skip['path']} was changed since it was skipped"
        return None

    def complete(self) -> bool:
        """Whether nothing is left to do."""
        try:
            check_sums(self.folder)
            manifest = read_json(self.folder / MANIFEST, "the manifest")
            LatentStats.from_pretrained(self.folder / STATS_FOLDER, local_files_only=True)
        except (ValueError, OSError):
            return False
        summed = (self.folder / SUMS).is_file()
        return summed and manifest.get("clips") == self.num_clips and not self.missing()

    def batches(
        self, shards: Sequence[Shard], variants: int, batch_size: int
    ) -> list[tuple[Shard, list[tuple[int, int]], bool]]:
        """(shard, (index, variant) of each row, whether the shard ends) of every batch.

        No batch reaches over two shards: what surrounds a clip depends on its index alone.
        """
        batches = []
        for shard in shards:
            keys = [(i, v) for i in range(shard.first, shard.end) for v in range(variants)]
            for start in range(0, len(keys), batch_size):
                end = start + batch_size
                batches.append((shard, keys[start:end], end >= len(keys)))
        return batches

    def write(
        self,
        shard: Shard,
        rows: Sequence[Mapping[str, Any]],
        batches: Sequence[VidTwinPosterior],
        skipped: Iterable[tuple[str, str]] = (),
    ) -> None:
        """Write one shard, whole or not at all.

        Args:
            shard: which.
            rows: index, variant, path, label (-1 for none) and captions (at least one) of every
                variant of every clip that could be encoded, in order.
            batches: their posteriors, cut anywhere.
            skipped: (path, reason) of the clips that could not; the same one counts once.
        Raises:
            ValueError: if a latent is not finite, or too large for the dtype.
        """
        arrays = self._arrays(batches, rows)
        with folder_written_whole(shard.path) as writing:
            files = {}
            for name, array in arrays.items():
                path = writing / f"{name}.npy"
                np.save(path, array, allow_pickle=False)
                files[path.name] = {"bytes": path.stat().st_size, "sha256": file_digest(path)}
            skips = dict(skipped).items()
            record = {
                "first_clip": shard.first,
                "end_clip": shard.end,
                "clips": _clips_of(rows),
                "skipped": [{"path": path, "reason": reason} for path, reason in skips],
                "statistics": self._statistics(arrays, batches).state_dict() if rows else {},
                "files": files,
            }
            _write_json(writing / SHARD_RECORD, record)

    def _arrays(
        self, batches: Sequence[VidTwinPosterior], rows: Sequence[Mapping[str, Any]]
    ) -> dict[str, NDArray[Any]]:
        """The three fields of a shard, (R, ...)."""
        arrays = {}
        for place, name in enumerate(VidTwinLatents.names):
            values = [self._field(batch.parts()[place]) for batch in batches]
            shape = (0, *self.identity["shapes"][name])
            whole = torch.cat([torch.empty(shape), *values]).numpy()
            if whole.shape != (len(rows), *shape[1:]):
                raise ValueError(
                    f"expected `{name}` of shape {(len(rows), *shape[1:])}, got {whole.shape}"
                )
            with np.errstate(over="ignore"):  # found below, with the clip's name
                stored = whole.astype(self.dtype)
            good = np.isfinite(stored).all(axis=tuple(range(1, stored.ndim)))
            if not good.all():
                row = int(np.argmin(good))
                reason = f"too large for {self.dtype}; set dtype=float32"
                if not np.isfinite(whole[row]).all():
                    reason = "not finite; the autoencoder can't encode this clip"
                raise ValueError(f"the `{name}` latent of {rows[row]['path']} is {reason}")
            arrays[name] = stored
        return arrays

    def _field(self, part: DiagonalGaussian) -> torch.Tensor:
        parts = (part.mean, part.logvar) if self.store == "moments" else (part.mean,)
        return torch.cat([tensor.detach().float().cpu() for tensor in parts], dim=1)

    def _statistics(
        self, arrays: Mapping[str, NDArray[Any]], batches: Sequence[VidTwinPosterior]
    ) -> LatentStatsAccumulator:
        """Of the values as they are stored, so that they describe what will be read.

        The posteriors' variance counts for modes too. Of a channel that the autoencoder does not
        use the mode hardly varies, and the decoder ignores it: scaled by the modes' own deviation
        it would be noise of full size that a diffusion model spends a share of its loss on.
        """
        accumulator = LatentStatsAccumulator()
        values = [torch.from_numpy(arrays[name]) for name in VidTwinLatents.names]
        if self.store == "moments":
            accumulator.add(VidTwinPosterior(*map(DiagonalGaussian.from_moments, values)))
        else:
            parts = zip(*(batch.parts() for batch in batches), strict=True)
            logvars = [torch.cat([part.logvar.detach().cpu() for part in each]) for each in parts]
            accumulator.add(VidTwinPosterior(*map(DiagonalGaussian, values, logvars)))
        return accumulator

    def records(self) -> Iterator[dict[str, Any]]:
        """The records of the shards that are there, in order."""
        for shard in self.shards:
            record = _record_or_error(shard)
            if not isinstance(record, ValueError):
                yield record

    def skipped(self) -> list[tuple[str, str]]:
        """(path, reason) of what the shards that are there have skipped, each file once."""
        found = {
            item["path"]: item["reason"] for record in self.records() for item in record["skipped"]
        }
        return list(found.items())

    def finish(self) -> dict[str, Any]:
        """Write statistics and manifest; to be called by one process, after the last shard.

        Returns:
            dict: the manifest.
        Raises:
            ValueError: if a shard is missing, or no clip at all could be encoded.
        """
        accumulator = LatentStatsAccumulator()
        samples = rows = captions = size = 0
        for shard in self.shards:
            record = read_shard(shard)
            # In the order of the shards, whoever wrote them: the same bits for any processes.
            accumulator.merge(LatentStatsAccumulator.from_state(record["statistics"]))
            samples += len(record["clips"])
            rows += sum(len(clip["variants"]) for clip in record["clips"])
            # A clip without a caption has an empty one.
            captions += sum(bool(text) for clip in record["clips"] for text in clip["captions"])
            size += sum(file["bytes"] for file in record["files"].values())
        if samples == 0:
            raise ValueError(f"no clip could be encoded: all {self.num_clips} were skipped")
        with folder_written_whole(self.folder / STATS_FOLDER) as writing:
            accumulator.result().save_pretrained(writing)
        identity = read_json(self.folder / IDENTITY, "the description of a cache")
        manifest = {
            **identity,
            "data": self.identity["data"],  # where the clips lie now
            **self.about,
            "clips": self.num_clips,
            "samples": samples,
            "rows": rows,
            "captions": captions,
            "bytes": size,
            "shards": len(self.shards),
            "skipped": [{"path": path, "reason": reason} for path, reason in self.skipped()],
        }
        text = _json_text(manifest)
        files = small_files(self.folder, self.shards)
        sums = {path.relative_to(self.folder).as_posix(): file_digest(path) for path in files}
        sums[MANIFEST] = hashlib.sha256(text.encode()).hexdigest()
        _write_json(self.folder / SUMS, sums)
        _write_json(self.folder / MANIFEST, manifest)
        return manifest


def _clips_of(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One record for each clip, with all its variants."""
    clips: list[dict[str, Any]] = []
    for row in rows:
        if not clips or clips[-1]["index"] != row["index"]:
            kept = {name: row[name] for name in ("index", "path", "label")}
            clips.append({**kept, "captions": list(row["captions"]), "variants": []})
        clips[-1]["variants"].append(row["variant"])
    return clips


def _lengthens(saved: Mapping[str, Any], current: Mapping[str, Any]) -> bool:
    """Whether short clips, which were skipped, are now held to their end: no other clip changes."""
    before, now = (identity.get("data", {}).get("short") for identity in (saved, current))
    return now == "repeat_last" and before in ("skip", "error")


def _comparable(identity: Mapping[str, Any], ignored: Sequence[str]) -> dict[str, Any]:
    kept = {key: value for key, value in identity.items() if key not in ignored}
    return kept | {"data": lasting(kept.get("data") or {})}


def _record_or_error(shard: Shard) -> dict[str, Any] | ValueError:
    """The record of a complete shard, or what is wrong with it."""
    try:
        return read_shard(shard)
    except ValueError as error:
        return error


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a file, whole or not at all."""
    with written_whole(path) as partial:
        partial.write_text(_json_text(content), encoding="utf-8")


def _json_text(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=1, allow_nan=False) + "\n"  # ASCII: paths may hold any bytes


def listing_digest(dataset: VideoDataset) -> str | None:
    """Digest of a file data set's clips, independent of their folder; None for other data sets."""
    if not isinstance(dataset, FileDataset):
        return None
    listing = [(clip.name, clip.label, *clip.captions) for clip in dataset.clips]
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()[:16]
