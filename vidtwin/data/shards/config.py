"""The config of the source "shards". Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from vidtwin.data.registry import SourceOptions, refuse_keys, register_source

if TYPE_CHECKING:
    from vidtwin.data.config import DataConfig

__all__ = ["ShardsOptions"]

OTHER_KEYS = ("files", "root", "captions", "split")


@register_source("shards")
@dataclass(frozen=True, kw_only=True)
class ShardsOptions(SourceOptions):
    """How the clips of the tar shards in `data.path` are visited.

    Args:
        shuffle_shards: how many shards an epoch mixes at a time: shards are shuffled, then the
            clips of each so many, so that reading stays within few shards; None mixes all clips.
    """

    reads_files: ClassVar[bool] = True

    shuffle_shards: int | None = None

    def __post_init__(self) -> None:
        if self.shuffle_shards is not None and self.shuffle_shards < 1:
            raise ValueError(
                f"`shuffle_shards` must be at least 1 shard or null, got {self.shuffle_shards}"
            )

    def check(self, data: DataConfig) -> None:
        """Refuses keys of the sources that read files."""
        refuse_keys(data, OTHER_KEYS, "has its list of clips and their captions in the shards")
        if not data.path:
            raise ValueError(
                "data.path must name shards: a folder, a pattern such as "
                "'shards/train-{000..127}.tar', or a URL, got {data.path!r}"
            )

    def build(self, data: DataConfig) -> Any:
        """A `ShardDataset`."""
        from vidtwin.data.shards.dataset import build_shard_dataset

        return build_shard_dataset(data)
