"""Reconstruction of video files, and the latents of whole videos in files."""

from vidtwin.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
