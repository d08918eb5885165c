"""How often videos show what they were asked for, by a classifier trained on real clips; and the
measures of the Sprites literature on them.

    python evaluate.py accuracy --config configs/evaluation/accuracy_sprites.yaml \\
        videos=swap model=outputs/sprites/autoencoder_ema

Axes: K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vidtwin.data import DataConfig, Factors, SkippedFile, factor_labels
from vidtwin_lab.evaluation.accuracy_measures import Array, sprites_measures
from vidtwin_lab.evaluation.accuracy_videos import Labels, ModelVideos, asked_labels, given_labels
from vidtwin_lab.evaluation.generated_videos import build_generated, build_real
from vidtwin_lab.evaluation.intervals import interval_text
from vidtwin_lab.evaluation.judges.classifier_judge import (
    UNKNOWN,
    VideoClassifier,
    accuracies,
    flat_row,
    load_classifier,
    probabilities_of,
)
from vidtwin_lab.evaluation.measurement_configs import AccuracyConfig
from vidtwin_lab.evaluation.report import (
    COLORS,
    Processes,
    Report,
    fields_of,
    merge_skipped,
    model_protocol,
    new_figure,
    save_figure,
    software_protocol,
)
from vidtwin_lab.evaluation.videos import DataVideos, Video, VideoSource, iterate_videos

__all__ = ["describe", "joint_class", "joint_probabilities", "make_report", "measure"]


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
        found = probabilities_of(model, torch.stack([video.frames for video in videos]))
        return [
            {
                "index": video.index,
                "path": video.name,
                "asked": video.asked,
                "labels": labels_of(video),
                "probabilities": probabilities,
            }
            for video, probabilities in zip(videos, found, strict=True)
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
        **fields_of(config, "seed", "batch_size"),
        **software_protocol(processes),
    }
    return make_report(config, factors, rows, merge_skipped(skipped), protocol)


SYMBOLS = {  # of the literature
    "inter_entropy": "H(y)",
    "intra_entropy": "H(y|x)",
    "inception_score": "IS",
}


def joint_probabilities(row: Mapping[str, Sequence[float]], names: Sequence[str]) -> Array:
    """(K,) probabilities of all combinations of some factors' classes, the last the fastest.

    The product of the classifier's heads, which decide independently of each other given the
    video. The published judge has one head for the nine motions instead.
    """
    joint = np.ones(1)
    for name in names:
        joint = np.outer(joint, row[name]).ravel()
    return joint / joint.sum()


def joint_class(labels: Labels, names: Sequence[str], classes: Mapping[str, Sequence[str]]) -> int:
    """The place of a combination in `joint_probabilities`; UNKNOWN if a factor is not known."""
    place = 0
    for name in names:
        if labels[name] == UNKNOWN:
            return UNKNOWN
        place = place * len(classes[name]) + labels[name]
    return place


def measures_of(rows: Sequence[Mapping[str, Any]], factors: Factors) -> dict[str, Any]:
    """`sprites_measures` of each factor, and of the combinations of all motion factors."""
    groups: dict[str, tuple[str, ...]] = {name: (name,) for name in factors.all}
    if len(factors.motion) > 1:
        groups["all motion"] = tuple(factors.motion)
    found = {}
    for group, names in groups.items():
        table = np.stack([joint_probabilities(row["probabilities"], names) for row in rows])
        labels = [joint_class(row["labels"], names, factors.all) for row in rows]
        found[group] = sprites_measures(table, labels)
    return found


def make_report(
    config: AccuracyConfig,
    factors: Factors,
    rows: Sequence[Mapping[str, Any]],
    skipped: list[dict[str, str]],
    protocol: dict[str, Any],
) -> Report:
    """The report of judged videos."""
    shares = accuracies(rows, factors)
    measures = measures_of(rows, factors)
    motion = "all motion" if "all motion" in measures else next(iter(factors.motion), None)
    columns = [("videos", config.videos), ("n", str(len(rows)))]
    columns += [(name, interval_text(share, scale=100)) for name, share in shares.items()]
    if motion is not None:
        columns += [
            (f"{symbol} of motion", f"{measures[motion][name]:.3f}")
            for name, symbol in SYMBOLS.items()
        ]
    return Report(
        name="accuracy",
        protocol=protocol,
        found={"accuracy": shares, "measures": measures},
        rows=[
            {"index": row["index"], "asked": row["asked"]} | flat_row(row, factors) for row in rows
        ],
        skipped=skipped,
        markdown=columns,
        draw=lambda path: draw_accuracies(path, shares, factors, config.videos),
    )


def draw_accuracies(
    path: Path, shares: Mapping[str, Mapping[str, Any]], factors: Factors, title: str
) -> None:
    """A bar for each factor with its interval, and the line that chance would reach."""
    known = {name: share for name, share in shares.items() if share["value"] is not None}
    figure, (panel,) = new_figure(size=(5.0, 0.8 + 0.32 * max(1, len(known))))
    for place, (name, share) in enumerate(known.items()):
        kind = COLORS[0] if name in factors.content or name == "all content" else COLORS[1]
        panel.barh(place, share["value"], color=COLORS[2] if name == "all" else kind, height=0.6)
        panel.hlines(place, share["low"], share["high"], color="black", linewidth=1.2)
        if name in factors.all:
            panel.plot([1 / len(factors.all[name])] * 2, [place - 0.4, place + 0.4], "k:", lw=1)
    panel.set_yticks(range(len(known)), list(known))
    panel.invert_yaxis()
    panel.set_xlim(0, 1)
    panel.set_xlabel("share of the videos; dotted: one class of as many")
    panel.set_title(title)
    save_figure(figure, path)
