"""Trains a small video classifier on real clips, as the judge of content and motion.

    python evaluate.py classifier --config configs/evaluation/classifier_sprites.yaml

Its accuracy on held-out clips is in its report: no measurement that it judges can be better.

Axes: B batch, T frames, H W pixels.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from vidtwin import weights_digest
from vidtwin.data import (
    Factors,
    VideoDataset,
    build_dataset,
    build_loader,
    factor_labels,
    iterate_variants,
)
from vidtwin_lab.evaluation.intervals import interval_text
from vidtwin_lab.evaluation.judges.classifier_judge import (
    MODEL_FOLDER,
    UNKNOWN,
    VideoClassifier,
    accuracies,
    confusion,
    flat_row,
    probabilities_of,
)
from vidtwin_lab.evaluation.measurement_configs import ClassifierConfig
from vidtwin_lab.evaluation.report import (
    COLORS,
    Processes,
    Report,
    batches_of,
    data_protocol,
    fields_of,
    merge_skipped,
    new_figure,
    save_figure,
    software_protocol,
)

__all__ = ["build_classifier", "describe", "judge_dataset", "measure", "train_classifier"]


def judge_dataset(
    model: VideoClassifier, dataset: VideoDataset, batch_size: int, processes: Processes
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """What the classifier says of every clip of a data set.

    Returns:
        For each clip in order: index, path, labels (factor -> class), probabilities (factor ->
        (classes,) float64 list); and the files that could not be used.
    """
    rows: list[dict[str, Any]] = []
    skipped: list[Any] = []
    batches = processes.share(batches_of(len(dataset), batch_size))
    keys = [[(index, 0) for index in batch] for batch in batches]
    for batch in iterate_variants(dataset, keys):
        skipped += [tuple(item) for item in batch["skipped"]]
        if batch["video"] is None:
            continue
        found = probabilities_of(model, batch["video"])
        for row, probabilities in zip(batch["rows"], found, strict=True):
            known = dataset.factors(row["index"])
            labels = {name: known[name] for name in model.factors.all}
            own = {"index": row["index"], "path": row["path"], "labels": labels}
            rows.append(own | {"probabilities": probabilities})
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
            **fields_of(config, "steps", "batch_size", "learning_rate", "noise", "seed"),
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
            *((name, interval_text(share, scale=100)) for name, share in shares.items()),
        ],
        draw=lambda path: draw_confusions(path, confusions, model.factors),
    )


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


logger = logging.getLogger(__name__)


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
