"""Which videos are judged, and by which classifier."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from diffusion.config import GIVEN_GUIDANCE_SCALE, NUM_INFERENCE_STEPS, GuidanceScales
from vidtwin.data import DataConfig, ShapesOptions
from vidtwin_lab.evaluation.videos import VideosConfig

__all__ = ["SHOWN", "AccuracyConfig"]

# Which groups of a clip's factors each kind of video must show; "generated" is told by its label
# or its prompt.
SHOWN: dict[str, tuple[str, ...]] = {
    "real": ("content", "motion"),
    "reconstruction": ("content", "motion"),
    "swap": ("content", "motion"),
    "dynamics": ("motion",),
    "structure": ("content",),
}
VIDEOS = (*SHOWN, "generated")


@dataclass(frozen=True, kw_only=True)
class AccuracyConfig:
    """Which videos are judged, and by which classifier.

    Args:
        output: folder of the report.
        classifier: folder of a saved `VideoClassifier`, see evaluate.py classifier.
        data: clips with labels; their size follows the classifier's. Use clips that neither the
            model nor the classifier was trained on.
        videos: "real", the clips themselves: what the classifier can do at best;
            "reconstruction", through an autoencoder;
            "swap", the dynamics of each clip with the structure of another;
            "dynamics", the dynamics of each clip with a structure that a pipeline samples, which
            is the published way of measuring Sprites; "structure", the other way round;
            "generated", see `generated`.
        model: the autoencoder, or for dynamics and structure the pipeline.
        generated: samples of a pipeline by class or caption of the data, or a folder of them.
        number: how many videos; null for all clips of the data.
        batch_size: videos at once, on each process.
        num_inference_steps, given_guidance_scale: of a pipeline that holds dynamics or structure.
        seed: of the order of the clips; a sampled video i has the noise of seed + i.
        threads: that read files, in each process.
    Raises:
        ValueError: for a value that is out of range, or a model that is missing.
    """

    output: str = "outputs/evaluation/accuracy"
    classifier: str = "outputs/evaluation/classifier/classifier"
    data: DataConfig = DataConfig(
        part="validation", sections={"shapes": ShapesOptions(max_objects=1)}
    )
    videos: str = "real"
    model: str | None = None
    generated: VideosConfig = field(default_factory=lambda: VideosConfig(path="checkpoints/shapes"))
    number: int | None = None
    batch_size: int = 32
    num_inference_steps: int = NUM_INFERENCE_STEPS
    given_guidance_scale: float = GIVEN_GUIDANCE_SCALE
    seed: int = 0
    threads: int = 1

    RENAMED_KEYS: ClassVar[dict[str, str]] = {"held_guidance_scale": "given_guidance_scale"}

    def __post_init__(self) -> None:
        if self.videos not in VIDEOS:
            raise ValueError(f"`videos` must be one of {', '.join(VIDEOS)}, got {self.videos!r}")
        for name in ("batch_size", "num_inference_steps", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}")
        if self.number is not None and self.number < 1:
            raise ValueError(f"`number` must be at least 1 or null, got {self.number}")
        GuidanceScales(given=self.given_guidance_scale)
        if self.seed < 0:
            raise ValueError(f"`seed` must not be negative, got {self.seed}")
        needs_model = self.videos not in ("real", "generated")
        if needs_model != (self.model is not None):
            what = "a pipeline" if self.videos in ("dynamics", "structure") else "an autoencoder"
            wanted = f"must name {what}" if needs_model else "has no part in it: leave it null"
            raise ValueError(f"videos={self.videos}: `model` {wanted}, got {self.model!r}")
