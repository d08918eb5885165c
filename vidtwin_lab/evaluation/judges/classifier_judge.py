"""The video classifier, one head for each factor of a data set, and what its answers add up to.

Axes: B batch, C channels, T frames, H W pixels, h w of feature maps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from vidtwin import StrictLoading
from vidtwin.data import Factors
from vidtwin_lab.evaluation.intervals import share_interval

__all__ = [
    "MODEL_FOLDER",
    "UNKNOWN",
    "VideoClassifier",
    "accuracies",
    "confusion",
    "flat_row",
    "load_classifier",
    "probabilities_of",
]

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

    def hidden(self, video: Tensor) -> Tensor:
        """What the heads see, (B, hidden_size), of (B, 3, T, H, W) videos in [-1, 1].

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
        mixed: Tensor = self.mix(rearrange(features, "B C T h w -> B (C T h w)"))
        return mixed

    def heads_of(self, hidden: Tensor) -> dict[str, Tensor]:
        """Factor -> (B, classes) logits of what `hidden` gives."""
        return {name: head(hidden) for name, head in zip(self.factors.all, self.heads, strict=True)}

    def forward(self, video: Tensor) -> dict[str, Tensor]:
        """Factor -> (B, classes) logits of (B, 3, T, H, W) videos in [-1, 1]; see `hidden`."""
        return self.heads_of(self.hidden(video))

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


def probabilities_of(model: VideoClassifier, video: Tensor) -> list[dict[str, list[float]]]:
    """Factor -> probability of each class, for each of (B, 3, T, H, W) videos."""
    found = model.predict(video)
    return [
        {name: each[place].double().tolist() for name, each in found.items()}
        for place in range(len(video))
    ]


def load_classifier(path: str, key: str) -> VideoClassifier:
    """A trained classifier, by its own folder or that of the training's results.

    Args:
        path: the folder.
        key: the config's key that names it, for the message.
    Raises:
        ValueError: if there is none, saying how to make one.
    """
    candidates = (Path(path), Path(path) / MODEL_FOLDER)
    folder = next((one for one in candidates if (one / "config.json").is_file()), None)
    if folder is None:
        raise ValueError(
            f"{key}={path} holds no classifier: expected config.json in it or in "
            f"{MODEL_FOLDER} below it; train one with evaluate.py classifier"
        )
    classifier: VideoClassifier = VideoClassifier.from_pretrained(folder, local_files_only=True)
    return classifier.eval()


UNKNOWN = -1


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
