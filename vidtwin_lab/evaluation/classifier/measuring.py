"""From a config to a report: the training, the test on held-out clips, the protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vidtwin import weights_digest
from vidtwin.data import Factors, VideoDataset, build_dataset, factor_labels, iterate_variants
from vidtwin_lab.evaluation.classifier.config import ClassifierConfig
from vidtwin_lab.evaluation.classifier.model import MODEL_FOLDER, VideoClassifier
from vidtwin_lab.evaluation.classifier.training import build_classifier, train_classifier
from vidtwin_lab.evaluation.classifier.verdicts import accuracies, confusion, flat_row, percent
from vidtwin_lab.evaluation.report import (
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

__all__ = ["describe", "judge_dataset", "measure"]


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
