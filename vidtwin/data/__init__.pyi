from vidtwin.data.bad_files import BadFileLog, SkippedFile, TooManyBadFiles, UnusableVideo
from vidtwin.data.building import build_dataset
from vidtwin.data.config import PAIRS, DataConfig
from vidtwin.data.drawn_datasets import ShapesDataset, SpritesDataset
from vidtwin.data.factors import Factors, factor_labels
from vidtwin.data.file_dataset import FileDataset
from vidtwin.data.loading import (
    GlobalBatchSampler,
    VideoLoader,
    build_evaluation_loader,
    build_loader,
)
from vidtwin.data.variants import iterate_variants
from vidtwin.data.video_dataset import VideoDataset, noise_seed_for

__all__ = [
    "PAIRS",
    "BadFileLog",
    "DataConfig",
    "Factors",
    "FileDataset",
    "GlobalBatchSampler",
    "ShapesDataset",
    "SkippedFile",
    "SpritesDataset",
    "TooManyBadFiles",
    "UnusableVideo",
    "VideoDataset",
    "VideoLoader",
    "build_dataset",
    "build_evaluation_loader",
    "build_loader",
    "factor_labels",
    "iterate_variants",
    "noise_seed_for",
]
