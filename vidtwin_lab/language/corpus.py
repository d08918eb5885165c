"""Texts to train on, by source: shapes' captions, files, captions of videos, a named data set."""

from __future__ import annotations

import csv
import hashlib
import itertools
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vidtwin.data.synthetic.shapes import ShapesAttributes, caption, draw_attributes
from vidtwin.files import nearest_name
from vidtwin_lab.language.config import CorpusConfig, ShapesCaptionsConfig, TrainConfig
from vidtwin_lab.language.hub import load_data_set
from vidtwin_lab.language.text_files import find_text_files

logger = logging.getLogger(__name__)

# What the seeds of samples, of their cuts and of their masks are mixed with.
TEXT_STREAM, WINDOW_STREAM, MASK_STREAM, PAIR_STREAM = 0, 1, 2, 3
# The end of a sentence: a stop and what closes with it, before a letter that can begin one, and
# not after an initial or one of the commonest abbreviations.
_STOP = re.compile(
    r"(?<!\b[A-Z])(?<!\bMr)(?<!\bMs)(?<!\bDr)(?<!\bSt)(?<!\bNo)(?<!\bvs)(?<!\bMrs)"
    r"[.!?][\"'”’)\]]*\s+(?=[\"'“‘(\[]?\s?[A-Z0-9])"
)
# WikiText's title of an article; those of its sections have more signs: "= = History = =".
_TITLE = re.compile(r"= [^=].*[^=] =")


class Corpus(Protocol):
    """Texts by number; a sample is one text, or two that are read together.

    A corpus of fixed texts gives the same in every epoch.
    """

    def __len__(self) -> int: ...

    def texts(self, index: int, epoch: int) -> tuple[str, ...]: ...


class ShapesCaptions:
    """Captions of random moving shapes; sample (epoch, index) depends on these and the seed alone.

    Args:
        part: "train" or "validation".
        size: samples in an epoch.
    """

    def __init__(self, config: ShapesCaptionsConfig, seed: int, part: str, size: int) -> None:
        self.config, self.size = config, size
        self.stream = [seed, TEXT_STREAM, ("train", "validation").index(part)]

    def __len__(self) -> int:
        return self.size

    def texts(self, index: int, epoch: int) -> tuple[str, ...]:
        """One caption, or two of the same clip in which the objects' order may differ."""
        rng = np.random.default_rng([*self.stream, epoch, index])
        shown = draw_attributes(
            rng,
            "all",
            self.config.two_object_fraction,
            sized_fraction=self.config.sized_fraction,
            paced_fraction=self.config.paced_fraction,
        )
        first = caption(shown, rng, self.config.wordings)
        if rng.random() >= self.config.pair_fraction:
            return (first,)
        if rng.random() < 0.5:
            shown = ShapesAttributes(shown.objects[::-1], shown.background, shown.texture)
        return first, caption(shown, rng, self.config.wordings)


class DocumentCorpus:
    """Fixed documents, each a list of sentences; the text of a document joins them by spaces.

    Args:
        config: its source is not "shapes".
        part: "train" or "validation".
    Raises:
        ValueError: if a file can't be read as its kind, or no text is left.
    """

    def __init__(self, config: CorpusConfig, part: str = "train") -> None:
        held_out = part == "validation"
        read = DOCUMENT_SOURCES[config.source]
        documents = read(config, held_out)
        if config.validation_path is None and config.validation_split is None:
            fraction = config.validation_fraction
            kept = [doc for doc in documents if _is_held_out(doc, fraction) == held_out]
        elif held_out:
            kept = list(documents)
        else:
            kept = _without_those_of(documents, read(config, True))
        self.documents = kept
        if config.sentences == "split":
            self.documents = [[s for line in doc for s in split_sentences(line)] for doc in kept]
        if not self.documents:
            hint = "set corpus.validation_path" if held_out else "it is empty or too small"
            place = config.path or ", ".join(config.files)
            if config.data is not None:
                place = config.data.path or config.data.source
            raise ValueError(f"no {part} text in {place}; {hint} to be divided")

    def __len__(self) -> int:
        return len(self.documents)

    def texts(self, index: int, epoch: int) -> tuple[str, ...]:
        """Text `index`, the same in every epoch."""
        return (" ".join(self.documents[index]),)


def build_corpus(config: TrainConfig, part: str) -> Corpus:
    """The texts of "train" or "validation"."""
    corpus = config.corpus
    if corpus.source != "shapes":
        return DocumentCorpus(corpus, part)
    size = corpus.shapes.size if part == "train" else max(1, config.validation_samples)
    return ShapesCaptions(corpus.shapes, config.seed, part, size)


def read_texts(corpus: Corpus, count: int) -> Iterator[str]:
    """The texts of the first `count` samples of epoch 0, for a tokenizer to be trained on."""
    for index in range(min(count, len(corpus))):
        yield from corpus.texts(index, 0)


def split_sentences(text: str) -> list[str]:
    """The sentences of a text, by a simple rule for stops that errs at rare abbreviations."""
    cuts = [0]
    for match in _STOP.finditer(text):
        end = match.end()
        # WikiText has spaces at both sides of a quotation mark: this one closes.
        if text.startswith('" ', end) and text.count('"', cuts[-1], end) % 2:
            end += 2
        cuts.append(end)
    stretches = itertools.pairwise([*cuts, len(text)])
    return [sentence for start, end in stretches if (sentence := text[start:end].strip())]


def _documents_of_files(config: CorpusConfig, held_out: bool) -> Iterator[list[str]]:
    own = held_out and config.validation_path is not None
    places = [config.validation_path] if own else [config.path] if config.path else config.files
    for file in find_text_files([str(place) for place in places], config.source):
        yield from _documents_in(file, config)


def _documents_in(file: Path, config: CorpusConfig) -> Iterator[list[str]]:
    """The documents of one file: their lines, stripped, without empty ones."""
    try:
        with file.open(encoding="utf-8", newline="" if config.source == "csv" else None) as lines:
            if config.source == "csv":
                cells = (cell.strip() for cell in _cells(file, lines, config.column))
                yield from ([cell] for cell in cells if cell)
            else:
                yield from _grouped((line.strip() for line in lines), config.documents)
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text: {error}") from error
    except csv.Error as error:
        raise ValueError(f"{file} is not a CSV file: {error}") from error


def _grouped(lines: Iterable[str], how: str) -> Iterator[list[str]]:
    """Documents of stripped lines, without the empty ones."""
    document: list[str] = []
    for line in lines:
        ends = (
            how == "line"
            or (how == "blank" and not line)
            or (how == "heading" and _TITLE.fullmatch(line) is not None)
        )
        if ends and document:
            yield document
            document = []
        if line:
            document.append(line)
    if document:
        yield document


def _cells(file: Path, lines: Any, column: str) -> Iterator[str]:
    reader = csv.DictReader(lines)
    _check_column(column, reader.fieldnames or [], str(file))
    for row in reader:
        value = row[column]
        if value is None:
            raise ValueError(f"{file}, line {reader.line_num}: no cell in column {column!r}")
        yield value


def _check_column(column: str, names: Sequence[str], place: str) -> None:
    if column not in names:
        hint = f"; the nearest is {nearest_name(column, names)!r}" if names else ""
        raise ValueError(f"{place} has no column {column!r}{hint}; set corpus.column")


def _captions(config: CorpusConfig, held_out: bool) -> Iterator[list[str]]:
    """The captions of a video data set, without reading its videos."""
    from vidtwin import build_dataset

    assert config.data is not None
    dataset = build_dataset(config.data)
    without = 0
    for index in range(len(dataset)):
        caption = dataset.captions(index, 1)[0].strip()
        if caption:
            yield [caption]
        else:
            without += 1
    if without:
        logger.warning("%d of %d clips have no caption", without, len(dataset))


def _rows_of_data_set(config: CorpusConfig, held_out: bool) -> Iterator[list[str]]:
    """The texts of a data set of the library `datasets`, without the empty ones."""
    assert config.path is not None
    split = config.validation_split if held_out and config.validation_split else config.split
    rows = load_data_set(config.path, config.subset, split)
    _check_column(config.column, rows.column_names, f"data set {config.path}")
    for row in rows:
        value = row[config.column]
        if not isinstance(value, str):
            raise ValueError(
                f"column {config.column!r} of data set {config.path} must hold texts, got "
                f"{type(value).__name__}; set corpus.column"
            )
        if value.strip():
            yield [line.strip() for line in value.strip().split("\n") if line.strip()]


# Source of fixed documents -> what reads the lines of each of its documents.
DOCUMENT_SOURCES: dict[str, Callable[[CorpusConfig, bool], Iterator[list[str]]]] = {
    "text": _documents_of_files,
    "csv": _documents_of_files,
    "captions": _captions,
    "datasets": _rows_of_data_set,
}


def _is_held_out(lines: list[str], fraction: float) -> bool:
    return int.from_bytes(_digest(lines)[:8], "big") < fraction * 2**64


def _without_those_of(
    documents: Iterable[list[str]], held_out: Iterable[list[str]]
) -> list[list[str]]:
    """Documents whose text is not held out: files and lines may stand in both parts."""
    known = {_digest(lines) for lines in held_out}
    every = list(documents)
    kept = [lines for lines in every if _digest(lines) not in known]
    if len(kept) < len(every):
        logger.warning(
            "%d of %d documents are validation text too, and are not trained on",
            len(every) - len(kept),
            len(every),
        )
    return kept


def _digest(lines: list[str]) -> bytes:
    return hashlib.sha256("\n".join(lines).encode()).digest()
