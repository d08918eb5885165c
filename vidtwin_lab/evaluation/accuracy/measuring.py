"""From a config to a report: the classifier, the clips, the videos, the protocol."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from vidtwin.data import DataConfig, Factors, SkippedFile, factor_labels
from vidtwin_lab.evaluation.accuracy.config import AccuracyConfig
from vidtwin_lab.evaluation.accuracy.labels import asked_labels, given_labels
from vidtwin_lab.evaluation.accuracy.model_videos import ModelVideos
from vidtwin_lab.evaluation.accuracy.summary import make_report
from vidtwin_lab.evaluation.classifier import VideoClassifier, load_classifier
from vidtwin_lab.evaluation.report import (
    Processes,
    Report,
    merge_skipped,
    model_protocol,
    software_protocol,
)
from vidtwin_lab.evaluation.videos import (
    DataVideos,
    Video,
    VideoSource,
    build_generated,
    build_real,
    iterate_videos,
)

__all__ = ["describe", "measure"]


def build_videos(
    config: AccuracyConfig, data: DataConfig, device: torch.device
) -> tuple[DataVideos, VideoSource]:
    """The labelled clips, and the videos that are judged."""
    real = build_real(data, config.seed, config.threads)
    if config.videos == "real":
        return real, real
    if config.videos == "generated":
        number = config.number or len(real)
        return real, build_generated(config.generated, real, number, device, config.threads)
    assert config.model is not None
    sampling = {
        "num_inference_steps": config.num_inference_steps,
        "given_guidance_scale": config.given_guidance_scale,
    }
    return real, ModelVideos(real, config.videos, config.model, sampling, device)


def check_classes(path: str, judge: Factors, data: Factors) -> None:
    """Raises unless the classifier knows the very factors and classes of the data."""
    if judge != data:
        differing = [
            name for name in {**judge.all, **data.all} if judge.all.get(name) != data.all.get(name)
        ]
        raise ValueError(
            f"classifier={path} was trained on other classes than the data have, of "
            f"{', '.join(differing) or 'content and motion in turn'}; train one on this data "
            "(evaluate.py classifier)"
        )


def sized_data(config: AccuracyConfig, model: VideoClassifier) -> DataConfig:
    """The clips in the classifier's size, with nothing random in them."""
    sizes = (model.config["num_frames"], model.config["height"], model.config["width"])
    return config.data.centered().sized(*sizes)


def describe(config: AccuracyConfig) -> dict[str, Any]:
    """What would be judged: factors, clips, and of which model."""
    model = load_classifier(config.classifier, key="classifier")
    data = sized_data(config, model)
    real = build_real(data, config.seed, config.threads)
    check_classes(config.classifier, model.factors, factor_labels(real.dataset))
    return {
        "videos": config.videos,
        "clips": len(real),
        "number": config.number or len(real),
        "content": {name: len(names) for name, names in model.factors.content.items()},
        "motion": {name: len(names) for name, names in model.factors.motion.items()},
    }


def measure(config: AccuracyConfig, processes: Processes) -> Report:
    """Judges every video, and says how often it shows what it was to show.

    Raises:
        ValueError: if classifier, data and model do not fit each other, or too few videos can be
            used.
    """
    model = load_classifier(config.classifier, key="classifier")
    model.to(processes.device)  # type: ignore[arg-type]
    data = sized_data(config, model)
    real, source = build_videos(config, data, processes.device)
    factors = model.factors
    check_classes(config.classifier, factors, factor_labels(real.dataset))
    generated = config.videos == "generated"
    labels_of = (
        asked_labels(real.dataset, factors) if generated else given_labels(real, source, factors)
    )

    def judge(videos: Sequence[Video]) -> list[dict[str, Any]]:
        found = model.predict(torch.stack([video.frames for video in videos]))
        return [
            {
                "index": video.index,
                "path": video.name,
                "asked": video.asked,
                "labels": labels_of(video),
                "probabilities": {
                    name: each[place].double().tolist() for name, each in found.items()
                },
            }
            for place, video in enumerate(videos)
        ]

    rows: list[dict[str, Any]] = []
    skipped: list[SkippedFile] = []
    for batch, bad in iterate_videos(
        source, config.number, config.batch_size, processes, judge, config.videos
    ):
        rows += batch
        skipped += bad
    protocol = {
        "metric": "accuracy of the classifier's likeliest class; H(y), H(y|x) and IS in natural "
        "logarithms, on the first videos of each class, equally many",
        "classifier": model_protocol(config.classifier, model),
        "videos": source.protocol(len(rows)),
        "seed": config.seed,
        "batch_size": config.batch_size,
        **software_protocol(processes),
    }
    return make_report(config, factors, rows, merge_skipped(skipped), protocol)
