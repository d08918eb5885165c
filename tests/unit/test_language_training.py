"""Tokenizers, corpora and models of language models, and filling gaps and going on."""

from __future__ import annotations

import collections
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffusion.text_loading import load_tokenizer
from vidtwin_lab.language.config import (
    TOKENIZER_OF,
    CorpusConfig,
    LanguageModelConfig,
    ObjectiveConfig,
    ShapesCaptionsConfig,
    TokenizerConfig,
)
from vidtwin_lab.language.corpus import DocumentCorpus, read_texts
from vidtwin_lab.language.models import build_language_model
from vidtwin_lab.language.objectives import build_objective
from vidtwin_lab.language.objectives.base import IGNORED
from vidtwin_lab.language.samples import TokenizedCorpus
from vidtwin_lab.language.tokenizers import train_tokenizer
from vidtwin_lab.language.training import measure_language_model, token_means

LINES = [f"{a} {b} {c}" for a in ("a", "one") for b in ("red", "blue", "naïve", "five-sided")
         for c in ("circle", "star", "ring moves left", "Square.")]  # fmt: skip
TINY: dict[str, Any] = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "intermediate_size": 32}


class Lines:
    """A corpus of fixed samples."""

    def __init__(self, *samples: tuple[str, ...]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def texts(self, index: int, epoch: int) -> tuple[str, ...]:
        return self.samples[index]


def tokenizer(kind: str = "wordpiece", size: int = 330, **changes: Any) -> Any:
    return train_tokenizer(LINES, kind, TokenizerConfig(vocabulary_size=size, **changes), 32)


@pytest.fixture(scope="module")
def wordpiece() -> Any:
    return tokenizer()


class TestTokenizer:
    @pytest.mark.parametrize("kind", ["wordpiece", "byte_bpe"])
    def test_same_texts_same_tokenizer(self, kind):
        size = 40 if kind == "wordpiece" else 270  # few enough for ties to be cut between
        first, second = tokenizer(kind, size), tokenizer(kind, size)
        assert len(first) == size
        assert first.get_vocab() == second.get_vocab()
        assert first(LINES)["input_ids"] == second(LINES)["input_ids"]

    @pytest.mark.parametrize("kind", ["wordpiece", "byte_bpe"])
    def test_saved_and_loaded(self, kind, tmp_path):
        made = tokenizer(kind)
        made.save_pretrained(tmp_path)
        loaded = load_tokenizer(str(tmp_path))
        assert loaded.get_vocab() == made.get_vocab()
        assert loaded(LINES)["input_ids"] == made(LINES)["input_ids"]
        assert loaded.model_max_length == 32

    def test_wordpiece(self, wordpiece):
        assert wordpiece.tokenize("A Red circle.") == ["a", "red", "circle", "."]
        assert wordpiece.tokenize("five-sided") == ["five", "-", "sided"]
        assert wordpiece.tokenize("naïve") == ["naive"]  # accents go as BERT lets them go
        assert wordpiece.convert_ids_to_tokens(wordpiece("red")["input_ids"]) == [
            "[CLS]", "red", "[SEP]",
        ]  # fmt: skip
        pieces = wordpiece.tokenize("redstar")
        assert pieces[0] == "red" and "".join(p.removeprefix("##") for p in pieces) == "redstar"
        assert all(piece.startswith("##") for piece in pieces[1:])
        assert [wordpiece.pad_token_id, wordpiece.mask_token_id] == [0, 4]

    def test_case_can_be_kept(self):
        cased = tokenizer(lowercase=False)
        assert "Square" in cased.get_vocab()
        assert cased.tokenize("square") != cased.tokenize("Square")

    def test_byte_bpe_loses_nothing(self):
        made = tokenizer("byte_bpe")
        for text in (*LINES, "красный круг", "🙂 new"):
            assert made.decode(made(text)["input_ids"], skip_special_tokens=True) == text

    def test_too_few_tokens_for_the_letters(self):
        with pytest.raises(ValueError, match=r"tokenizer\.vocabulary_size=\d+ or more, got 9"):
            tokenizer(size=9)

    def test_no_text(self):
        with pytest.raises(ValueError, match="no text"):
            train_tokenizer(["  "], "wordpiece", TokenizerConfig(), 32)

    def test_none_there(self, tmp_path):
        with pytest.raises(ValueError, match=r"no tokenizer in .*nowhere"):
            load_tokenizer(str(tmp_path / "nowhere"))


class TestFiles:
    def write(self, folder: Path, lines: list[str]) -> CorpusConfig:
        (folder / "a.txt").write_text("\n".join(lines), encoding="utf-8")
        return CorpusConfig(source="text", path=str(folder / "a.txt"))

    def test_parts_share_no_text_and_lose_none(self, tmp_path):
        lines = [f"line {i % 400}" for i in range(500)] + ["", "   "]
        config = self.write(tmp_path, lines)
        parts = [list(read_texts(DocumentCorpus(config, part), 999)) for part in
                 ("train", "validation")]  # fmt: skip
        assert not set(parts[0]) & set(parts[1])
        assert sorted(parts[0] + parts[1]) == sorted(lines[:500])
        assert 1 <= len(set(parts[1])) <= 25

    def test_a_file_of_its_own_for_validation(self, tmp_path):
        config = self.write(tmp_path, LINES)
        (tmp_path / "v.txt").write_text("held out\n")
        config = CorpusConfig(
            source="text", path=config.path, validation_path=str(tmp_path / "v.txt")
        )
        assert list(read_texts(DocumentCorpus(config, "train"), 99)) == LINES
        assert DocumentCorpus(config, "validation").texts(0, 0) == ("held out",)

    def test_a_file_for_validation_in_the_folder_itself_is_not_trained_on(self, tmp_path, caplog):
        self.write(tmp_path, LINES)
        (tmp_path / "v.txt").write_text(f"held out\n{LINES[3]}\n")
        config = CorpusConfig(
            source="text", path=str(tmp_path), validation_path=str(tmp_path / "v.txt")
        )
        trained = list(read_texts(DocumentCorpus(config, "train"), 99))
        assert trained == [line for line in LINES if line != LINES[3]]
        assert f"3 of {len(LINES) + 2} documents are validation text too" in caplog.text

    def test_csv_and_folders(self, tmp_path):
        for name in ("a", "b"):
            rows = "\n".join(f'{name}{i},"a {name}, {i}"' for i in range(30))
            (tmp_path / f"{name}.csv").write_text(f"file,caption\n{rows}\n")
        corpus = DocumentCorpus(CorpusConfig(source="csv", path=str(tmp_path)))
        texts = list(read_texts(corpus, 99))
        assert len(texts) > 50 and all(", " in text for text in texts)
        assert texts == sorted(texts, key=lambda text: (text[2], int(text[5:])))

    @pytest.mark.parametrize(
        ("content", "options", "message"),
        [
            (b"file,text\nx,y\n", {"source": "csv"}, r"no column 'caption'.*corpus\.column"),
            (b"file,captoin\nx,y\n", {"source": "csv"}, "nearest is 'captoin'"),
            (b"file,caption\nx\n", {"source": "csv"}, "line 2: no cell in column 'caption'"),
            (b"\xff\xfe\x00", {"source": "text"}, "not UTF-8"),
            (b"\n\n", {"source": "text"}, "no train text"),
            (b"", {"source": "csv"}, "no column"),
        ],
    )
    def test_bad_files(self, tmp_path, content, options, message):
        file = tmp_path / "corpus"
        file.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            DocumentCorpus(CorpusConfig(path=str(file), **options))

    def test_missing_files(self, tmp_path):
        with pytest.raises(ValueError, match="does not exist"):
            DocumentCorpus(CorpusConfig(source="text", path=str(tmp_path / "nowhere")))
        with pytest.raises(ValueError, match=r"no \.txt file below"):
            DocumentCorpus(CorpusConfig(source="text", path=str(tmp_path)))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                {"source": "web"},
                "`source` must be one of shapes, text, csv, captions, datasets; got 'web'",
            ),
            ({"source": "text"}, "`path` or `files` is required"),
            ({"shapes": {"pair_fraction": 1.5}}, "pair_fraction"),
            ({"validation_fraction": 0.0}, "validation_fraction"),
            ({"shapes": {"size": 0}}, "size"),
        ],
    )
    def test_bad_config(self, options, message):
        with pytest.raises(ValueError, match=message):
            CorpusConfig(
                **{
                    name: ShapesCaptionsConfig(**value) if name == "shapes" else value
                    for name, value in options.items()
                }
            )


class TestSamples:
    def test_special_tokens_and_segments(self, wordpiece):
        lines = Lines(("a red star",), ("one ring", "blue"))
        corpus = TokenizedCorpus(lines, wordpiece, 32, 0)
        for index, texts in enumerate(lines.samples):
            expected = wordpiece(*texts)
            assert corpus[0, index]["input_ids"] == expected["input_ids"]
            assert corpus[0, index]["token_type_ids"] == expected["token_type_ids"]
            ends = {wordpiece.cls_token_id, wordpiece.sep_token_id}
            assert corpus[0, index]["special"] == [int(t in ends) for t in expected["input_ids"]]

    def test_a_long_text_gives_every_part_of_itself(self, wordpiece):
        text = " ".join(LINES)
        ids = wordpiece(text, add_special_tokens=False)["input_ids"]
        corpus = TokenizedCorpus(Lines((text,)), wordpiece, 12, 0)
        starts = set()
        for epoch in range(300):
            row = corpus[epoch, 0]["input_ids"]
            assert len(row) == 12 and row == corpus[epoch, 0]["input_ids"]
            starts |= {i for i in range(len(ids) - 9) if ids[i : i + 10] == row[1:-1]}
        assert len(starts) > (len(ids) - 9) * 0.8
        assert {0, len(ids) - 10} <= starts

    def test_two_long_texts_share_the_room(self, wordpiece):
        corpus = TokenizedCorpus(Lines((" ".join(LINES), " ".join(LINES))), wordpiece, 13, 0)
        assert corpus[0, 0]["token_type_ids"] == [0] * 7 + [1] * 6


class TestMasking:
    def hidden(self, wordpiece, count: int = 600, **changes: Any) -> list[tuple[Any, Any]]:
        corpus = TokenizedCorpus(Lines((" ".join(LINES[:6]),)), wordpiece, 64, seed=3)
        objective = build_objective(ObjectiveConfig(**changes), "bert", wordpiece)
        return [(corpus[epoch, 0], objective.hide(corpus[epoch, 0])) for epoch in range(count)]

    def test_shares_are_berts(self, wordpiece):
        kinds: collections.Counter[str] = collections.Counter()
        plain = 0
        for before, after in self.hidden(wordpiece):
            for old, new, label, special in zip(
                before["input_ids"], after["input_ids"], after["labels"], before["special"],
                strict=True,
            ):  # fmt: skip
                plain += not special
                if label == IGNORED:
                    assert new == old
                    continue
                assert label == old and not special
                masked = new == wordpiece.mask_token_id
                kinds["mask" if masked else "same" if new == old else "random"] += 1
                assert masked or new not in wordpiece.all_special_ids
        total = kinds.total()
        assert total / plain == pytest.approx(0.15, abs=0.01)
        assert kinds["mask"] / total == pytest.approx(0.8, abs=0.025)
        assert kinds["random"] / total == pytest.approx(0.1, abs=0.02)

    def test_follows_from_seed_epoch_and_index(self, wordpiece):
        first, second = self.hidden(wordpiece, 5), self.hidden(wordpiece, 5)
        assert [a for _, a in first] == [a for _, a in second]
        assert len({tuple(after["labels"]) for _, after in first}) == 5  # new gaps each epoch

    def test_something_is_always_to_be_predicted(self, wordpiece):
        corpus = TokenizedCorpus(Lines(("red",)), wordpiece, 16, 0)
        objective = build_objective(ObjectiveConfig(mask_probability=0.01), "bert", wordpiece)
        for epoch in range(50):
            assert objective.hide(corpus[epoch, 0])["labels"][1] != IGNORED

    def test_nothing_to_hide_is_no_error(self, wordpiece):
        sample = TokenizedCorpus(Lines(("",)), wordpiece, 16, 0)[0, 0]
        hidden = build_objective(ObjectiveConfig(), "bert", wordpiece).hide(sample)
        assert hidden["labels"] == [IGNORED] * 2

    def test_bad_config(self, wordpiece):
        with pytest.raises(ValueError, match=r"at most 1 together, got 1\.4"):
            ObjectiveConfig(replaced_by_mask=0.7, replaced_by_random=0.7)
        with pytest.raises(ValueError, match="mask_probability"):
            ObjectiveConfig(mask_probability=0)


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2"])
class TestModels:
    def parts(self, family: str, **changes: Any) -> tuple[Any, Any, TokenizedCorpus]:
        torch.manual_seed(0)
        config = LanguageModelConfig(family=family, max_positions=32, **(TINY | changes))
        words = tokenizer(TOKENIZER_OF[config.family])
        objective = build_objective(ObjectiveConfig(), family, words)
        samples = TokenizedCorpus(Lines(*((line,) for line in LINES)), words, 32, 0)
        return build_language_model(config, ObjectiveConfig(), words), objective, samples

    def test_learns(self, family):
        model, objective, samples = self.parts(family, dropout=0.0)
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        for epoch in range(25):
            batch = objective.batch(objective.hide_all([samples[epoch, i] for i in range(16)]))
            (term,) = objective.terms(model, batch).values()
            loss = term.total() / (term.labels != IGNORED).sum()
            loss.backward()
            if epoch == 0:
                first = loss.item()
                for name, parameter in model.named_parameters():
                    assert parameter.grad is not None, name
                    assert parameter.grad.isfinite().all(), name
            optimizer.step()
            optimizer.zero_grad()
        assert first == pytest.approx(np.log(len(samples.tokenizer)), rel=0.2)
        assert loss.item() < 0.5 * first
        rows = measure_language_model(model, objective, samples, [range(8), range(8, 16)])
        assert token_means(rows)["accuracy"] > 0.3

    def test_measures_do_not_depend_on_the_batch(self, family):
        model, objective, samples = self.parts(family)
        rows = [measure_language_model(model, objective, samples, batches)
                for batches in ([[i] for i in range(20)], [range(7), range(7, 20)])]  # fmt: skip
        assert model.training
        for (index, first), (other, second) in zip(*rows, strict=True):
            assert index == other and first.keys() == second.keys()
            for name in first:
                assert first[name] == pytest.approx(second[name], rel=1e-4)
        shuffled = [*rows[0][::2], *rows[0][1::2]]  # as two processes would give them
        means = token_means(rows[0])
        assert token_means(shuffled) == means
        assert means["perplexity"] == pytest.approx(np.exp(means["loss"]))

    def test_predicts_the_next_token_alone(self, family):
        """Of "clm" the predictions stand one before what they predict; of "mlm" in its place."""
        model, objective, samples = self.parts(family)
        hidden = objective.hide(samples[0, 3])
        ((logits, labels),) = objective.terms(model, objective.batch([hidden])).values()
        assert logits.shape[:2] == labels.shape
        if objective.name == "clm":
            assert labels[0].tolist() == samples[0, 3]["input_ids"][1:]
            assert hidden["input_ids"] == samples[0, 3]["input_ids"]
        else:
            assert labels[0].tolist() == hidden["labels"]

    def test_saved_and_loaded(self, family, tmp_path):
        model, objective, samples = self.parts(family)
        model.save_pretrained(tmp_path)
        config = LanguageModelConfig(family=family, max_positions=32)
        loaded = build_language_model(config, ObjectiveConfig(), samples.tokenizer, str(tmp_path))
        batch = objective.batch(objective.hide_all([samples[i] for i in range(4)]))
        expected, came = (
            objective.terms(one.eval(), batch)[objective.name].logits for one in (model, loaded)
        )
        assert torch.equal(came, expected)

    def test_reads_as_far_as_it_says(self, family):
        model, objective, samples = self.parts(family)
        rows = torch.full((2, 32), int(samples[0]["input_ids"][1]))
        rows[1, 5:] = objective.pad
        mask = (torch.arange(32) < torch.tensor([[32], [5]])).long()
        assert model(input_ids=rows, attention_mask=mask).logits.isfinite().all()


def test_models_that_cant_be_trained_on(wordpiece, tmp_path):
    config, mlm = LanguageModelConfig(max_positions=32, **TINY), ObjectiveConfig()
    whole = build_language_model(config, mlm, wordpiece)
    whole.save_pretrained(tmp_path / "whole")
    whole.bert.save_pretrained(tmp_path / "base")
    for changes, folder, message in (
        ({}, "base", r"lacks \d+ weights of BertForMaskedLM, .*set model\.new_heads=true"),
        ({}, "nowhere", "no language model in"),
        ({"family": "roberta"}, "whole", "is of the family 'bert'"),
        ({"max_positions": 64}, "whole", "can read 32 tokens; set model.max_positions=32"),
    ):
        changed = dataclasses.replace(config, **changes)
        with pytest.raises(ValueError, match=message):
            build_language_model(changed, mlm, wordpiece, str(tmp_path / folder))
    with pytest.raises(ValueError, match=r"embeds \d+ tokens and its tokenizer has 3\d\d"):
        build_language_model(config, mlm, tokenizer("byte_bpe"), str(tmp_path / "whole"))
    headless = dataclasses.replace(config, new_heads=True)
    again = build_language_model(headless, mlm, wordpiece, str(tmp_path / "base"))
    for name, value in whole.bert.state_dict().items():
        assert torch.equal(again.bert.state_dict()[name], value), name
    gone = whole.state_dict()
    del gone["bert.encoder.layer.1.output.dense.weight"]
    whole.save_pretrained(tmp_path / "gone", state_dict=gone)
    with pytest.raises(ValueError, match=r"lacks 1 weights.* bert.encoder.layer.1.*dense.weight$"):
        build_language_model(headless, mlm, wordpiece, str(tmp_path / "gone"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"family": "brt"}, "`family` must be one of bert, roberta, .* gpt2; got 'brt'"),
        ({"embedding_size": 8}, "`embedding_size` is for albert and electra, got 8 for bert"),
        ({"family": "albert", "embedding_size": 0}, "`embedding_size` must be at least 1"),
        ({"num_heads": 5}, "`hidden_size` must be a multiple of num_heads=5, got 768"),
        ({"num_layers": 0}, "num_layers"),
        ({"max_positions": 4}, "max_positions"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_bad_sizes(options, message):
    with pytest.raises(ValueError, match=message):
        LanguageModelConfig(**options)
