"""Video clips for training and evaluation: which, how they are read, in what order.

config says which clips, sources finds those in files, readers (over decord and pyav_reader) decodes
them, frames chooses the window and fits the size, file_dataset and drawn_datasets put a sample
together as video_dataset says, building makes the data set of a config, loading orders and batches
samples, variants gives chosen ones, bad_files counts what can't be used, factors says what a data
set knows of its clips' content and motion.
"""

from vidtwin.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
