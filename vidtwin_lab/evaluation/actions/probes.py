"""Ridge regression and a small network from a feature to actions and states, and their R².

A probe is one function for all frames: it is given a feature at a frame and at some before and
after it, and which frame of the clip it is.

    R² = 1 - sum of squared errors / sum of squared deviations from the mean of the test clips

for each number that is probed, over all frames and test clips; the mean over the numbers is
reported. Its interval is a bootstrap over test clips.

Axes: N clips, T frames, D values of a feature at a frame, K numbers of a target.
Source: linear probes (Alain and Bengio, arXiv 1610.01644).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vidtwin_lab.evaluation.actions.config import ProbesConfig
from vidtwin_lab.evaluation.actions.networks import train_to_best
from vidtwin_lab.evaluation.statistics import resampling_counts

__all__ = ["Probed", "probe", "r_squared"]

Array = NDArray[Any]
RESAMPLES = 1000


@dataclass(frozen=True, eq=False)
class Probed:
    """What a probe says of test clips.

    Args:
        predictions: set of test clips -> target -> (N, T - 1, K).
        chosen: the penalty, or the step of the network.
    """

    predictions: list[dict[str, Array]]
    chosen: float


def probe(
    features: Sequence[Array],
    targets: Mapping[str, Array],
    config: ProbesConfig,
    kind: str,
    seed: int,
) -> Probed:
    """Fits a probe to the training clips and applies it to the others.

    Args:
        features: (N, T, D) of the training clips, then of each set of test clips; (N, 1, D) for
            what is of a whole clip.
        targets: name -> (N, T - 1, K) of the training clips.
        config: how to train.
        kind: "linear" or "network".
        seed: of the validation part and of the network.
    """
    count, frames = next(iter(targets.values())).shape[:2]
    inputs = [_windows(each, frames, config.context) for each in features]
    mean, spread = inputs[0].mean((0, 1)), inputs[0].std((0, 1))
    # A value that never changes says nothing; divided by its spread it would be noise.
    used = spread > 1e-6 * spread.max()
    inputs = [((each - mean) / spread.clamp_min(1e-12))[..., used] for each in inputs]
    wanted = torch.cat([torch.from_numpy(each).float() for each in targets.values()], -1)
    center, scale = wanted.mean((0, 1)), wanted.std((0, 1)).clamp_min(1e-8)
    wanted = (wanted - center) / scale
    order = torch.from_numpy(np.random.default_rng([seed, 7]).permutation(count))
    held_out = max(1, round(config.validation_fraction * count))
    parts = order[held_out:], order[:held_out]  # whole clips
    fit = _ridge if kind == "linear" else _network
    outputs, chosen = fit(inputs, wanted, parts, config, seed)
    sizes = [target.shape[-1] for target in targets.values()]
    predictions = []
    for output in outputs:
        values = (output * scale + center).split(sizes, dim=-1)
        predictions.append(dict(zip(targets, (each.numpy() for each in values), strict=True)))
    return Probed(predictions, chosen)


def _windows(feature: Array, frames: int, context: int) -> Tensor:
    """(N, frames, D'): the feature at each frame and around it, and which frame it is."""
    values = torch.from_numpy(feature).float()
    if values.shape[1] == 1:
        parts = [values.expand(-1, frames, -1)]
    else:
        places = torch.arange(frames)
        last = values.shape[1] - 1
        parts = [
            values[:, (places + shift).clamp(0, last)] for shift in range(-context, context + 1)
        ]
    return torch.cat([*parts, torch.eye(frames).expand(len(values), -1, -1)], dim=-1)


def _ridge(
    inputs: Sequence[Tensor],
    wanted: Tensor,
    parts: tuple[Tensor, Tensor],
    config: ProbesConfig,
    seed: int,
) -> tuple[list[Tensor], float]:
    """Outputs for every set of test clips, by the penalty that is best on the validation part."""
    train, validation = parts

    def weights(clips: Tensor, penalties: Sequence[float]) -> list[Tensor]:
        rows, answers = inputs[0][clips].flatten(0, 1).double(), wanted[clips].flatten(0, 1)
        values, vectors = torch.linalg.eigh(rows.T @ rows)
        products = vectors.T @ (rows.T @ answers.double())
        return [
            (vectors @ (products / (values + penalty * len(rows))[:, None])).float()
            for penalty in penalties
        ]

    errors = [
        float((inputs[0][validation] @ each - wanted[validation]).square().mean())
        for each in weights(train, config.penalties)
    ]
    penalty = config.penalties[int(np.argmin(errors))]
    (final,) = weights(torch.arange(len(wanted)), [penalty])
    return [each @ final for each in inputs[1:]], penalty


def _network(
    inputs: Sequence[Tensor],
    wanted: Tensor,
    parts: tuple[Tensor, Tensor],
    config: ProbesConfig,
    seed: int,
) -> tuple[list[Tensor], float]:
    """The same by a network of one hidden layer, at its best step on the validation part."""
    train, validation = parts
    rows, answers = inputs[0][train].flatten(0, 1), wanted[train].flatten(0, 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Linear(rows.shape[1], config.hidden_size),
            nn.GELU(),
            nn.Linear(config.hidden_size, wanted.shape[-1]),
        )
    rng = np.random.default_rng([seed, 8])

    def loss() -> Tensor:
        batch = torch.from_numpy(rng.integers(len(rows), size=config.batch_size))
        return (network(rows[batch]) - answers[batch]).square().mean()

    def error() -> Tensor:
        return (network(inputs[0][validation]) - wanted[validation]).square().mean()

    chosen = train_to_best(network, config, loss, error)
    with torch.no_grad():
        return [network(each) for each in inputs[1:]], float(chosen)


def r_squared(predicted: Array, true: Array, seed: int = 0) -> dict[str, Any]:
    """Mean R² over the K numbers of a target, with its interval, and each number's R² and error.

    Args:
        predicted, true: (N, T', K).
    Returns:
        dict: value, low, high, n; "each", R² of every number; "rmse", their errors in the units
        of the target.
    """
    error = np.square(predicted - true).sum(1)  # (N, K)
    sums, squares = true.sum(1), np.square(true).sum(1)
    frames = true.shape[1]

    def score(counts: Array) -> Array:
        """(R, K) for clips that are drawn so often, (R, N)."""
        total = counts.sum(1, keepdims=True) * frames
        spread = counts @ squares - np.square(counts @ sums) / total
        return 1 - (counts @ error) / np.maximum(spread, 1e-12)

    each = score(np.ones((1, len(true))))[0]
    drawn = score(resampling_counts(len(true), RESAMPLES, seed, 0)).mean(1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {
        "value": float(each.mean()),
        "low": float(low),
        "high": float(high),
        "n": len(true),
        "each": each.tolist(),
        "rmse": np.sqrt(error.mean(0) / frames).tolist(),
    }
