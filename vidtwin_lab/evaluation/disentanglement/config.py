"""What a scorecard measures, and on which clips."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from diffusion.config import GIVEN_GUIDANCE_SCALE, NUM_INFERENCE_STEPS, GuidanceScales
from vidtwin import AutoencoderConfig, nearest_name
from vidtwin.data import DataConfig, Factors, ShapesOptions, VideoDataset, factor_labels
from vidtwin_lab.evaluation.disentanglement.judges import SHAPES_JUDGE
from vidtwin_lab.evaluation.disentanglement.probes import ProbeConfig

__all__ = ["DisentanglementConfig", "SamplingConfig", "choose_clips", "choose_factors"]


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How many videos a pipeline makes, half of them to a clip's structure, half to its dynamics.

    Args:
        clips: whose latents are held.
        videos_per_clip: of each latent that is held.
        steps: of the solver.
        given_guidance_scale: of the latent that is held.
    """

    clips: int = 64
    videos_per_clip: int = 8
    steps: int = NUM_INFERENCE_STEPS
    given_guidance_scale: float = GIVEN_GUIDANCE_SCALE

    RENAMED_KEYS: ClassVar[dict[str, str]] = {"held_guidance_scale": "given_guidance_scale"}

    def __post_init__(self) -> None:
        GuidanceScales(given=self.given_guidance_scale)
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 1:
                raise ValueError(
                    f"sampling.{field.name} must be at least 1, got {getattr(self, field.name)}"
                )


@dataclass(frozen=True, kw_only=True)
class DisentanglementConfig:
    """A scorecard of a split into structure and dynamics.

    Args:
        output: folder of the results.
        autoencoder: a saved autoencoder's folder, a run folder of train_ae.py, or a released
            checkpoint.
        data: clips with labels of content and motion; their size follows the autoencoder's.
        judge: who says what a video shows: "shapes", which measures the pixels of the moving
            shapes, or the folder of a classifier (`evaluate.py classifier`).
        factors: those of the data to look at; all if none are named.
        samples: clips, drawn from the data by the seed; null for all.
        pairs: of clips that exchange their latents.
        batch_size: videos of one forward pass.
        num_workers: processes that read, for each that measures.
        seed: of clips, pairs, parts of the probes, and of the first sampled video.
        examples: swaps in the figure.
        probes: the linear readers.
        pipeline: folder of a pipeline with this very autoencoder; null to sample nothing.
        sampling: what it makes.
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
        for name, least in (("pairs", 1), ("batch_size", 1), ("num_workers", 0), ("seed", 0),
                            ("examples", 0)):  # fmt: skip
            if getattr(self, name) < least:
                raise ValueError(f"`{name}` must be at least {least}, got {getattr(self, name)}")
        if self.samples is not None and self.samples < 2:
            raise ValueError(f"`samples` must be at least 2 or null, got {self.samples}")

    def data_for(self, sizes: AutoencoderConfig) -> DataConfig:
        """The data in an autoencoder's sizes, with nothing random in them."""
        return self.data.centered().sized(sizes.num_frames, sizes.height, sizes.width)


def choose_factors(dataset: VideoDataset, names: tuple[str, ...]) -> Factors:
    """The factors that are looked at, those with one class left out.

    Raises:
        ValueError: if the data have none, or do not know one of the names.
    """
    known = factor_labels(dataset)
    for name in names:
        if name not in known.all:
            raise ValueError(
                f"`factors` must be of {', '.join(known.all)}, got {name!r}; "
                f"did you mean {nearest_name(name, list(known.all))!r}?"
            )
    chosen = names or tuple(known.all)
    content, motion = (
        {name: classes for name, classes in group.items() if name in chosen and len(classes) > 1}
        for group in (known.content, known.motion)
    )
    if not content and not motion:
        raise ValueError(f"none of the factors {', '.join(chosen)} has two classes to tell apart")
    return Factors(content=content, motion=motion)


def choose_clips(
    dataset: VideoDataset, factors: Factors, config: DisentanglementConfig
) -> tuple[list[int], list[tuple[str, str]]]:
    """Indices of the clips to measure, in order, and those passed over: (clip, what isn't known).

    Raises:
        ValueError: if the data have fewer than were asked for.
    """
    chosen: list[int] = []
    unlabelled: list[tuple[str, str]] = []
    wanted = len(dataset) if config.samples is None else config.samples
    for index in np.random.default_rng([config.seed, 2]).permutation(len(dataset)).tolist():
        if len(chosen) == wanted:
            break
        labels = dataset.factors(index)
        missing = [name for name in factors.all if labels.get(name, -1) < 0]
        if missing:
            unlabelled.append((f"clip {index}", f"unknown: {', '.join(missing)}"))
        else:
            chosen.append(index)
    if len(chosen) < wanted and config.samples is not None:
        raise ValueError(
            f"samples={config.samples} clips were asked for, the data have {len(chosen)} with all "
            f"labels ({len(unlabelled)} without); set samples=null for all of them"
        )
    return sorted(chosen), unlabelled
