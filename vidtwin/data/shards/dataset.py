"""Clips that are read from tar shards, each by its own range of bytes."""

from __future__ import annotations

import hashlib
import logging
import tarfile
import time
from collections.abc import Callable, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from vidtwin.data.bad_files import UnusableVideo
from vidtwin.data.clips import Clip, split_names
from vidtwin.data.config import DataConfig
from vidtwin.data.dataset import Factors
from vidtwin.data.file_dataset import FileDataset, choose_factors, warn_of_shared_clips
from vidtwin.data.shards.config import ShardsOptions
from vidtwin.data.shards.index import ShardIndex, filesystem, read_index, shard_folder

__all__ = ["ShardDataset", "build_shard_dataset"]

logger = logging.getLogger(__name__)

BLOCK = tarfile.BLOCKSIZE
# A server that fails once is asked again after so many seconds.
RETRY_AFTER = (0.5, 2.0)


class ShardClips(Sequence[Clip]):
    """Some clips of an index; each is made as it is asked for, so that millions need no memory."""

    def __init__(self, index: ShardIndex, numbers: NDArray[np.int64]):
        self.shard_index, self.numbers = index, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, key: int) -> Clip: ...
    @overload
    def __getitem__(self, key: slice) -> ShardClips: ...
    def __getitem__(self, key: int | slice) -> Clip | ShardClips:
        if isinstance(key, slice):
            return ShardClips(self.shard_index, self.numbers[key])
        return self.shard_index.clip(int(self.numbers[key]))


class ShardDataset(FileDataset):
    """Clips read from tar shards.

    Args:
        config: how they are read.
        clips: which they are.
        factors: of content and motion, that the clips have.
    """

    def __init__(self, config: DataConfig, clips: ShardClips, factors: Factors):
        super().__init__(config, clips, clips.shard_index.label_names, factors)
        self.shard_index, self.numbers = clips.shard_index, clips.numbers

    def fetch(self, index: int) -> Callable[[], bytes]:
        """What reads the bytes of a clip out of its shard."""
        return lambda: read_member(
            self.shard_index, self.shard_index.entry(int(self.numbers[index]))
        )

    def version(self, index: int) -> object:
        """What the index says of a clip's bytes."""
        entry = self.shard_index.entry(int(self.numbers[index]))
        shard = self.shard_index.shards[entry["shard"]]
        return entry.get("sha256") or (shard.get("stamp"), entry["offset"], entry["size"])

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """A permutation of all clips, or of those of some shards after those of others."""
        options = self.config.options
        assert isinstance(options, ShardsOptions)
        if options.shuffle_shards is None:
            return super().order(seed, epoch)
        rng = np.random.default_rng([seed, epoch])
        starts = np.flatnonzero(np.diff(self.shard_index.shard_of[self.numbers])) + 1
        shards = np.split(np.arange(len(self)), starts)
        shuffled = [shards[place] for place in rng.permutation(len(shards))]
        windows = range(0, len(shuffled), options.shuffle_shards)
        return np.concatenate(
            [
                rng.permutation(np.concatenate(shuffled[start : start + options.shuffle_shards]))
                for start in windows
            ]
        )


def read_member(index: ShardIndex, entry: dict[str, Any]) -> bytes:
    """The bytes of a clip.

    Raises:
        UnusableVideo: if they can't be read, or are damaged.
        ValueError: if the shard was changed: the clip is no longer where the index says.
    """
    shard, member, size = index.shards[entry["shard"]]["name"], entry["member"], entry["size"]
    path = f"{shard}/{member}"
    start = entry["offset"] - BLOCK  # with the member's header in the tar
    content = _read_range(f"{index.folder}/{shard}", path, start, entry["offset"] + size)
    if len(content) < BLOCK + size:
        raise UnusableVideo(path, "cut off: the shard ends before it")
    try:
        header = tarfile.TarInfo.frombuf(content[:BLOCK], "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        index.refuse(shard, f"{member} isn't there")
    # The header proper has no long and no foreign names.
    named = header.name == member or len(member) > tarfile.LENGTH_NAME or not member.isascii()
    if header.size != size or not named:
        index.refuse(shard, f"{member} isn't there")
    content = content[BLOCK:]
    if "sha256" in entry and hashlib.sha256(content).hexdigest() != entry["sha256"]:
        raise UnusableVideo(path, "damaged: its digest is not that of the index")
    if not content:
        raise UnusableVideo(path, "empty file")
    return content


def _read_range(url: str, path: str, start: int, end: int) -> bytes:
    """The bytes of a file from start to before end; asked for again where a server fails."""
    for wait in (*RETRY_AFTER, None):
        try:
            system, file = filesystem(url)
            return bytes(system.cat_file(file, start=start, end=end))
        except FileNotFoundError as error:
            raise UnusableVideo(path, "the shard is not there") from error
        # Each file system has errors of its own; the last one is told.
        except Exception as error:
            if wait is None:
                raise UnusableVideo(path, f"can't be read: {error}") from error
            time.sleep(wait)
    raise AssertionError


def build_shard_dataset(config: DataConfig) -> ShardDataset:
    """The clips of shards, of the part that the config names.

    Raises:
        ValueError: if there are no shards, no index of them, or they were changed since.
    """
    assert config.path is not None
    folder, patterns = shard_folder(config.path)
    index = read_index(folder)
    numbers = index.select(patterns)
    if not len(numbers):
        raise ValueError(f"no videos found in the shards of {config.path}, by {index.where}")
    warn_of_shared_clips(config)
    if config.part != "all" and config.validation_fraction > 0:
        names = [index.name(int(number)) for number in numbers]
        numbers = numbers[split_names(names, config.part, config.validation_fraction)]
    numbers = numbers[: config.max_clips]
    index.check_shards(np.unique(index.shard_of[numbers]).tolist())
    return ShardDataset(config, ShardClips(index, numbers), choose_factors(config, index.factors))
