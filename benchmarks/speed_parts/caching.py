"""A batch of latents from a cache, and encoded from clips at every step, by the shipped pipeline.

The clips are files of moving shapes at 64 x 64, and drawn shapes; the step that learns from them
stands beside, for its share.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from diffusion.cache_writer import CacheWriter, listing_digest
from diffusion.latent_sources import EncodedClips, encode_clips, open_source
from speed_parts.measuring import Found, Setting, ratio, seconds, side_by_side
from speed_parts.shares import shipped
from speed_parts.transformers import own_step
from vidtwin import weights_digest
from vidtwin.data import DataConfig, build_dataset, iterate_variants
from vidtwin.media import to_uint8, write_video

BATCH = 8


def write_clips(folder: Path, count: int) -> DataConfig:
    """Files of some moving shapes."""
    drawn = build_dataset(DataConfig(source="shapes", height=64, width=64))
    folder.mkdir()
    for index in range(count):
        write_video(folder / f"{index}.mp4", to_uint8(drawn.get(index)["video"]), 8)
    return DataConfig(source="folder", path=str(folder), part="all")


def write_cache(clips: EncodedClips, folder: Path) -> None:
    """The latents of all clips."""
    model, dataset = clips.autoencoder, clips.dataset
    writer = CacheWriter(
        folder / "train",
        autoencoder_config=model.sizes,
        autoencoder_digest=weights_digest(model.encoder_parts()),
        data=dataset.config.to_dict(),
        num_clips=len(dataset),
        clips_digest=listing_digest(dataset),
        options={"variants": 1, "caption_variants": 1, "mixed_precision": "no"},
    )
    writer.claim()
    for shard in writer.missing():
        keys = [(index, 0) for index in range(shard.first, shard.end)]
        (batch,) = iterate_variants(dataset, [keys])
        writer.write(shard, batch["rows"], [encode_clips(model, batch["video"])])
    writer.finish()


def measure(setting: Setting) -> Found:
    """Seconds of a batch, each way."""
    count = BATCH if setting.small else 4 * BATCH
    model = shipped("autoencoder").eval().requires_grad_(False)
    files = write_clips(setting.scratch / "clips", count)
    clips = EncodedClips(model, files, validates=False)
    write_cache(clips, setting.scratch / "cache")
    sources = {
        "cache": open_source(model, setting.scratch / "cache", files, validates=False),
        "files, encoded": clips,
        "drawn shapes, encoded": EncodedClips(model, DataConfig(source="shapes"), validates=False),
    }

    def taker(source: Any) -> Callable[[], Any]:
        batches = iter(source.train_batches(batch_size=BATCH, seed=0, num_workers=0))
        return lambda: source.latents(next(batches))

    calls = {name: taker(source) for name, source in sources.items()}
    calls["step of the shipped transformer"] = own_step(shipped("transformer").sizes, BATCH)[1]
    with torch.random.fork_rng():
        turns = side_by_side(calls, setting.rounds)
    rows = [
        {"batch of": name, "s": seconds(found), "× cache": ratio(found, turns["cache"])}
        for name, found in turns.items()
    ]
    return Found(rows=rows, protocol={"batch_size": BATCH, "clips": count})
