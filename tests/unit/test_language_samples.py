"""Documents of files and data sets; samples of packed sentences and of pairs."""

from __future__ import annotations

import collections
import itertools
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vidtwin import DataConfig
from vidtwin_lab.language.config import CorpusConfig, TokenizerConfig
from vidtwin_lab.language.corpus import DocumentCorpus, read_texts, split_sentences
from vidtwin_lab.language.samples import PackedCorpus, PairedCorpus, TokenizedCorpus
from vidtwin_lab.language.tokenizers import train_tokenizer

WORDS = ["red", "blue", "green", "star", "ring", "moves", "turns", "left", "right", "up", "a"]


class Documents(DocumentCorpus):
    """Documents that are given."""

    def __init__(self, documents: list[list[str]]) -> None:
        self.documents = documents


def random_documents(count: int, seed: int = 0, longest: int = 12) -> list[list[str]]:
    """Every sentence begins with words that tell its document and its number."""
    rng = np.random.default_rng(seed)
    return [
        [
            " ".join([f"d{document}", f"s{number}", *rng.choice(WORDS, rng.integers(1, 7))])
            for number in range(rng.integers(1, longest))
        ]
        for document in range(count)
    ]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """In which every word and number of the documents is one token."""
    names = [f"{kind}{number}" for kind in "ds" for number in range(40)]
    texts = [" ".join([*WORDS, *names])] * 3
    return train_tokenizer(texts, "wordpiece", TokenizerConfig(vocabulary_size=2000), 64)


def config_for(path: Path, **changes: Any) -> CorpusConfig:
    return CorpusConfig(source="text", path=str(path), **{"validation_fraction": 1e-9, **changes})


class TestDocuments:
    def corpus(self, folder: Path, text: str, **changes: Any) -> list[list[str]]:
        (folder / "a.txt").write_text(text, encoding="utf-8")
        return DocumentCorpus(config_for(folder / "a.txt", **changes)).documents

    def test_lines_blanks_headings_and_files(self, tmp_path):
        text = " = A = \n\n One . \n = = Part = = \n two\n\n\n = B b = \n three\n"
        lines = ["= A =", "One .", "= = Part = =", "two", "= B b =", "three"]
        assert self.corpus(tmp_path, text) == [[line] for line in lines]
        expected = [["= A ="], ["One .", "= = Part = =", "two"], ["= B b =", "three"]]
        assert self.corpus(tmp_path, text, documents="blank") == expected
        expected = [lines[:4], lines[4:]]
        assert self.corpus(tmp_path, text, documents="heading") == expected
        assert self.corpus(tmp_path, text, documents="file") == [lines]

    def test_parts_share_no_document_and_lose_none(self, tmp_path):
        blocks = [f"first {i}\nsecond {i}" for i in range(300)]
        (tmp_path / "a.txt").write_text("\n\n".join(blocks))
        parts = [
            DocumentCorpus(
                config_for(tmp_path / "a.txt", documents="blank", validation_fraction=0.1), part
            ).documents
            for part in ("train", "validation")
        ]
        assert sorted(parts[0] + parts[1]) == sorted(block.split("\n") for block in blocks)
        assert 10 <= len(parts[1]) <= 60

    def test_files_folders_and_patterns_each_once(self, tmp_path):
        (tmp_path / "sub").mkdir()
        for name in ("a.txt", "b.md", "sub/c.txt"):
            (tmp_path / name).write_text(name)
        files = (f"{tmp_path}/*.md", str(tmp_path / "sub"), str(tmp_path / "a.txt"),
                 f"{tmp_path}/**/*.txt")  # fmt: skip
        corpus = DocumentCorpus(CorpusConfig(source="text", files=files, validation_fraction=1e-9))
        assert list(read_texts(corpus, 9)) == ["b.md", "sub/c.txt", "a.txt"]
        with pytest.raises(ValueError, match=r"corpus .*\.rst does not exist"):
            DocumentCorpus(CorpusConfig(source="text", files=(f"{tmp_path}/*.rst",)))
        both: dict[str, Any] = {"path": "a", "files": ("b",)}
        for bad in (both, {}):
            with pytest.raises(ValueError, match="`path` or `files` is required"):
                CorpusConfig(source="text", **bad)

    def test_sentences(self, tmp_path):
        text = (
            'Mr. A. Smith of the U.S. Army left . " Why ? " he said . He had 3.5 km to go! '
            '(See No. 7.) " So . " It ended.'
        )
        sentences = split_sentences(text)
        assert sentences == [
            'Mr. A. Smith of the U.S. Army left .',
            '" Why ? " he said .',
            "He had 3.5 km to go!",
            "(See No. 7.)",
            '" So . "',
            "It ended.",
        ]  # fmt: skip
        corpus = self.corpus(tmp_path, text + "\nNext.\n", documents="file", sentences="split")
        assert corpus == [[*sentences, "Next."]]
        assert split_sentences("no stop") == ["no stop"]

    def test_captions_of_a_data_set(self):
        data = DataConfig(source="shapes").with_options(size=50)
        config = CorpusConfig(source="captions", data=data, validation_fraction=0.2)
        parts = [set(read_texts(DocumentCorpus(config, part), 99)) for part in
                 ("train", "validation")]  # fmt: skip
        assert len(parts[0]) > 20 and len(parts[1]) > 1 and not parts[0] & parts[1]
        assert all(len(text.split()) > 3 for text in parts[0])
        with pytest.raises(ValueError, match=r"`data` is required.*corpus\.data\.source"):
            CorpusConfig(source="captions")

    def test_named_data_sets(self, monkeypatch):
        class Rows(list):  # type: ignore[type-arg]
            column_names = ("text", "number")

        def load_dataset(name, subset, split):
            if name != "wiki":
                raise FileNotFoundError(f"no {name}\nat all")
            assert subset == "small"
            return Rows({"text": f"{split} {i}\n \n x", "number": i} for i in range(40))

        monkeypatch.setitem(sys.modules, "datasets",
                            types.SimpleNamespace(load_dataset=load_dataset))  # fmt: skip
        config: dict[str, Any] = {
            "source": "datasets",
            "path": "wiki",
            "subset": "small",
            "column": "text",
        }
        apart = CorpusConfig(**config, validation_split="valid")
        assert DocumentCorpus(apart).documents[0] == ["train 0", "x"]
        assert DocumentCorpus(apart, "validation").documents[3] == ["valid 3", "x"]
        both = [len(DocumentCorpus(CorpusConfig(**config, validation_fraction=0.3), part))
                for part in ("train", "validation")]  # fmt: skip
        assert sum(both) == 40 and min(both) > 0
        for changes, message in (
            ({"path": "wikki"}, "no data set wikki small train: no wikki at all"),
            ({"column": "txt"}, "data set wiki has no column 'txt'; the nearest is 'text'"),
            ({"column": "number"}, "must hold texts, got int"),
        ):
            with pytest.raises(ValueError, match=message):
                DocumentCorpus(CorpusConfig(**(config | changes)))
        monkeypatch.setitem(sys.modules, "datasets", None)
        with pytest.raises(ValueError, match="pip install datasets"):
            DocumentCorpus(apart)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"packing": "half"}, "`packing` must be one of none, full, document; got 'half'"),
            ({"documents": "page"}, "`documents` must be one of"),
            ({"sentences": "all"}, "`sentences` must be one of"),
            ({"packing": "full"}, "`packing` must be none for source=shapes"),
            ({"source": "datasets"}, "`path` is required for source=datasets"),
        ],
    )
    def test_bad_config(self, options, message):
        with pytest.raises(ValueError, match=message):
            CorpusConfig(**options)


def plain(sample: dict[str, Any]) -> list[int]:
    return [t for t, special in zip(sample["input_ids"], sample["special"]) if not special]


def check_words(sample: dict[str, Any], tokenizer: Any) -> None:
    """-1 for special tokens; a word is a stretch of pieces, the later ones of "##..." form."""
    pieces = tokenizer.convert_ids_to_tokens(sample["input_ids"])
    words = sample["words"]
    assert [word == -1 for word in words] == [s == 1 for s in sample["special"]]
    for place in range(1, len(words)):
        if words[place] >= 0:
            assert (words[place] == words[place - 1]) == pieces[place].startswith("##")
    known = [word for word in words if word >= 0]
    assert known == sorted(known)


class TestWords:
    def test_pieces_of_a_word_have_its_number(self, tokenizer):
        class Two:
            def __len__(self) -> int:
                return 1

            def texts(self, index: int, epoch: int) -> tuple[str, ...]:
                return "a redstar, moves", "blueish ring"

        sample = TokenizedCorpus(Two(), tokenizer, 40, 0, words=True)[0]
        check_words(sample, tokenizer)
        assert any(p.startswith("##") for p in tokenizer.convert_ids_to_tokens(plain(sample)))
        assert "words" not in TokenizedCorpus(Two(), tokenizer, 40, 0)[0]

    def test_of_byte_level_tokens(self):
        texts = ["a red star moves", "and turns"] * 2
        made = train_tokenizer(texts, "byte_bpe", TokenizerConfig(vocabulary_size=270), 64)
        sample = PackedCorpus(Documents([["red stars", "turn <mask> on"]]), made, 64, 0, True)[0]
        tokens = made.convert_ids_to_tokens(sample["input_ids"])
        text = "".join(token for token, s in zip(tokens, sample["special"]) if not s)
        # Sentences of a document are read as in a running text: with a space between.
        assert text.replace("<mask>", "Ġ<mask>").split("Ġ") == (
            ["red", "stars", "turn", "", "<mask>", "on"] if "Ġ<mask>" in text
            else ["red", "stars", "turn", "<mask>", "on"]
        )  # fmt: skip
        starts = [t for i, t in enumerate(tokens) if sample["words"][i] != sample["words"][i - 1]]
        assert sum(token.startswith("Ġ") for token in starts) >= 3


class TestPacked:
    @pytest.mark.parametrize("across", [True, False])
    def test_whole_sentences_in_order_and_none_lost(self, tokenizer, across):
        documents = random_documents(30)
        samples = PackedCorpus(Documents(documents), tokenizer, 40, 0, True, across)
        whole = [tokenizer(text, add_special_tokens=False)["input_ids"]
                 for document in documents for text in document]  # fmt: skip
        rows = [samples[epoch, i] for epoch, i in enumerate(range(len(samples)))]
        assert [t for row in rows for t in plain(row)] == [t for text in whole for t in text]
        starts = {tuple(text[:2]) for text in whole}
        for row in rows:
            assert len(row["input_ids"]) <= 40
            assert tuple(plain(row)[:2]) in starts  # begins with a sentence
            assert set(row["token_type_ids"]) == {0}
            check_words(row, tokenizer)
        if across:
            # Full: the next sentence would not have fitted.
            for row, after in itertools.pairwise(rows):
                following = next(t for t in whole if t[:2] == plain(after)[:2])
                assert len(row["input_ids"]) + len(following) > 40 - 1
        else:
            names = [{n for n in tokenizer.convert_ids_to_tokens(plain(row)) if n[0] == "d"
                      and n[1:].isdigit()} for row in rows]  # fmt: skip
            assert all(len(each) == 1 for each in names)

    def test_a_separator_between_documents(self, tokenizer):
        samples = PackedCorpus(
            Documents([["d1 s0 red", "d1 s1 star"], ["d2 s0 ring"]]), tokenizer, 40, 0
        )
        tokens = tokenizer.convert_ids_to_tokens(samples[0]["input_ids"])
        assert tokens == ["[CLS]", "d1", "s0", "red", "d1", "s1", "star", "[SEP]",
                          "d2", "s0", "ring", "[SEP]"]  # fmt: skip
        assert len(samples) == 1

    def test_a_long_sentence_is_cut(self, tokenizer):
        samples = PackedCorpus(Documents([[" ".join(["red"] * 95)]]), tokenizer, 32, 0)
        assert [len(plain(samples[i])) for i in range(len(samples))] == [30, 30, 30, 5]

    def test_no_token(self, tokenizer):
        with pytest.raises(ValueError, match="no token"):
            PackedCorpus(Documents([[" "]]), tokenizer, 32, 0)


def stretches(sample: dict[str, Any], tokenizer: Any) -> list[list[tuple[int, int]]]:
    """(document, number) of the sentences of both texts."""
    found: list[list[tuple[int, int]]] = [[], []]
    tokens = tokenizer.convert_ids_to_tokens(sample["input_ids"])
    for place, token in enumerate(tokens):
        if token[0] == "d" and token[1:].isdigit():
            number = int(tokens[place + 1][1:])
            found[sample["token_type_ids"][place]].append((int(token[1:]), number))
    return found


@pytest.mark.parametrize("kind", ["nsp", "sop"])
class TestPairs:
    def samples(self, tokenizer: Any, kind: str, **changes: Any) -> PairedCorpus:
        return PairedCorpus(
            Documents(random_documents(30)), tokenizer, 64, 5, True, kind, **changes
        )

    def test_labels_say_how_the_texts_belong_together(self, tokenizer, kind):
        samples = self.samples(tokenizer, kind)
        labels, lengths = [], collections.defaultdict(list)
        for epoch in range(40):
            for index in range(len(samples)):
                sample = samples[epoch, index]
                first, second = stretches(sample, tokenizer)
                for text in (first, second):  # whole sentences of one document, in its order
                    assert text == [(text[0][0], text[0][1] + i) for i in range(len(text))]
                follows = second[0] == (first[-1][0], first[-1][1] + 1)
                before = first[0] == (second[-1][0], second[-1][1] + 1)
                if sample["pair_label"] == 0:
                    assert follows
                elif kind == "sop":
                    assert before
                else:
                    assert first[0][0] != second[0][0]
                labels.append(sample["pair_label"])
                lengths[sample["pair_label"]].append(len(sample["input_ids"]))
        assert np.mean(labels) == pytest.approx(0.5, abs=3 * 0.5 / len(labels) ** 0.5)
        # The length must not tell the answer.
        mean = {label: np.mean(values) for label, values in lengths.items()}
        assert mean[0] == pytest.approx(mean[1], rel=0.1)

    def test_special_tokens_and_segments(self, tokenizer, kind):
        samples = self.samples(tokenizer, kind)
        for index in range(len(samples)):
            sample = samples[0, index]
            assert len(sample["input_ids"]) <= 64
            row, kinds = sample["input_ids"], sample["token_type_ids"]
            assert row[0] == tokenizer.cls_token_id and row[-1] == tokenizer.sep_token_id
            ends = [i for i, token in enumerate(row) if token == tokenizer.sep_token_id]
            assert len(ends) == 2
            assert kinds == [0] * (ends[0] + 1) + [1] * (ends[1] - ends[0])
            assert [i for i, s in enumerate(sample["special"]) if s] == [0, *ends]
            check_words(sample, tokenizer)

    def test_follow_from_seed_epoch_and_index(self, tokenizer, kind):
        first, second = self.samples(tokenizer, kind), self.samples(tokenizer, kind)
        assert all(first[3, i] == second[3, i] for i in range(len(first)))
        assert len({str(first[epoch, 0]["input_ids"]) for epoch in range(8)}) > 3

    def test_some_are_short(self, tokenizer, kind):
        lengths = []
        for share in (0.0, 1.0):
            samples = self.samples(tokenizer, kind, short_fraction=share)
            rows = [samples[epoch, i] for epoch in range(5) for i in range(len(samples))]
            lengths.append(np.mean([len(row["input_ids"]) for row in rows]))
        assert lengths[1] < 0.85 * lengths[0]

    def test_every_sentence_of_a_document_of_two_or_more_is_read(self, tokenizer, kind):
        documents = random_documents(30)
        samples = PairedCorpus(Documents(documents), tokenizer, 64, 5, False, "sop", 0.0)
        read = {s for i in range(len(samples)) for part in stretches(samples[0, i], tokenizer)
                for s in part}  # fmt: skip
        expected = {(d, n) for d, sentences in enumerate(documents)
                    for n in range(len(sentences)) if len(sentences) > 1}  # fmt: skip
        assert read == expected

    def test_long_sentences_fit(self, tokenizer, kind):
        documents = [[f"d{d} s0 " + "red " * 90, f"d{d} s1 " + "blue " * 90] for d in range(3)]
        samples = PairedCorpus(Documents(documents), tokenizer, 32, 0, True, kind)
        for epoch in range(20):
            for index in range(len(samples)):
                assert 5 <= len(samples[epoch, index]["input_ids"]) <= 32

    def test_documents_without_pairs(self, tokenizer, kind):
        with pytest.raises(ValueError, match="needs documents of two sentences or more"):
            PairedCorpus(Documents([["red star"], ["blue"]]), tokenizer, 64, 0, False, kind)
