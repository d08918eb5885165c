"""Samples of tokens from texts: a text each, sentences packed to full length, or pairs of them.

Item (epoch, index) depends on these two and the seed alone. A sample is a dict of lists of equal
length: input_ids; token_type_ids, 1 in the second of two texts; special, 1 for the tokens at the
ends of texts; words, the number of the word that a token is of, -1 for special ones (only where it
is asked for). Beside them: index; mask_seed of what is to be hidden; pair_label of a pair.
"""

from __future__ import annotations

import abc
import dataclasses
import itertools
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from vidtwin_lab.language.corpus import (
    MASK_STREAM,
    PAIR_STREAM,
    WINDOW_STREAM,
    Corpus,
    DocumentCorpus,
)

logger = logging.getLogger(__name__)

Sample = dict[str, Any]
# Documents that are tokenized at once.
_CHUNK = 1000
# Sentences that are tried for the room beside another text, before one is cut.
_DRAWS = 100


class Samples(Dataset[Sample], abc.ABC):
    """What the three kinds of samples share: special tokens around texts, and the seeds.

    Args:
        corpus: the texts; a `DocumentCorpus` where its sentences are packed or paired.
        tokenizer: of the model.
        max_length: tokens of a sample, special ones included.
        seed: of every choice, and, as "mask_seed" of a sample, of what is hidden in it.
        words: tell which word a token is of.
    Raises:
        ValueError: if the tokenizer has no tokens for the ends of a text, or can't tell words.
    """

    def __init__(
        self, corpus: Corpus, tokenizer: Any, max_length: int, seed: int, words: bool = False
    ) -> None:
        self.corpus, self.tokenizer = corpus, tokenizer
        self.first, self.last = _ends(tokenizer)
        self.max_length, self.seed, self.words = max_length, seed, words
        if words and not tokenizer.is_fast:
            raise ValueError(
                f"{type(tokenizer).__name__} can't tell which word a token is of; set "
                "objective.masking=token, or take one of the tokenizers library"
            )

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def read(self, epoch: int, index: int) -> Sample:
        """The sample of an epoch and index."""

    def __getitem__(self, item: tuple[int, int] | int) -> Sample:
        """The sample of (epoch, index), or of epoch 0."""
        return self.read(0, item) if isinstance(item, int) else self.read(*item)

    def sample(
        self, epoch: int, index: int, segments: Sequence[Segment], numbered: bool = True
    ) -> Sample:
        """Texts as BERT reads them: [CLS] a [SEP] b [SEP]; numbered ones tell a from b."""
        row, kinds, special, words = [self.first], [0], [1], [-1]
        count = 0
        for kind, segment in enumerate(segments):
            row += [*segment.tokens, self.last]
            kinds += [kind * numbered] * (len(segment.tokens) + 1)
            special += [0] * len(segment.tokens) + [1]
            if self.words:
                words += [count + word for word in segment.words] + [-1]
                count = max(words) + 1
        sample = {"input_ids": row, "token_type_ids": kinds, "special": special}
        if self.words:
            sample["words"] = words
        return {**sample, "index": index, "mask_seed": [self.seed, MASK_STREAM, epoch, index]}


@dataclasses.dataclass(frozen=True)
class Segment:
    """Tokens without special ones, and the number of the word of each, rising from 0."""

    tokens: list[int]
    words: list[int]

    @classmethod
    def of(cls, tokens: Sequence[int], begins: np.ndarray) -> Segment:
        """From (tokens,) whether each begins a word; the first one does in any case."""
        begins = begins.copy()
        begins[:1] = True
        return cls(list(tokens), (np.cumsum(begins) - 1).tolist())


class TokenizedCorpus(Samples):
    """A sample is one text of a corpus, or two that are read together.

    A text that is longer than the model can read gives a window from a random place.
    """

    def __len__(self) -> int:
        return len(self.corpus)

    def read(self, epoch: int, index: int) -> Sample:
        rng = np.random.default_rng([self.seed, WINDOW_STREAM, epoch, index])
        texts = self.corpus.texts(index, epoch)
        encoded = self.tokenizer(list(texts), add_special_tokens=False, verbose=False)
        plain = encoded["input_ids"]
        cuts = _windows([len(tokens) for tokens in plain], self.max_length - 1 - len(texts), rng)
        segments = []
        for place, (tokens, cut) in enumerate(zip(plain, cuts, strict=True)):
            begins = _word_begins(encoded, place) if self.words else np.empty(0, bool)
            segments.append(Segment.of(tokens[cut], begins[cut]))
        return self.sample(epoch, index, segments)


class TokenStream:
    """The tokens of all documents in a row, and where sentences and documents begin.

    tokens and begins (whether a token begins a word) are (N,), sentences (S + 1,) places in them,
    documents (D + 1,) places in the sentences. A sentence of more than `longest` tokens is cut.
    """

    def __init__(
        self, documents: Sequence[Sequence[str]], tokenizer: Any, longest: int, words: bool
    ) -> None:
        tokens: list[np.ndarray] = []
        begins: list[np.ndarray] = []
        lengths: list[int] = []
        counts = []
        for start in range(0, len(documents), _CHUNK):
            part = documents[start : start + _CHUNK]
            # As in the middle of a text: byte-level tokenizers tell " the" from "the".
            flat = [" " * (i > 0) + text for document in part for i, text in enumerate(document)]
            encoded = tokenizer(flat, add_special_tokens=False, verbose=False)
            pieces = []
            for place, row in enumerate(encoded["input_ids"]):
                tokens.append(np.array(row, dtype=np.int32))
                begins.append(_word_begins(encoded, place) if words else np.empty(0, bool))
                cuts = [min(longest, len(row) - cut) for cut in range(0, len(row), longest)]
                lengths += cuts
                pieces.append(len(cuts))
            sizes = np.cumsum([0, *(len(document) for document in part)])
            ends = np.cumsum([0, *pieces])[sizes]
            counts += np.diff(ends).tolist()
        self.tokens = np.concatenate([np.empty(0, np.int32), *tokens])
        self.begins = np.concatenate([np.empty(0, bool), *begins])  # (0,) if not asked for
        self.sentences = np.cumsum([0, *lengths])
        self.documents = np.cumsum([0, *(count for count in counts if count)])

    def segment(self, start: int, end: int) -> Segment:
        """The sentences from `start` to before `end` as one text."""
        place = slice(int(self.sentences[start]), int(self.sentences[end]))
        return Segment.of(self.tokens[place].tolist(), self.begins[place])

    def length(self, start: int, end: int) -> int:
        """Tokens of these sentences."""
        return int(self.sentences[end] - self.sentences[start])

    def filled(self, start: int, end: int, room: int) -> int:
        """Where the sentences after `start`, up to `end`, that fit into `room` tokens stop."""
        limit = self.sentences[start] + room
        return min(end, int(np.searchsorted(self.sentences, limit, side="right")) - 1)


class PackedCorpus(Samples):
    """A sample is as many whole sentences in a row as fit; a longer one is cut.

    Source: RoBERTa (arXiv 1907.11692), Sec. 4.2: FULL-SENTENCES, which go on with the next
    document after a separator, or DOC-SENTENCES.
    """

    def __init__(
        self,
        corpus: DocumentCorpus,
        tokenizer: Any,
        max_length: int,
        seed: int,
        words: bool = False,
        across: bool = True,
    ) -> None:
        super().__init__(corpus, tokenizer, max_length, seed, words)
        room = max_length - 2
        self.stream = TokenStream(corpus.documents, tokenizer, room, words)
        self.rows = list(self._rows(room, across))
        if not self.rows:
            raise ValueError("the corpus has no token; is the tokenizer another language's?")

    def _rows(self, room: int, across: bool) -> Iterator[list[tuple[int, int]]]:
        """The sentences of each sample: a stretch for every document that it reads of."""
        row: list[tuple[int, int]] = []
        used = 0
        for start, end in itertools.pairwise(self.stream.documents.tolist()):
            while start < end:
                stop = self.stream.filled(start, end, room - used)
                if stop > start:
                    row.append((start, stop))
                    used += self.stream.length(start, stop) + 1
                if stop < end or used >= room or not across:
                    if row:
                        yield row
                    row, used = [], 0
                start = stop
        if row:
            yield row

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, epoch: int, index: int) -> Sample:
        segments = [self.stream.segment(*stretch) for stretch in self.rows[index]]
        return self.sample(epoch, index, segments, numbered=False)


class PairedCorpus(Samples):
    """A sample is two stretches of sentences; "pair_label" says how they belong together.

    "nsp": 0 if the second goes on where the first stops, 1 if it is from another document. "sop":
    0 if the two are in order, 1 if they are swapped. Half of each. The first ends after any of its
    sentences; a share of the samples is short.
    Source: BERT (arXiv 1810.04805), Sec. 3.1 and App. A.2; ALBERT (arXiv 1909.11942), Sec. 3.1.
    Differs: the sentences that a "nsp" pair leaves out are in other pairs of the next epochs.
    """

    def __init__(
        self,
        corpus: DocumentCorpus,
        tokenizer: Any,
        max_length: int,
        seed: int,
        words: bool = False,
        kind: str = "nsp",
        short_fraction: float = 0.1,
    ) -> None:
        super().__init__(corpus, tokenizer, max_length, seed, words)
        self.kind, self.short_fraction = kind, short_fraction
        self.room = max_length - 3
        # Any two sentences fit.
        self.stream = TokenStream(corpus.documents, tokenizer, self.room // 2, words)
        self.rows = list(self._rows())
        known = {document for document, _, _ in self.rows}
        lone = len(self.stream.documents) - 1 - len(known)
        if lone:
            logger.info("%d documents of a single sentence give no pair", lone)
        if len(known) < (2 if kind == "nsp" else 1):
            raise ValueError(
                f"objective.pairs={kind} needs documents of two sentences or more, and several of "
                f"them; got {len(known)} such; set corpus.documents=blank, heading or file, or "
                "corpus.sentences=split"
            )

    def _rows(self) -> Iterator[tuple[int, int, int]]:
        """(document, first sentence, the one after the last) of each sample."""
        for document, (start, end) in enumerate(itertools.pairwise(self.stream.documents.tolist())):
            place = start
            while end - start >= 2 and place < end:
                # A last sentence alone takes the one before it again.
                place = min(place, end - 2)
                stop = self.stream.filled(place, end, self.room)
                yield document, place, stop
                place = stop

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, epoch: int, index: int) -> Sample:
        rng = np.random.default_rng([self.seed, PAIR_STREAM, epoch, index])
        document, start, end = self.rows[index]
        short = rng.random() < self.short_fraction
        if short:
            end = start + int(rng.integers(2, end - start + 1))
        middle = start + int(rng.integers(1, end - start))
        label = int(rng.random() < 0.5)
        texts = [self.stream.segment(start, middle), self.stream.segment(middle, end)]
        if label and self.kind == "sop":
            texts.reverse()
        elif label:
            # As long as the true one could be: its length must not tell the answer.
            count = end - middle if short else self.room
            room = self.room - self.stream.length(start, middle)
            texts[1] = self._elsewhere(document, room, count, rng)
        return {**self.sample(epoch, index, texts), "pair_label": label}

    def _elsewhere(self, document: int, room: int, count: int, rng: np.random.Generator) -> Segment:
        """At most `count` sentences of another document that fit, from a random one on."""
        for _ in range(_DRAWS):
            other = document
            while other == document:
                other, begin, _ = self.rows[int(rng.integers(len(self.rows)))]
            end = int(self.stream.documents[other + 1])
            start = int(rng.integers(begin, end))
            stop = min(start + count, self.stream.filled(start, end, room))
            if stop > start:
                return self.stream.segment(start, stop)
        text = self.stream.segment(start, start + 1)
        return Segment(text.tokens[:room], text.words[:room])


class FirstSamples(Dataset[Sample]):
    """The first samples of epoch 0, masked anew in each epoch; for overfitting."""

    def __init__(self, samples: Samples, count: int) -> None:
        self.samples, self.count = samples, min(count, len(samples))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, item: tuple[int, int] | int) -> Sample:
        """Sample `index`, masked as in an epoch."""
        epoch, index = (0, item) if isinstance(item, int) else item
        mask_seed = [self.samples.seed, MASK_STREAM, epoch, index]
        return {**self.samples[0, index], "mask_seed": mask_seed}


def _ends(tokenizer: Any) -> tuple[int, int]:
    """The tokens before and after a text: BERT's and RoBERTa's, or GPT's between documents."""
    first = (tokenizer.cls_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
    last = (tokenizer.sep_token_id, tokenizer.eos_token_id)
    ends = [next((token for token in end if token is not None), None) for end in (first, last)]
    if ends[0] is None or ends[1] is None:
        raise ValueError(
            "the tokenizer has no tokens for the beginning and end of a text (cls and sep, or bos "
            "and eos); choose another, or let one be trained"
        )
    return int(ends[0]), int(ends[1])


def _word_begins(encoded: Any, place: int) -> np.ndarray:
    """(tokens,) whether each begins a word of text `place`."""
    numbers = encoded.word_ids(place)
    before = [None, *numbers[:-1]]
    steps = [a is None or a != b for a, b in zip(numbers, before, strict=True)]
    return np.array(steps, dtype=bool)


def _windows(lengths: Sequence[int], room: int, rng: np.random.Generator) -> list[slice]:
    """At most `room` tokens in all; a long text keeps a stretch from a random place."""
    if sum(lengths) <= room:
        return [slice(None)] * len(lengths)
    share = room // len(lengths)
    cuts = []
    for length in lengths:
        start = int(rng.integers(max(1, length - share + 1)))
        cuts.append(slice(start, start + share))
    return cuts
