"""Where the videos of one side of a comparison come from.

    data      a data set, see `vidtwin.data`
    videos    a folder of video files, such as sample.py writes
    latents   a folder of latents, such as sample.py writes, decoded by an autoencoder
    pipeline  samples of a pipeline, made on the fly

Video i is the same for any number of processes: which clip, prompt, class and noise it has follows
from the config and i alone, and whole batches of consecutive indices are shared out.

config says which videos, sources how they are walked through, building makes the source of a
config: data_set, sample_folders (videos and latents) or samples (of a pipeline).
"""

from vidtwin.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
