"""Video clips for training and evaluation: which, how they are read, in what order.

sources finds the clips, readers (over decord and pyav_reader) decodes them, frames chooses the
window and fits the size, datasets puts a sample together, loading orders and batches samples,
variants gives chosen ones, bad_files counts what can't be used.
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
    VideoDataset,
    build_dataset,
    noise_seed_for,
)
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
    "FileDataset",
    "GlobalBatchSampler",
    "ShapesDataset",
    "SkippedFile",
    "TooManyBadFiles",
    "UnusableVideo",
    "VideoDataset",
    "VideoLoader",
    "build_dataset",
    "build_evaluation_loader",
    "build_loader",
    "iterate_variants",
    "noise_seed_for",
]
