"""Collects running text to pretrain text encoders on, without the texts of the tests.

    python tools/collect_texts.py ../shared/data/text --output outputs/texts

Reads wikitext-2/{train,valid,test}.txt, lm/*.txt, squad/train*.json (contexts) and
glue/*/train.tsv (sentences, without labels) of a folder, as far as they are there, and writes one
text file each: documents with a blank line between them, a paragraph in each line
(corpus.documents=blank of train_language.py). No paragraph is kept that shares 13 words in a row
with a text of the development or test files of GLUE and SQuAD; what was left out is counted.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from vidtwin_lab.language.corpus import CorpusConfig, DocumentCorpus

# Words in a row that tell that a text is the same; those that tell it from parts of itself.
SHARED_WORDS, KNOWN_WORDS = 13, 5
# Columns of GLUE's files that are sentences; CoLA has no header, its fourth column is one.
SENTENCES = ("sentence", "sentence1", "sentence2", "#1 String", "#2 String", "question")
_WORD = re.compile(r"\w+")
# WikiText writes 1 @,@ 000 for 1,000 and <unk> for a rare word.
_ESCAPE = re.compile(r" @([-,.])@ ")

Documents = Iterable[list[str]]


def wikitext(folder: Path) -> Iterator[list[str]]:
    """Articles of WikiText-2, all of its parts: none of them is tested on here."""
    files = (folder / f"{name}.txt" for name in ("train", "valid", "test"))
    for article in documents_of([file for file in files if file.is_file()], "heading"):
        lines = (_ESCAPE.sub(r"\1", line).replace("<unk>", "[UNK]") for line in article)
        yield [line for line in lines if not line.startswith("=")]


def plain(folder: Path) -> Iterator[list[str]]:
    """Paragraphs of other files."""
    # A paragraph of verse is one line here.
    paragraphs = documents_of(sorted(folder.glob("*.txt")), "blank")
    yield from ([" ".join(lines)] for lines in paragraphs)


def documents_of(files: list[Path], divided: str) -> list[list[str]]:
    """The lines of all documents, divided as `CorpusConfig.documents` says."""
    if not files:
        return []
    names = tuple(map(str, files))
    # None is held out.
    config = CorpusConfig(source="text", files=names, documents=divided, validation_fraction=1e-12)
    return DocumentCorpus(config).documents


def squad(folder: Path, pattern: str) -> Iterator[list[str]]:
    """Contexts of SQuAD's articles, each once, with the questions in files to be left out."""
    for file in sorted(folder.glob(pattern)):
        for article in json.loads(file.read_text(encoding="utf-8"))["data"]:
            for paragraph in article["paragraphs"]:
                questions = [entry["question"] for entry in paragraph["qas"]]
                yield [paragraph["context"], *(questions if pattern != "train*.json" else [])]


def glue(folder: Path, part: str) -> Iterator[list[str]]:
    """Sentences of GLUE's tasks, of which SST-2 has many phrases that are shorter still."""
    for file in sorted(folder.glob(f"*/{part}.tsv")):
        with file.open(encoding="utf-8", newline="") as lines:
            rows = list(csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
        named = [place for place, name in enumerate(rows[0]) if name in SENTENCES]
        columns, first = (named, 1) if named else ([len(rows[0]) - 1], 0)
        for row in rows[first:]:
            texts = (row[place] for place in columns if place < len(row))
            yield from ([text] for text in texts if len(_WORD.findall(text)) >= KNOWN_WORDS)


def stretches(text: str, length: int) -> set[tuple[str, ...]]:
    """All stretches of so many words, or the whole text where it is shorter."""
    words = tuple(_WORD.findall(text.lower()))
    return {words[i : i + length] for i in range(max(1, len(words) - length + 1))}


def kept(
    documents: Documents, tested: set[tuple[str, ...]], known: set[tuple[str, ...]]
) -> tuple[list[list[str]], int, int]:
    """(documents to keep, paragraphs that are tested on, paragraphs that say nothing new)."""
    found, leaks, repeated = [], 0, 0
    for document in documents:
        lines = []
        for line in document:
            parts = stretches(line, KNOWN_WORDS)
            if stretches(line, SHARED_WORDS) & tested:
                leaks += 1
            elif parts <= known:
                repeated += 1
            else:
                known |= parts
                lines.append(" ".join(line.split()))
        if lines:
            found.append(lines)
    return found, leaks, repeated


def main() -> None:
    """Writes the files and prints a table of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder with wikitext-2, lm, squad, glue")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    arguments = parser.parse_args()
    data, output = arguments.data, arguments.output
    held_out = [
        *squad(data / "squad", "dev-v[0-9].[0-9].json"),
        *squad(data / "squad", "xquad*.json"),
        *glue(data / "glue", "dev*"),
        *glue(data / "glue", "test*"),
    ]
    texts = [text for document in held_out for text in document]
    tested = {s for text in texts for s in stretches(text, SHARED_WORDS) if len(s) > KNOWN_WORDS}
    known: set[tuple[str, ...]] = set()
    # In this order, so that of what is said twice the running text is kept.
    sources: dict[str, Documents] = {
        "wikitext": wikitext(data / "wikitext-2"),
        "squad": squad(data / "squad", "train*.json"),
        "plain": plain(data / "lm"),
        "glue": sorted(glue(data / "glue", "train"), key=lambda text: -len(text[0])),
    }
    output.mkdir(parents=True, exist_ok=True)
    print("| text | documents | words | left out: tested on | left out: nothing new |")
    print("|-|-|-|-|-|")
    for name, documents in sources.items():
        found, leaks, repeated = kept(documents, tested, known)
        if not found:
            continue
        text = "\n\n".join("\n".join(document) for document in found)
        (output / f"{name}.txt").write_text(f"{text}\n", encoding="utf-8")
        print(f"| {name} | {len(found):,} | {len(text.split()):,} | {leaks:,} | {repeated:,} |")


if __name__ == "__main__":
    main()
