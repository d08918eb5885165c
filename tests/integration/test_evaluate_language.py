"""evaluate_language.py as its users run it: on small text encoders and files, on the CPU."""

from __future__ import annotations

import csv
import functools
import json
import random
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from script_runs import ROOT, read_json, records, run, run_apart, run_python
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model

from diffusion.text_encoder import TextEncoder
from vidtwin_lab.language.config import TokenizerConfig
from vidtwin_lab.language.tasks.results import FinishedRuns
from vidtwin_lab.language.tasks.squad import evaluate_v1, evaluate_v2, read_squad
from vidtwin_lab.language.tokenizers import train_tokenizer

CONFIGS = sorted((ROOT / "configs" / "language" / "tasks").glob("*.yaml"))
NOUNS, VERBS = ("cat", "dog", "bird", "fish"), ("sat", "ran", "slept", "sang")
QUICK = ("epochs=1", "batch_size=8", "optimizer.learning_rate=0.003", "text_encoder.max_length=32")


evaluate = functools.partial(run, "evaluate_language")


def sentence(rng: random.Random) -> str:
    return f"the {rng.choice(NOUNS)} {rng.choice(VERBS)} and the {rng.choice(NOUNS)} sang"


@pytest.fixture(scope="module")
def text_encoders(tmp_path_factory) -> dict[str, str]:
    """Folders of tiny random text encoders, one that reads both ways and one that reads one way."""
    torch.manual_seed(0)
    rng, found = random.Random(0), {}
    texts = [sentence(rng) + " who what ? a circle star ring moves left on navy" for _ in range(50)]
    for family in ("bert", "gpt2"):
        kind = "wordpiece" if family == "bert" else "byte_bpe"
        tokenizer = train_tokenizer(texts, kind, TokenizerConfig(vocabulary_size=400), 160)
        size = len(tokenizer)
        model = (
            BertModel(BertConfig(vocab_size=size, hidden_size=32, num_hidden_layers=2,
                                 num_attention_heads=2, intermediate_size=64,
                                 max_position_embeddings=160, hidden_dropout_prob=0.0,
                                 attention_probs_dropout_prob=0.0))
            if family == "bert" else
            GPT2Model(GPT2Config(vocab_size=size, n_positions=160, n_embd=32, n_layer=2, n_head=2))
        )  # fmt: skip
        folder = tmp_path_factory.mktemp("text_encoders") / family
        TextEncoder(model, tokenizer).save_pretrained(folder)
        found[family] = str(folder)
    return found


@pytest.fixture(scope="module")
def glue(tmp_path_factory) -> Path:
    """A folder of GLUE in which SST-2 asks for a word, and RTE whether two texts are equal."""
    folder, rng = tmp_path_factory.mktemp("glue"), random.Random(1)
    for part, count in (("train", 96), ("dev", 32), ("test", 5)):
        texts = [sentence(rng) for _ in range(count)]
        # Only the last noun matters, which a text encoder of bare words can't know.
        sst2 = [f"{text}\t{int('cat sang' in text or 'dog sang' in text)}" for text in texts]
        labels = ("not_entailment", "entailment")
        rte = [f"{i}\t{text}\t{text if i % 2 else sentence(rng)}\t{labels[i % 2]}"
               for i, text in enumerate(texts)]  # fmt: skip
        if part == "test":
            sst2 = [f"{i}\t{text}" for i, text in enumerate(texts)]
        else:
            write(folder / "RTE" / f"{part}.tsv", ["index\tsentence1\tsentence2\tlabel", *rte])
        header = "index\tsentence" if part == "test" else "sentence\tlabel"
        write(folder / "SST-2" / f"{part}.tsv", [header, *sst2])
    return folder


@pytest.fixture(scope="module")
def squad(tmp_path_factory) -> dict[str, Path]:
    """Files of SQuAD in which who sang is the noun before "sang"; in v2.0 some nobody sang."""
    folder, rng, files = tmp_path_factory.mktemp("squad"), random.Random(2), {}
    for name, count, version2 in (("train", 24, False), ("dev", 10, False), ("train2", 24, True),
                                  ("dev2", 10, True)):  # fmt: skip
        paragraphs = []
        for i in range(count):
            context = " . ".join(sentence(rng).rsplit(" and", 1)[0] for _ in range(4))
            noun = rng.choice(NOUNS)
            context += f" . the {noun} sang . the {rng.choice(NOUNS)} sat ."
            answer = {"text": noun, "answer_start": context.index(f"{noun} sang")}
            asked: dict = {"id": f"{name}{i}", "question": "what sang ?", "answers": [answer]}
            if version2:
                asked["is_impossible"] = i % 2 == 0
                if i % 2 == 0:
                    asked |= {"question": "who ran what ?", "answers": []}
            paragraphs.append({"context": context, "qas": [asked]})
        files[name] = folder / f"{name}.json"
        data = [{"title": name, "paragraphs": paragraphs}]
        files[name].write_text(json.dumps({"version": "v2.0" if version2 else "1.1", "data": data}))
    return files


def write(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def report(folder: Path, name: str) -> dict:
    return read_json(folder / f"{name}.json")


def losses(folder: Path) -> list[float]:
    logged = (pair for record in records(folder) for pair in record.items())
    return [value for name, value in logged if name.endswith("/loss")]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_config_describes_itself(config, text_encoders, glue, squad, tmp_path):
    name = config.stem.partition("_")[0]
    data = {"glue": [f"data.path={glue}"],
            "squad": [f"data.train=[{squad['train']}]", f"data.dev={squad['dev']}"],
            "probe": []}[name]  # fmt: skip
    length = [] if name == "probe" else ["text_encoder.max_length=48"]
    out = evaluate(name, "--config", config, f"text_encoder.name={text_encoders['bert']}", *data,
                   *length,
                   f"output={tmp_path / 'out'}", "--dry-run").done()  # fmt: skip
    assert {"glue": "sst2:", "squad": "squad1:", "probe": "questions:"}[name] in out
    assert not (tmp_path / "out").exists()


def test_the_text_encoder_of_a_pipeline(glue, tmp_path):
    """One that reads fewer tokens than a row may have by default."""
    out = evaluate("glue", "text_encoder.name=checkpoints/shapes", f"data.path={glue}",
                   "data.tasks=[sst2]", "epochs=1", f"output={tmp_path}").done()  # fmt: skip
    assert "| checkpoints/shapes | " in out
    assert report(tmp_path, "glue")["protocol"]["tasks"]["sst2"]["max_length"] == 64


def test_what_is_finished_is_kept(text_encoders, glue, tmp_path, monkeypatch):
    options = ("glue", f"text_encoder.name={text_encoders['bert']}", f"data.path={glue}", *QUICK,
               f"output={tmp_path}")  # fmt: skip
    out = evaluate(*options, "seeds=[0,1]").done()
    assert "| sst2 accuracy | rte accuracy | seeds |" in out
    first = report(tmp_path, "glue")
    assert set(first["found"]) == {"sst2", "rte"}
    assert len(first["found"]["rte"]["accuracy"]["values"]) == 2
    assert {row["path"] for row in first["skipped"]["files"]} >= {"CoLA", "MNLI"}
    assert first["protocol"]["tasks"]["sst2"]["files"]["dev"]["n"] == 32
    assert len(first["protocol"]["text_encoder"]["digest"]) == 64
    best = first["protocol"]["submitted_seeds"]["sst2"]
    submitted = (tmp_path / "submission" / "SST-2.tsv").read_text()
    own = (tmp_path / "predictions" / f"sst2_seed{best}" / "SST-2.tsv").read_text()
    assert submitted == own
    assert [line.split("\t")[0] for line in submitted.splitlines()] == ["index", *"01234"]
    with (tmp_path / "glue.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["task"], row["seed"]) for row in rows] == [
        ("sst2", "0"), ("sst2", "1"), ("rte", "0"), ("rte", "1")]  # fmt: skip
    assert any("sst2/seed0/samples_per_second" in record for record in records(tmp_path))

    trained = []
    keep = FinishedRuns.write
    monkeypatch.setattr(FinishedRuns, "write", lambda runs, task, seed, *found:
                        trained.append((task, seed)) or keep(runs, task, seed, *found))  # fmt: skip
    evaluate(*options, "seeds=[0,1]").done()
    assert report(tmp_path, "glue") == first
    moved = shutil.copytree(glue, tmp_path / "moved")
    evaluate(*options, "seeds=[0,1]", f"data.path={moved}").done()
    assert trained == []
    evaluate(*options, "seeds=[1,2]", "data.tasks=[rte]").done()
    assert trained == [("rte", 2)]
    values = report(tmp_path, "glue")["found"]["rte"]["accuracy"]["values"]
    assert values[0] == first["found"]["rte"]["accuracy"]["values"][1]
    told = evaluate(*options, "optimizer.learning_rate=0.1").refused()
    assert "settings.optimizer.learning_rate was 0.003, now 0.1" in told


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_text_encoder_that_is_stored_in_half_is_trained_in_float32(
    text_encoders, glue, tmp_path, dtype
):
    stored = TextEncoder.from_pretrained(text_encoders["bert"])
    stored.to(dtype).save_pretrained(tmp_path / "half")
    evaluate("glue", f"text_encoder.name={tmp_path / 'half'}", f"data.path={glue}", *QUICK,
             "data.tasks=[sst2]", f"output={tmp_path / 'out'}").done()  # fmt: skip
    assert len(losses(tmp_path / "out")) > 0


def test_the_same_seed_gives_the_same_bits(text_encoders, glue, tmp_path):
    for name in ("one", "two"):
        evaluate("glue", f"text_encoder.name={text_encoders['gpt2']}", f"data.path={glue}", *QUICK,
                 "data.tasks=[sst2]", f"output={tmp_path / name}").done()  # fmt: skip
    first, second = (losses(tmp_path / name) for name in ("one", "two"))
    assert first
    assert first == second
    assert report(tmp_path / "one", "glue")["found"] == report(tmp_path / "two", "glue")["found"]


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_what_can_be_learnt_is_learnt(text_encoders, glue, family, tmp_path):
    evaluate("glue", f"text_encoder.name={text_encoders[family]}", f"data.path={glue}", *QUICK,
             "text_encoder.random_weights=true", "epochs=20", "data.tasks=[sst2]", "dropout=0",
             f"output={tmp_path}").done()  # fmt: skip
    found = report(tmp_path, "glue")
    assert found["found"]["sst2"]["accuracy"]["median"] > 0.9
    assert found["protocol"]["text_encoder"]["pooling"] == ("first" if family == "bert" else "last")


def test_squad_answers_are_found_and_measured_as_they_are_written(text_encoders, squad, tmp_path):
    out = evaluate("squad", f"text_encoder.name={text_encoders['bert']}", f"output={tmp_path}",
                   *QUICK,
                   f"data.train=[{squad['train']}]", f"data.dev={squad['dev']}",
                   "data.stride=8", "epochs=30").done()  # fmt: skip
    found = report(tmp_path, "squad")["found"]["squad1"]
    predictions = read_json(tmp_path / "predictions/squad1_seed0/predictions.json")
    measured = evaluate_v1(read_squad(str(squad["dev"])).questions, predictions)
    assert found["exact"]["median"] == pytest.approx(measured["exact"])
    assert found["f1"]["median"] == pytest.approx(measured["f1"])
    assert found["f1"]["median"] > 0.5  # chance is a word of 25
    assert "squad1 exact" in out


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_squad_v2_knows_no_answer(text_encoders, squad, family, tmp_path):
    out = evaluate("squad", f"text_encoder.name={text_encoders[family]}", f"output={tmp_path}",
                   *QUICK,
                   f"data.train=[{squad['train2']}]", f"data.dev={squad['dev2']}",
                   "data.stride=8", "epochs=30").done()  # fmt: skip
    found = report(tmp_path, "squad")
    protocol = found["protocol"]["tasks"]["squad2"]
    assert (protocol["unanswerable"], protocol["measured_on"]) == (5, 10)
    assert protocol["no_answer_token"] == ("first" if family == "bert" else "last")
    folder = tmp_path / "predictions" / "squad2_seed0"
    best, odds = (read_json(folder / f"{name}.json")
                  for name in ("best_answers", "null_odds"))  # fmt: skip
    measured = evaluate_v2(read_squad(str(squad["dev2"])).questions, best, odds)
    for name, value in measured.items():
        assert found["found"]["squad2"][name]["median"] == pytest.approx(value, rel=1e-6), name
    assert found["found"]["squad2"]["no_answer_exact"]["median"] >= 0.8
    assert "threshold" not in out


def test_articles_are_divided(text_encoders, squad, tmp_path):
    split = tmp_path / "split.json"
    both = read_json(squad["dev"])
    both["data"] += read_json(squad["train"])["data"]
    (tmp_path / "both.json").write_text(json.dumps(both))
    split.write_text(json.dumps({"train": ["train"], "test": ["dev"]}))
    out = evaluate("squad", f"text_encoder.name={text_encoders['bert']}", *QUICK, "data.train=[]",
                   f"data.dev={tmp_path / 'both.json'}", f"data.article_split={split}",
                   f"output={tmp_path / 'out'}", "--dry-run").done()  # fmt: skip
    described = yaml.safe_load(out[out.index("squad1:") :])["squad1"]
    assert described["trained_on"] > described["predicted"]["dev"] > 0


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_probes(text_encoders, family, tmp_path):
    out = evaluate("probe", f"text_encoder.name={text_encoders[family]}", f"output={tmp_path}",
                   "seeds=[0,1]", "train_size=60", "test_size=30",
                   "questions=[color,order,motion_at_shape]").done()  # fmt: skip
    found = report(tmp_path, "probe")
    assert set(found["found"]) == {"color", "order", "motion_at_shape"}
    color = found["found"]["color"]
    assert color["words_alone"]["median"] > color["most_frequent"]["median"]
    assert found["protocol"]["text_encoder"]["causal"] == (family == "gpt2")
    assert found["protocol"]["text_encoder"]["pooling"] == ("last" if family == "gpt2" else "mean")
    assert "| text encoder | color | order | motion_at_shape |" in out


def test_two_processes_agree_with_one(text_encoders, glue, tmp_path):
    arguments = ["glue", f"text_encoder.name={text_encoders['bert']}", f"data.path={glue}", *QUICK,
                 "data.tasks=[sst2]", "dropout=0", "log_every=1"]  # fmt: skip
    evaluate(*arguments, f"output={tmp_path / 'one'}").done()
    words = ("evaluate_language", *arguments, f"output={tmp_path / 'two'}")
    run_apart(*words, processes=2).done()
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=2e-3)
    one, two = (report(tmp_path / name, "glue") for name in ("one", "two"))
    assert one["protocol"].pop("made_by")[0]["processes"] == 1
    assert two["protocol"].pop("made_by")[0]["processes"] == 2
    assert one["protocol"] == two["protocol"]
    for name in ("one", "two"):
        file = tmp_path / name / "predictions" / "sst2_seed0" / "SST-2.tsv"
        assert len(file.read_text().splitlines()) == 6


def test_sharding_is_refused(text_encoders, glue, tmp_path, monkeypatch):
    words = ["glue", f"text_encoder.name={text_encoders['bert']}", f"data.path={glue}", *QUICK,
             "data.tasks=[sst2]", f"output={tmp_path / 'one'}"]  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setenv("ACCELERATE_USE_FSDP", "true")
        patch.setenv("FSDP_VERSION", "2")
        assert "FSDP2, which is for the training scripts" in evaluate(*words).refused()
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    assert "DeepSpeed" in evaluate(*words).refused()


def test_bad_input_is_one_line_and_exit_code_2(text_encoders, glue, squad, tmp_path):
    text_encoder = f"text_encoder.name={text_encoders['bert']}"
    other = tmp_path / "other"
    TextEncoder.from_pretrained(text_encoders["bert"]).save_pretrained(other)
    for file in Path(text_encoders["gpt2"]).glob("*token*"):
        (other / file.name).write_bytes(file.read_bytes())
    cyrillic = tmp_path / "cyrillic"
    for part in ("train", "dev"):
        write(cyrillic / part, ["sentence\tlabel", "кошка сидит\t1", "собака бежит\t0"])
    (cyrillic / "SST-2").mkdir()
    for part in ("train", "dev"):
        (cyrillic / part).rename(cyrillic / "SST-2" / f"{part}.tsv")
    cases = [
        (("glue", text_encoder, "data.tasks=[sst3]", f"data.path={glue}"), "the nearest is 'sst2'"),
        (("glue", text_encoder, f"data.path={tmp_path / 'none'}"), "none, does not exist"),
        (("glue", text_encoder, "data.tasks=[qnli]", f"data.path={glue}"), "no train.tsv"),
        (("glue", text_encoder, f"data.path={cyrillic}"),
         "'кошка сидит'; choose a text encoder for this"),
        (("glue", f"text_encoder.name={other}", f"data.path={glue}"),
         "they do not belong together"),
        (("glue", f"text_encoder.name={tmp_path / 'none'}", f"data.path={glue}"),
         "no text encoder in"),
        (("glue", text_encoder, f"data.path={glue}", "text_encoder.max_length=4"),
         "the text encoder's 160 tokens"),
        (("glue", text_encoder, f"data.path={glue}", "seeds=[0,0]"), "`seeds` must be different"),
        (("glue", text_encoder, f"data.path={glue}", "text_encoder.pooling=frist"),
         "`pooling` must be one of"),
        (("glue", f"text_encoder.name={text_encoders['gpt2']}", f"data.path={glue}",
          "text_encoder.pooling=first"),
         "pooling=first of a causal text encoder"),
        (("squad", text_encoder, f"data.dev={glue / 'RTE' / 'dev.tsv'}",
          f"data.train=[{squad['train']}]", "text_encoder.max_length=32"),
         "line 1, column 1: not JSON"),
        (("squad", text_encoder, f"data.dev={squad['dev']}", "text_encoder.max_length=32",
          "data.stride=0"),
         "`stride` must be at least 1"),
        (("probe", text_encoder, "questions=[colour]"), "the nearest is 'color'"),
    ]  # fmt: skip
    for arguments, message in cases:
        told = evaluate(*arguments, f"output={tmp_path / 'out'}", "--dry-run").refused()
        assert told.startswith("error: ")
        assert message in told


def test_a_wrong_name_is_told_by_a_process_of_its_own():
    told = run_python("evaluate_language.py", "glew").refused()
    assert told.startswith("error: ")
    assert "the nearest is 'glue'" in told
