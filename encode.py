"""Encodes a data set once, into a latent cache that train_diffusion.py reads.

    python encode.py --config configs/encode/shapes.yaml output=outputs/shapes_latents
    accelerate launch encode.py --config configs/encode/clips.yaml data.path=FOLDER autoencoder=RUN

Writes output/train and output/validation, described in docs/diffusion.md. The same command resumes
an interrupted run; the files don't depend on the number of processes.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion.cache_format import check_storage, stored_shapes
from vidtwin.data import DataConfig, TooManyBadFiles
from vidtwin.files import check_folder, software_versions
from vidtwin.model_paths import find_autoencoder
from vidtwin_lab import runtime

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

    from diffusion.cache_writer import CacheWriter
    from vidtwin import AutoencoderConfig, VidTwinAutoencoder, VidTwinPosterior
    from vidtwin.data import VideoDataset

logger = logging.getLogger(__name__)
DATA_PARTS = ("train", "validation", "all")
LOOKED_AT = 500  # files of a part, by --dry-run
STARTERS = ("configs/encode/shapes_debug.yaml", "configs/encode/clips.yaml")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodeConfig:
    """What is encoded, by which autoencoder, and how it is stored.

    Args:
        autoencoder: a `save_pretrained` folder, a run folder of train_ae.py, or a released file.
        output: folder of the caches, one for each part.
        parts: of the data set: "train", "validation" (centered windows and crops), or "all".
        max_samples: encode the first clips of each part only; null for all.
        max_validation_samples: the same for "validation"; null for `max_samples`.
        variants: random windows, crops and flips of each clip, one for each epoch of training.
        caption_variants: wordings of each caption, if the data set has several.
        store: "moments" (mean and logvar: training draws from the posterior) or "mode"; the
            statistics are those of the whole posterior in either case.
        dtype: of the stored latents: "float16" or "float32".
        shard_size: clips in a shard, the work lost if a process is killed.
        batch_size: clips per forward pass of each process.
        num_workers: worker processes that read clips, for each process that encodes.
        mixed_precision: "no" or "bf16"; null leaves it to `accelerate launch`.
        data: num_frames, height and width are set to the autoencoder's, `part` to each of `parts`.
    """

    autoencoder: str = "checkpoints/shapes/autoencoder"
    output: str = "outputs/latents"
    parts: tuple[str, ...] = ("train", "validation")
    max_samples: int | None = None
    max_validation_samples: int | None = None
    variants: int = 1
    caption_variants: int = 1
    store: str = "moments"
    dtype: str = "float16"
    shard_size: int = 512
    batch_size: int = 32
    num_workers: int = 1
    mixed_precision: str | None = None
    data: DataConfig = DataConfig()

    def __post_init__(self) -> None:
        check_storage(self.store, self.dtype)
        for name in ("variants", "caption_variants", "shard_size", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}")
        for name in ("max_samples", "max_validation_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1 or null, got {value}")
        if self.num_workers < 0:
            raise ValueError(f"`num_workers` must not be negative, got {self.num_workers}")
        runtime.check_precision(self.mixed_precision)
        unknown = [part for part in self.parts if part not in DATA_PARTS]
        if unknown or not self.parts or len(set(self.parts)) < len(self.parts):
            raise ValueError(
                f"`parts` must name some of {', '.join(DATA_PARTS)}, each once, "
                f"got {list(self.parts)}"
            )
        data = self.data
        if data.part != "train":
            raise ValueError(
                f"data.part follows `parts`, got data.part={data.part}; set parts=[{data.part}]"
            )
        random = data.start == "random" or data.crop == "random" or data.flip
        if self.variants > 1 and (data.source == "shapes" or not random):
            why = "the moving shapes have no other windows, crops or flips; set caption_variants"
            if data.source != "shapes":
                why = "nothing is random in data.start, data.crop and data.flip"
            raise ValueError(f"variants={self.variants} would store the same pixels again: {why}")

    def data_of(self, part: str, sizes: AutoencoderConfig) -> DataConfig:
        """The data of a part, at the autoencoder's size."""
        data = self.data.centered() if part == "validation" else self.data
        return dataclasses.replace(data, part=part).sized(
            sizes.num_frames, sizes.height, sizes.width
        )

    def limit_of(self, part: str) -> int | None:
        """The maximum number of clips of a part, None for all."""
        limit = self.max_validation_samples if part == "validation" else None
        return limit or self.max_samples


def main() -> None:
    """Reads the command line, then describes the caches or writes them."""
    runtime.configure_logging()
    arguments = runtime.parse_arguments(__doc__ or "", training=False, starters=STARTERS)
    config = runtime.read_config(EncodeConfig, arguments)
    runtime.tell_progress(find_autoencoder(config.autoencoder, untrained=arguments.dry_run))
    if not arguments.dry_run:
        config.data.check_files()
        check_folder(Path(config.output), "output=FOLDER")
    encode_all(config, arguments.dry_run)


def encode_all(config: EncodeConfig, dry_run: bool) -> None:
    """Writes what is missing of the caches of all parts, or prints what that is."""
    from vidtwin import build_dataset, load_autoencoder, weights_digest
    from vidtwin.data import FileDataset

    accelerator = runtime.start_accelerator(mixed_precision=config.mixed_precision)
    runtime.check_launched_precision(accelerator)
    model, found = load_autoencoder(config.autoencoder, untrained=dry_run)
    trained = model.device.type != "meta"
    digest = weights_digest(model.encoder_parts()) if trained else "of no weights yet"
    caches: list[tuple[CacheWriter, VideoDataset]] = []
    told = [f"autoencoder: {found}, digest {digest}"]
    for part in config.parts:
        data = config.data_of(part, model.sizes)
        try:
            dataset = build_dataset(data)
        except (ValueError, OSError) as error:
            if not dry_run:
                raise
            shapes = stored_shapes(model.sizes, config.store)
            told.append(f"{part}: shapes {shapes}; the data can't be read: {error}")
            continue
        writer = cache_writer(config, part, dataset, model.sizes, digest, accelerator)
        writer.about |= {"autoencoder": str(found), "device": accelerator.device.type}
        writer.check()
        caches.append((writer, dataset))
        told.append(describe(writer))
        if dry_run and isinstance(dataset, FileDataset):
            told.append(dataset.describe_unusable(LOOKED_AT))
    if dry_run:
        if accelerator.is_main_process:
            print(runtime.format_config(config), *told, sep="\n")
        return
    runtime.lock_folders(accelerator, *(writer.folder for writer, _ in caches))
    if accelerator.is_main_process:
        for writer, _ in caches:  # all of them before any work starts
            writer.claim()
    accelerator.wait_for_everyone()
    model.to(accelerator.device).requires_grad_(False)
    for writer, dataset in caches:
        encode(writer, dataset, model, accelerator, config)


def cache_writer(
    config: EncodeConfig,
    part: str,
    dataset: VideoDataset,
    sizes: AutoencoderConfig,
    digest: str,
    accelerator: Accelerator,
) -> CacheWriter:
    """The cache of a part."""
    from diffusion.cache_writer import CacheWriter, listing_digest

    return CacheWriter(
        Path(config.output) / part,
        autoencoder_config=sizes,
        autoencoder_digest=digest,
        data=dataset.config.to_dict(),
        num_clips=min(len(dataset), config.limit_of(part) or len(dataset)),
        label_names=dataset.label_names,
        clips_digest=listing_digest(dataset),
        store=config.store,
        dtype=config.dtype,
        shard_size=config.shard_size,
        options={
            "variants": 1 if part == "validation" else config.variants,
            "caption_variants": config.caption_variants,
            "mixed_precision": accelerator.mixed_precision,
        },
        versions=software_versions(),
    )


def describe(writer: CacheWriter) -> str:
    """What would be done."""
    identity = writer.identity
    values = sum(math.prod(shape) for shape in identity["shapes"].values())
    size = values * int(identity["dtype"][-2:]) // 8 * identity["variants"] * writer.num_clips
    return (
        f"{writer.folder}: {writer.num_clips:,} clips, shapes {identity['shapes']}, "
        f"{size / 1e6:,.1f} MB, {len(writer.missing())} of {len(writer.shards)} shards to do"
    )


def encode(
    writer: CacheWriter,
    dataset: VideoDataset,
    model: VidTwinAutoencoder,
    accelerator: Accelerator,
    config: EncodeConfig,
) -> None:
    """Encodes the missing shards, split over the processes, then writes the manifest."""

    from tqdm import tqdm

    from vidtwin.data import BadFileLog, FileDataset, SkippedFile, iterate_variants

    if writer.complete():
        if accelerator.is_main_process:
            print(f"{writer.folder} is complete: {writer.num_clips:,} clips")
        accelerator.wait_for_everyone()
        return
    if isinstance(dataset, FileDataset):
        most = max(len(clip.captions) for clip in dataset.clips)
        if most > config.caption_variants:
            logger.warning(
                "clips have up to %d captions and caption_variants=%d of them are stored; set "
                "caption_variants=%d for all",
                *(most, config.caption_variants, most),
            )
    missing = writer.missing()
    accelerator.wait_for_everyone()  # no shard is written before every process has listed them
    bad_files = BadFileLog(writer.num_clips, dataset.config.max_bad_fraction)
    # Too many bad files stop a training part; a validation part is measured without them.
    count = bad_files.record if dataset.config.part == "validation" else bad_files.add
    count(SkippedFile(*item) for item in writer.skipped())
    mine = missing[accelerator.process_index :: accelerator.num_processes]
    plan = writer.batches(mine, writer.identity["variants"], config.batch_size)
    batches = iterate_variants(
        dataset,
        [keys for _, keys, _ in plan],
        captions=config.caption_variants,
        num_workers=config.num_workers,
    )
    bar = tqdm(
        total=sum(len(keys) for _, keys, _ in plan),
        desc=str(writer.folder),
        unit="clip",
        disable=not accelerator.is_main_process,
    )
    posteriors: list[VidTwinPosterior] = []
    rows: list[dict[str, Any]] = []
    skipped: list[SkippedFile] = []
    for (shard, keys, last), batch in zip(plan, batches, strict=True):
        count(batch["skipped"])
        skipped += batch["skipped"]
        rows += batch["rows"]
        if batch["video"] is not None:
            posteriors.append(encode_batch(model, batch["video"], accelerator))
        if last:
            writer.write(shard, rows, posteriors, skipped)
            posteriors, rows, skipped = [], [], []
        bar.update(len(keys))
    bar.close()
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        count(SkippedFile(*item) for item in writer.skipped())
        manifest = writer.finish()
        print(
            f"{writer.folder}: {manifest['samples']:,} clips, {manifest['rows']:,} encodings, "
            f"{manifest['captions']:,} captions, {manifest['bytes'] / 1e6:,.1f} MB, "
            f"{len(manifest['skipped'])} files skipped"
        )
    accelerator.wait_for_everyone()


def encode_batch(
    model: VidTwinAutoencoder, video: torch.Tensor, accelerator: Accelerator
) -> VidTwinPosterior:
    """The posterior of (B, 3, T, H, W) videos, in float32 on the CPU."""
    from diffusion.latent_sources import encode_clips

    return encode_clips(model, video, accelerator.autocast).to("cpu")


if __name__ == "__main__":
    runtime.run_main(main, TooManyBadFiles)
