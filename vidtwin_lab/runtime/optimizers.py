"""Optimizers and learning rates as a config asks for them, whatever a checkpoint holds."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from diffusers.optimization import get_scheduler
from torch import nn

from vidtwin_lab.runtime import sharding
from vidtwin_lab.runtime.run_config import OptimizerConfig


def build_optimizer(
    model: nn.Module, config: OptimizerConfig, *others: nn.Module
) -> torch.optim.Optimizer:
    """The optimizer of the parameters that want a gradient; see `OptimizerConfig`.

    Loading a state into it brings the moments back; the settings stay those of the config.

    Args:
        model: on its device, and already sharded if it is going to be.
        others: are trained too. Their parameters have groups of their own: sharded and whole
            ones must not be updated by one call.
    Raises:
        ValueError: nothing to train, or an optimizer that is not to be had here.
    """
    matrices = _matrices(model) if config.name == "muon" else []
    taken = {id(matrix) for matrix in matrices}
    groups: list[dict[str, Any]] = []
    for module in (model, *others):
        rest = [p for p in module.parameters() if p.requires_grad and id(p) not in taken]
        if config.decay_norms_and_biases:
            groups.append({"params": rest})
        else:
            groups.append({"params": [p for p in rest if p.ndim > 1]})
            groups.append({"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0})
    groups = [group for group in groups if group["params"]]
    if not groups and not matrices:
        raise ValueError("no parameter to train: every parameter has requires_grad=False")
    if config.fused:
        _check_fused((groups[0]["params"] if groups else matrices)[0].device)
    optimizer: torch.optim.Optimizer
    if config.name == "muon":
        optimizer = MuonAndAdamW(matrices, groups, config)
    elif config.name == "adamw_8bit":
        if sharding.is_sharded(model):
            raise ValueError(
                "`optimizer.name`=adamw_8bit does not work with FSDP2; set optimizer.name=adamw"
            )
        optimizer = _adamw_8bit_class()(groups, **_adamw_options(config))
    else:
        optimizer = torch.optim.AdamW(groups, fused=config.fused or None, **_adamw_options(config))
    sharding.with_whole_state(optimizer)
    _keep_settings(optimizer)
    return optimizer


class MuonAndAdamW(torch.optim.Optimizer):
    """Muon for matrices, AdamW for the rest, as one optimizer.

    Muon's updates are scaled to the size of AdamW's, so that one learning rate suits both.
    """

    def __init__(
        self,
        matrices: list[nn.Parameter],
        others: list[dict[str, Any]],
        config: OptimizerConfig,
    ) -> None:
        muon = torch.optim.Muon(
            matrices,
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        )
        self.parts: list[torch.optim.Optimizer] = [muon]
        if others:
            options = _adamw_options(config)
            self.parts.append(torch.optim.AdamW(others, fused=config.fused or None, **options))
        super().__init__([group for part in self.parts for group in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update by the gradients that are there."""
        assert closure is None, "gradients are computed before the step"
        groups = self.param_groups
        # Loading a state exchanges groups and state; the parts work on what is here.
        for part, own in zip(self.parts, (groups[:1], groups[1:]), strict=False):
            part.param_groups, part.state = own, self.state
            part.step()


def learning_rate_at(step: int, config: OptimizerConfig, total_steps: int) -> float:
    """Rate of "warmup_cosine" after `step` steps: a line up, half a cosine down, then 0."""
    warmup = config.warmup(total_steps)
    if step < warmup:
        rise = config.learning_rate - config.warmup_start
        return rise * step / warmup + config.warmup_start
    if step >= total_steps:
        return 0.0
    progress = (step - warmup) / (total_steps - warmup)
    return 0.5 * config.learning_rate * (1 + math.cos(progress * math.pi))


def learning_rate_schedule(
    config: OptimizerConfig, total_steps: int, key: str = "optimizer"
) -> Callable[[int], float]:
    """The learning rate as a function of the steps that are done, over all processes.

    It follows from the config alone, so a resumed run needs nothing of its past. A step that was
    skipped counts like any other. Past `total_steps` the rate stays where it ended.

    Args:
        total_steps: of the run.
        key: of the optimizer's config in the run's, for messages.
    Raises:
        ValueError: if the warm-up does not fit into so many steps.
    """
    if total_steps < 1:
        raise ValueError(f"`total_steps` must be >= 1, got {total_steps}")
    warmup = config.warmup(total_steps, key)
    base = config.learning_rate
    if config.schedule == "warmup_cosine":
        return lambda step: base * (learning_rate_at(step, config, total_steps) / base)
    # diffusers' schedules are made for an optimizer, of which they ask the learning rate only.
    scheduler = get_scheduler(
        config.schedule,
        torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=base),
        num_warmup_steps=warmup,
        num_training_steps=total_steps,
    )
    (factor,) = scheduler.lr_lambdas
    # Past the end diffusers' cosine rises again and others go wrong: hold the last value.
    return lambda step: base * factor(min(step, total_steps))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give all parameters this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def _adamw_options(config: OptimizerConfig) -> dict[str, Any]:
    return {
        "lr": config.learning_rate,
        "betas": config.betas,
        "eps": config.epsilon,
        "weight_decay": config.weight_decay,
    }


def _matrices(model: nn.Module) -> list[nn.Parameter]:
    """The matrices of the model's blocks; its first and last layers are better off with AdamW."""
    if not hasattr(torch.optim, "Muon"):
        raise ValueError("`optimizer.name`=muon needs torch >= 2.9; set optimizer.name=adamw")
    try:
        blocks = sharding.blocks_of(model, sharding.Sharding())
    except ValueError:
        blocks = []
    found = {id(p): p for block in blocks for p in block.parameters()}
    matrices = [p for p in found.values() if p.requires_grad and p.ndim == 2]
    if not matrices:
        raise ValueError(
            f"`optimizer.name`=muon is for matrices in repeated blocks, and "
            f"{sharding.class_name(model)} trains none; set optimizer.name=adamw"
        )
    return matrices


def _adamw_8bit_class() -> Any:
    try:
        import bitsandbytes  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError as error:
        raise ValueError(
            f"`optimizer.name`=adamw_8bit needs the package bitsandbytes ({error}); "
            "pip install bitsandbytes, or set optimizer.name=adamw"
        ) from error
    return bitsandbytes.optim.AdamW8bit


def _check_fused(device: torch.device) -> None:
    """Raises ValueError if AdamW has no fused update on this device."""
    probe = nn.Parameter(torch.zeros(1, device=device))
    probe.grad = torch.zeros_like(probe)
    try:
        torch.optim.AdamW([probe], fused=True).step()
    except RuntimeError as error:
        raise ValueError(
            f"`optimizer.fused` does not work on {device.type}; set optimizer.fused=false"
        ) from error


def _keep_settings(optimizer: torch.optim.Optimizer) -> None:
    """Let a loaded state bring moments only, not the learning rate, betas and so on of its run."""
    load = optimizer.load_state_dict

    def load_state_dict(state: dict[str, Any]) -> None:
        own, saved = optimizer.param_groups, state["param_groups"]
        if len(own) == len(saved):
            pairs = zip(own, saved, strict=True)
            saved = [{**group, "params": other["params"]} for group, other in pairs]
        load({**state, "param_groups": saved})

    optimizer.load_state_dict = load_state_dict  # type: ignore[method-assign, assignment]
