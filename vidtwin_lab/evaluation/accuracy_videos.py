"""Clips that went through a model: reconstructed, swapped, or one latent sampled; their labels.

Axes: B batch, T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from diffusion import VidTwinPipeline
from vidtwin import VidTwinAutoencoder, load_autoencoder
from vidtwin.data import Factors, SkippedFile, VideoDataset
from vidtwin_lab.evaluation.judges.classifier_judge import UNKNOWN
from vidtwin_lab.evaluation.measurement_configs import SHOWN
from vidtwin_lab.evaluation.pipelines import load_pipeline, parts_digests
from vidtwin_lab.evaluation.videos import DataVideos, Video, VideoSource

__all__ = ["Labels", "ModelVideos", "asked_labels", "given_labels"]


class ModelVideos(VideoSource):
    """Clips of a data set that went through a model; see `SHOWN` for the ways.

    Args:
        real: the clips, in a random order.
        videos: of `SHOWN`.
        path: of the model.
        sampling: keywords of a pipeline's call.
        device: of the model.
    Raises:
        ValueError: if the model has another size than the clips.
    """

    def __init__(
        self,
        real: DataVideos,
        videos: str,
        path: str,
        sampling: Mapping[str, Any],
        device: torch.device,
    ) -> None:
        super().__init__(len(real), real.sizes, real.label_names)
        self.real, self.videos, self.path, self.sampling = real, videos, path, dict(sampling)
        self.bad_files = real.bad_files
        self.pipeline: VidTwinPipeline | None = None
        self.autoencoder: VidTwinAutoencoder
        if videos in ("dynamics", "structure"):
            self.pipeline = load_pipeline(path, device)
            self.autoencoder = self.pipeline.autoencoder
        else:
            self.autoencoder = load_autoencoder(path)[0].float().eval().to(device)
        own = self.autoencoder.sizes.video_shape[1:]
        if own != real.sizes:
            raise ValueError(
                f"model={path} is for videos of (frames, height, width) {own}, the classifier for "
                f"{real.sizes}; train the classifier on clips of the model's size"
            )

    def partner(self, index: int) -> int:
        """The clip whose structure the swap of clip `index` takes: half the random order on."""
        return (index + max(1, len(self) // 2)) % len(self)

    @torch.no_grad()
    def load(self, indices: Sequence[int]) -> list[Video | SkippedFile]:
        """The clips of one batch after the model; one whose partner is unusable is so as well."""
        loaded = self.real.load(indices)
        others: Sequence[Video | SkippedFile] = loaded
        if self.videos == "swap":
            others = self.real.load([self.partner(index) for index in indices])
        made: list[Video | SkippedFile] = []
        pairs: list[tuple[Video, Video]] = []
        for own, other in zip(loaded, others, strict=True):
            if isinstance(own, SkippedFile):
                made.append(own)
            elif isinstance(other, SkippedFile):
                made.append(other)
            else:
                pairs.append((own, other))
        if pairs:
            frames = self._make(pairs)
            made += [
                Video(index=own.index, name=own.name, frames=video, fps=own.fps, label=own.label)
                for (own, _), video in zip(pairs, frames, strict=True)
            ]
        return made

    def _make(self, pairs: Sequence[tuple[Video, Video]]) -> Tensor:
        """(B, 3, T, H, W), on the CPU."""
        device = self.autoencoder.device
        own = torch.stack([video.frames for video, _ in pairs]).to(device)
        latents = self.autoencoder.encode(own).mode()
        if self.pipeline is not None:
            given: dict[str, Any] = {self.videos: latents}
            seeds = [self.real.seed + video.index for video, _ in pairs]
            sampled: Any = self.pipeline(**given, **self.sampling, seed=seeds)
            return 2 * sampled.videos.float().cpu() - 1
        if self.videos == "swap":
            others = torch.stack([video.frames for _, video in pairs]).to(device)
            latents = latents.with_structure(self.autoencoder.encode(others).mode())
        return self.autoencoder.decode(latents).float().cpu()

    def protocol(self, n: int) -> dict[str, Any]:
        """The model, what is done with it, and the clips."""
        sampled = self.pipeline is not None
        parts = (
            {"autoencoder": self.autoencoder} if self.pipeline is None else self.pipeline.components
        )
        return {
            "kind": self.videos,
            "checkpoint": self.path,
            "weights_digests": parts_digests(parts),
            "posterior": "mode",
            "pairs": "clip i with the structure of the clip half the random order further on"
            if self.videos == "swap"
            else None,
            "sampling": self.sampling if sampled else None,
            "seeds": [self.real.seed, self.real.seed + n - 1] if sampled else None,
            "clips": self.real.protocol(n),
        }


Labels = dict[str, int]


def given_labels(
    real: DataVideos, source: VideoSource, factors: Factors
) -> Callable[[Video], Labels]:
    """What each clip has to show after the model: factor -> class, UNKNOWN where sampled."""
    videos = source.videos if isinstance(source, ModelVideos) else "real"

    def labels_of(video: Video) -> Labels:
        labels = dict.fromkeys(factors.all, UNKNOWN)
        for group in SHOWN[videos]:
            giver = video.index
            if group == "content" and isinstance(source, ModelVideos) and videos == "swap":
                giver = source.partner(video.index)
            own = real.dataset.factors(int(real.order[giver]))
            labels |= {name: own[name] for name in getattr(factors, group)}
        return labels

    return labels_of


def asked_labels(dataset: VideoDataset, factors: Factors) -> Callable[[Video], Labels]:
    """What each generated video was asked to show, by its class and by the caption it had.

    A caption of the data tells all factors of its clip, except those in which clips with the same
    caption differ.
    """
    by_caption: dict[str, Labels] = {}
    for index in range(len(dataset)):
        caption, labels = dataset.captions(index, 1)[0], dataset.factors(index)
        if caption:
            known = by_caption.setdefault(caption, dict(labels))
            known |= {name: UNKNOWN for name in known if known[name] != labels[name]}

    def labels_of(video: Video) -> Labels:
        labels = dict.fromkeys(factors.all, UNKNOWN)
        # The class may follow the caption.
        for text in (video.asked, video.asked.rpartition(", ")[0]):
            if text in by_caption:
                return labels | by_caption[text] | dataset.label_factors(video.label)
        return labels | dataset.label_factors(video.label)

    return labels_of
