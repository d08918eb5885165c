"""VidTwin: a video autoencoder with a structure latent and a dynamics latent."""

from vidtwin.autoencoder import AutoencoderOutput, VidTwinAutoencoder
from vidtwin.config import AutoencoderConfig
from vidtwin.latents import DiagonalGaussian, VidTwinLatents, VidTwinPosterior

__all__ = [
    "AutoencoderConfig",
    "AutoencoderOutput",
    "DiagonalGaussian",
    "VidTwinAutoencoder",
    "VidTwinLatents",
    "VidTwinPosterior",
]
