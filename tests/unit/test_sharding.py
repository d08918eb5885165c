"""What sharding decides before there are several processes; see tests/integration/test_sharded."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
)

from diffusion import TwinDiT
from vidtwin import VidTwinAutoencoder
from vidtwin_lab.runtime import sharding
from vidtwin_lab.runtime.sharding import Sharding, blocks_of, memory_per_process, take_sharding

ASKED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_PARALLELISM_CONFIG"):
        monkeypatch.setenv(name, "false")  # so that what is removed comes back


@pytest.mark.parametrize(
    ("build", "kinds"),
    [
        (VidTwinAutoencoder, {"Block", "StructureEncoder", "StructureDecoder"}),
        (TwinDiT, {"Block"}),
        # Their embeddings are tied to the head, so they are gathered with it.
        (lambda: BertForMaskedLM(BertConfig()), {"BertLayer"}),
        (lambda: GPT2LMHeadModel(GPT2Config()), {"GPT2Block"}),
        (lambda: AlbertForMaskedLM(AlbertConfig()), {"AlbertLayerGroup"}),
    ],
)
def test_blocks_are_the_models_layers(build, kinds):
    with torch.device("meta"):
        model = build()
    assert {type(block).__name__ for block in blocks_of(model, Sharding())} == kinds


def test_blocks_are_the_ones_asked_for():
    with torch.device("meta"):
        model = VidTwinAutoencoder()
    blocks = blocks_of(model, Sharding(blocks=("StructureEncoder",)))
    assert [type(block).__name__ for block in blocks] == ["StructureEncoder"]
    with pytest.raises(ValueError, match=r"names Blok; set fsdp_transformer_layer_cls_to_wrap"):
        blocks_of(model, Sharding(blocks=("Blok",)))


def test_a_block_that_shares_a_weight_with_the_rest_is_left_out():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
            self.head = nn.Linear(4, 4)
            self.head.weight = self.layers[1].weight  # type: ignore[assignment]

    model = Tied()
    assert blocks_of(model, Sharding()) == [model.layers[0], model.layers[2]]


def test_memory_is_divided_by_the_shards():
    with torch.device("meta"):
        model = TwinDiT(hidden_size=96, depth=4, num_heads=4)
    numbers = sum(p.numel() for p in model.parameters())
    block = sum(p.numel() for p in model.blocks[0].parameters())
    outside = numbers - 4 * block
    for processes, shards, replicas in ((1, 1, 1), (4, 4, 1), (8, 4, 2)):
        told = memory_per_process(model, Sharding(replicas=replicas), processes)
        # Weights, gradients, two moments and the average, in float32.
        assert told["replicated"] == 5 * 4 * numbers
        assert told["sharded"] == -(-told["replicated"] // shards)
        assert told["gathered"] == 2 * 4 * (outside + 2 * block)
        assert told["total"] == told["sharded"] + told["gathered"]
    model.requires_grad_(False)
    assert memory_per_process(model, Sharding(), 1, ema=False)["sharded"] == 4 * numbers


def test_nothing_asked_for_is_no_sharding():
    assert take_sharding() is None


def test_what_the_launcher_asks_for_is_taken_from_accelerate(monkeypatch):
    for name, value in {**ASKED, "FSDP_RESHARD_AFTER_FORWARD": "false"}.items():
        monkeypatch.setenv(name, value)
    assert take_sharding() == Sharding(reshard_after_forward=False)
    assert take_sharding() is None


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"FSDP_VERSION": "1"}, "fsdp_version: 2"),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, "leave fsdp_offload_params out"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, "gradient_checkpointing=true"),
        (
            {"ACCELERATE_USE_PARALLELISM_CONFIG": "true", "PARALLELISM_CONFIG_TP_SIZE": "2"},
            "parallelism_config_tp_size=2",
        ),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "fsdp2.yaml"),
    ],
)
def test_what_is_not_done_is_refused(environment, told, monkeypatch):
    for name, value in {**ASKED, **environment}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=told):
        take_sharding()


def test_helpers_leave_what_is_not_sharded_as_it_is():
    tensor = torch.arange(3.0)
    assert sharding.whole(tensor) is tensor
    assert sharding.for_disk(tensor) is tensor
    assert sharding.shard_like(tensor, torch.zeros(3)) is tensor
    assert sharding.local(tensor).data_ptr() == tensor.data_ptr()
    model = nn.Linear(2, 2)
    assert sharding.whole_state(model).keys() == model.state_dict().keys()


@pytest.fixture
def kwargs_handlers(monkeypatch):
    """What accelerate is given for a run: options of the config -> its kwargs_handlers."""
    from vidtwin_lab.runtime import RunConfig, run

    given: list[Any] = []

    def start(**options: Any) -> None:
        given[:] = options["kwargs_handlers"]
        raise InterruptedError

    def handlers_of(**options: Any) -> list[Any]:
        with pytest.raises(InterruptedError):
            run.start_processes(RunConfig(output="unused", **options))
        return given

    monkeypatch.setattr(run, "RunAccelerator", start)
    return handlers_of


def test_processes_wait_as_long_as_the_config_says(kwargs_handlers):
    from vidtwin_lab.runtime import RunConfig

    for minutes in (60.0, 0.5):
        options = {} if minutes == 60 else {"collective_timeout_minutes": minutes}
        assert kwargs_handlers(**options)[-1].timeout == timedelta(minutes=minutes)
    with pytest.raises(ValueError, match=r"`collective_timeout_minutes` must be in \(0, 10080\]"):
        RunConfig(output="unused", collective_timeout_minutes=0)


def test_tf32_and_buckets_are_what_the_run_says(kwargs_handlers):
    for wanted in (True, False):
        assert kwargs_handlers(tf32=wanted)[0].gradient_as_bucket_view
        assert torch.backends.cuda.matmul.allow_tf32 is wanted
