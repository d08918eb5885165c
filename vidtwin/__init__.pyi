from vidtwin.autoencoder import AutoencoderOutput, VidTwinAutoencoder
from vidtwin.building import load_autoencoder
from vidtwin.config import AutoencoderConfig
from vidtwin.data import (
    DataConfig,
    GlobalBatchSampler,
    build_dataset,
    build_evaluation_loader,
    build_loader,
    noise_seed_for,
)
from vidtwin.files import file_digest, nearest_name, weights_digest
from vidtwin.latents import (
    DiagonalGaussian,
    VidTwinLatents,
    VidTwinPosterior,
    draw_noise,
    standard_normal_latents,
)
from vidtwin.strict_loading import StrictLoading
from vidtwin.tiling import LatentWindow, decode_windows, tile_starts

__all__ = [
    "AutoencoderConfig",
    "AutoencoderOutput",
    "DataConfig",
    "DiagonalGaussian",
    "GlobalBatchSampler",
    "LatentWindow",
    "StrictLoading",
    "VidTwinAutoencoder",
    "VidTwinLatents",
    "VidTwinPosterior",
    "build_dataset",
    "build_evaluation_loader",
    "build_loader",
    "decode_windows",
    "draw_noise",
    "file_digest",
    "load_autoencoder",
    "nearest_name",
    "noise_seed_for",
    "standard_normal_latents",
    "tile_starts",
    "weights_digest",
]
