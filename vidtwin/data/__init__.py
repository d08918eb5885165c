"""Video clips for training and evaluation: which, how they are read, in what order.

config says which clips, sources finds those in files, readers (over decord and pyav_reader) decodes
them, frames chooses the window and fits the size, file_dataset and drawn_datasets put a sample
together as video_dataset says, building makes the data set of a config, loading orders and batches
samples, variants gives chosen ones, bad_files counts what can't be used, factors says what a data
set knows of its clips' content and motion.
"""

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
