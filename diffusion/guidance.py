"""Classifier-free guidance by an ordered list of conditions, each with its own scale.

    guided = null + sum over i of scale_i (with conditions 1 to i - with conditions 1 to i - 1)

What is combined is what the transformer predicts, at one noised sample. The weights of all variants
sum to 1, and velocity, epsilon, v and x0 follow from each other linearly there; so whichever of
them is predicted, the guided velocity is the same.

Latents that are given, not sampled, are the first condition if there are any. A negative prompt
takes the place of the null text wherever the given latents are known.

Source: classifier-free guidance (arXiv 2207.12598), with the terms of arXiv 2206.01714 and
InstructPix2Pix (arXiv 2211.09800) for several conditions.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

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


def guidance_variants(
    terms: Sequence[GuidanceTerm],
) -> list[tuple[int, tuple[float, float, float]]]:
    """(how many of the conditions a variant knows, its weights for each latent) of each variant
    that counts for anything, the one that knows most first.
    """
    # A variant stands in the sum with its own scale and, as what the next one is compared with,
    # with minus the next one's.
    ladder = [(1.0, 1.0, 1.0), *(scales for _, scales in terms), (0.0, 0.0, 0.0)]
    found = []
    for count in reversed(range(len(terms) + 1)):
        own, after = ladder[count], ladder[count + 1]
        weights = (own[0] - after[0], own[1] - after[1], own[2] - after[2])
        if any(weights):
            found.append((count, weights))
    return found


def takes_negative(names: Sequence[str], count: int) -> bool:
    """Whether the variant that knows the first `count` names sees a negative prompt."""
    return "text" not in names[:count] and (GIVEN in names[:count] or GIVEN not in names)


def check_negative(
    conditions: Conditions, scales: GuidanceScales, given: Sequence[Collection[str]]
) -> None:
    """Raises ValueError for a negative prompt that changes none of the latents that are sampled.

    Args:
        given: the names of the latents that are given in each window of the video.
    """
    for names_given in given:
        terms = guidance_terms(conditions, scales, bool(names_given))
        names = [name for name, _ in terms]
        for count, weights in guidance_variants(terms):
            acts = any(
                weight
                for name, weight in zip(VidTwinLatents.names, weights, strict=True)
                if name not in names_given
            )
            if acts and takes_negative(names, count):
                return
    raise ValueError(
        "a `negative_prompt` does nothing while every guidance scale is 1.0, or that of the prompt "
        "is also that of what is given; raise `guidance_scale`, or leave it out"
    )


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
    variants, weights, given_known = [], [], []
    for count, weight in guidance_variants(terms):
        replaces = negative if takes_negative(names, count) else None
        variants.append(conditions.keep(names[:count], replaces))
        weights.append(weight)
        given_known.append(GIVEN in names[:count] or GIVEN not in names)
    predictions = predict(Conditions.cat(variants), given_known)
    if len(variants) == 1:
        return predictions

    def weighted_sum(prediction: Tensor, factors: Sequence[float]) -> Tensor:
        chunks = prediction.chunk(len(variants))
        terms = [factor * chunk for factor, chunk in zip(factors, chunks) if factor]
        return torch.stack(terms).sum(0)

    by_latent = zip(predictions.tensors(), zip(*weights), strict=True)
    return VidTwinLatents(*(weighted_sum(*pair) for pair in by_latent))
