"""Class and text conditions of a batch: leaving them out in training, guidance by them in sampling.

Axes: B batch, L text tokens.

    guided = null + given_scale (given - null) + text_scale (text - given)
                  + class_scale (class - text)

where each prediction knows what the one before it knew, and more: nothing, the latent that is
held, the text, the class. A term is missing where there is no such condition. Structure and
dynamics may have text and class scales of their own. A negative prompt takes the place of the null
text.
Source: classifier-free guidance (arXiv 2207.12598), with the terms of arXiv 2206.01714 and
InstructPix2Pix (arXiv 2211.09800) for two conditions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from diffusion.flow import Latents

__all__ = [
    "GuidanceScales",
]


@dataclass(frozen=True)
class Conditions:
    """What a batch of videos is asked to show.

    Args:
        class_labels: (B,) int64, the number of classes for the null class; None for a model
            without classes, or the null class for all.
        encoder_hidden_states: (B, L, D) states of the text encoder; None for no text.
        encoder_attention_mask: (B, L) bool, True for real tokens; a row without any is the null
            text.
    """

    class_labels: Tensor | None = None
    encoder_hidden_states: Tensor | None = None
    encoder_attention_mask: Tensor | None = None

    def __post_init__(self) -> None:
        if (self.encoder_hidden_states is None) != (self.encoder_attention_mask is None):
            raise ValueError("text states and their mask go together, got one without the other")

    def arguments(self) -> dict[str, Tensor]:
        """The conditions that are there, as keywords of `TwinDiT.forward`."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def to(self, device: torch.device | str) -> Conditions:
        """The same conditions on another device."""
        return Conditions(**{name: value.to(device) for name, value in self.arguments().items()})

    def __getitem__(self, index: slice) -> Conditions:
        """Some samples of the batch, by slice."""
        return Conditions(**{name: value[index] for name, value in self.arguments().items()})

    def without_class(self, num_classes: int | None) -> Conditions:
        """The null class for all."""
        if self.class_labels is None or num_classes is None:
            return self
        return replace(self, class_labels=torch.full_like(self.class_labels, num_classes))

    def without_text(self) -> Conditions:
        """The null text for all."""
        if self.encoder_attention_mask is None:
            return self
        mask = torch.zeros_like(self.encoder_attention_mask)
        return replace(self, encoder_attention_mask=mask)

    def drop(
        self,
        uniforms: Tensor,
        class_dropout: float | Tensor,
        text_dropout: float | Tensor,
        num_classes: int | None,
    ) -> Conditions:
        """Each condition left out where its column of (B, 2) uniform numbers is below its share.

        Args:
            uniforms: in [0, 1).
            class_dropout, text_dropout: probabilities, one for all or (B,).
            num_classes: of the model.
        """
        dropped = self
        uniforms = uniforms.to(_device_of(self))
        if self.class_labels is not None and num_classes is not None:
            labels = self.class_labels
            labels = torch.where(uniforms[:, 0] < class_dropout, num_classes, labels)
            dropped = replace(dropped, class_labels=labels)
        if self.encoder_attention_mask is not None:
            kept = uniforms[:, 1] >= text_dropout
            mask = self.encoder_attention_mask & kept[:, None]
            dropped = replace(dropped, encoder_attention_mask=mask)
        return dropped

    @staticmethod
    def cat(parts: Sequence[Conditions]) -> Conditions:
        """Batches with the same kinds of conditions as one; texts are padded to the longest."""
        first = parts[0]
        if any(set(part.arguments()) != set(first.arguments()) for part in parts):
            raise ValueError("only batches with the same kinds of conditions can be joined")
        labels = states = mask = None
        if first.class_labels is not None:
            labels = torch.cat(
                [part.class_labels for part in parts if part.class_labels is not None]
            )
        if first.encoder_hidden_states is not None:
            texts = [
                (part.encoder_hidden_states, part.encoder_attention_mask)
                for part in parts
                if part.encoder_hidden_states is not None
                and part.encoder_attention_mask is not None
            ]
            longest = max(text_mask.shape[1] for _, text_mask in texts)
            states = torch.cat(
                [functional.pad(s, (0, 0, 0, longest - s.shape[1])) for s, _ in texts]
            )
            mask = torch.cat([functional.pad(m, (0, longest - m.shape[1])) for _, m in texts])
        return Conditions(labels, states, mask)


@dataclass(frozen=True)
class GuidanceScales:
    """Strengths of classifier-free guidance; 1.0 is off.

    Args:
        text: of the prompt.
        class_: of the class.
        structure: for the structure latent, instead of both of the former; None for them.
        dynamics: the same for the dynamics latents.
        held: of the latent that is given while the other is sampled.
    Raises:
        ValueError: for a scale below 1, or one that is not finite.
    """

    text: float = 1.0
    class_: float = 1.0
    structure: float | None = None
    dynamics: float | None = None
    held: float = 1.0

    def __post_init__(self) -> None:
        names = {
            "text": "guidance_scale",
            "class_": "class_guidance_scale",
            "structure": "structure_guidance_scale",
            "dynamics": "dynamics_guidance_scale",
            "held": "given_guidance_scale",
        }
        for field, name in names.items():
            value = getattr(self, field)
            if value is not None and not 1.0 <= value < math.inf:
                raise ValueError(f"`{name}` must be at least 1.0 (which is off), got {value}")

    @property
    def guides(self) -> bool:
        """Whether any scale is above 1."""
        return any(scale > 1 for pair in self.pairs() for scale in pair)

    def pairs(self) -> tuple[tuple[float, float], ...]:
        """(text, class) scales of structure, dynamics_x and dynamics_y."""
        found = []
        for own in (self.structure, self.dynamics, self.dynamics):
            found.append((self.text, self.class_) if own is None else (own, own))
        return tuple(found)


def guided_prediction(
    predict: Callable[[Conditions, Sequence[bool]], Latents],
    conditions: Conditions,
    scales: GuidanceScales,
    num_classes: int | None,
    negative: Conditions | None = None,
    holds: bool = False,
) -> Latents:
    """The model's predictions, pushed towards the conditions.

    Args:
        predict: (conditions of V variants one after another, for each variant whether the held
            latent is known to it) -> predictions, V x B rows each; called once.
        conditions: of the B samples.
        scales: strengths; with all of them 1 there is one variant.
        num_classes: of the model.
        negative: with the states of a negative prompt, in place of the null text.
        holds: whether a latent is held.
    """
    has_class = conditions.class_labels is not None
    has_text = conditions.encoder_hidden_states is not None
    held = scales.held if holds else 1.0
    # Rows: structure, dynamics_x, dynamics_y. Columns: strengths of all conditions, of the text
    # and what is held, of what is held, of nothing; they sum to 1.
    strengths = []
    for text_scale, class_scale in scales.pairs():
        inner = text_scale if has_text else class_scale if has_class else held
        outer = class_scale if has_class else inner
        strengths.append((outer, inner - outer, held - inner, 1 - held))
    without_class = conditions.without_class(num_classes)
    variants = (
        (conditions, True),
        (without_class, True),
        (_unconditional(without_class, negative), True),
        (without_class.without_text(), False),
    )
    # A variant that counts for nothing is not asked for.
    columns = [column for column in range(4) if any(row[column] for row in strengths)]
    asked, knows = zip(*(variants[column] for column in columns))
    if columns == [0]:
        return predict(conditions, knows)
    predictions = predict(Conditions.cat(asked), knows)
    guided = []
    for prediction, row in zip(predictions, strengths, strict=True):
        chunks = prediction.chunk(len(columns))
        weighted = [row[column] * chunk for column, chunk in zip(columns, chunks) if row[column]]
        guided.append(torch.stack(weighted).sum(0))
    return guided[0], guided[1], guided[2]


def _unconditional(without_class: Conditions, negative: Conditions | None) -> Conditions:
    """The null text, or the negative prompt in its place."""
    if negative is None:
        return without_class.without_text()
    return replace(
        without_class,
        encoder_hidden_states=negative.encoder_hidden_states,
        encoder_attention_mask=negative.encoder_attention_mask,
    )


def _device_of(conditions: Conditions) -> torch.device:
    return next((value.device for value in conditions.arguments().values()), torch.device("cpu"))
