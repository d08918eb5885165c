"""Classifier-free guidance by an ordered list of conditions, each with its own scale.

    guided = null + sum over i of scale_i (with conditions 1 to i - with conditions 1 to i - 1)

Latents that are given, not sampled, are the first condition if there are any. A negative prompt
takes the place of the null text wherever the given latents are known.

Source: classifier-free guidance (arXiv 2207.12598), with the terms of arXiv 2206.01714 and
InstructPix2Pix (arXiv 2211.09800) for several conditions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from diffusion.conditions import Conditions
from diffusion.config import GuidanceScales
from vidtwin import VidTwinLatents

GIVEN = "given"
# (condition, its scales for structure, dynamics_x and dynamics_y)
GuidanceTerm = tuple[str, tuple[float, float, float]]


def guidance_terms(
    conditions: Conditions, scales: GuidanceScales, has_given: bool
) -> list[GuidanceTerm]:
    """What a batch is guided by: given latents, then its conditions in their order."""
    names = [*([GIVEN] if has_given else []), *conditions.names]
    return [(name, scales.of(name)) for name in names]


def guided_prediction(
    predict: Callable[[Conditions, Sequence[bool]], VidTwinLatents],
    conditions: Conditions,
    terms: Sequence[GuidanceTerm],
    negative: Conditions | None = None,
) -> VidTwinLatents:
    """The model's predictions, pushed towards the conditions.

    Args:
        predict: (conditions of V variants one after another, for each variant whether the given
            latents are known to it) -> predictions, V x B rows each; called once.
        conditions: of the B samples.
        terms: what to guide by, in order; with all scales 1 there is one variant.
        negative: conditions to take in place of unconditional values.
    """
    names = [name for name, _ in terms]
    # A variant knows the first `count` conditions. It stands in the sum with its own scale and,
    # as what the next one is compared with, with minus the next one's.
    ladder = [(1.0, 1.0, 1.0), *(scales for _, scales in terms), (0.0, 0.0, 0.0)]
    variants, weights, given_known = [], [], []
    for count in reversed(range(len(names) + 1)):
        weight = [own - after for own, after in zip(ladder[count], ladder[count + 1])]
        if any(weight):  # one that counts for nothing is not asked for
            knows_given = GIVEN in names[:count] or GIVEN not in names
            variants.append(conditions.keep(names[:count], negative if knows_given else None))
            weights.append(weight)
            given_known.append(knows_given)
    predictions = predict(Conditions.cat(variants), given_known)
    if len(variants) == 1:
        return predictions

    def weighted_sum(prediction: Tensor, factors: Sequence[float]) -> Tensor:
        chunks = prediction.chunk(len(variants))
        terms = [factor * chunk for factor, chunk in zip(factors, chunks) if factor]
        return torch.stack(terms).sum(0)

    by_latent = zip(predictions.tensors(), zip(*weights), strict=True)
    return VidTwinLatents(*(weighted_sum(*pair) for pair in by_latent))
