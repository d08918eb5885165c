from vidtwin.files import weights_digest
from vidtwin.reconstruction.reconstructor import (
    METRICS,
    PARTS,
    Measures,
    Reconstructor,
    load_autoencoder,
    software_versions,
)

__all__ = [
    "METRICS",
    "PARTS",
    "Measures",
    "Reconstructor",
    "load_autoencoder",
    "software_versions",
    "weights_digest",
]
