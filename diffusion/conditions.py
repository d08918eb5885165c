"""What a batch of videos is asked to show: one class for each kind of condition.

A `Condition` holds the tensors that `TwinDiT.forward` takes for it, a `ConditionEmbedder` makes
it from what a data set or a caller says, and `Conditions` are those of one batch in the order
that guidance adds them. docs/extending.md adds a new one.

Axes: B batch, L text tokens, D width of the text encoder.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional
from typing_extensions import Self

from diffusion.cached_text_encoder import CachedTextEncoder
from diffusion.text_encoder import TextEncoder

TOKENS_OF_A_CAPTION = 32  # about, to see whether all captions' states fit into memory


@dataclass(frozen=True)
class Condition(ABC):
    """One condition of a batch; its tensors are named as the keywords of `TwinDiT.forward`."""

    # Also the field of `GuidanceScales` that holds its strength.
    name: ClassVar[str]
    # Which of a sample's random numbers decides whether training leaves it out. It may never
    # change, or seeded runs would see other samples; a new condition takes the next one.
    dropout_column: ClassVar[int]

    @abstractmethod
    def null(self) -> Self:
        """The unconditional value for all."""

    def arguments(self) -> dict[str, Tensor]:
        """The tensors, as keywords of `TwinDiT.forward`."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """A function of each tensor."""
        return replace(self, **{name: function(t) for name, t in self.arguments().items()})

    def to(self, device: torch.device | str) -> Self:
        """The same condition on another device."""
        return self.map(lambda tensor: tensor.to(device))

    def __getitem__(self, index: slice) -> Self:
        """Some samples of the batch, by slice."""
        return self.map(lambda tensor: tensor[index])

    def drop(self, mask: Tensor) -> Self:
        """The unconditional value where the (B,) mask is True."""
        kept, null = self.arguments(), self.null().arguments()

        def chosen(name: str) -> Tensor:
            where = mask.to(kept[name].device).reshape(-1, *[1] * (kept[name].ndim - 1))
            return torch.where(where, null[name], kept[name])

        changed = [name for name in kept if null[name] is not kept[name]]
        return replace(self, **{name: chosen(name) for name in changed})

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """Several batches as one."""
        names = parts[0].arguments()
        joined = {name: torch.cat([part.arguments()[name] for part in parts]) for name in names}
        return replace(parts[0], **joined)


class ConditionEmbedder(ABC):
    """Makes one condition of what clips or callers say.

    Args:
        dropout: share of the training samples that learn without the condition.
    """

    condition: ClassVar[type[Condition]]
    # Of a loader's batch.
    column: ClassVar[str]

    def __init__(self, dropout: float = 0.1) -> None:
        self.dropout = dropout

    @abstractmethod
    def embed(self, values: Any) -> Condition:
        """The condition of some samples, from their column of a batch."""

    @abstractmethod
    def sizes(self) -> dict[str, Any]:
        """The keywords of `DiTConfig` that the condition brings."""

    def pipeline_parts(self) -> dict[str, Any]:
        """The keywords of `VidTwinPipeline` that the condition brings."""
        return {}

    def digests(self) -> dict[str, str | None]:
        """Of the weights it depends on, by the config key that names them."""
        return {}


@dataclass(frozen=True)
class TextCondition(Condition):
    """A text for each sample.

    Args:
        encoder_hidden_states: (B, L, D) states of the text encoder.
        encoder_attention_mask: (B, L) bool, True for real tokens; a row without any is the null
            text. Or (B, 1), see `without_padding`.
    """

    name = "text"
    dropout_column = 1

    encoder_hidden_states: Tensor
    encoder_attention_mask: Tensor

    def __len__(self) -> int:
        return len(self.encoder_hidden_states)

    def null(self) -> TextCondition:
        """The null text for all."""
        mask = torch.zeros_like(self.encoder_attention_mask)
        return replace(self, encoder_attention_mask=mask)

    def without_padding(self) -> TextCondition:
        """The same with a (B, 1) mask, by which attention needs none, if no text is padded.

        It reads the mask, so on an accelerator it waits: for a call, not for a step.
        """
        mask = self.encoder_attention_mask
        return replace(self, encoder_attention_mask=mask[:, :1]) if bool(mask.all()) else self

    @classmethod
    def cat(cls, parts: Sequence[TextCondition]) -> TextCondition:
        """Several batches as one, padded to the longest text."""
        longest = max(part.encoder_hidden_states.shape[1] for part in parts)

        def padded(part: TextCondition) -> TextCondition:
            states = part.encoder_hidden_states
            missing = longest - states.shape[1]
            return TextCondition(
                functional.pad(states, (0, 0, 0, missing)),
                functional.pad(part.encoder_attention_mask.expand(states.shape[:2]), (0, missing)),
            )

        forms = {tuple(tensor.shape[1] for tensor in part.arguments().values()) for part in parts}
        return super().cat(parts if len(forms) == 1 else [padded(part) for part in parts])


class TextEmbedder(ConditionEmbedder):
    """Reads texts.

    Args:
        encoder: reads them; a `CachedTextEncoder` remembers what it has read.
        max_text_length: as the encoder was asked for; None for all that it can read.
        dropout: see `ConditionEmbedder`.
    """

    condition = TextCondition
    column = "caption"

    def __init__(
        self,
        encoder: TextEncoder | CachedTextEncoder,
        max_text_length: int | None = None,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(dropout)
        self.encoder, self.max_text_length = encoder, max_text_length
        self.model = encoder.encoder if isinstance(encoder, CachedTextEncoder) else encoder

    def embed(self, values: Sequence[str]) -> TextCondition:
        """The condition of as many texts."""
        states, mask, _ = self.encoder(values)
        return TextCondition(states, mask)

    def sizes(self) -> dict[str, Any]:
        """The width of the text encoder."""
        return {"text_hidden_size": self.model.hidden_size}

    def pipeline_parts(self) -> dict[str, Any]:
        """The text encoder, and how it reads."""
        return {
            "text_encoder": self.model.model,
            "tokenizer": self.model.tokenizer,
            "text_layer": self.model.layer,
            "max_text_length": self.max_text_length,
        }

    def digests(self) -> dict[str, str | None]:
        """Of the text encoder."""
        return {"text_encoder": self.model.digest()}

    def read_ahead(self, captions: Sequence[str]) -> None:
        """Reads captions that will come, if there is a memory that their states fit into."""
        size = len(captions) * TOKENS_OF_A_CAPTION * self.model.hidden_size * 4
        # Else each is read when it comes, one by one.
        if isinstance(self.encoder, CachedTextEncoder) and 0 < size <= self.encoder.max_bytes:
            self.encoder.embed_all(captions)


@dataclass(frozen=True)
class ClassCondition(Condition):
    """A class for each sample.

    Args:
        class_labels: (B,) int64, `num_classes` for the null class.
        num_classes: of the model.
    """

    name = "class_"
    dropout_column = 0

    class_labels: Tensor
    num_classes: int

    def null(self) -> ClassCondition:
        """The null class for all."""
        return replace(self, class_labels=torch.full_like(self.class_labels, self.num_classes))


class ClassEmbedder(ConditionEmbedder):
    """Takes classes by their number.

    Args:
        num_classes: of the model.
        class_names: of the classes, if they have any.
        dropout: see `ConditionEmbedder`.
    """

    condition = ClassCondition
    column = "label"

    def __init__(
        self, num_classes: int, class_names: Sequence[str] = (), dropout: float = 0.1
    ) -> None:
        super().__init__(dropout)
        self.num_classes, self.class_names = num_classes, list(class_names)

    def embed(self, values: Sequence[int] | Tensor) -> ClassCondition:
        """The condition of as many labels; a negative one is the null class."""
        labels = torch.as_tensor(values)
        labels = torch.where(labels < 0, self.num_classes, labels)
        return ClassCondition(labels, self.num_classes)

    def sizes(self) -> dict[str, Any]:
        """The number of classes."""
        return {"num_classes": self.num_classes}

    def pipeline_parts(self) -> dict[str, Any]:
        """The names of the classes."""
        return {"class_names": self.class_names or None}


@dataclass(frozen=True)
class ActionCondition(Condition):
    """What acts on each sample, frame by frame.

    Args:
        actions: (B, T, A), each held from its frame to the next.
        has_actions: (B,) bool, False for samples of which no actions are known.
    """

    name = "actions"
    dropout_column = 4

    actions: Tensor
    has_actions: Tensor

    def null(self) -> ActionCondition:
        """No actions known of any."""
        return replace(self, has_actions=torch.zeros_like(self.has_actions))


class ActionEmbedder(ConditionEmbedder):
    """Takes actions as they are, which should be of about unit size.

    Args:
        action_names: of the A values.
        dropout: see `ConditionEmbedder`.
    """

    condition = ActionCondition
    column = "actions"

    def __init__(self, action_names: Sequence[str], dropout: float = 0.1) -> None:
        super().__init__(dropout)
        self.action_names = list(action_names)

    def embed(self, values: Tensor) -> ActionCondition:
        """The condition of (B, T, A) actions."""
        known = torch.ones(len(values), dtype=torch.bool, device=values.device)
        return ActionCondition(values.float(), known)

    def sizes(self) -> dict[str, Any]:
        """The number of values."""
        return {"action_size": len(self.action_names)}

    def pipeline_parts(self) -> dict[str, Any]:
        """The names of the values."""
        return {"action_names": self.action_names}


class Conditions:
    """The conditions of a batch, in the order that guidance adds them.

    Args:
        conditions: of the same samples, at most one of each kind.
    """

    def __init__(self, conditions: Iterable[Condition] = ()) -> None:
        self._by_name = {condition.name: condition for condition in conditions}

    def __iter__(self) -> Iterator[Condition]:
        return iter(self._by_name.values())

    @property
    def names(self) -> list[str]:
        """Of the conditions, in order."""
        return list(self._by_name)

    def arguments(self) -> dict[str, Tensor]:
        """All tensors, as keywords of `TwinDiT.forward`."""
        return {name: value for part in self for name, value in part.arguments().items()}

    def map(self, function: Callable[[Condition], Condition]) -> Conditions:
        """A function of each condition."""
        return Conditions(map(function, self))

    def to(self, device: torch.device | str) -> Conditions:
        """The same conditions on another device."""
        return self.map(lambda condition: condition.to(device))

    def __getitem__(self, index: slice) -> Conditions:
        """Some samples of the batch, by slice."""
        return self.map(lambda condition: condition[index])

    def keep(self, names: Iterable[str], negative: Conditions | None = None) -> Conditions:
        """The named conditions; the others take their unconditional value.

        Args:
            names: of those that are kept.
            negative: conditions to take in place of unconditional values.
        """
        instead = {} if negative is None else negative._by_name
        kept = {*names}
        return self.map(lambda c: c if c.name in kept else instead.get(c.name, c.null()))

    def replaced(self, condition: Condition) -> Conditions:
        """With another condition in place of that of its kind, or as the first one."""
        return Conditions((condition, *(c for c in self if c.name != condition.name)))

    def drop(self, uniforms: Tensor, dropout: Mapping[str, float | Tensor]) -> Conditions:
        """Each condition left out where its own random number is below its share.

        Args:
            uniforms: (B, columns) in [0, 1); see `Condition.dropout_column`.
            dropout: the share of each condition, one for all samples or (B,).
        """
        return self.map(lambda c: c.drop(uniforms[:, c.dropout_column] < dropout[c.name]))

    @staticmethod
    def cat(parts: Sequence[Conditions]) -> Conditions:
        """Batches with the same kinds of conditions as one.

        Raises:
            ValueError: if their kinds differ.
        """
        if any(part.names != parts[0].names for part in parts):
            raise ValueError("only batches with the same kinds of conditions can be joined")
        together = zip(*parts, strict=True)
        return Conditions(type(conditions[0]).cat(conditions) for conditions in together)
