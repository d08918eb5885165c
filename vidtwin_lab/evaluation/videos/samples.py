"""Samples of a pipeline, made on the fly."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch

from diffusion.schedulers import build_scheduler
from vidtwin.data import SkippedFile
from vidtwin_lab.evaluation.pipelines import load_pipeline, parts_digests
from vidtwin_lab.evaluation.videos.config import DTYPES, VideosConfig
from vidtwin_lab.evaluation.videos.data_set import DataVideos
from vidtwin_lab.evaluation.videos.sources import Video, VideoSource

__all__ = ["PipelineVideos"]

logger = logging.getLogger(__name__)


class PipelineVideos(VideoSource):
    """Samples of a pipeline: sample i has the noise of seed + i.

    Args:
        config: which pipeline, and how it is asked.
        real: where captions and classes come from.
        number: how many samples.
        device: of the pipeline.
    """

    def __init__(
        self, config: VideosConfig, real: DataVideos, number: int, device: torch.device
    ) -> None:
        assert config.path is not None
        self.pipeline = load_pipeline(config.path, device, DTYPES[config.dtype])
        if config.scheduler:
            self.pipeline.scheduler = build_scheduler(config.scheduler, self.pipeline.scheduler)
        self.config = config
        sizes, trained = self.pipeline.autoencoder.sizes, self.pipeline.transformer.sizes
        super().__init__(number, (sizes.num_frames, sizes.height, sizes.width))
        auto = config.conditions == "auto"
        self.prompts: list[str] = []
        self.classes: list[int] = []
        if config.conditions in ("prompts", "both") or (auto and trained.text_hidden_size):
            self.prompts = prompts_of(real, number)
        if config.conditions in ("classes", "both") or (auto and trained.num_classes):
            self.label_names = list(real.label_names)
            self.classes = self._classes(real)
        self.distribution = "data" if self.prompts else config.class_distribution
        self.fps = self._frame_rate(real)

    def _classes(self, real: DataVideos) -> list[int]:
        """The class of each sample, numbered as in the real data."""
        if not real.label_names:
            raise ValueError(
                "the pipeline is to be asked for classes, and the real data has none; take "
                "data.source=classes or ucf101, or generated.conditions=none"
            )
        # A caption belongs to the class of its own clip.
        if self.config.class_distribution == "balanced" and not self.prompts:
            return list(range(len(real.label_names)))
        labels = real.labels(self.number)
        if min(labels) < 0:
            raise ValueError(
                f"{sum(label < 0 for label in labels)} of the {len(labels)} real clips have no "
                "class to ask the pipeline for; see data.source, or set generated.conditions"
            )
        return labels

    def _frame_rate(self, real: DataVideos) -> float:
        own, theirs = self.pipeline.config["fps"], real.config.fps
        if own and theirs and abs(own - theirs) > 1e-6:
            logger.warning(
                "the pipeline was trained at %g frames per second, the real videos are read at "
                "%g: their motions differ by that much; set data.fps=%g",
                *(own, theirs, own),
            )
        return float(own or theirs or 8.0)

    def label(self, index: int) -> int:
        """The class of a sample, numbered as in the real data; -1 for none."""
        return self.classes[index % len(self.classes)] if self.classes else -1

    def known_labels(self, number: int) -> list[int] | None:
        """The classes that are asked for, -1 for none."""
        return [self.label(index) for index in range(number)]

    def load(self, indices: Sequence[int]) -> list[Video | SkippedFile]:
        """The samples of one batch; none is ever unusable."""
        given: dict[str, Any] = {}
        asked: list[list[str]] = [[] for _ in indices]
        if self.prompts:
            given["prompt"] = [self.prompts[index % len(self.prompts)] for index in indices]
            for words, prompt in zip(asked, given["prompt"], strict=True):
                words.append(prompt)
        if self.classes:
            names = [self.label_names[self.label(index)] for index in indices]
            by_name = self.pipeline.config["class_names"] is not None
            given["class_labels"] = names if by_name else [self.label(index) for index in indices]
            for words, name in zip(asked, names, strict=True):
                words.append(f"class {name}")
        if not given:
            given["num_videos_per_prompt"] = len(indices)
        seeds = [self.config.seed + index for index in indices]
        # Without anything to ask for there is nothing to guide.
        scale = self.config.guidance_scale if self.prompts or self.classes else 1.0
        made = self.pipeline(
            **given,
            num_inference_steps=self.config.num_inference_steps,
            guidance_scale=scale,
            class_guidance_scale=self.config.class_guidance_scale if self.classes else None,
            seed=seeds,
        ).videos
        return [
            Video(
                index=index,
                name=f"seed {seed}",
                frames=2 * video.float().cpu() - 1,
                fps=self.fps,
                label=self.label(index),
                asked=", ".join(words),
            )
            for index, seed, words, video in zip(indices, seeds, asked, made, strict=True)
        ]

    def protocol(self, n: int) -> dict[str, Any]:
        """Which pipeline, what it was asked for, and how it sampled."""
        config, scheduler = self.config, self.pipeline.scheduler
        return {
            "kind": "pipeline",
            "checkpoint": config.path,
            "weights_digests": parts_digests(self.pipeline.components),
            "n": n,
            "prompts": f"{len(self.prompts)} captions of the real data" if self.prompts else None,
            "classes": self.distribution if self.classes else None,
            "num_inference_steps": config.num_inference_steps,
            "guidance_scale": config.guidance_scale if self.prompts or self.classes else 1.0,
            "class_guidance_scale": config.class_guidance_scale,
            "scheduler": {"class": type(scheduler).__name__, **scheduler.config},
            "seeds": [config.seed, config.seed + n - 1],
            "fps": self.fps,
            "dtype": config.dtype,
        }


def prompts_of(real: DataVideos, number: int) -> list[str]:
    """The captions of the first clips of a data set.

    Raises:
        ValueError: if a clip has none.
    """
    captions = [real.caption(index) for index in range(min(number, len(real)))]
    without = sum(not caption.strip() for caption in captions)
    if without:
        raise ValueError(
            f"{without} of the {len(captions)} real clips have no caption to ask the pipeline for; "
            "see data.captions, or set generated.conditions=none"
        )
    return captions
