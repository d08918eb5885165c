"""From a config to the videos of a side."""

from __future__ import annotations

import torch

from vidtwin.data import DataConfig
from vidtwin_lab.evaluation.videos.config import VideosConfig
from vidtwin_lab.evaluation.videos.data_set import DataVideos
from vidtwin_lab.evaluation.videos.sample_folders import FolderVideos, LatentVideos
from vidtwin_lab.evaluation.videos.samples import PipelineVideos
from vidtwin_lab.evaluation.videos.sources import VideoSource

__all__ = ["build_generated", "build_real"]


def build_real(config: DataConfig, seed: int, threads: int = 1) -> DataVideos:
    """The real videos, in a random order."""
    return DataVideos(config, seed, threads=threads)


def build_generated(
    config: VideosConfig,
    real: DataVideos,
    number: int,
    device: torch.device,
    threads: int = 1,
) -> VideoSource:
    """The videos that are measured.

    Args:
        real: gives captions and classes to ask for, and the size.
        number: how many samples a pipeline makes.
        device: of the model.
        threads: that read files.
    Raises:
        ValueError: if the source can't be used, or its videos have another size than the real.
    """
    source: VideoSource
    names, most_bad = real.label_names, real.config.max_bad_fraction
    if config.kind == "pipeline":
        source = PipelineVideos(config, real, number, device)
    elif config.kind == "latents":
        assert config.path is not None
        decoder = config.autoencoder or config.path
        source = LatentVideos(config.path, decoder, device, names, most_bad)
    elif config.kind == "videos":
        assert config.path is not None
        source = FolderVideos(config.path, real.sizes, names, threads, most_bad)
    else:
        assert config.data is not None
        source = DataVideos(config.data, real.seed, threads=threads)
        if source.label_names != names and set(source.label_names) & set(names):
            raise ValueError(
                "the two data sets number their classes differently: "
                f"{', '.join(names[:4])} ... and {', '.join(source.label_names[:4])} ...; "
                "give both the same class folders"
            )
    if source.sizes != real.sizes:
        raise ValueError(
            f"the generated videos have (frames, height, width) {source.sizes}, the real ones "
            f"{real.sizes}; set data.num_frames={source.sizes[0]} data.height={source.sizes[1]} "
            f"data.width={source.sizes[2]}"
        )
    return source
