"""From a config to a data set."""

from __future__ import annotations

import logging

from vidtwin.data.config import DataConfig
from vidtwin.data.drawn_datasets import ShapesDataset, SpritesDataset
from vidtwin.data.factors import Factors
from vidtwin.data.file_dataset import FileDataset
from vidtwin.data.sources import ClipList, find_clips, split_clips
from vidtwin.data.video_dataset import VideoDataset

__all__ = ["build_dataset"]

logger = logging.getLogger(__name__)


def build_dataset(config: DataConfig) -> VideoDataset:
    """The data set a config describes.

    Raises:
        ValueError: if the source can't be used: nothing there, no videos, a malformed list.
    """
    if config.source == "shapes":
        return ShapesDataset(config)
    if config.source == "sprites":
        return SpritesDataset(config)
    listing = find_clips(
        config.source,
        config.path,
        files=config.files,
        root=config.root,
        captions=config.captions,
        split=config.split,
        part=config.part,
        columns=(*config.content_factors, *config.motion_factors),
    )
    if config.source == "ucf101" and config.validation_fraction > 0:
        raise ValueError(
            "data.source=ucf101 has an official validation part, got data.validation_fraction="
            f"{config.validation_fraction}; set it to 0, or take data.source=classes"
        )
    own_parts = config.source == "ucf101"
    if config.part == "validation" and config.validation_fraction == 0 and not own_parts:
        logger.warning("data.validation_fraction is 0: the validation clips are the training clips")
    clips = split_clips(listing.clips, config.part, config.validation_fraction)
    factors = _factors_of(config, listing)
    return FileDataset(config, clips[: config.max_clips], listing.label_names, factors)


def _factors_of(config: DataConfig, listing: ClipList) -> Factors:
    """The factors that a config names, with the classes that the clips of a list have.

    Raises:
        ValueError: for a factor that is named twice, or that the source does not have.
    """
    content, motion = config.content_factors, config.motion_factors
    classes: dict[str, tuple[str, ...]] = {"class": tuple(listing.label_names)}
    if config.source == "csv":
        classes = {
            name: tuple(sorted({clip.factors[name] for clip in listing.clips} - {""}))
            for name in (*content, *motion)
        }
    elif not listing.label_names:
        classes = {}
    elif not content and not motion:
        motion = ("class",)
    named = (*content, *motion)
    if len(set(named)) < len(named) or not set(named) <= set(classes):
        raise ValueError(
            "data.content_factors and data.motion_factors must name columns of a CSV, or the word "
            f"class for class folders and UCF-101, each once; got {list(named)} with "
            f"data.source={config.source}"
        )
    return Factors(
        content={name: classes[name] for name in content},
        motion={name: classes[name] for name in motion},
    )
