"""Packs videos into tar shards, which the data source "shards" reads from a disk or a URL.

    python shards.py data.source=folder data.path=FOLDER output=outputs/shards num_workers=4
    python shards.py index=URL

The first makes shards and their index; the same command resumes an interrupted run. The second
makes the index of WebDataset shards that are there already, of which no video is read.
"""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from vidtwin.data import DataConfig
from vidtwin.files import folder_lock
from vidtwin_lab import runtime


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardsConfig:
    """Which videos are packed, and how.

    Args:
        output: folder of the shards, their index, and bad_files.json.
        shard_size: clips in a shard at most; null for any number.
        shard_megabytes: of videos in a shard at most; null for any number.
        num_workers: shards that are made at the same time.
        index: make the index of the shards in this folder, pattern or URL; nothing is packed.
        data: the files: data.source (folder, classes, csv, jsonl, ...), data.path, and where their
            captions and labels are; `timeout` is for opening each.
    """

    output: str = "outputs/shards"
    shard_size: int | None = 1000
    shard_megabytes: float | None = None
    num_workers: int = 4
    index: str | None = None
    data: DataConfig = DataConfig(source="folder", part="all")

    def __post_init__(self) -> None:
        for name in ("shard_size", "num_workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}")
        if self.shard_megabytes is not None and not self.shard_megabytes > 0:
            raise ValueError(f"`shard_megabytes` must be above 0, got {self.shard_megabytes}")
        if not self.data.options.reads_files or self.data.source == "shards":
            raise ValueError(
                f"data.source must be one of files to pack them, got {self.data.source}; "
                "set data.source=folder, classes, csv or jsonl"
            )


def main() -> None:
    """Reads the command line, then packs videos or makes an index."""
    runtime.configure_logging()
    arguments = runtime.parse_arguments(__doc__ or "", training=False)
    runtime.refuse_several_processes("shards.py")
    config = runtime.read_config(ShardsConfig, arguments)
    if config.index is not None:
        from vidtwin.data.shards.scan import make_index

        written, clips = make_index(config.index, config.num_workers)
        print(f"{written}: {clips:,} clips")
        return
    pack(config, arguments.dry_run)


def pack(config: ShardsConfig, dry_run: bool) -> None:
    """Makes the shards that are missing, then their index."""
    from tqdm import tqdm

    from vidtwin.data import FileDataset, build_dataset
    from vidtwin.data.shards.writer import ShardWriter

    dataset = build_dataset(config.data)
    assert isinstance(dataset, FileDataset)
    size = None if config.shard_megabytes is None else int(config.shard_megabytes * 1e6)
    output = Path(config.output).expanduser()
    writer = ShardWriter(output, dataset, config.shard_size, size)
    if writer.complete():
        writer.clean()  # a kill may have come between the index and this
        print(f"{output} is complete: {len(dataset):,} videos were looked at")
        return
    if dry_run:
        print(runtime.format_config(config))
        print(f"{output}: {len(dataset):,} videos in {len(writer.bounds):,} shards")
        return
    folder_lock(output)
    missing = writer.start()
    done = len(writer.bounds) - len(missing)
    if done:
        print(f"{output}: {done:,} of {len(writer.bounds):,} shards are there")
    total = sum(end - first for first, end in (writer.bounds[number] for number in missing))
    bar = tqdm(total=total, desc=str(output), unit="clip", disable=None)
    pool = ThreadPoolExecutor(config.num_workers)
    try:
        for future in as_completed([pool.submit(writer.write, number) for number in missing]):
            bar.update(future.result())
    finally:
        pool.shutdown(cancel_futures=True)
        bar.close()
    made = writer.finish()
    for item in made["bad"]:
        print(f"left out {item['path']}: {item['reason']}")
    print(
        f"{output}: {made['clips']:,} clips in {made['shards']:,} shards, "
        f"{made['bytes'] / 1e6:,.1f} MB, {len(made['bad'])} files left out (bad_files.json)"
    )


if __name__ == "__main__":
    runtime.run_main(main)
