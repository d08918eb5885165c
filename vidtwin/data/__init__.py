"""Video clips for training and evaluation: which, how they are read, in what order.

config says which clips, and registry which sources there are; each source builds a data set of
its clips (file_sources and file_dataset over readers, pyav_reader and frames; synthetic), all of
them a VideoDataset (dataset). loading orders and batches samples, bad_files counts what can't be
used.
"""

from vidtwin.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
