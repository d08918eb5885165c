from vidtwin.data.bad_files import BadFileLog, SkippedFile, TooManyBadFiles, UnusableVideo
from vidtwin.data.config import PAIRED_AUGMENTATIONS, DataConfig
from vidtwin.data.dataset import (
    Factors,
    VideoDataset,
    as_video_dataset,
    build_dataset,
    factor_labels,
    noise_seed_for,
)
from vidtwin.data.file_dataset import FileDataset
from vidtwin.data.lerobot.config import LeRobotOptions
from vidtwin.data.loading import (
    GlobalBatchSampler,
    VideoLoader,
    build_evaluation_loader,
    build_loader,
    iterate_variants,
)
from vidtwin.data.registry import SourceOptions, register_source
from vidtwin.data.synthetic.physics.config import PhysicsOptions
from vidtwin.data.synthetic.shapes.config import ShapesOptions
from vidtwin.data.synthetic.sprites.config import SpritesOptions

__all__ = [
    "PAIRED_AUGMENTATIONS",
    "BadFileLog",
    "DataConfig",
    "Factors",
    "FileDataset",
    "GlobalBatchSampler",
    "LeRobotOptions",
    "PhysicsOptions",
    "ShapesOptions",
    "SkippedFile",
    "SourceOptions",
    "SpritesOptions",
    "TooManyBadFiles",
    "UnusableVideo",
    "VideoDataset",
    "VideoLoader",
    "as_video_dataset",
    "build_dataset",
    "build_evaluation_loader",
    "build_loader",
    "factor_labels",
    "iterate_variants",
    "noise_seed_for",
    "register_source",
]
