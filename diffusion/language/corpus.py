"""Texts to train a reader on, and the tokens of one of them at a time."""

from __future__ import annotations

import csv
import dataclasses
import difflib
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch.utils.data import Dataset

SOURCES = ("shapes", "text", "csv")
# What the seeds of samples, of their cuts and of their masks are mixed with.
TEXT_STREAM, WINDOW_STREAM, MASK_STREAM = 0, 1, 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """Which texts.

    Args:
        source: "shapes" for captions of moving shapes, made as they are needed; "text" for the
            lines of files; "csv" for a column of a CSV file.
        path: of "text" and "csv": a file, or a folder of .txt or .csv files.
        column: of "csv".
        validation_path: what to validate on; None holds out `validation_fraction` of the texts,
            the same texts always, so that none is ever in both parts.
        shapes_size: number of captions in an epoch.
        shapes_wordings: "train", "test" or "all".
        shapes_pair_fraction: share of the samples that are two captions of one clip in different
            words: to fill a gap in one of them a reader must find the same thing in the other.
        shapes_two_object_fraction: share of the captions with two objects.
    """

    source: str = "shapes"
    path: str | None = None
    column: str = "caption"
    validation_path: str | None = None
    validation_fraction: float = 0.02
    shapes_size: int = 100_000
    shapes_wordings: str = "all"
    shapes_pair_fraction: float = 0.0
    shapes_two_object_fraction: float = 0.25

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise ValueError(f"`source` must be one of {', '.join(SOURCES)}; got {self.source!r}")
        if self.source != "shapes" and self.path is None:
            raise ValueError(f"`path` is required for source={self.source}")
        if self.shapes_size < 1:
            raise ValueError(f"`shapes_size` must be at least 1, got {self.shapes_size}")
        for name in ("shapes_pair_fraction", "shapes_two_object_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must be in [0, 1], got {getattr(self, name)}")
        if not 0 < self.validation_fraction < 1:
            raise ValueError(
                f"`validation_fraction` must be in (0, 1), got {self.validation_fraction}"
            )


class Corpus(Protocol):
    """Texts by number; a sample is one text, or two that are read together.

    A corpus of fixed texts gives the same in every epoch.
    """

    def __len__(self) -> int: ...

    def texts(self, index: int, epoch: int) -> tuple[str, ...]: ...


class FileCorpus:
    """Lines of text files or cells of CSV files, without the empty ones.

    Args:
        config: its source is not "shapes".
        part: "train" or "validation".
    Raises:
        ValueError: if a file can't be read as its kind, or no text is left.
    """

    def __init__(self, config: CorpusConfig, part: str = "train") -> None:
        assert config.path is not None
        held_out = part == "validation"
        own_file = held_out and config.validation_path is not None
        path = Path(config.validation_path if own_file and config.validation_path else config.path)
        lines = (text for file in _files(path, config.source) for text in _texts_in(file, config))
        self._texts = [
            text
            for text in lines
            if config.validation_path is not None
            or _is_held_out(text, config.validation_fraction) == held_out
        ]
        if not self._texts:
            raise ValueError(f"no {part} text in {path}; it is empty or too small to be divided")

    def __len__(self) -> int:
        return len(self._texts)

    def texts(self, index: int, epoch: int) -> tuple[str, ...]:
        """Text `index`, the same in every epoch."""
        return (self._texts[index],)


class FirstTexts:
    """The first samples of a corpus, as they are in epoch 0; to be learnt by heart."""

    def __init__(self, corpus: Corpus, count: int) -> None:
        self.corpus, self.count = corpus, min(count, len(corpus))

    def __len__(self) -> int:
        return self.count

    def texts(self, index: int, epoch: int) -> tuple[str, ...]:
        """Sample `index`, the same in every epoch."""
        return self.corpus.texts(index, 0)


class TokenizedCorpus(Dataset[dict[str, Any]]):
    """Samples as tokens; item (epoch, index) depends on these two and the seed alone.

    A text that is longer than the model can read gives a window from a random place.

    Args:
        corpus: the texts.
        tokenizer: of the model.
        max_length: tokens of a sample, special ones included.
        seed: of the windows, and, as "mask_seed" of a sample, of what is hidden in it.
    Raises:
        ValueError: if the tokenizer has no tokens for the ends of a text.
    """

    def __init__(self, corpus: Corpus, tokenizer: Any, max_length: int, seed: int) -> None:
        self.corpus, self.tokenizer = corpus, tokenizer
        self.first, self.last = _ends(tokenizer)
        self.max_length, self.seed = max_length, seed

    def __len__(self) -> int:
        return len(self.corpus)

    def __getitem__(self, item: tuple[int, int] | int) -> dict[str, Any]:
        """{input_ids, token_type_ids, special: lists of equal length; index, mask_seed}."""
        epoch, index = (0, item) if isinstance(item, int) else item
        rng = np.random.default_rng([self.seed, WINDOW_STREAM, epoch, index])
        texts = self.corpus.texts(index, epoch)
        plain = self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        segments = _windows(plain, self.max_length - 1 - len(texts), rng)
        return {
            **self._with_ends(segments),
            "index": index,
            "mask_seed": [self.seed, MASK_STREAM, epoch, index],
        }

    def _with_ends(self, segments: list[list[int]]) -> dict[str, list[int]]:
        """One or two texts as BERT reads them: [CLS] a [SEP] b [SEP]."""
        row, kinds, special = [self.first], [0], [1]
        for kind, segment in enumerate(segments):
            row += [*segment, self.last]
            kinds += [kind] * (len(segment) + 1)
            special += [0] * len(segment) + [1]
        return {"input_ids": row, "token_type_ids": kinds, "special": special}


def read_texts(corpus: Corpus, count: int) -> Iterator[str]:
    """The texts of the first `count` samples of epoch 0, for a tokenizer to be trained on."""
    for index in range(min(count, len(corpus))):
        yield from corpus.texts(index, 0)


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


def _windows(segments: list[list[int]], room: int, rng: np.random.Generator) -> list[list[int]]:
    """At most `room` tokens in all; a long segment keeps a stretch from a random place."""
    if sum(map(len, segments)) <= room:
        return segments
    share = room // len(segments)
    kept = []
    for segment in segments:
        start = int(rng.integers(max(1, len(segment) - share + 1)))
        kept.append(segment[start : start + share])
    return kept


def _files(path: Path, source: str) -> list[Path]:
    suffix = ".csv" if source == "csv" else ".txt"
    if path.is_dir():
        found = sorted(path.rglob(f"*{suffix}"))
        if not found:
            raise ValueError(f"no {suffix} file below {path}")
        return found
    if not path.is_file():
        raise ValueError(f"corpus {path} does not exist")
    return [path]


def _texts_in(file: Path, config: CorpusConfig) -> Iterator[str]:
    """The texts of one file, stripped, without empty ones."""
    try:
        with file.open(encoding="utf-8", newline="" if config.source == "csv" else None) as lines:
            rows = _cells(file, lines, config.column) if config.source == "csv" else lines
            for row in rows:
                text = row.strip()
                if text:
                    yield text
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text: {error}") from error
    except csv.Error as error:
        raise ValueError(f"{file} is not a CSV file: {error}") from error


def _cells(file: Path, lines: Any, column: str) -> Iterator[str]:
    reader = csv.DictReader(lines)
    names: Sequence[str] = reader.fieldnames or []
    if column not in names:
        near = difflib.get_close_matches(column, names, n=1, cutoff=0.0)
        hint = f"; the nearest is {near[0]!r}" if near else ""
        raise ValueError(f"{file} has no column {column!r}{hint}; set corpus.column")
    for row in reader:
        value = row[column]
        if value is None:
            raise ValueError(f"{file}, line {reader.line_num}: no cell in column {column!r}")
        yield value


def _is_held_out(text: str, fraction: float) -> bool:
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64
