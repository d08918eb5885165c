"""Video clips for training and evaluation: which, how they are read, in what order.

sources finds the clips, readers (over decord and pyav_reader) decodes them, frames chooses the
window and fits the size, datasets puts a sample together, loading orders and batches samples,
variants gives chosen ones, bad_files counts what can't be used, factors says what a data set knows
of its clips' content and motion.
"""

from vidtwin.data.bad_files import (
    BadFileLog,
    SkippedFile,
    TooManyBadFiles,
    UnusableVideo,
)
from vidtwin.data.datasets import (
    DataConfig,
    FileDataset,
    ShapesDataset,
    SpritesDataset,
    VideoDataset,
    build_dataset,
    noise_seed_for,
)
from vidtwin.data.factors import Factors, factor_labels
from vidtwin.data.loading import (
    GlobalBatchSampler,
    VideoLoader,
    build_evaluation_loader,
    build_loader,
)
from vidtwin.data.variants import iterate_variants

__all__ = [
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
