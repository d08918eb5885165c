from vidtwin.building import load_autoencoder
from vidtwin.files import software_versions, weights_digest
from vidtwin.metrics import METRICS
from vidtwin.reconstruction.inputs import InputVideo, find_videos
from vidtwin.reconstruction.latent_files import load_windows, save_windows
from vidtwin.reconstruction.reconstructor import DECODED_PARTS, Reconstructor

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
