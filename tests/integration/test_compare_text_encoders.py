"""compare_text_encoders.py as its users run it: the whole comparison on tiny models, on the CPU."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState, PartialState
from safetensors.torch import load_file
from transformers import BertConfig, BertModel

from diffusion import TwinDiT
from diffusion.text_encoder import TextEncoder
from vidtwin_lab import runtime
from vidtwin_lab.language.config import TokenizerConfig
from vidtwin_lab.language.tokenizers import train_tokenizer

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs" / "language").glob("compare_*.yaml"))
DEBUG = "configs/language/compare_text_encoders_debug.yaml"
# One text encoder and the random baseline of its kind; the stages are the same for more of them.
FEW = ("objectives=[clm]", "random_baselines=[clm]")
NOUNS = ("cat", "dog", "bird", "fish")


@pytest.fixture(scope="module")
def script():
    """compare_text_encoders.py as a module."""
    spec = importlib.util.spec_from_file_location(
        "compare_text_encoders_script", ROOT / "tools" / "compare_text_encoders.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(script, monkeypatch, capsys):
    """Runs the script in this process: its exit code, standard output and standard error."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["compare_text_encoders.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            runtime.run_main(script.main)
        captured = capsys.readouterr()
        return int(end.value.code or 0), captured.out, captured.err

    yield call
    AcceleratorState._reset_state(True)
    PartialState._reset_state()


@pytest.fixture
def tasks(tmp_path) -> tuple[str, ...]:
    """Overrides that name small files of SST-2 and SQuAD."""
    folder = tmp_path / "texts"
    (folder / "SST-2").mkdir(parents=True)
    for part, count in (("train", 24), ("dev", 8)):
        rows = [f"the {NOUNS[i % 4]} sat .\t{i % 2}" for i in range(count)]
        (folder / "SST-2" / f"{part}.tsv").write_text("\n".join(["sentence\tlabel", *rows]) + "\n")
        paragraphs = []
        for i in range(count // 4):
            context = f"the dog sat . the {NOUNS[i % 4]} sang . the bird ran ."
            answer = {"text": NOUNS[i % 4], "answer_start": context.index(f"{NOUNS[i % 4]} sang")}
            asked = {"id": f"{part}{i}", "question": "what sang ?", "answers": [answer]}
            paragraphs.append({"context": context, "qas": [asked]})
        content = {"version": "1.1", "data": [{"title": part, "paragraphs": paragraphs}]}
        (folder / f"{part}.json").write_text(json.dumps(content))
    return (
        f"glue.path={folder}",
        f"squad.train=[{folder / 'train.json'}]",
        f"squad.dev={folder / 'dev.json'}",
    )


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_config_lists_its_jobs(run, config, tmp_path):
    code, out, err = run("--config", config, "--dry-run", f"output={tmp_path / 'out'}")
    assert code == 0, err
    assert "to do    pretrain/clm: " in out
    assert "to do    adherence/clm_seed0: " in out
    for word in out.replace("'", "").split():
        if word.startswith("configs/") and word.endswith(".yaml"):
            assert (ROOT / word.replace("{objective}", "mlm")).is_file(), word
    assert not (tmp_path / "out").exists()


@pytest.mark.timeout(1800)  # ten scripts, one after another
def test_the_whole_comparison_is_one_command_that_keeps_what_is_finished(run, tasks, tmp_path):
    options = ("--config", DEBUG, *FEW, *tasks, f"output={tmp_path / 'out'}")
    code, out, err = run(*options, "--stages", "pretrain,glue,table")
    assert code == 0, err
    assert [line.split()[1] for line in out.splitlines() if line[2:3] == ":"] == [
        "pretrain/clm", "pretrain/random_clm", "glue/clm_seed0", "glue/random_clm_seed0",
    ]  # fmt: skip
    assert "prompt: color" not in out
    code, out, err = run(*options)
    assert code == 0, err
    jobs = [line.split()[1] for line in out.splitlines() if line[2:3] == ":"]
    assert jobs == [
        "squad/clm_seed0", "squad/random_clm_seed0", "probe/clm_seed0", "probe/random_clm_seed0",
        "latents/cache", "diffusion/clm_seed0", "adherence/clm_seed0",
    ]  # fmt: skip
    content = json.loads((tmp_path / "out" / "compare_text_encoders.json").read_text())
    found, protocol = content["found"]["text_encoders"], content["protocol"]
    for measure in ("glue/sst2/accuracy", "squad/squad1/f1", "probe/order/accuracy"):
        for text_encoder in ("clm", "random_clm"):
            assert 0 <= found[text_encoder][measure]["median"] <= 1, (text_encoder, measure)
    assert 0 <= found["clm"]["adherence/prompt/shape"]["median"] <= 1
    assert content["found"]["missing"] == []
    own = protocol["pretraining"]["clm"]
    assert own["steps"] == 4
    assert 0 < own["tokens"] <= 4 * 8 * 128
    text_encoder = protocol["stages"]["squad"]["squad1"]["first"]["text_encoder"]
    assert (text_encoder["causal"], text_encoder["pooling"], text_encoder["random_weights"]) == (
        True,
        "last",
        False,
    )
    other = protocol["stages"]["glue"]["sst2"]["others"]["random_clm_seed0"]
    assert other["text_encoder.random_weights"] is True
    assert protocol["seconds_of_jobs"]["pretrain_clm"] > 0
    trained = yaml.safe_load((tmp_path / "out/diffusion/clm_seed0/config.yaml").read_text())
    assert trained["text_encoder"].endswith("pretrain/clm/language_model")
    table = (tmp_path / "out" / "compare_text_encoders.md").read_text()
    assert "| measured, % | next token (clm) | random weights (next token) |" in table

    code, out, err = run(*options)
    assert code == 0, err
    assert out == table  # nothing was done again
    code, _, err = run(*options, "glue.epochs=2")
    assert code == 2
    assert "glue/clm_seed0" in err
    assert "differs in epochs=1.0, epochs=2.0" in err


@pytest.mark.timeout(1800)  # three scripts, one after another
def test_a_causal_text_encoder_is_also_read_bidirectionally(run, tmp_path):
    options = ("--config", DEBUG, "objectives=[clm]", "bidirectional=[clm]",
               "random_baselines=[]", f"output={tmp_path / 'out'}")  # fmt: skip
    code, out, err = run(*options, "--stages", "pretrain,probe,table")
    assert code == 0, err
    assert [line.split()[1] for line in out.splitlines() if line[2:3] == ":"] == [
        "pretrain/clm", "pretrain/bidirectional_clm",
        "probe/clm_seed0", "probe/bidirectional_clm_seed0",
    ]  # fmt: skip
    table = (tmp_path / "out" / "compare_text_encoders.md").read_text()
    assert ("| measured, % | next token (clm) | next token, read bidirectionally (clm) |") in table
    assert "| attention | causal | bidirectional |" in table
    content = json.loads((tmp_path / "out" / "compare_text_encoders.json").read_text())
    pretraining = content["protocol"]["pretraining"]
    assert pretraining["bidirectional_clm"] == pretraining["clm"]
    weights = [(tmp_path / "out/pretrain" / name / "language_model/model.safetensors")
               for name in ("clm", "bidirectional_clm")]  # fmt: skip
    own, read = (load_file(path) for path in weights)
    assert all(torch.equal(value, own[f"transformer.{name}"]) for name, value in read.items())


def test_a_trained_transformer_starts_with_a_new_text_part(script, build_pipeline, tmp_path):
    saved = build_pipeline().transformer
    saved.save_pretrained(tmp_path / "saved")
    tokenizer = train_tokenizer(["a circle moves"] * 3, "wordpiece", TokenizerConfig(), 16)
    width = saved.sizes.text_hidden_size * 2
    config = BertConfig(vocab_size=len(tokenizer), hidden_size=width, num_hidden_layers=1,
                        num_attention_heads=1, intermediate_size=8)  # fmt: skip
    TextEncoder(BertModel(config), tokenizer).save_pretrained(tmp_path / "text_encoder")
    for seed in (0, 1):
        target = tmp_path / f"start_seed{seed}"
        script.write_start(tmp_path / "saved", tmp_path / "text_encoder", target, seed)
    first, second = (TwinDiT.from_pretrained(tmp_path / f"start_seed{seed}") for seed in (0, 1))
    assert first.sizes.text_hidden_size == width
    others = dict(second.named_parameters())
    for name, parameter in first.named_parameters():
        if not name.startswith("text."):
            assert torch.equal(parameter, saved.get_parameter(name)), name
            assert torch.equal(parameter, others[name]), name
    weight = "text.projection.0.weight"
    assert not torch.equal(first.get_parameter(weight), others[weight])


def test_bad_input_is_one_line_and_exit_code_2(run, tasks, tmp_path):
    options = ("--config", DEBUG, *FEW, f"output={tmp_path / 'out'}")
    for arguments, message in (
        (("--stages", "glue"), "glue/clm_seed0 needs pretrain/clm"),
        (("--stages", "gleu"), "`stages` must be different names of all, corpus, pretrain"),
        (("objectives=[mln]",), "`objectives` must be different names of mlm, span"),
        (("tasks=[sst3]",), "the nearest is 'sst2'"),
        (("seeds=[]",), "`seeds` must be different numbers"),
        (
            ("objectives=[mlm]", "bidirectional=[clm]"),
            "`bidirectional` must be of objectives=['mlm",
        ),
        (("bidirectional=[mlm]",), "`bidirectional` must be different names of clm; got ['mlm']"),
        (("glue.epoch=2",), "glue.epochs"),
        (("pretrain.config=configs/none.yaml",), "pretrain/clm failed (error: "),
    ):
        code, _, err = run(*options, *arguments)
        told = [line for line in err.splitlines() if line.startswith("error:")]
        assert code == 2, (arguments, err)
        assert len(told) == 1
        assert message in told[0], told
        assert "Traceback" not in err
