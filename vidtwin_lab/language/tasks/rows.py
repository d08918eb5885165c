"""Texts of a task as rows of tokens: one text, two, or a question and a window of its context.

Axes: B batch, L tokens.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from diffusion.text_encoder import TextEncoder
from vidtwin_lab.language.tasks.squad import Question

logger = logging.getLogger(__name__)

# Of all tokens of a task; more, and its texts are in a script that the text encoder does not have.
MOST_UNKNOWN = 0.5
BUCKET = 32  # batches that are sorted by length together


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """A row of tokens and what is wanted of it.

    Args:
        input_ids, token_types: of equal length.
        label: number of the class, score, or (first, last) place of the answer; None without.
        index: place in its split; of windows, that of their question.
        start: place of the first token of the context; offsets: its tokens' (first, behind)
            characters; both of windows alone.
    """

    input_ids: list[int]
    token_types: list[int]
    label: float | tuple[int, int] | None
    index: int
    start: int = 0
    offsets: tuple[tuple[int, int], ...] = ()


@dataclasses.dataclass
class Counts:
    """What happened to the texts while they were read; for the record."""

    texts: int = 0
    tokens: int = 0
    unknown_tokens: int = 0
    texts_with_unknown: int = 0
    truncated: int = 0
    windows: int = 0
    lost_answers: int = 0


class RowFormat:
    """Makes rows of one text or two as the text encoder's own tokenizer does.

    A tokenizer that adds nothing (GPT-2's) gets its end of text between two texts and behind
    them, as GPT was fine-tuned: the last token is the one that has read everything.

    Args:
        encoder: the text encoder.
        max_length: tokens of a row at most; None for all that the text encoder can read, and no
            more than these.
    Raises:
        ValueError: for too few tokens to hold a text.
    """

    def __init__(self, encoder: TextEncoder, max_length: int | None = None) -> None:
        if max_length is not None and max_length < 8:
            raise ValueError(
                f"`max_length` must be from 8 to the text encoder's {encoder.max_length} tokens, "
                f"got {max_length}; set text_encoder.max_length={encoder.max_length} or less"
            )
        if max_length is not None and max_length > encoder.max_length:
            logger.warning(
                "the text encoder reads %d tokens at most, fewer than max_length=%d; what is "
                "longer is cut to these",
                *(encoder.max_length, max_length),
            )
        self.tokenizer = encoder.tokenizer
        self.max_length = min(max_length or encoder.max_length, encoder.max_length)
        self.counts = Counts()
        self._single, self._single_types = self._frame(("a",))
        self._pair, self._pair_types = self._frame(("a", "b"))
        rows = encoder.model.get_input_embeddings().num_embeddings
        if rows > 1.25 * len(self.tokenizer):
            logger.warning(
                "the model embeds %d tokens and its tokenizer has %d; if they are not of one "
                "family the figures mean nothing",
                rows,
                len(self.tokenizer),
            )

    def __call__(
        self, rows: Sequence[Sequence[str]], labels: Sequence[Any] | None = None
    ) -> list[Sample]:
        """Rows of one or two texts each; of those too long the longer text loses its end.

        Args:
            labels: of the rows; None for a test file.
        """
        texts = [text for row in rows for text in row]
        flat = iter(self._encoded(texts)["input_ids"] if texts else [])
        plain = [[next(flat) for _ in row] for row in rows]
        wanted = [None] * len(rows) if labels is None else labels
        return [
            self._row(tokens, label, index)
            for index, (tokens, label) in enumerate(zip(plain, wanted, strict=True))
        ]

    def _row(self, plain: list[list[int]], label: Any, index: int) -> Sample:
        single = len(plain) == 1
        frame = self._single if single else self._pair
        types = self._single_types if single else self._pair_types
        room = self.max_length - sum(map(len, frame))
        if sum(map(len, plain)) > room:
            self.counts.truncated += 1
        while sum(map(len, plain)) > room:
            max(plain, key=len).pop()
        return Sample(*self._joined(frame, types, plain), label, index)

    def windows(
        self, question: Question, index: int, stride: int, max_question: int, train: bool
    ) -> list[Sample]:
        """The question before each window of its context; windows start `stride` tokens apart.

        Args:
            max_question: tokens of the question that are kept.
            train: give the place of the first answer that stands where it should, (-1, -1) in
                windows without it; a question of which none does gives no window, and is counted.
        Raises:
            ValueError: if the tokenizer can't tell the characters of its tokens.
        """
        if not self.tokenizer.is_fast:
            raise ValueError(
                "SQuAD needs a fast tokenizer, which knows the characters of its tokens; got "
                f"{type(self.tokenizer).__name__}"
            )
        if train and question.lost:
            self.counts.lost_answers += 1
            return []
        answer = next(filter(question.found, question.answers), None) if train else None
        asked = self._encoded([question.question])["input_ids"][0]
        if len(asked) > max_question:
            self.counts.truncated += 1
        encoded = self._encoded([question.context], return_offsets_mapping=True)
        context, offsets = encoded["input_ids"][0], encoded["offset_mapping"][0]
        held = None
        if answer is not None:
            held = tokens_within(offsets, answer.start, answer.start + len(answer.text))
        frame, types = self._pair, self._pair_types
        room = self.max_length - sum(map(len, frame)) - min(len(asked), max_question)
        if room < 1:
            raise ValueError(f"`max_length`={self.max_length} leaves no room for the context")
        samples, first = [], 0
        while True:
            part = [asked[:max_question], context[first : first + room]]
            row, kinds = self._joined(frame, types, part)
            start = len(frame[0]) + len(part[0]) + len(frame[1])
            label = (-1, -1)
            if held and first <= held[0] and held[-1] < first + len(part[1]):
                label = (start + held[0] - first, start + held[-1] - first)
            places = tuple((a, b) for a, b in offsets[first : first + room])
            samples.append(Sample(row, kinds, label if train else None, index, start, places))
            if first + room >= len(context):
                break
            first += min(stride, room)
        self.counts.windows += len(samples)
        return samples

    def check(self, where: str, texts: Iterable[str]) -> None:
        """Raises ValueError if most of what was read is unknown to the text encoder."""
        counts = self.counts
        if counts.unknown_tokens > MOST_UNKNOWN * max(1, counts.tokens):
            shown = next((text for text in texts if self._unknown(self._plain(text))), "")
            raise ValueError(
                f"{where}: {counts.unknown_tokens} of {counts.tokens} tokens are unknown to the "
                f"text encoder, such as in {shown[:40]!r}; choose a text encoder for this script"
            )

    def _plain(self, text: str) -> list[int]:
        """The tokens of a text alone."""
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def _encoded(self, texts: list[str], **options: bool) -> Any:
        """Texts without special tokens, counted."""
        encoded = self.tokenizer(texts, add_special_tokens=False, verbose=False, **options)
        for row in encoded["input_ids"]:
            unknown = self._unknown(row)
            self.counts.texts += 1
            self.counts.tokens += len(row)
            self.counts.unknown_tokens += unknown
            self.counts.texts_with_unknown += unknown > 0
        return encoded

    def _unknown(self, row: list[int]) -> int:
        unknown = self.tokenizer.unk_token_id
        # A byte tokenizer's is that of the end of text, which no text holds.
        return 0 if unknown is None else row.count(unknown)

    def _frame(self, texts: tuple[str, ...]) -> tuple[list[list[int]], list[list[int]]]:
        """The special tokens before, between and behind the texts; and the kinds of all parts."""
        encoded = self.tokenizer(*texts, return_token_type_ids=True, verbose=False)
        row = list(encoded["input_ids"])
        kinds = list(encoded.get("token_type_ids") or [0] * len(row))
        frame: list[list[int]] = []
        segments: list[list[int]] = []
        at = 0
        for text in texts:
            plain = self._plain(text)
            places = range(at, len(row) - len(plain) + 1)
            place = next((i for i in places if row[i : i + len(plain)] == plain), None)
            if not plain or place is None:
                raise ValueError(
                    f"the tokenizer {type(self.tokenizer).__name__} reads {texts!r} in a way that "
                    "can't be taken apart; choose another text encoder"
                )
            frame.append(row[at:place])
            segments += [kinds[at:place], kinds[place : place + len(plain)]]
            at = place + len(plain)
        frame.append(row[at:])
        segments.append(kinds[at:])
        names = ("eos_token_id", "sep_token_id", "bos_token_id", "cls_token_id")
        ends = (getattr(self.tokenizer, name, None) for name in names)
        end = next((token for token in ends if token is not None), None)
        if end is not None:  # between two texts, and behind the last
            for number in range(1, len(frame)):
                if not frame[number]:
                    frame[number] = [int(end)]
                    segments[2 * number] = segments[2 * number - 1][-1:]
        return frame, segments

    def _joined(
        self, frame: list[list[int]], types: list[list[int]], plain: list[list[int]]
    ) -> tuple[list[int], list[int]]:
        row, kinds = list(frame[0]), list(types[0])
        for number, tokens in enumerate(plain):
            row += [*tokens, *frame[number + 1]]
            kinds += [types[2 * number + 1][0]] * len(tokens) + types[2 * number + 2]
        return row, kinds


def pad_rows(samples: Sequence[Sample], pad: int) -> tuple[Tensor, Tensor, Tensor]:
    """(B, L) tokens, mask (bool, True for tokens) and token types, padded on the right."""
    tokens = [torch.tensor(sample.input_ids) for sample in samples]
    types = [torch.tensor(sample.token_types) for sample in samples]
    lengths = torch.tensor([len(row) for row in tokens])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    return pad_sequence(tokens, True, pad), mask, pad_sequence(types, True)


def length_batches(
    lengths: Sequence[int], batch_size: int, seed: int, epoch: int
) -> list[list[int]]:
    """Random batches of about one length each: what is padded costs time and teaches nothing.

    An epoch's order is cut into runs of `BUCKET` batches, each sorted by length and cut; then
    the batches are shuffled. The last, smaller one is left out, others in each epoch, unless
    there is no other.

    Args:
        lengths: of all samples.
        seed, epoch: the only sources of randomness.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths)).tolist()
    kept = len(order) // batch_size * batch_size or len(order)
    batches = []
    for first in range(0, kept, batch_size * BUCKET):
        part = order[first : min(first + batch_size * BUCKET, kept)]
        part.sort(key=lambda index: lengths[index])
        batches += [part[i : i + batch_size] for i in range(0, len(part), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches)).tolist()]


def tokens_within(offsets: Sequence[tuple[int, int]], start: int, behind: int) -> list[int]:
    """The tokens that have any of the characters from `start` to before `behind`."""
    return [place for place, (a, b) in enumerate(offsets) if a < behind and b > start]
