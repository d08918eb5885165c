"""What a linear probe and nearest neighbours find out about a factor from a latent.

A probe is multinomial logistic regression on standardised features:

    minimise  mean(cross entropy) + penalty / 2 * |W|^2        (the bias is free)

trained on one part of the clips, its penalty chosen on a second by cross entropy, tested on a
third. A deeper network may find more: leakage is at least what the probe finds.

Retrieval compares latents by the cosine of their deviations from the mean over all clips; every
clip is a query for all the others. Ties go to the clip that comes first.

Axes: N clips, D latent values, K classes, P penalties.
Source: linear probes (Alain and Bengio, arXiv 1610.01644), the informativeness of DCI (Eastwood
and Williams, ICLR 2018), label permutation after Ojala and Garriga (JMLR 2010), usable information
in bits after Xu et al. (arXiv 2002.10689); retrieval after Xu et al. (Video Clip Order Prediction,
CVPR 2019); average precision of a random order: Bestgen, PBML 103 (2015).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from vidtwin_lab.evaluation.disentanglement.config import ProbeConfig
from vidtwin_lab.evaluation.intervals import interval_of, share_interval

__all__ = [
    "RANKS",
    "Features",
    "ProbeResult",
    "Retrieval",
    "mean_retrieval",
    "prepare",
    "retrieve",
    "run_probe",
    "similarities",
]

Labels = NDArray[np.int64]
LEAST_CLIPS = 20


@dataclass(frozen=True, eq=False)
class Features:
    """A latent of all clips, standardised by the training part and rotated.

    A rotation changes nothing for this regression, whose weights lie in the span of the training
    clips: in the coordinates of its singular vectors there are at most as many features as
    training clips.

    Args:
        train, validation, test: (n, D') float64.
        parts: (train, validation, test) indices of the clips.
        num_values: D.
    """

    train: Tensor
    validation: Tensor
    test: Tensor
    parts: tuple[Labels, Labels, Labels]
    num_values: int


@dataclass(frozen=True, eq=False)
class ProbeResult:
    """What one probe found.

    Args:
        found: the numbers.
        right: (n,) of the test clips, whether the probe names their class.
        majority: (n,) the same for the training part's most frequent class.
        permuted: (n,) share of the probes of shuffled labels that are right; empty without any.
    """

    found: dict[str, Any]
    right: NDArray[np.float64]
    majority: NDArray[np.float64]
    permuted: NDArray[np.float64]


def split_clips(number: int, config: ProbeConfig, seed: int) -> tuple[Labels, Labels, Labels]:
    """Indices of the train, validation and test part, drawn without regard to labels.

    Raises:
        ValueError: if there are too few clips for three parts.
    """
    if number < LEAST_CLIPS:
        raise ValueError(
            f"probes need at least {LEAST_CLIPS} clips for their three parts, got {number}; "
            "set samples=... to more"
        )
    order = np.random.default_rng([seed, number]).permutation(number)
    first = round(config.train_fraction * number)
    second = first + max(1, round(config.validation_fraction * number))
    return np.sort(order[:first]), np.sort(order[first:second]), np.sort(order[second:])


def prepare(features: NDArray[Any], config: ProbeConfig, seed: int) -> Features:
    """The features of all clips as every probe of this latent takes them.

    Args:
        features: (N, D), finite.
        config: how large the parts are.
        seed: of the parts.
    """
    parts = split_clips(len(features), config, seed)
    values = torch.from_numpy(np.asarray(features, np.float64))
    train = values[torch.from_numpy(parts[0])]
    spread = train.std(0, correction=0)
    # A value that never changes says nothing; divided by its spread it would be noise.
    used = spread > 1e-6 * spread.max()
    scaled = ((values - train.mean(0)) / spread.clamp_min(1e-300))[:, used]
    if used.any():
        basis = torch.linalg.svd(scaled[torch.from_numpy(parts[0])], full_matrices=False).Vh
        scaled = scaled @ basis.T
    train, validation, test = (scaled[torch.from_numpy(part)] for part in parts)
    return Features(train, validation, test, parts, features.shape[1])


def run_probe(features: Features, labels: Labels, config: ProbeConfig, seed: int) -> ProbeResult:
    """How much of a factor a probe finds in a latent.

    Args:
        features: of `prepare`.
        labels: (N,) class of each clip.
        config: how to train.
        seed: of the permutations.
    """
    num_classes = int(labels.max()) + 1
    train, validation, test = (torch.from_numpy(labels[part]) for part in features.parts)
    penalty, weights = _choose(features, train, validation, num_classes, config)
    scores = _with_bias(features.test) @ weights
    right = (scores.argmax(1) == test).double().numpy()
    common = int(torch.bincount(train, minlength=num_classes).argmax())
    majority = (test == common).double().numpy()
    rng = np.random.default_rng([seed, 1])
    permuted = np.zeros((config.permutations, len(test)))
    for row in permuted:
        shuffled = train[torch.from_numpy(rng.permutation(len(train)))]
        # Shuffled labels hold nothing to find, so a coarse fit is enough.
        fitted = fit(
            features.train, shuffled, num_classes, penalty, config.max_iterations, tolerance=1e-4
        )
        row[:] = (_with_bias(features.test) @ fitted).argmax(1) == test
    found = {
        "accuracy": share_interval(int(right.sum()), len(right)),
        "balanced_accuracy": _balanced(right, test.numpy()),
        "majority": float(majority.mean()),
        **_permutation_test(permuted, float(right.mean())),
        **_information(scores, train, test, num_classes),
        "penalty": penalty,
        "classes": num_classes,
        "values": features.num_values,
        "clips": {"train": len(train), "validation": len(validation), "test": len(test)},
    }
    by_clip = permuted.mean(0) if config.permutations else np.empty(0)
    return ProbeResult(found, right, majority, by_clip)


def fit(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    penalty: float,
    max_iterations: int,
    start: Tensor | None = None,
    tolerance: float = 1e-6,
) -> Tensor:
    """(D + 1, K): weights and, in the last row, biases of the regression, by L-BFGS in float64.

    Args:
        features: (N, D).
        labels: (N,).
        start: weights to start from; zeros by default.
        tolerance: largest entry of the gradient at which the search may end.
    """
    inputs = _with_bias(features)
    zeros = inputs.new_zeros(inputs.shape[1], num_classes)
    weights = (zeros if start is None else start).clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weights], max_iter=max_iterations, tolerance_grad=tolerance, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(inputs @ weights, labels)
        loss = loss + 0.5 * penalty * weights[:-1].square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return weights.detach()


def mean_probe(results: Sequence[ProbeResult]) -> dict[str, Any]:
    """The mean of several factors' probes of one latent, with an interval over the test clips."""
    majority = np.mean([result.majority for result in results], axis=0)
    found = {
        "accuracy": interval_of(np.mean([result.right for result in results], axis=0)),
        "majority": float(majority.mean()),
    }
    if len(results[0].permuted):
        found["permuted"] = float(np.mean([result.permuted for result in results]))
    return found


def _choose(
    features: Features, train: Tensor, validation: Tensor, num_classes: int, config: ProbeConfig
) -> tuple[float, Tensor]:
    """The penalty with the least cross entropy on the validation part, and its weights."""
    best, weights = (math.inf, math.nan, torch.empty(0)), None
    for penalty in sorted(config.penalties, reverse=True):  # the strongest is found the quickest
        weights = fit(
            features.train, train, num_classes, penalty, config.max_iterations, start=weights
        )
        scores = _with_bias(features.validation) @ weights
        loss = float(functional.cross_entropy(scores, validation))
        if loss < best[0]:
            best = (loss, penalty, weights)
    return best[1], best[2]


def _with_bias(features: Tensor) -> Tensor:
    return torch.cat([features, features.new_ones(len(features), 1)], dim=1)


def _balanced(right: NDArray[np.float64], labels: Labels) -> float:
    """The mean over classes of the share of their clips that are right."""
    return float(np.mean([right[labels == one].mean() for one in np.unique(labels)]))


def _permutation_test(permuted: NDArray[np.float64], accuracy: float) -> dict[str, Any]:
    if not len(permuted):
        return {"permuted": None, "p_value": None}
    by_chance = permuted.mean(1)
    beaten = int((by_chance >= accuracy).sum())
    return {
        "permuted": {
            "value": float(by_chance.mean()),
            "low": float(by_chance.min()),
            "high": float(by_chance.max()),
            "n": len(by_chance),
        },
        "p_value": (1 + beaten) / (1 + len(by_chance)),
    }


def _information(scores: Tensor, train: Tensor, test: Tensor, num_classes: int) -> dict[str, float]:
    """Bits of the factor that the probe gets from the features, and the labels' bits.

    The labels' bits are the cross entropy of a guess without features: the training part's
    frequencies, with one clip added to each class so that none is impossible.
    """
    counts = torch.bincount(train, minlength=num_classes).double() + 1
    blind = -(counts / counts.sum()).log2()[test].mean()
    seeing = functional.cross_entropy(scores, test) / math.log(2)
    return {"bits": float(blind - seeing), "bits_of_labels": float(blind)}


RANKS = (1, 5)
Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Retrieval:
    """How well each query did.

    Args:
        precision: rank -> (n,) share of the first neighbours with the query's class.
        average_precision: (n,).
        chance: (n,) precision that a random order has, at any rank.
        chance_average: (n,) the average precision that it has.
        asked: (N,) which clips were queries: those whose class another one has.
    """

    precision: dict[int, Array]
    average_precision: Array
    chance: Array
    chance_average: Array
    asked: NDArray[np.bool_]

    def found(self) -> dict[str, Any]:
        """Means over the queries."""
        if not len(self.chance):
            return {"n": 0, "reason": "no two clips share a class"}
        return self.means() | {"clips_without_a_match": int((~self.asked).sum())}

    def means(self) -> dict[str, Any]:
        """Precision and average precision, each beside that of a random order."""
        return {
            **{f"precision_at_{k}": interval_of(each) for k, each in self.precision.items()},
            "precision_by_chance": float(self.chance.mean()),
            "mean_average_precision": interval_of(self.average_precision),
            "mean_average_precision_by_chance": float(self.chance_average.mean()),
        }


def similarities(latents: NDArray[Any]) -> Array:
    """(N, N) cosines of the deviations from the mean; a clip's with itself is minus infinity."""
    centered = np.asarray(latents, np.float64)
    centered = centered - centered.mean(0)
    norms = np.linalg.norm(centered, axis=1, keepdims=True)
    unit = centered / np.maximum(norms, 1e-12)
    # Rounded, so that equal clips tie whatever the processor's order of summation.
    cosines = np.round(unit @ unit.T, 12)
    np.fill_diagonal(cosines, -np.inf)
    return cosines


def retrieve(similarity: Array, labels: NDArray[np.int64]) -> Retrieval:
    """Every clip's neighbours in the order of their similarity.

    Args:
        similarity: (N, N) of `similarities`.
        labels: (N,) class of each clip.
    """
    number = len(labels)
    order = np.argsort(-similarity, axis=1, kind="stable")[:, : number - 1]  # not the clip itself
    same = labels[order] == labels[:, None]  # (N, N - 1)
    relevant = same.sum(1)
    queries = relevant > 0
    same, relevant = same[queries], relevant[queries]
    places = np.arange(1, number)
    precision_at = np.cumsum(same, axis=1) / places
    depths = {rank: min(rank, number - 1) for rank in RANKS}
    return Retrieval(
        precision={rank: precision_at[:, depth - 1] for rank, depth in depths.items()},
        average_precision=(precision_at * same).sum(1) / np.maximum(relevant, 1),
        chance=relevant / (number - 1),
        chance_average=random_average_precision(relevant, number - 1),
        asked=queries,
    )


def mean_retrieval(results: Sequence[Retrieval]) -> dict[str, Any]:
    """The mean of several factors' results by one latent, over the clips that have a match in all
    of them."""
    every = np.logical_and.reduce([result.asked for result in results])
    if not every.any():
        return {"n": 0, "reason": "no clip shares its class with another in every factor"}

    def mean(columns: Sequence[Array]) -> Array:
        chosen = [
            column[every[result.asked]] for column, result in zip(columns, results, strict=True)
        ]
        return np.mean(chosen, axis=0)

    return Retrieval(
        precision={rank: mean([result.precision[rank] for result in results]) for rank in RANKS},
        average_precision=mean([result.average_precision for result in results]),
        chance=mean([result.chance for result in results]),
        chance_average=mean([result.chance_average for result in results]),
        asked=every,
    ).means()


def random_average_precision(relevant: NDArray[np.int64], number: int) -> Array:
    """(n,): expected average precision of a random order.

    The item at place k is relevant with R / N; given that, each of the k - 1 before it is with
    (R - 1) / (N - 1). Summed over k and divided by R.

    Args:
        relevant: (n,) R, how many of the items each query looks for.
        number: N, of items.
    """
    places = np.arange(1, number + 1, dtype=np.float64)
    others = (relevant - 1)[:, None] / max(1, number - 1)
    return ((1 + (places - 1) * others) / places).sum(1) / number
