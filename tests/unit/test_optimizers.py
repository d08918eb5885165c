"""Optimizers and learning rates: what the config says, with a fresh and with a loaded state."""

from __future__ import annotations

import copy
import dataclasses
import sys
import types
from typing import Any

import pytest
import torch
from diffusers.optimization import get_scheduler
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from vidtwin_lab.runtime import (
    EMAConfig,
    OptimizerConfig,
    build_ema,
    build_optimizer,
    learning_rate_at,
    learning_rate_schedule,
    set_learning_rate,
)
from vidtwin_lab.runtime.run import NamedStates
from vidtwin_lab.runtime.run_config import SCHEDULES

needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has no Muon")


class Layers(nn.Module):
    """Blocks between a first and a last layer, with an embedding and norms."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4), nn.Tanh()) for _ in range(2)
        )
        self.head = nn.Linear(4, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.embedding(tokens)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.head(hidden)


def layers(seed: int = 0) -> Layers:
    torch.manual_seed(seed)
    return Layers()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        torch.manual_seed(step)
        model(torch.randint(0, 5, (6,))).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def assert_same(one: nn.Module, two: nn.Module) -> None:
    for mine, other in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(mine, other)


def settings(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    return [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]


# Learning rate


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_rate_of_a_step_is_the_one_of_torchs_schedulers_to_the_bit(name):
    config = OptimizerConfig(learning_rate=3e-5, schedule=name, warmup_steps=3)
    optimizer = torch.optim.AdamW(nn.Linear(1, 1).parameters(), lr=config.learning_rate)
    if name == "warmup_cosine":
        scheduler = LambdaLR(
            optimizer, lambda step: learning_rate_at(step, config, 17) / config.learning_rate
        )
    else:
        scheduler = get_scheduler(name, optimizer, num_warmup_steps=3, num_training_steps=17)
    schedule = learning_rate_schedule(config, 17)
    for step in range(18):
        assert schedule(step) == scheduler.get_last_lr()[0], step
        optimizer.step()
        scheduler.step()


# Optimizers


def test_by_default_it_is_torchs_adamw_to_the_bit():
    config = OptimizerConfig(learning_rate=1e-2, betas=(0.5, 0.9), weight_decay=0.1, epsilon=1e-6)
    ours, theirs = layers(), layers()
    train(ours, build_optimizer(ours, config), 0, 4)
    options: dict[str, Any] = {"lr": 1e-2, "betas": (0.5, 0.9), "weight_decay": 0.1, "eps": 1e-6}
    train(theirs, torch.optim.AdamW(theirs.parameters(), **options), 0, 4)
    assert_same(ours, theirs)


def test_norms_and_biases_need_not_decay():
    model, other = layers(), nn.Linear(2, 2)
    config = OptimizerConfig(weight_decay=0.1, decay_norms_and_biases=False)
    optimizer = build_optimizer(model, config, other)
    decays = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    parameters = [*model.named_parameters(), *other.named_parameters()]
    assert len(decays) == len(parameters)
    for name, parameter in parameters:
        assert decays[id(parameter)] == (0.1 if parameter.ndim > 1 else 0.0), name
    # One call never updates parameters of both modules, of which one may be sharded.
    for group in optimizer.param_groups:
        inside = {id(parameter) for parameter in group["params"]}
        assert len({any(p is q for q in other.parameters()) for p in group["params"]}) == 1, inside
    train(model, optimizer, 0, 1)


@pytest.mark.parametrize("name", ["adamw", pytest.param("muon", marks=needs_muon)])
@pytest.mark.parametrize("decay_all", [True, False])
def test_a_loaded_state_brings_moments_and_no_settings(name, decay_all):
    config = OptimizerConfig(name=name, learning_rate=1e-2, decay_norms_and_biases=decay_all)
    whole = layers()
    optimizer = build_optimizer(whole, config)
    train(whole, optimizer, 0, 3)
    state = copy.deepcopy(optimizer.state_dict())
    middle = {key: value.clone() for key, value in whole.state_dict().items()}
    train(whole, optimizer, 3, 6)

    again = layers(1)
    resumed = build_optimizer(again, config)
    train(again, resumed, 0, 1)
    again.load_state_dict(middle)
    resumed.load_state_dict(copy.deepcopy(state))
    train(again, resumed, 3, 6)
    assert_same(whole, again)

    changed = dataclasses.replace(
        config, learning_rate=1e-3, betas=(0.1, 0.2), epsilon=1e-3, weight_decay=0.5
    )
    branch = build_optimizer(again, changed)
    expected = settings(branch)
    branch.load_state_dict(state)
    assert settings(branch) == expected
    assert {g["lr"] for g in branch.param_groups} == {1e-3}
    assert state["state"].keys() == branch.state_dict()["state"].keys()
    set_learning_rate(branch, 0.25)
    assert {g["lr"] for g in branch.param_groups} == {0.25}


@needs_muon
def test_muon_takes_the_matrices_of_blocks_and_adamw_the_rest():
    model = layers()
    config = OptimizerConfig(name="muon", learning_rate=1e-2, weight_decay=0.1)
    optimizer = build_optimizer(model, config)
    matrices, rest = (group["params"] for group in optimizer.param_groups)
    assert [id(p) for p in matrices] == [id(block[1].weight) for block in model.blocks]  # type: ignore[index]
    assert len(matrices) + len(rest) == len(list(model.parameters()))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train(model, optimizer, 0, 1)
    assert {*optimizer.state[matrices[0]]} == {"momentum_buffer"}
    assert "exp_avg" in optimizer.state[rest[0]]
    for name, value in model.state_dict().items():
        assert not torch.equal(value, before[name]), name
    # What a step changes is of one size, whichever of the two takes it.
    moved = [(p - before[n]).square().mean().sqrt() for n, p in model.named_parameters()]
    assert 1e-3 < min(moved) <= max(moved) < 3e-2


@needs_muon
def test_muon_without_matrices_is_refused():
    config = OptimizerConfig(name="muon")
    with pytest.raises(ValueError, match=r"muon is for matrices in repeated blocks, and Conv2d"):
        build_optimizer(nn.Conv2d(1, 1, 3), config)


def test_what_this_torch_does_not_have_is_refused(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    with pytest.raises(ValueError, match=r"muon needs torch >= 2\.9; set optimizer.name=adamw"):
        build_optimizer(layers(), OptimizerConfig(name="muon"))


def test_eight_bits_need_bitsandbytes(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    config = OptimizerConfig(name="adamw_8bit", learning_rate=0.5, decay_norms_and_biases=False)
    with pytest.raises(ValueError, match=r"needs the package bitsandbytes .*pip install"):
        build_optimizer(layers(), config)
    library: Any = types.SimpleNamespace(
        optim=types.SimpleNamespace(AdamW8bit=type("AdamW8bit", (torch.optim.AdamW,), {}))
    )
    monkeypatch.setitem(sys.modules, "bitsandbytes", library)
    optimizer = build_optimizer(layers(), config)
    assert type(optimizer).__name__ == "AdamW8bit"
    assert [group["weight_decay"] for group in optimizer.param_groups] == [1e-4, 0.0]
    assert {group["lr"] for group in optimizer.param_groups} == {0.5}


def test_fused_where_the_device_has_it():
    fused, plain = layers(), layers()
    config = OptimizerConfig(learning_rate=1e-2)
    optimizer = build_optimizer(fused, dataclasses.replace(config, fused=True))
    assert optimizer.param_groups[0]["fused"] is True
    train(fused, optimizer, 0, 3)
    train(plain, build_optimizer(plain, config), 0, 3)
    for one, other in zip(fused.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    resumed = layers(1)
    optimizer.zero_grad()
    state = copy.deepcopy(optimizer.state_dict())
    resumed.load_state_dict(fused.state_dict())
    again = build_optimizer(resumed, dataclasses.replace(config, fused=True))
    again.load_state_dict(state)
    train(fused, optimizer, 3, 6)
    train(resumed, again, 3, 6)
    assert_same(fused, resumed)
    with pytest.raises(ValueError, match=r"`optimizer.fused` does not work on meta"):
        build_optimizer(layers().to("meta"), OptimizerConfig(fused=True))


# Running average


def test_a_loaded_average_brings_no_settings():
    model = nn.Linear(2, 2)
    saved, loaded = (build_ema(model, EMAConfig(decay=decay)) for decay in (0.5, 0.9))
    assert saved is not None and loaded is not None
    with torch.no_grad():
        model.weight.add_(1)
    saved.step(model.parameters())
    loaded.load_state_dict(saved.state_dict())
    assert (loaded.decay, loaded.optimization_step) == (0.9, 1)
    for one, other in zip(saved.shadow_params, loaded.shadow_params, strict=True):
        assert torch.equal(one, other)


def test_states_are_kept_by_name():
    guard, average = nn.Linear(1, 1), nn.Linear(2, 2)
    with_average = NamedStates({"guard": guard}, ema=average).state_dict()
    without = NamedStates({"guard": guard}, ema=None).state_dict()
    NamedStates({"guard": nn.Linear(1, 1)}, ema=None).load_state_dict(with_average)
    on = NamedStates({"guard": nn.Linear(1, 1)}, ema=average)
    on.load_state_dict(with_average)
    assert not on.absent
    on.load_state_dict(without)
    assert on.absent == {"ema"}
    with pytest.raises(KeyError, match="other"):
        NamedStates({"other": guard}).load_state_dict(without)
