"""Texts to train a reader on: files, captions of a data set, a named data set; in documents."""

from __future__ import annotations

import csv
import dataclasses
import glob
import hashlib
import itertools
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from diffusion.text_loading import load_data_set
from vidtwin import DataConfig, build_dataset, nearest_name

logger = logging.getLogger(__name__)

SOURCES = ("shapes", "text", "csv", "captions", "datasets")
DOCUMENTS = ("line", "blank", "heading", "file")
SENTENCES = ("line", "split")
PACKINGS = ("none", "full", "document")
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """Which texts, and how they are divided.

    Args:
        source: "shapes" for captions of moving shapes, made as they are needed; "text" for text
            files; "csv" for a column of CSV files; "captions" for those of a video data set;
            "datasets" for a data set of the optional library of that name.
        path: of "text" and "csv": a file, or a folder of .txt or .csv files; of "datasets": its
            name.
        files: of "text" and "csv", instead of `path`: several files, folders or patterns.
        column: of "csv" and "datasets".
        subset, split, validation_split: of "datasets"; without a validation split, texts are held
            out.
        data: of "captions": the data set, as in `train_ae.py`.
        validation_path: what to validate on; None holds out `validation_fraction` of the
            documents, the same ones always, so that none is ever in both parts.
        documents: of "text": each "line" is one; or they are divided by "blank" lines; or begin
            at a "heading" as WikiText has them ("= Title ="); or each "file" is one. A cell of a
            CSV file, a caption and a row of a data set is one always.
        sentences: each "line" of a document is one, or they are "split" at stops; matters where
            sentences are packed or paired.
        packing: "none": a sample is one document, or a window of it; "full": as many sentences as
            fit, going on with the next document (RoBERTa's); "document": the same inside of
            documents.
        shapes_size: number of captions in an epoch.
        shapes_wordings: "train", "test" or "all".
        shapes_pair_fraction: share of the samples that are two captions of one clip in different
            words: to fill a gap in one of them a reader must find the same thing in the other.
        shapes_two_object_fraction: share of the captions with two objects.
    """

    source: str = "shapes"
    path: str | None = None
    files: tuple[str, ...] = ()
    column: str = "caption"
    subset: str | None = None
    split: str = "train"
    validation_split: str | None = None
    data: DataConfig | None = None
    validation_path: str | None = None
    validation_fraction: float = 0.02
    documents: str = "line"
    sentences: str = "line"
    packing: str = "none"
    shapes_size: int = 100_000
    shapes_wordings: str = "all"
    shapes_pair_fraction: float = 0.0
    shapes_two_object_fraction: float = 0.25

    def __post_init__(self) -> None:
        choices = {
            "source": SOURCES,
            "documents": DOCUMENTS,
            "sentences": SENTENCES,
            "packing": PACKINGS,
        }
        for name, known in choices.items():
            value = getattr(self, name)
            if value not in known:
                raise ValueError(f"`{name}` must be one of {', '.join(known)}; got {value!r}")
        self._check_place()
        if self.source == "shapes" and self.packing != "none":
            raise ValueError(
                f"`packing` must be none for source=shapes, whose captions have no end, "
                f"got {self.packing}"
            )
        if self.shapes_size < 1:
            raise ValueError(f"`shapes_size` must be at least 1, got {self.shapes_size}")
        for name in ("shapes_pair_fraction", "shapes_two_object_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must be in [0, 1], got {getattr(self, name)}")
        if not 0 < self.validation_fraction < 1:
            raise ValueError(
                f"`validation_fraction` must be in (0, 1), got {self.validation_fraction}"
            )

    def _check_place(self) -> None:
        """Of where the texts lie."""
        if self.source in ("text", "csv") and (self.path is None) == (not self.files):
            raise ValueError(
                f"`path` or `files` is required for source={self.source}, one of the two; got "
                f"path={self.path} and files={list(self.files)}"
            )
        if self.source == "datasets" and self.path is None:
            raise ValueError("`path` is required for source=datasets: the name of the data set")
        if self.source == "captions" and self.data is None:
            raise ValueError("`data` is required for source=captions: set corpus.data.source=...")


class Corpus(Protocol):
    """Texts by number; a sample is one text, or two that are read together.

    A corpus of fixed texts gives the same in every epoch.
    """

    def __len__(self) -> int: ...

    def texts(self, index: int, epoch: int) -> tuple[str, ...]: ...


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
        documents = _documents(config, held_out)
        if config.validation_path is None and config.validation_split is None:
            fraction = config.validation_fraction
            kept = [doc for doc in documents if _is_held_out(doc, fraction) == held_out]
        elif held_out:
            kept = list(documents)
        else:
            kept = _without_those_of(documents, _documents(config, held_out=True))
        self.documents = [_sentences(lines, config.sentences) for lines in kept]
        if not self.documents:
            hint = "set corpus.validation_path" if held_out else "it is empty or too small"
            raise ValueError(f"no {part} text in {place_of(config)}; {hint} to be divided")

    def __len__(self) -> int:
        return len(self.documents)

    def texts(self, index: int, epoch: int) -> tuple[str, ...]:
        """Text `index`, the same in every epoch."""
        return (" ".join(self.documents[index]),)


def read_texts(corpus: Corpus, count: int) -> Iterator[str]:
    """The texts of the first `count` samples of epoch 0, for a tokenizer to be trained on."""
    for index in range(min(count, len(corpus))):
        yield from corpus.texts(index, 0)


def place_of(config: CorpusConfig) -> str:
    """Where the texts come from, in a word."""
    if config.data is not None:
        return config.data.path or config.data.source
    return config.path or ", ".join(config.files)


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


def _sentences(lines: list[str], how: str) -> list[str]:
    if how == "line":
        return lines
    return [sentence for line in lines for sentence in split_sentences(line)]


def _documents(config: CorpusConfig, held_out: bool) -> Iterator[list[str]]:
    """The lines of each document of a part, before a part of them is held out."""
    if config.source == "captions":
        yield from ([text] for text in _captions(config))
    elif config.source == "datasets":
        split = config.validation_split if held_out and config.validation_split else config.split
        for text in _rows_of_data_set(config, split):
            yield [line.strip() for line in text.split("\n") if line.strip()]
    else:
        own = held_out and config.validation_path is not None
        places = [config.validation_path] if own else [config.path] if config.path else config.files
        for file in _files([str(place) for place in places], config.source):
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


def _files(places: Sequence[str], source: str) -> list[Path]:
    """The files of some files, folders and patterns, each once."""
    suffix = ".csv" if source == "csv" else ".txt"
    found: dict[Path, None] = {}
    for place in places:
        path = Path(place).expanduser()
        if path.is_dir():
            files = sorted(path.rglob(f"*{suffix}"))
            if not files:
                raise ValueError(f"no {suffix} file below {path}")
        elif path.is_file():
            files = [path]
        else:
            matches = glob.glob(str(path), recursive=True)
            files = sorted(Path(name) for name in matches if Path(name).is_file())
            if not files:
                raise ValueError(f"corpus {path} does not exist")
        found.update(dict.fromkeys(files))
    return list(found)


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


def _captions(config: CorpusConfig) -> Iterator[str]:
    """The captions of a video data set, without reading its videos."""
    assert config.data is not None
    dataset = build_dataset(config.data)
    without = 0
    for index in range(len(dataset)):
        caption = dataset.captions(index, 1)[0].strip()
        if caption:
            yield caption
        else:
            without += 1
    if without:
        logger.warning("%d of %d clips have no caption", without, len(dataset))


def _rows_of_data_set(config: CorpusConfig, split: str) -> Iterator[str]:
    """The texts of a data set of the library `datasets`, without the empty ones."""
    assert config.path is not None
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
            yield value.strip()


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
