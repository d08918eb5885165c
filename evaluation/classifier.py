"""A small video classifier, trained on real clips, as the judge of content and motion.

    python evaluate.py classifier --config configs/evaluation/classifier_sprites.yaml

It has one head for each factor of the data set (`vidtwin.data.factors`), so that one network says
what a clip shows and what happens in it. What it scores on held-out clips is in its report: no
measurement that it makes can be better than that.

Axes: B batch, C channels, D width, T frames, H W pixels, h w of feature maps.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from evaluation.intervals import share_interval
from evaluation.report import (
    COLORS,
    Processes,
    Report,
    batches_of,
    data_protocol,
    merge_skipped,
    new_figure,
    save_figure,
    software_protocol,
)
from vidtwin import StrictLoading, weights_digest
from vidtwin.data import (
    DataConfig,
    Factors,
    VideoDataset,
    build_dataset,
    build_loader,
    factor_labels,
    iterate_variants,
)

__all__ = ["ClassifierConfig", "VideoClassifier", "describe", "measure", "train_classifier"]

logger = logging.getLogger(__name__)

UNKNOWN = -1
GROUPS = 8  # of the normalisation, which must not look at the other clips of a batch
MODEL_FOLDER = "classifier"


class SpaceTimeBlock(nn.Module):
    """A residual block: a convolution in each frame that halves it, then one over the frames."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.space = nn.Conv3d(
            in_channels, channels, (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1), bias=False
        )
        self.space_norm = nn.GroupNorm(GROUPS, channels)
        self.time = nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0), bias=False)
        self.time_norm = nn.GroupNorm(GROUPS, channels)
        self.skip = nn.Conv3d(in_channels, channels, 1, stride=(1, 2, 2), bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """(B, in_channels, T, h, w) to (B, channels, T, h / 2, w / 2)."""
        hidden = functional.silu(self.space_norm(self.space(features)))
        hidden = self.time_norm(self.time(hidden))
        return functional.silu(hidden + self.skip(features))


class VideoClassifier(StrictLoading, ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Says what a video shows and what happens in it.

    Convolutions over space and time in turn, as in R(2+1)D (Tran et al., arXiv 1711.11248), then
    one layer that sees where and when each feature was, and a linear head for each factor.

    Args:
        content: (factor, names of its classes) pairs; a mapping would be saved in the order of
            the alphabet, not of the heads.
        motion: likewise.
        num_frames, height, width: of the clips.
        channels: of each stage; every stage halves the height and width of the stem's quarter.
        hidden_size: of the layer before the heads.
        dropout: before that layer.
    Raises:
        ValueError: for sizes that can't be.
    """

    @register_to_config
    def __init__(
        self,
        content: Sequence[tuple[str, Sequence[str]]],
        motion: Sequence[tuple[str, Sequence[str]]],
        num_frames: int,
        height: int,
        width: int,
        channels: Sequence[int] = (32, 64, 128),
        hidden_size: int = 256,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        shrinks = 4 * 2 ** len(channels)
        if min(height, width) < 16 or num_frames < 1:
            raise ValueError(
                f"a classifier needs at least 1 frame of 16 x 16 pixels, got {num_frames} of "
                f"{height} x {width}"
            )
        if not channels or any(size < GROUPS or size % GROUPS for size in channels):
            raise ValueError(
                f"`channels` must be one or more multiples of {GROUPS}, got {list(channels)}"
            )
        self.factors = Factors(
            content={name: tuple(names) for name, names in content},
            motion={name: tuple(names) for name, names in motion},
        )
        if not self.factors.all:
            raise ValueError("a classifier needs at least one factor of content or motion")
        self.stem = nn.Conv3d(3, channels[0], (1, 7, 7), stride=(1, 4, 4), padding=(0, 3, 3))
        sizes = [channels[0], *channels]
        self.blocks = nn.ModuleList(
            SpaceTimeBlock(before, after) for before, after in zip(sizes, channels, strict=False)
        )
        places = num_frames * -(-height // shrinks) * -(-width // shrinks)
        self.mix = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(places * channels[-1], hidden_size),
            nn.LayerNorm(hidden_size),
            nn.SiLU(),
        )
        # Keyed by number: a factor's name may hold what a module's may not.
        self.heads = nn.ModuleList(
            nn.Linear(hidden_size, len(names)) for names in self.factors.all.values()
        )

    def forward(self, video: Tensor) -> dict[str, Tensor]:
        """Factor -> (B, classes) logits of (B, 3, T, H, W) videos in [-1, 1].

        Raises:
            ValueError: if the videos have another size than the clips it was trained on.
        """
        config = self.config
        expected = (3, config["num_frames"], config["height"], config["width"])
        if tuple(video.shape[1:]) != expected:
            raise ValueError(
                f"this classifier was trained on videos of (3, T, H, W) {expected}, got "
                f"{tuple(video.shape[1:])}; read the videos in that size, or train one on this"
            )
        features = functional.silu(self.stem(video))
        for block in self.blocks:
            features = block(features)
        hidden = self.mix(rearrange(features, "B C T h w -> B (C T h w)"))
        return {name: head(hidden) for name, head in zip(self.factors.all, self.heads, strict=True)}

    @torch.no_grad()
    def predict(self, video: Tensor) -> dict[str, Tensor]:
        """Factor -> (B, classes) probabilities, float32, in evaluation mode.

        Args:
            video: (B, 3, T, H, W) in [-1, 1]; what lies outside counts as its nearest bound, as a
                written file has it.
        """
        training = self.training
        self.eval()
        try:
            logits = self(video.to(self.device, self.dtype).clamp(-1, 1))
        finally:
            self.train(training)
        return {name: each.float().softmax(1) for name, each in logits.items()}


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """A training of the judge.

    Args:
        output: folder of the results; the classifier is saved in its folder "classifier".
        data: the training clips; num_frames, height and width of them are the classifier's.
        test_part: of the data, that it is tested on: "test" for sprites, whose characters it then
            has never seen, "validation" for the others.
        test_clips: the first n alone; null for all.
        steps, batch_size: of the training.
        learning_rate: the highest; it rises for a tenth of the steps, then falls to zero.
        weight_decay: of AdamW.
        max_grad_norm: gradients are clipped to.
        noise: the highest standard deviation of the Gaussian noise that a training clip gets, of
            pixels in [-1, 1]: a judge of decoded videos must not hang on single pixels.
        channels, hidden_size, dropout: see `VideoClassifier`.
        num_workers: processes that read.
        seed: of the weights, of the order of the clips and of the noise.
        log_every: steps between two lines of the log.
    """

    output: str = "outputs/evaluation/classifier"
    data: DataConfig = DataConfig(num_frames=16, height=64, width=64, shapes_max_objects=1)
    test_part: str = "validation"
    test_clips: int | None = None
    steps: int = 600
    batch_size: int = 32
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    max_grad_norm: float = 1.0
    noise: float = 0.1
    channels: tuple[int, ...] = (32, 64, 128)
    hidden_size: int = 256
    dropout: float = 0.1
    num_workers: int = 0
    seed: int = 0
    log_every: int = 50

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "hidden_size", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}")
        for name in ("noise", "weight_decay", "seed", "num_workers"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must not be negative, got {getattr(self, name)}")
        for name in ("learning_rate", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be above 0, got {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"`dropout` must be in [0, 1), got {self.dropout}")
        if self.test_clips is not None and self.test_clips < 1:
            raise ValueError(f"`test_clips` must be at least 1 or null, got {self.test_clips}")
        _ = self.test_data  # its checks

    @property
    def test_data(self) -> DataConfig:
        """The held-out clips, with nothing random in them."""
        return replace(self.data.centered(), part=self.test_part, max_clips=self.test_clips)


def build_classifier(config: ClassifierConfig, factors: Factors) -> VideoClassifier:
    """A new classifier; its weights follow from the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return VideoClassifier(
            content=[(name, list(names)) for name, names in factors.content.items()],
            motion=[(name, list(names)) for name, names in factors.motion.items()],
            num_frames=config.data.num_frames,
            height=config.data.height,
            width=config.data.width,
            channels=list(config.channels),
            hidden_size=config.hidden_size,
            dropout=config.dropout,
        )


def labels_of(
    dataset: VideoDataset, indices: Sequence[int], names: Sequence[str]
) -> dict[str, Tensor]:
    """Factor -> (B,) int64 classes of clips, `UNKNOWN` where they are not known."""
    rows = [dataset.factors(index) for index in indices]
    return {name: torch.tensor([row[name] for row in rows]) for name in names}


def train_classifier(
    config: ClassifierConfig, dataset: VideoDataset, device: torch.device
) -> VideoClassifier:
    """A classifier trained on the clips of a data set.

    Deterministic on a CPU with a given number of threads.

    Raises:
        ValueError: if the data set knows no factors.
        TooManyBadFiles: if too many of its files can't be read.
    """
    model = build_classifier(config, factor_labels(dataset)).train()
    model.to(device)  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=config.learning_rate, total_steps=config.steps + 1, pct_start=0.1
    )
    loader = build_loader(
        dataset, batch_size=config.batch_size, seed=config.seed, num_workers=config.num_workers
    )
    batches = iter(loader)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(config.seed)  # of the dropout
        for step in tqdm(range(config.steps), desc="classifier", mininterval=30.0):
            batch = next(batches)
            labels = labels_of(dataset, batch["index"].tolist(), list(model.factors.all))
            video = noisy(batch["video"], batch["noise_seed"].tolist(), config.noise)
            logits = model(video.to(device))
            losses = [known_cross_entropy(logits[name], labels[name].to(device)) for name in logits]
            loss = torch.stack(losses).mean()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
            if not norm.isfinite():
                raise ValueError(
                    f"the classifier's loss is not finite at step {step}; lower learning_rate="
                    f"{config.learning_rate}"
                )
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
            if (step + 1) % config.log_every == 0:
                logger.info("step %d: loss %.4f", step + 1, loss.item())
    return model.eval()


def known_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the clips whose class is known; zero if it is known of none."""
    known = labels != UNKNOWN
    total = functional.cross_entropy(logits, labels, ignore_index=UNKNOWN, reduction="sum")
    return total / known.sum().clamp(min=1)


def noisy(video: Tensor, seeds: Sequence[int], highest: float) -> Tensor:
    """(B, 3, T, H, W): each clip with Gaussian noise of its own strength, from its own seed."""
    if highest == 0:
        return video
    clips = []
    for clip, seed in zip(video, seeds, strict=True):
        generator = torch.Generator().manual_seed(seed)
        strength = highest * torch.rand((), generator=generator)
        clips.append(clip + strength * torch.randn(clip.shape, generator=generator))
    return torch.stack(clips)


def judge_dataset(
    model: VideoClassifier, dataset: VideoDataset, batch_size: int, processes: Processes
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """What the classifier says of every clip of a data set.

    Returns:
        For each clip in order: index, path, labels (factor -> class), probabilities (factor ->
        (classes,) float64 list); and the files that could not be used.
    """
    names = list(model.factors.all)
    rows: list[dict[str, Any]] = []
    skipped: list[Any] = []
    batches = processes.share(batches_of(len(dataset), batch_size))
    keys = [[(index, 0) for index in batch] for batch in batches]
    for batch in iterate_variants(dataset, keys):
        skipped += [tuple(item) for item in batch["skipped"]]
        if batch["video"] is None:
            continue
        found = model.predict(batch["video"])
        for place, row in enumerate(batch["rows"]):
            labels = dataset.factors(row["index"])
            rows.append(
                {
                    "index": row["index"],
                    "path": row["path"],
                    "labels": {name: labels[name] for name in names},
                    "probabilities": {name: found[name][place].double().tolist() for name in names},
                }
            )
    return processes.gather_sorted(rows), merge_skipped(processes.gather(skipped))


def describe(config: ClassifierConfig) -> dict[str, Any]:
    """What a training would be: clips, factors and parameters."""
    dataset, test = build_dataset(config.data), build_dataset(config.test_data)
    factors = factor_labels(dataset)
    model = build_classifier(config, factors)
    return {
        "training_clips": len(dataset),
        "test_clips": len(test),
        "content": {name: len(names) for name, names in factors.content.items()},
        "motion": {name: len(names) for name, names in factors.motion.items()},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "epochs": config.steps * config.batch_size / len(dataset),
    }


def measure(config: ClassifierConfig, processes: Processes) -> Report:
    """Trains on the main process, tests on all, and saves the classifier.

    Raises:
        ValueError: if the data have no labels, or no clip to test on.
    """
    dataset, test = build_dataset(config.data), build_dataset(config.test_data)
    if factor_labels(dataset) != factor_labels(test):
        raise ValueError(
            f"data.part={config.data.part} and test_part={config.test_part} have different classes"
        )
    weights: list[dict[str, Any]] = []
    if processes.main:
        trained = train_classifier(config, dataset, processes.device)
        trained.save_pretrained(Path(config.output) / MODEL_FOLDER)
        weights = [{name: each.cpu() for name, each in trained.state_dict().items()}]
    model = build_classifier(config, factor_labels(dataset)).eval()
    model.to(processes.device)  # type: ignore[arg-type]
    model.load_state_dict(processes.gather(weights)[0])
    rows, skipped = judge_dataset(model, test, config.batch_size, processes)
    if not rows:
        raise ValueError(f"none of the {len(test)} clips of test_part={config.test_part} is usable")
    return make_report(config, processes, model, rows, skipped)


def make_report(
    config: ClassifierConfig,
    processes: Processes,
    model: VideoClassifier,
    rows: Sequence[dict[str, Any]],
    skipped: list[dict[str, str]],
) -> Report:
    """The accuracy of each factor on the held-out clips."""
    found = {"accuracy": accuracies(rows, model.factors)}
    confusions = {name: confusion(rows, name, names) for name, names in model.factors.all.items()}
    shares = found["accuracy"]
    return Report(
        name="classifier",
        protocol={
            "metric": "accuracy of the likeliest class, on clips not trained on",
            "training": data_protocol(config.data, len(build_dataset(config.data))),
            "test": data_protocol(config.test_data, len(rows)),
            "steps": config.steps,
            "batch_size": config.batch_size,
            "learning_rate": config.learning_rate,
            "noise": config.noise,
            "seed": config.seed,
            "model": {name: model.config[name] for name in ("channels", "hidden_size", "dropout")},
            "checkpoint": str(Path(config.output) / MODEL_FOLDER),
            "weights_digest": weights_digest(model),
            **software_protocol(processes),
        },
        found=found,
        rows=[flat_row(row, model.factors) for row in rows],
        skipped=skipped,
        markdown=[
            ("data", f"{config.data.source}, {config.test_part}"),
            ("n", str(len(rows))),
            *((name, percent(share)) for name, share in shares.items()),
        ],
        draw=lambda path: draw_confusions(path, confusions, model.factors),
    )


def accuracies(rows: Sequence[Mapping[str, Any]], factors: Factors) -> dict[str, Any]:
    """Share of the clips whose likeliest class is the label: of each factor, of all content, of
    all motion and of all factors at once, with 95 % intervals; clips without a label left out."""
    right = {
        name: [likeliest(row, name) == row["labels"][name] for row in rows] for name in factors.all
    }
    known = {name: [row["labels"][name] != UNKNOWN for row in rows] for name in factors.all}
    groups = {name: [name] for name in factors.all}
    groups |= {
        f"all {group}": list(names)
        for group, names in (("content", factors.content), ("motion", factors.motion))
        if len(names) > 1
    }
    if len(factors.all) > 1:
        groups["all"] = list(factors.all)
    found = {}
    for group, names in groups.items():
        verdicts = [
            all(right[name][place] for name in names)
            for place in range(len(rows))
            if all(known[name][place] for name in names)
        ]
        found[group] = share_interval(sum(verdicts), len(verdicts))
    return found


def likeliest(row: Mapping[str, Any], name: str) -> int:
    """The class that a clip most likely has."""
    return int(np.argmax(row["probabilities"][name]))


def confusion(
    rows: Sequence[Mapping[str, Any]], name: str, names: Sequence[str]
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """(classes, classes): how many clips of a class (row) were taken for each (column)."""
    counts = np.zeros((len(names), len(names)), np.int64)
    for row in rows:
        if row["labels"][name] != UNKNOWN:
            counts[row["labels"][name], likeliest(row, name)] += 1
    return counts


def flat_row(row: Mapping[str, Any], factors: Factors) -> dict[str, Any]:
    """A line of the CSV: what is so, what was seen, and how sure."""
    line: dict[str, Any] = {"index": row["index"], "path": row["path"]}
    for name, names in factors.all.items():
        label, seen = row["labels"][name], likeliest(row, name)
        line[name] = names[label] if label != UNKNOWN else ""
        line[f"{name}_seen"] = names[seen]
        line[f"{name}_probability"] = row["probabilities"][name][seen]
    return line


def percent(share: Mapping[str, Any]) -> str:
    """A share with its interval, in percent."""
    if share["value"] is None:
        return "-"
    value, low, high = (100 * share[key] for key in ("value", "low", "high"))
    return f"{value:.1f} ({low:.1f} to {high:.1f})"


def draw_confusions(
    path: Path, confusions: Mapping[str, np.ndarray[Any, Any]], factors: Factors
) -> None:
    """One panel for each factor: of the clips of each class, the share taken for each."""
    from matplotlib.colors import LinearSegmentedColormap

    shades = LinearSegmentedColormap.from_list("share", ["#FFFFFF", COLORS[0]])
    columns = min(3, len(confusions))
    figure, panels = new_figure(-(-len(confusions) // columns), columns)
    for panel in panels[len(confusions) :]:
        panel.set_visible(False)
    for panel, (name, counts) in zip(panels, confusions.items(), strict=False):
        names = factors.all[name]
        shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        panel.imshow(shares, cmap=shades, vmin=0, vmax=1)
        panel.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=6)
        panel.set_yticks(range(len(names)), names, fontsize=6)
        panel.grid(False)
        right = np.trace(counts) / max(counts.sum(), 1)
        panel.set_title(f"{name}: {100 * right:.2f} % of {counts.sum()}")
    save_figure(figure, path)
