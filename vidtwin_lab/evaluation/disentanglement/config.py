"""The config of a disentanglement scorecard; imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from diffusion.config import GIVEN_GUIDANCE_SCALE, NUM_INFERENCE_STEPS, GuidanceScales
from vidtwin import AutoencoderConfig
from vidtwin.data import DataConfig, ShapesOptions
from vidtwin_lab.evaluation.config import check_least

__all__ = ["SHAPES_JUDGE", "DisentanglementConfig", "ProbeConfig", "SamplingConfig"]

SHAPES_JUDGE = "shapes"


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """How the probes are trained.

    Args:
        train_fraction: share of the clips that they are trained on.
        validation_fraction: share on which the penalty is chosen; the rest is the test part.
        penalties: to choose from.
        permutations: probes of shuffled labels, whose accuracy is the chance level of this probe.
        max_iterations: of L-BFGS, for each penalty.
    """

    train_fraction: float = 0.6
    validation_fraction: float = 0.2
    penalties: tuple[float, ...] = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
    permutations: int = 20
    max_iterations: int = 100

    def __post_init__(self) -> None:
        fractions = (self.train_fraction, self.validation_fraction)
        if not min(fractions) > 0 or not sum(fractions) < 1:
            raise ValueError(
                "probes.train_fraction and probes.validation_fraction must be above 0 and sum to "
                f"less than 1, got {fractions[0]} and {fractions[1]}"
            )
        if not self.penalties or min(self.penalties) <= 0 or math.inf in self.penalties:
            raise ValueError(
                f"probes.penalties must be finite and above 0, got {list(self.penalties)}"
            )
        if self.permutations < 0 or self.max_iterations < 1:
            raise ValueError(
                "probes.permutations must not be negative and probes.max_iterations at least 1, "
                f"got {self.permutations} and {self.max_iterations}"
            )


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How many videos a pipeline makes, half of them to a clip's structure, half to its dynamics.

    Args:
        clips: whose latents are given.
        videos_per_clip: of each latent that is given.
        steps: of the solver.
        given_guidance_scale: of the latent that is given.
    """

    clips: int = 64
    videos_per_clip: int = 8
    steps: int = NUM_INFERENCE_STEPS
    given_guidance_scale: float = GIVEN_GUIDANCE_SCALE

    RENAMED_KEYS: ClassVar[dict[str, str]] = {"held_guidance_scale": "given_guidance_scale"}

    def __post_init__(self) -> None:
        GuidanceScales(given=self.given_guidance_scale)
        check_least(self, "sampling.", clips=1, videos_per_clip=1, steps=1)


@dataclass(frozen=True, kw_only=True)
class DisentanglementConfig:
    """A scorecard of a split into structure and dynamics.

    Args:
        output: folder of the results.
        autoencoder: a saved autoencoder's folder, a run folder of train_ae.py, or a released
            checkpoint.
        data: clips with labels of content and motion; their size follows the autoencoder's.
        judge: what tells the classes of a video: "shapes", which measures the pixels of the moving
            shapes, or the folder of a classifier (`evaluate.py classifier`).
        factors: of the data to measure; empty for all.
        samples: clips, drawn from the data by the seed; null for all.
        pairs: of clips whose latents are swapped.
        batch_size: videos of one forward pass.
        num_workers: processes that read, for each that measures.
        seed: of clips, pairs, parts of the probes, and of the first sampled video.
        examples: swaps in the figure.
        probes: the linear probes.
        pipeline: folder of a pipeline with this very autoencoder; null to sample nothing.
        sampling: how the pipeline samples.
    """

    output: str = "outputs/evaluation/disentanglement"
    autoencoder: str = "checkpoints/shapes/autoencoder"
    data: DataConfig = DataConfig(
        part="validation", sections={"shapes": ShapesOptions(max_objects=1)}
    )
    judge: str = SHAPES_JUDGE
    factors: tuple[str, ...] = ()
    samples: int | None = 1000
    pairs: int = 500
    batch_size: int = 16
    num_workers: int = 0
    seed: int = 0
    examples: int = 6
    probes: ProbeConfig = ProbeConfig()
    pipeline: str | None = None
    sampling: SamplingConfig = SamplingConfig()

    def __post_init__(self) -> None:
        check_least(self, samples=2, pairs=1, batch_size=1, num_workers=0, seed=0, examples=0)

    def data_for(self, sizes: AutoencoderConfig) -> DataConfig:
        """The data in an autoencoder's sizes, with nothing random in them."""
        return self.data.centered().sized(*sizes.video_shape[1:])
