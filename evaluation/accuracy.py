"""How often videos show what they were asked for, by a classifier trained on real clips; and the
measures of the Sprites literature on them.

    python evaluate.py accuracy --config configs/evaluation/accuracy_sprites.yaml \
        videos=swap model=outputs/sprites/autoencoder_ema

The measures are those of C-DSVAE (Bai et al., arXiv 2110.12091) in their released form: natural
logarithms, of the classifier's probabilities on equally many videos of each class. With K classes
H(y) is at most ln K and IS at most K.

Axes: B batch, N videos, K classes, C channels, T frames, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffusion import VidTwinPipeline
from diffusion.pipeline import NUM_INFERENCE_STEPS
from evaluation.classifier import (
    UNKNOWN,
    VideoClassifier,
    accuracies,
    flat_row,
    percent,
)
from evaluation.report import (
    COLORS,
    Processes,
    Report,
    merge_skipped,
    model_protocol,
    new_figure,
    save_figure,
    software_protocol,
)
from evaluation.statistics import inception_score
from evaluation.videos import (
    DataVideos,
    Video,
    VideosConfig,
    VideoSource,
    build_generated,
    build_real,
    iterate_videos,
)
from vidtwin import VidTwinAutoencoder, VidTwinLatents, load_autoencoder, weights_digest
from vidtwin.data import DataConfig, Factors, SkippedFile, VideoDataset, factor_labels

__all__ = [
    "AccuracyConfig",
    "balanced_places",
    "describe",
    "inter_entropy",
    "intra_entropy",
    "joint_probabilities",
    "measure",
    "sprites_measures",
]

Array = NDArray[np.float64]
Labels = dict[str, int]

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
SYMBOLS = {  # of the literature
    "inter_entropy": "H(y)",
    "intra_entropy": "H(y|x)",
    "inception_score": "IS",
}


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
        num_inference_steps: of a pipeline that holds dynamics or structure.
        seed: of the order of the clips; a sampled video i has the noise of seed + i.
        threads: that read files, in each process.
    Raises:
        ValueError: for a value that is out of range, or a model that is missing.
    """

    output: str = "outputs/evaluation/accuracy"
    classifier: str = "outputs/evaluation/classifier/classifier"
    data: DataConfig = DataConfig(part="validation", shapes_max_objects=1)
    videos: str = "real"
    model: str | None = None
    generated: VideosConfig = field(default_factory=lambda: VideosConfig(path="checkpoints/shapes"))
    number: int | None = None
    batch_size: int = 32
    num_inference_steps: int = NUM_INFERENCE_STEPS
    seed: int = 0
    threads: int = 1

    def __post_init__(self) -> None:
        if self.videos not in VIDEOS:
            raise ValueError(f"`videos` must be one of {', '.join(VIDEOS)}, got {self.videos!r}")
        for name in ("batch_size", "num_inference_steps", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}")
        if self.number is not None and self.number < 1:
            raise ValueError(f"`number` must be at least 1 or null, got {self.number}")
        if self.seed < 0:
            raise ValueError(f"`seed` must not be negative, got {self.seed}")
        needs_model = self.videos not in ("real", "generated")
        if needs_model != (self.model is not None):
            what = "a pipeline" if self.videos in ("dynamics", "structure") else "an autoencoder"
            wanted = f"must name {what}" if needs_model else "has no part in it: leave it null"
            raise ValueError(f"videos={self.videos}: `model` {wanted}, got {self.model!r}")


def inter_entropy(probabilities: Array) -> float:
    """H(y): entropy of the mean of (N, K) probabilities, in nats; higher is more varied."""
    return float(_entropy(np.asarray(probabilities, np.float64).mean(0)))


def intra_entropy(probabilities: Array) -> float:
    """H(y|x): mean entropy of (N, K) probabilities, in nats; lower is more certain."""
    return float(_entropy(np.asarray(probabilities, np.float64)).mean())


def _entropy(probabilities: Array) -> Array:
    """Of the last axis, in nats; 0 log 0 is 0."""
    logs = np.log(probabilities, where=probabilities > 0, out=np.zeros_like(probabilities))
    # Adding zero makes of minus zero a plain one.
    return np.asarray(-(probabilities * logs).sum(-1) + 0.0)


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


def balanced_places(labels: Sequence[int] | NDArray[np.int64]) -> list[int]:
    """Places of equally many videos of each class that is there: the first ones of each.

    Args:
        labels: of the videos; UNKNOWN are left out.
    """
    array = np.asarray(labels)
    present = [number for number in np.unique(array).tolist() if number != UNKNOWN]
    if not present:
        return []
    fewest = min(int((array == number).sum()) for number in present)
    chosen = [np.flatnonzero(array == number)[:fewest] for number in present]
    return sorted(np.concatenate(chosen).tolist())


def sprites_measures(probabilities: Array, labels: Sequence[int]) -> dict[str, Any]:
    """The published measures of one factor, on equally many videos of each class.

    Args:
        probabilities: (N, K) float64.
        labels: what each video was to show; if none is known, all videos are taken as they are
            and there is no accuracy.
    Returns:
        accuracy (of all videos with a label), inter_entropy H(y), intra_entropy H(y|x),
        inception_score exp(H(y) - H(y|x)), n (videos of the last three), and what is possible:
        largest_inter_entropy and largest_inception_score.
    """
    array = np.asarray(labels)
    known = array != UNKNOWN
    right = probabilities.argmax(1) == array
    taken = probabilities[balanced_places(array)] if known.any() else probabilities
    return {
        "accuracy": float(right[known].mean()) if known.any() else None,
        "inter_entropy": inter_entropy(taken),
        "intra_entropy": intra_entropy(taken),
        "inception_score": inception_score(taken, splits=1)[0],
        "n": len(taken),
        "largest_inter_entropy": math.log(probabilities.shape[1]),
        "largest_inception_score": float(probabilities.shape[1]),
    }


class ModelVideos(VideoSource):
    """Clips of a data set after a model: reconstructed, swapped, or one latent sampled anew.

    Args:
        real: the clips, in a random order.
        videos: of `SHOWN`.
        path: of the model.
        steps: of a pipeline.
        device: of the model.
    Raises:
        ValueError: if the model has another size than the clips.
    """

    def __init__(
        self, real: DataVideos, videos: str, path: str, steps: int, device: torch.device
    ) -> None:
        super().__init__(len(real), real.sizes, real.label_names)
        self.real, self.videos, self.path, self.steps = real, videos, path, steps
        self.bad_files = real.bad_files
        self.pipeline: VidTwinPipeline | None = None
        self.autoencoder: VidTwinAutoencoder
        if videos in ("dynamics", "structure"):
            self.pipeline = VidTwinPipeline.from_pretrained(path)
            self.pipeline.to(device)
            self.pipeline.set_progress_bar_config(disable=True)
            self.autoencoder = self.pipeline.autoencoder
        else:
            self.autoencoder = load_autoencoder(path)[0].float().eval().to(device)
        own = self.autoencoder.sizes
        if (own.num_frames, own.height, own.width) != real.sizes:
            raise ValueError(
                f"model={path} is for videos of (frames, height, width) "
                f"{(own.num_frames, own.height, own.width)}, the classifier for {real.sizes}; "
                "train the classifier on clips of the model's size"
            )

    def partner(self, index: int) -> int:
        """The clip whose structure the swap of clip `index` takes: half the random order on."""
        return (index + max(1, len(self) // 2)) % len(self)

    @torch.no_grad()
    def load(self, indices: Sequence[int]) -> list[Video | SkippedFile]:
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
            held: dict[str, Any] = {self.videos: latents}
            sampled: Any = self.pipeline(
                **held,
                num_inference_steps=self.steps,
                guidance_scale=1.0,  # without a prompt there is nothing to guide
                seed=[self.real.seed + video.index for video, _ in pairs],
            )
            return 2 * sampled.videos.float().cpu() - 1
        if self.videos == "swap":
            others = torch.stack([video.frames for _, video in pairs]).to(device)
            latents = VidTwinLatents(
                structure=self.autoencoder.encode(others).mode().structure,
                dynamics_x=latents.dynamics_x,
                dynamics_y=latents.dynamics_y,
            )
        return self.autoencoder.decode(latents).float().cpu()

    def protocol(self, n: int) -> dict[str, Any]:
        parts: dict[str, Any] = {"autoencoder": self.autoencoder}
        if self.pipeline is not None:
            parts = {
                name: part
                for name, part in self.pipeline.components.items()
                if isinstance(part, torch.nn.Module)
            }
        sampled = self.pipeline is not None
        return {
            "kind": self.videos,
            "checkpoint": self.path,
            "weights_digests": {name: weights_digest(part) for name, part in parts.items()},
            "posterior": "mode",
            "pairs": "clip i with the structure of the clip half the random order further on"
            if self.videos == "swap"
            else None,
            "num_inference_steps": self.steps if sampled else None,
            "seeds": [self.real.seed, self.real.seed + n - 1] if sampled else None,
            "clips": self.real.protocol(n),
        }


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
    return real, ModelVideos(real, config.videos, config.model, config.num_inference_steps, device)


def given_labels(
    real: DataVideos, source: VideoSource, factors: Factors
) -> Callable[[Video], Labels]:
    """What each clip after a model has to show: factor -> class, UNKNOWN for what was sampled."""
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

    A caption of the data says all of its clip's factors, but for those in which clips with the
    same caption differ.
    """
    by_caption: dict[str, Labels] = {}
    for index in range(len(dataset)):
        caption, labels = dataset.captions(index, 1)[0], dataset.factors(index)
        if caption:
            known = by_caption.setdefault(caption, dict(labels))
            known |= {name: UNKNOWN for name in known if known[name] != labels[name]}

    def labels_of(video: Video) -> Labels:
        labels = dict.fromkeys(factors.all, UNKNOWN)
        # The name of a class may stand behind the caption.
        for text in (video.asked, video.asked.rpartition(", ")[0]):
            if text in by_caption:
                return labels | by_caption[text] | dataset.label_factors(video.label)
        return labels | dataset.label_factors(video.label)

    return labels_of


def load_classifier(path: str) -> VideoClassifier:
    """The judge.

    Raises:
        ValueError: if there is none.
    """
    if not (Path(path) / "config.json").is_file():
        raise ValueError(
            f"classifier={path} is no folder of a saved classifier; make one with evaluate.py "
            "classifier, and name the folder `classifier` in its output"
        )
    return VideoClassifier.from_pretrained(path)


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
    model = load_classifier(config.classifier)
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
    model = load_classifier(config.classifier)
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
    columns += [(name, percent(share)) for name, share in shares.items()]
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
