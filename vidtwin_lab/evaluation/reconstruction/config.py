"""Which autoencoder is measured on which videos, and by what."""

from __future__ import annotations

from dataclasses import dataclass, replace

from vidtwin import VidTwinAutoencoder
from vidtwin.data import DataConfig
from vidtwin.metrics import LPIPS_NETS
from vidtwin_lab.evaluation.codec import CodecConfig, crf_of
from vidtwin_lab.evaluation.features import FeaturesConfig
from vidtwin_lab.evaluation.windows import WINDOWS

__all__ = ["ReconstructionConfig"]


@dataclass(frozen=True, kw_only=True)
class ReconstructionConfig:
    """Which autoencoder is measured on which videos, and by what.

    Args:
        autoencoder: a `save_pretrained` folder, a run folder of train_ae.py, or a released file.
        output: folder for the report.
        windows: "one" window of each video, where `data.start` says ("random" means "center"
            here), or "all" that follow each other without overlap.
        batch_size: windows per forward pass.
        num_workers: processes that read, for each process that measures.
        lpips: "vgg", "alex", "squeeze" or null for none.
        bits: of a latent value when latents are quantised, each measured; [] for none.
        codec: H.264 of the same windows; null for none.
        reencode: "h264@CRF" also measures reconstructions after that encoding; null does not.
        features: of rFVD; null for none.
        resamples: of the bootstrap over videos that gives intervals; 0 for no intervals.
        distance_resamples: the same for rFVD, where each takes a matrix decomposition.
        seed: of the resamples.
        data: the videos, in the autoencoder's sizes.
    Raises:
        ValueError: for a value that is out of range.
    """

    autoencoder: str = "checkpoints/shapes/autoencoder"
    output: str = "outputs/evaluation/reconstruction"
    windows: str = "one"
    batch_size: int = 8
    num_workers: int = 1
    lpips: str | None = "vgg"
    bits: tuple[int, ...] = (8, 6, 4)
    codec: CodecConfig | None = CodecConfig()
    reencode: str | None = None
    features: FeaturesConfig | None = None
    resamples: int = 1000
    distance_resamples: int = 100
    seed: int = 0
    data: DataConfig = DataConfig(part="validation")

    def __post_init__(self) -> None:
        if self.windows not in WINDOWS:
            raise ValueError(f"windows must be one of {', '.join(WINDOWS)}, got {self.windows!r}")
        for name, least in (
            ("batch_size", 1),
            *((name, 0) for name in ("num_workers", "resamples", "distance_resamples", "seed")),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.lpips is not None and self.lpips not in LPIPS_NETS:
            raise ValueError(
                f"lpips must be one of {', '.join(LPIPS_NETS)}, or null, got {self.lpips!r}"
            )
        if not all(1 <= bits <= 8 for bits in self.bits) or len(set(self.bits)) < len(self.bits):
            raise ValueError(f"bits must be numbers from 1 to 8, each once, got {list(self.bits)}")
        crf_of(self.reencode)

    def data_of(self, model: VidTwinAutoencoder) -> DataConfig:
        """The videos in the autoencoder's sizes, with nothing random in them."""
        sizes = model.sizes
        data = self.data.sized(sizes.num_frames, sizes.height, sizes.width)
        start = "center" if data.start == "random" else data.start
        return replace(data, start=start, crop="center", flip=False)
