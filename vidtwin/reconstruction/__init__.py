"""Video files through the autoencoder and back: jobs, streams, results, numbers."""

from vidtwin.reconstruction.reconstructor import (
    METRICS,
    PARTS,
    Measures,
    Reconstructor,
    load_autoencoder,
    software_versions,
    weights_digest,
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
