"""How the classifier learns.

Axes: B batch, T frames, H W pixels.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from vidtwin.data import Factors, VideoDataset, build_loader, factor_labels
from vidtwin_lab.evaluation.classifier.config import ClassifierConfig
from vidtwin_lab.evaluation.classifier.model import VideoClassifier
from vidtwin_lab.evaluation.classifier.verdicts import UNKNOWN

__all__ = ["build_classifier", "train_classifier"]

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
