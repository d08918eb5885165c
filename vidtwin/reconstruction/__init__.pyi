from vidtwin.building import load_autoencoder
from vidtwin.config import METRICS
from vidtwin.files import software_versions, weights_digest
from vidtwin.reconstruction.latent_files import load_windows, save_windows
from vidtwin.reconstruction.reconstructor import Reconstructor
from vidtwin.reconstruction.video_paths import DECODED_PARTS, InputVideo, find_videos

__all__ = [
    "DECODED_PARTS",
    "METRICS",
    "InputVideo",
    "Reconstructor",
    "find_videos",
    "load_autoencoder",
    "load_windows",
    "save_windows",
    "software_versions",
    "weights_digest",
]
