"""Video files through the autoencoder and back: jobs, streams, results, numbers."""

from vidtwin.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
