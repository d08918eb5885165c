"""train_language.py as its users run it: on small models, on the CPU."""

from __future__ import annotations

import functools
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from script_runs import (
    ROOT,
    assert_same_records,
    assert_same_weights,
    records,
    run,
    train_killed_and_again,
    train_on_one_and_two,
    weights,
)
from transformers import BertForMaskedLM

from diffusion.text_encoder import TextEncoder
from vidtwin_lab.language.config import LanguageModelConfig, ObjectiveConfig, TokenizerConfig
from vidtwin_lab.language.models import LanguageModelFiles, build_language_model
from vidtwin_lab.language.tokenizers import train_tokenizer

CONFIGS = [path for path in sorted((ROOT / "configs" / "language").glob("*.yaml"))
           if not path.stem.startswith("compare_")]  # fmt: skip
KINDS = ("mlm", "span", "rtd", "clm", "prefix", "bert", "roberta", "albert", "distilbert")
DEBUG = "configs/language/shapes_bert_debug.yaml"
# Families other than BERT need a token for each byte.
FAMILIES = {"bert": (), "roberta": ("tokenizer.vocabulary_size=400",),
            "gpt2": ("tokenizer.vocabulary_size=400",)}  # fmt: skip


train = functools.partial(run, "train_language")


def corpus_file(folder: Path) -> Path:
    words = ("a red circle", "one blue star", "the ring", "moves left", "and then stops", "twice")
    rng = random.Random(0)
    file = folder / "corpus.txt"
    file.write_text("\n".join(" ".join(rng.sample(words, 4)) for _ in range(300)))
    return file


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    """The folder of a BERT in the sizes of the debug configs, for the documentation's words."""
    folder = tmp_path_factory.mktemp("teacher")
    texts = [(ROOT / "README.md").read_text(encoding="utf-8")]
    tokenizer = train_tokenizer(texts, "wordpiece", TokenizerConfig(vocabulary_size=600), 128)
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 2,
        "intermediate_size": 64,
    }
    config = LanguageModelConfig(family="bert", max_positions=128, **sizes)
    model = build_language_model(config, ObjectiveConfig(), tokenizer)
    LanguageModelFiles(model, tokenizer).save_pretrained(folder)
    return folder


def extra_for(name: str, teacher: Path) -> tuple[str, ...]:
    """What a config must be told besides: its texts, its teacher, the model that it trains on."""
    texts = () if "debug" in name or "shapes" in name else ("corpus.files=[docs/*.md]",)
    models = {"distilbert": "objective.distillation.teacher", "paraphrases": "init_from"}
    return (*texts, *(f"{key}={teacher}" for part, key in models.items() if part in name))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_config_describes_itself(config, tmp_path, teacher):
    out = train("--config", config, "--dry-run", f"output={tmp_path / 'run'}",
                "tokenizer.train_texts=300", *extra_for(config.stem, teacher)).done()  # fmt: skip
    family = re.search(r"(\w+): [\d,]+ parameters, [\d,]+ tokens in its vocabulary", out)
    assert family is not None
    assert f"family: {family[1]}" in out
    assert re.search(r"(mlm|clm|prefix_lm|contrastive)( \+ \w+)* on [\d,]+ samples an epoch", out)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_every_objective_trains_and_resumes_bit_for_bit(kind, tmp_path, teacher):
    """What is left after a kill behind step 4 is that step's checkpoint, and leads to the same."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    config = f"configs/language/wikitext_{kind}_debug.yaml"
    options = ("--config", config, "steps=6", "save_every=4", "log_every=1", "validate_every=6",
               "accumulation=2", "ema.enabled=true",
               *extra_for(f"debug_{kind}", teacher))  # fmt: skip
    train(*options, f"output={whole}").done()
    shutil.copytree(whole, killed, ignore=shutil.ignore_patterns("*06", "language_model*"))
    logged = [line for line in (whole / "metrics.jsonl").read_text().splitlines()]
    (killed / "metrics.jsonl").write_text("\n".join(logged[:4]) + "\n")
    resumed_from = killed / "checkpoints" / "step_000000004" / "progress.json"
    written = resumed_from.stat().st_mtime_ns
    train(*options, f"output={killed}").done()
    assert resumed_from.stat().st_mtime_ns == written  # it did not begin anew
    for name in ("language_model", "language_model_ema"):
        for file in (whole / name).rglob("*.safetensors"):
            assert_same_weights(file, killed / file.relative_to(whole))
    assert_same_records(whole, killed)
    encoder = TextEncoder.from_pretrained(whole / "language_model", local_files_only=True)
    assert encoder.causal == (kind == "clm")
    assert encoder(["two latents", ""]).hidden_states.shape[2] == 32


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_validates_and_saves(family, tmp_path):
    train("--config", DEBUG, f"output={tmp_path}", f"model.family={family}", "ema.enabled=true",
          *FAMILIES[family]).done()  # fmt: skip
    logged = records(tmp_path)
    training = [record for record in logged if "loss/total" in record]
    for key in ("training/accuracy", "gradient_norm", "learning_rate", "samples_per_second",
                "data_wait", "memory_gib", "nonfinite_steps"):  # fmt: skip
        assert all(key in record for record in training), key
    validated = [record for record in logged if "validation/accuracy" in record]
    assert [record["step"] for record in validated] == [6, 12]
    assert validated[-1]["validation/perplexity"] > 1
    for folder in ("language_model", "language_model_ema"):
        encoder = TextEncoder.from_pretrained(tmp_path / folder, local_files_only=True)
        assert encoder.causal == (family == "gpt2")
        assert encoder.max_length == 64
        assert encoder(["a red circle", ""]).hidden_states.shape[2] == 32
    assert encoder.digest() != TextEncoder.from_pretrained(tmp_path / "language_model").digest()


def test_killed_at_any_step_and_run_again_equals_uninterrupted(tmp_path):
    # Dropout, EMA and a worker: everything that could remember something.
    options = ("--config", DEBUG, "save_every=2", "model.dropout=0.1", "log_every=1",
               "validation_samples=0", "num_workers=1", "accumulation=2",
               "ema.enabled=true")  # fmt: skip
    whole, killed = train_killed_and_again("train_language", tmp_path, *options, steps=14)
    for name in ("language_model", "language_model_ema"):
        assert_same_weights(whole / name, killed / name)
        files = [folder / name / "tokenizer.json" for folder in (whole, killed)]
        assert files[0].read_text() == files[1].read_text()


@pytest.mark.parametrize("name", ["shapes_bert", "wikitext_rtd", "wikitext_span"])
def test_two_processes_equal_one(name, tmp_path):
    options = ("--config", f"configs/language/{name}_debug.yaml", "steps=4", "log_every=1",
               "validate_every=4", "model.dropout=0.0")  # fmt: skip
    one, two = train_on_one_and_two("train_language", tmp_path, *options)
    assert_same_weights(one / "language_model", two / "language_model", rtol=1e-3, atol=2e-5)


def test_micro_batches_equal_the_whole_batch(tmp_path):
    for parts in (1, 4):
        train("--config", DEBUG, "steps=3", "log_every=1", "validation_samples=0",
              f"output={tmp_path / str(parts)}", f"accumulation={parts}").done()  # fmt: skip
    one, four = (tmp_path / parts / "language_model" for parts in ("1", "4"))
    assert_same_weights(one, four, rtol=1e-4, atol=1e-5)
    losses = [[r["loss/total"] for r in records(tmp_path / str(parts))] for parts in (1, 4)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_overfit_learns_its_texts(tmp_path):
    train(
        "--config", DEBUG, "--overfit", 2, f"output={tmp_path}", "steps=120", "log_every=10",
        "validate_every=120", "save_every=120", "optimizer.learning_rate=1e-2",
    ).done()  # fmt: skip
    losses = [r["loss/total"] for r in records(tmp_path) if "loss/total" in r]
    assert losses[-1] < 0.3 * losses[0]
    assert records(tmp_path)[-1]["validation/accuracy"] > 0.6


def test_files_and_going_on_with_another_corpus(tmp_path):
    options = ("--config", DEBUG, "corpus.source=text", f"corpus.path={corpus_file(tmp_path)}",
               "steps=4", "corpus.validation_fraction=0.1", "validate_every=4")  # fmt: skip
    train(*options, f"output={tmp_path / 'first'}").done()
    assert records(tmp_path / "first")[-1]["validation/tokens"] > 10
    train("--config", DEBUG, f"output={tmp_path / 'second'}", "steps=1", "log_every=1",
          "optimizer.warmup_steps=0", "optimizer.learning_rate=1e-12",
          f"init_from={tmp_path / 'first' / 'language_model'}").done()  # fmt: skip
    # Through the models: early versions of transformers 5 rename weights that were loaded.
    before, after = (
        BertForMaskedLM.from_pretrained(tmp_path / name / "language_model").state_dict()
        for name in ("first", "second")
    )
    assert all(torch.allclose(value, after[key], atol=1e-6) for key, value in before.items())


def test_a_tokenizer_without_a_checkpoint_is_made_anew(tmp_path):
    options = ("--config", DEBUG, "steps=2", "validation_samples=0", "optimizer.warmup_steps=0")
    for size in (300, 200):
        train(*options, f"output={tmp_path}", f"tokenizer.vocabulary_size={size}").done()
        table = weights(tmp_path / "language_model")["bert.embeddings.word_embeddings.weight"]
        assert len(table) == size
        for checkpoint in (tmp_path / "checkpoints").iterdir():
            checkpoint.rename(tmp_path / f"gone-{size}-{checkpoint.name}")


class TestBadInput:
    """One clear line, exit code 2, and nothing written."""

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["model.hiden_size=32"], r"model.hiden_size.*model\.hidden_size"),
            (["model.family=ber"], "`family` must be one of bert, .*, gpt2; got 'ber'"),
            (["model.num_heads=3"], "`hidden_size` must be a multiple of num_heads=3, got 32"),
            (["objective.mask_probability=1.5"], r"`mask_probability` must be in \(0, 1\)"),
            (["corpus.source=text"], "`path` or `files` is required for source=text"),
            (["objective.pairs=nsp"], r"objective\.pairs=nsp needs documents of sentences"),
            (["objective.masking=words"], "`masking` must be one of token, word, span"),
            (["model.family=gpt2", "objective.name=mlm"], "model.family=gpt2 can be trained by"),
            (
                ["objective.name=distillation"],
                r"distillation\.teacher=FOLDER is for distillation",
            ),
            (["objective.distillation.teacher=./nowhere"], "no language model in ./nowhere"),
            (["corpus.source=captions"], "`data` is required for source=captions"),
            (["corpus.source=text", "corpus.path=nowhere.txt"], "nowhere.txt does not exist"),
            (["corpus.shapes.wordings=none"], "`wordings` must be one of"),
            (["tokenizer.vocabulary_size=10"], r"set tokenizer\.vocabulary_size=\d+ or more"),
            (["tokenizer.path=./nowhere"], "no tokenizer in ./nowhere"),
            (["init_from=./nowhere"], "no language model in ./nowhere"),
            (["batch_size=3", "accumulation=2"], "`batch_size` must be a multiple of 2"),
            (["optimizer.warmup_steps=99"], "`optimizer.warmup_steps` must be less than"),
            (["--resume", "nowhere"], "checkpoint nowhere does not exist"),
        ],
        ids=lambda value: value[-1] if isinstance(value, list) else "",
    )
    def test_message(self, tmp_path, arguments, message):
        told = train("--config", DEBUG, f"output={tmp_path / 'run'}", *arguments).refused()
        assert re.search(message, told), told
        assert not list(tmp_path.rglob("*.safetensors"))
