"""Which generated videos are compared with which real ones, and by what."""

from __future__ import annotations

from dataclasses import dataclass, field

from vidtwin.data import DataConfig
from vidtwin_lab.evaluation.codec import check_encoder, crf_of
from vidtwin_lab.evaluation.features import FeaturesConfig
from vidtwin_lab.evaluation.generation.protocols import PROTOCOLS
from vidtwin_lab.evaluation.videos import VideosConfig

__all__ = ["GenerationConfig"]

METRICS = ("fvd", "kvd", "is", "fvd_per_class")


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """One comparison of generated with real videos.

    Args:
        output: folder of the report.
        data: the real videos; sizes that are left at their defaults follow the pipeline's.
        generated: the videos that are measured.
        features: of FVD and KVD.
        classifier: gives the class probabilities of the inception score; None takes `features`.
        metrics: of "fvd", "kvd", "is" and "fvd_per_class".
        num_videos: generated videos.
        num_real: real videos; null for all that the data set has.
        allow_few: accept fewer than 2,048, and write n into the names: FVD@512.
        protocol: name of a published protocol to compare with, see `PROTOCOLS`.
        batch_size: videos at once, on each process.
        threads: that read files, in each process.
        seed: of the choice of real clips and of the resamples.
        bootstrap: resamples for intervals; 0 for none.
        kvd_subset_size: None measures KVD on all pairs; else KID's habit, its mean over
            `kvd_subsets` random subsets of that many.
        kvd_subsets: how many.
        is_splits: parts of the inception score.
        eight_bit: round values to 8 bits before they are measured, as most published codes do.
        reencode: also measure the generated videos after a codec, "h264@23": H.264 at that CRF.
        cache: folder for features and statistics of real videos; null for none.
    """

    output: str = "outputs/evaluation/generation"
    data: DataConfig = DataConfig()
    generated: VideosConfig = field(default_factory=lambda: VideosConfig(path="checkpoints/shapes"))
    features: FeaturesConfig = FeaturesConfig()
    classifier: FeaturesConfig | None = None
    metrics: tuple[str, ...] = ("fvd", "kvd")
    num_videos: int = 2048
    num_real: int | None = 2048
    allow_few: bool = False
    protocol: str | None = None
    batch_size: int = 16
    threads: int = 2
    seed: int = 0
    bootstrap: int = 100
    kvd_subset_size: int | None = None
    kvd_subsets: int = 100
    is_splits: int = 10
    eight_bit: bool = False
    reencode: str | None = None
    cache: str | None = "outputs/evaluation/real_statistics"

    def __post_init__(self) -> None:
        unknown = [name for name in self.metrics if name not in METRICS]
        if unknown or not self.metrics:
            raise ValueError(
                f"metrics must be some of {', '.join(METRICS)}; got {list(self.metrics)}"
            )
        for name in ("num_videos", "num_real", "batch_size", "threads", "is_splits", "kvd_subsets"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.seed < 0 or self.bootstrap < 0:
            raise ValueError(
                f"seed and bootstrap must not be negative, got {self.seed} and {self.bootstrap}"
            )
        if self.protocol is not None and self.protocol not in PROTOCOLS:
            raise ValueError(
                f"protocol must be one of {', '.join(PROTOCOLS)} or null, got {self.protocol!r}"
            )
        if self.features.name == "c3d":
            raise ValueError(
                "c3d gives class probabilities alone: set classifier.name=c3d for the inception "
                "score, and features.name to i3d, videomae or MODULE:FUNCTION"
            )
        if self.features.name == "i3d" and self.classifier is None and "is" in self.metrics:
            raise ValueError(
                "an inception score needs classes: set classifier.name=c3d (UCF-101's protocol), "
                "or a VideoMAE classifier or MODULE:FUNCTION that gives probabilities"
            )
        if crf_of(self.reencode) is not None:
            check_encoder()

    @property
    def keeps_features(self) -> bool:
        """Whether features of all videos are held: a Fréchet distance alone needs no memory."""
        return self.metrics != ("fvd",) or self.bootstrap > 0
