"""VidTwin: a video autoencoder with a structure latent and a dynamics latent."""

from vidtwin.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
