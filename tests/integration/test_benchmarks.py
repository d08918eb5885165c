"""The speed benchmarks: how they measure, and every part at a tiny size."""

from __future__ import annotations

import importlib.util
import json
import os
import sys

import pytest
import torch

from vidtwin.files import root_folder

FOLDER = root_folder() / "benchmarks"


@pytest.fixture(scope="module")
def run():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        spec = importlib.util.spec_from_file_location("benchmarks_run", FOLDER / "run.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module


@pytest.fixture
def measuring(run):
    return sys.modules["speed_parts.measuring"]


def start(run, monkeypatch, *arguments: str) -> None:
    threads = torch.get_num_threads()
    monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
    try:
        run.main()
    finally:
        torch.set_num_threads(threads)


def test_calls_take_turns_and_the_first_round_is_left_out(measuring) -> None:
    done = []
    turns = measuring.side_by_side(
        {"a": lambda: done.append("a"), "b": lambda: done.append("b")}, 3
    )
    assert "".join(done) == "ababab" and {name: len(t) for name, t in turns.items()} == {
        "a": 2,
        "b": 2,
    }
    assert len(measuring.side_by_side({"a": list}, 1)["a"]) == 1


def test_a_ratio_is_the_median_over_the_rounds_and_not_that_of_the_medians(measuring) -> None:
    one, other = ([measuring.Turn(s, None) for s in times] for times in ((2, 9, 8), (1, 3, 8)))
    assert measuring.ratio(one, other) == 2 and measuring.seconds(one) == 8
    assert measuring.mebibytes(one) is None


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="no /proc of Linux")
def test_the_peak_is_what_a_call_needs_even_if_it_lets_go_of_it(measuring) -> None:
    size = 50 * 2**20
    calls = {"large": lambda: torch.ones(size, dtype=torch.uint8).max(), "nothing": lambda: None}
    turns = measuring.side_by_side(calls, 3)  # the libraries' own pages come in the first
    large, nothing = (2**20 * measuring.mebibytes(turns[name]) for name in calls)
    assert 0.9 * size < large < 1.5 * size
    assert nothing < 0.1 * size


def test_flops_count_attention_on_a_cpu(measuring) -> None:
    q = torch.randn(1, 2, 16, 8)
    found = measuring.flops(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q))
    assert found == 2 * 2 * 2 * 16 * 16 * 8


def test_cells_of_a_table(measuring) -> None:
    assert [measuring.as_text(v) for v in (None, 12345, 0.12345, 12345.6, "a")] == [
        "-", "12,345", "0.123", "12,346", "a",
    ]  # fmt: skip


def test_every_part_at_a_tiny_size(run, monkeypatch, tmp_path, capsys) -> None:
    start(run, monkeypatch, "--small", "--rounds", "1", "--output", str(tmp_path))
    printed = capsys.readouterr().out
    assert not (tmp_path / "official.json").exists()  # without a checkout of the official code
    for name in run.PARTS.keys() - {"official"}:
        found = json.loads((tmp_path / f"{name}.json").read_text())
        table = (tmp_path / f"{name}.md").read_text()
        assert len(table.splitlines()) == 2 + len(found["found"]["rows"]) > 2
        assert table in printed
        protocol = found["protocol"]
        assert protocol["threads"] == protocol["counted_rounds"] == 1
        assert protocol["software"]["torch"] and protocol["machine"]["cores"] >= 1
    assert (tmp_path / "scaling.png").stat().st_size > 1000


OFFICIAL = """
from types import SimpleNamespace

import torch
from lightning.pytorch import LightningModule
from omegaconf import ListConfig
from timm.models.vision_transformer import Mlp
from vidtok.modules.regularizers import named
from vidtwin.modules.st_transformer import torch as in_float32

assert ListConfig is list and named == "theirs" and in_float32.bfloat16 is torch.float32


class VidAutoEncoderQformerCompactSymVidVAE(LightningModule):
    def __init__(self, **settings):
        super().__init__()
        assert settings["encoder_config"].params.input_size == [16, 32, 32]
        self.mlp = Mlp(in_features=2, hidden_features=3, act_layer=torch.nn.GELU, drop=0.0)
"""


def test_the_official_code_is_imported_beside_ours(run, tmp_path) -> None:
    official = importlib.import_module("speed_parts.official")
    for name, text in {
        "vidtwin/models/vidtwin_ae.py": OFFICIAL,
        "vidtwin/modules/st_transformer.py": "import torch",
        "vidtok/modules/regularizers.py": "named = 'theirs'",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    before = set(sys.modules)
    model = official.official_autoencoder(tmp_path, 32)
    assert model.mlp(torch.zeros(1, 2)).shape == (1, 2)
    import vidtwin

    assert vidtwin.__file__ == str(root_folder() / "vidtwin" / "__init__.py")
    left = {name for name in set(sys.modules) - before if official.belongs(name)}
    assert not left
    with pytest.raises(FileNotFoundError, match="--official must be a checkout"):
        official.official_autoencoder(tmp_path / "vidtok", 32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["official", "--small"], "official needs --official FOLDER"),
        (["speed"], "NAME must be one of autoencoders, .*; got 'speed'"),
        (["--rounds", "0"], "--rounds must be at least 1, got 0"),
        (["--threads", "0"], "--threads must be at least 1, got 0"),
    ],
)
def test_what_is_not_there_is_refused_by_name(
    run, monkeypatch, tmp_path, arguments, message
) -> None:
    with pytest.raises(ValueError, match=message):
        start(run, monkeypatch, *arguments, "--output", str(tmp_path))
