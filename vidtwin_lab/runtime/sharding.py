"""FSDP2: parameters, gradients, optimizer state and EMA split over the processes.

Asked for as accelerate does it (`use_fsdp`, `fsdp_version: 2` in the config of `accelerate launch`,
or its environment variables) and done with torch's `fully_shard` itself: accelerate's own FSDP2
takes one model per run, no model without an optimizer, and on CPUs quietly trains by DDP instead.

Whole tensors are what goes to disk, so a checkpoint fits any number of processes, sharded or not.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import os
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from vidtwin_lab.runtime.signals import ended_at_once

logger = logging.getLogger(__name__)

Model = TypeVar("Model", bound=nn.Module)
_PREFIX = "PARALLELISM_CONFIG_"
_TEMPLATE = "_unsharded_template"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sharding:
    """How the processes share a model.

    Args:
        replicas: groups of processes that hold the whole model between them; with more than one
            (hybrid sharding) gradients are averaged over the groups, as between machines.
        shards: processes of such a group; None for as many as there are.
        reshard_after_forward: free a block's gathered weights after its forward pass and gather
            them again in the backward pass; False takes more memory and less traffic.
        blocks: names of the classes whose modules are gathered one at a time; empty for those
            that the model names itself (`_no_split_modules`).
    """

    replicas: int = 1
    shards: int | None = None
    reshard_after_forward: bool = True
    blocks: tuple[str, ...] = ()

    def mesh(self, accelerator: Accelerator) -> DeviceMesh:
        """The processes as (replicas, shards).

        Raises:
            ValueError: if these are not all processes.
        """
        size, kind = accelerator.num_processes, accelerator.device.type
        if size != self.replicas * (self.shards or size // self.replicas):
            raise ValueError(
                f"hybrid sharding asks for {self.replicas} replicas x {self.shards} shards, got "
                f"{size} processes; set parallelism_config_dp_replicate_size and _dp_shard_size"
            )
        if self.replicas == 1:
            return init_device_mesh(kind, (size,), mesh_dim_names=("shard",))
        names = ("replicate", "shard")
        return init_device_mesh(kind, (self.replicas, size // self.replicas), mesh_dim_names=names)


def take_sharding() -> Sharding | None:
    """What the launcher asks for, and from then on no longer asks accelerate for; None for DDP.

    To be called before the `Accelerator` is made, which would otherwise shard by its own rules.

    Raises:
        ValueError: if something is asked for that we do not do.
    """
    environment = os.environ
    if _is_set("ACCELERATE_USE_DEEPSPEED") or _is_set("ACCELERATE_USE_MEGATRON_LM"):
        raise ValueError(
            "accelerate is configured for DeepSpeed or Megatron-LM, which these scripts do not "
            "use; shard with FSDP2: accelerate launch --config_file configs/accelerate/fsdp2.yaml"
        )
    if not _is_set("ACCELERATE_USE_FSDP"):
        return None
    version = environment.get("FSDP_VERSION", "1")
    if version != "2":
        raise ValueError(f"accelerate is configured for FSDP {version}; set fsdp_version: 2")
    for name, instead in (
        ("FSDP_OFFLOAD_PARAMS", "leave fsdp_offload_params out"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "set gradient_checkpointing=true of the run instead"),
    ):
        if _is_set(name):
            raise ValueError(f"accelerate is configured with {name.lower()}, {instead}")
    degrees = {}
    if _is_set("ACCELERATE_USE_PARALLELISM_CONFIG"):
        names = ("DP_REPLICATE", "DP_SHARD", "TP", "CP", "SP")
        degrees = {name: int(environment.get(f"{_PREFIX}{name}_SIZE", "1")) for name in names}
        for name in ("TP", "CP", "SP"):
            if degrees[name] > 1:
                raise ValueError(
                    f"accelerate is configured with {_PREFIX.lower()}{name.lower()}_size="
                    f"{degrees[name]}; only dp_replicate_size and dp_shard_size are supported"
                )
    for name in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_PARALLELISM_CONFIG"):
        environment.pop(name, None)
    blocks = environment.get("FSDP_TRANSFORMER_CLS_TO_WRAP", "").split(",")
    return Sharding(
        replicas=degrees.get("DP_REPLICATE", 1),
        shards=degrees.get("DP_SHARD"),
        reshard_after_forward=environment.get("FSDP_RESHARD_AFTER_FORWARD", "true") != "false",
        blocks=tuple(name.strip() for name in blocks if name.strip()),
    )


class RunAccelerator(Accelerator):
    """An `Accelerator` that leaves sharding to `prepare_model`."""

    def __init__(self, **options: Any) -> None:
        self.sharding = take_sharding()
        super().__init__(**options)
        if self.sharding is not None and self.num_processes == 1:
            logger.info("one process alone has nothing to shard the model with")
            self.sharding = None


def start_accelerator(**options: Any) -> Accelerator:
    """The processes of a script that shards nothing, which may wait for each other for an hour.

    Raises:
        ValueError: if the launcher asks for sharding.
    """
    if take_sharding() is not None:
        raise ValueError(
            "accelerate is configured for FSDP2, which is for the training scripts; launch this "
            "one with distributed_type MULTI_GPU, or by torchrun"
        )
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=1))
    with ended_at_once():
        return Accelerator(kwargs_handlers=[patience], **options)


def shard(model: nn.Module, sharding: Sharding, mesh: DeviceMesh) -> None:
    """Split the model's parameters over the processes, in place; collective.

    All processes get the first one's weights. What is in none of the blocks stays gathered from
    the forward pass to the end of the backward pass, so that a loss may be differentiated by it.

    Raises:
        ValueError: if the model has no such blocks.
    """
    blocks = blocks_of(model, sharding)
    # Nothing of ours changes in place what a block returned, which is what it warns of.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    for tensor in (*model.parameters(), *model.buffers()):
        torch.distributed.broadcast(tensor.detach(), src=0)
    model.__dict__[_TEMPLATE] = _template(model)
    for block in reversed(blocks):  # the inner ones first
        fully_shard(block, mesh=mesh, reshard_after_forward=sharding.reshard_after_forward)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)


def blocks_of(model: nn.Module, sharding: Sharding) -> list[nn.Module]:
    """The modules whose weights are gathered one at a time, the outer ones first.

    They are of the sharding's classes, or of the model's own `_no_split_modules`, or of its
    parts', or else the members of its outermost lists. Those that share a weight with the rest of
    the model, as tied embeddings do, are left out.

    Raises:
        ValueError: if there are none.
    """
    names = set(sharding.blocks or getattr(model, "_no_split_modules", None) or ())
    for module in () if names else model.modules():
        names |= set(getattr(module, "_no_split_modules", None) or ())
    uses: Counter[int] = Counter()
    for module in model.modules():
        uses.update(id(parameter) for parameter in module._parameters.values())

    def apart(block: nn.Module) -> bool:
        inside: Counter[int] = Counter()
        for module in block.modules():
            inside.update(id(p) for p in module._parameters.values() if p is not None)
        return all(uses[parameter] == count for parameter, count in inside.items())

    named = [module for module in model.modules() if class_name(module) in names]
    if not names:
        named = list(_list_members(model))
    blocks = [module for module in named if module is not model and apart(module)]
    if not blocks:
        found = ", ".join(sorted({class_name(module) for module in model.modules()}))
        raise ValueError(
            f"no blocks to shard by the names {', '.join(sorted(names)) or '(none)'}; set "
            f"fsdp_transformer_layer_cls_to_wrap to some of {found}"
        )
    return blocks


def prepare_model(accelerator: Accelerator, model: nn.Module, compiled: bool = False) -> nn.Module:
    """The model to train with: sharded, or wrapped by DDP, or itself; see `Accelerator.prepare`.

    To be called before its optimizer and its running average are built.

    Args:
        compiled: through torch.compile, in a way that GAN losses can differentiate.
    """
    from vidtwin_lab.runtime.training import compiled as compile_model

    sharding = getattr(accelerator, "sharding", None)
    if sharding is None:
        prepared = accelerator.prepare(compile_model(model) if compiled else model)
        assert isinstance(prepared, nn.Module)
        return prepared
    # For evaluation means: autocast as everywhere else, without DDP.
    accelerator.prepare_model(model, evaluation_mode=True)
    shard(model, sharding, sharding.mesh(accelerator))
    if compiled:
        compile_blocks(model)
    return model


def compile_blocks(model: nn.Module) -> None:
    """Put each block of a sharded model through torch.compile, inside the hooks that gather it."""
    from torch._functorch import config as functorch_config

    functorch_config.donated_buffer = False
    for module in model.modules():
        if isinstance(module, FSDPModule) and module is not model:
            module.forward = torch.compile(module.forward)  # type: ignore[method-assign]


def class_name(module: nn.Module) -> str:
    """The name of a module's class, which sharding gives a prefix."""
    name = type(module).__name__
    return name.removeprefix("FSDP") if isinstance(module, FSDPModule) else name


def is_sharded(model: nn.Module) -> bool:
    return isinstance(model, FSDPModule)


def whole(tensor: Tensor) -> Tensor:
    """The tensor whose part this process holds, on every process; collective."""
    return tensor.full_tensor().detach() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds, in the same memory."""
    return tensor.to_local().detach() if isinstance(tensor, DTensor) else tensor.detach()


def for_disk(tensor: Tensor) -> Tensor:
    """The whole tensor on the first process's CPU, nothing on the others; collective.

    What is not sharded comes back as it is.
    """
    if not isinstance(tensor, DTensor):
        return tensor
    full = whole(tensor)
    return full.cpu() if _writes() else full.new_empty(0)


def shard_like(tensor: Tensor, other: Tensor) -> Tensor:
    """This process's part of a tensor that each has whole, split as `other` is; no traffic."""
    if not isinstance(other, DTensor) or isinstance(tensor, DTensor):
        return tensor
    tensor = tensor.to(other.device)
    return distribute_tensor(tensor, other.device_mesh, other.placements, src_data_rank=None)


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """The model's state dict, of whole tensors on the CPU where it is sharded; collective.

    Other processes than the first get an empty one of a sharded model: they do not write it.
    """
    state: dict[str, Tensor] = model.state_dict()
    if not is_sharded(model):
        return state
    # A tied weight has several names and is one tensor, which is how it is told when saving.
    owners = {name: id(p) for name, p in model.named_parameters(remove_duplicate=False)}
    gathered: dict[int, Tensor] = {}
    for name, value in state.items():
        owner = owners.get(name, id(value))
        if owner not in gathered:
            gathered[owner] = for_disk(value)
    names = state if _writes() else ()
    # accelerate looks for tied weights in a dict of this kind only.
    return OrderedDict((name, gathered[owners.get(name, id(state[name]))]) for name in names)


def whole_model(model: Model, weights: Iterable[Tensor] | None = None) -> Model:
    """An unsharded copy of a sharded model on every process; collective.

    What runs it, and how often, need not be the same on all processes. Buffers are shared.

    Args:
        weights: of the copy, in the order of its parameters; None takes the model's own.
    """
    return _copy_with(model, map(whole, weights or model.parameters()))


def empty_model(model: nn.Module) -> nn.Module:
    """An unsharded copy of a sharded model on the CPU, to load weights into; see `take_weights`."""
    return _copy_with(model, (torch.empty(p.shape, dtype=p.dtype) for p in model.parameters()))


@torch.no_grad()
def take_weights(model: nn.Module, source: nn.Module) -> None:
    """Give a sharded model the weights of an unsharded one that each process has."""
    for parameter, weight in zip(model.parameters(), source.parameters(), strict=True):
        local(parameter).copy_(local(shard_like(weight.detach(), parameter)))


def _copy_with(model: Model, weights: Iterable[Tensor]) -> Model:
    template = model.__dict__[_TEMPLATE]
    memo: dict[int, Any] = {id(buffer): buffer for buffer in template.buffers()}
    for empty, weight in zip(template.parameters(), weights, strict=True):
        memo[id(empty)] = nn.Parameter(weight, requires_grad=empty.requires_grad)
    copied: Model = copy.deepcopy(template, memo)
    return copied.train(model.training)


def with_whole_state(optimizer: torch.optim.Optimizer) -> None:
    """Let an optimizer of sharded parameters write and read whole states.

    Its `state_dict` is collective, and has no state on other processes than the first.
    """

    def gather(_: Any, state: dict[str, Any]) -> dict[str, Any]:
        gathered = _map_state(state["state"], lambda _, value: for_disk(value))
        return {**state, "state": gathered if _writes() else {}}

    def scatter(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]

        def part(index: int, value: Tensor) -> Tensor:
            parameter = parameters[index]
            return shard_like(value, parameter) if value.shape == parameter.shape else value

        return {**state, "state": _map_state(state["state"], part)}

    parameters = (p for group in optimizer.param_groups for p in group["params"])
    if not any(isinstance(parameter, DTensor) for parameter in parameters):
        return
    optimizer.register_state_dict_post_hook(gather)
    optimizer.register_load_state_dict_pre_hook(scatter)


def memory_per_process(
    model: nn.Module, sharding: Sharding, processes: int, ema: bool = True
) -> dict[str, int]:
    """Bytes that training takes on one process beside activations, without making any weights.

    float32 weights, gradients, AdamW's two moments and the running average are split; gathered
    at one time are what is in no block and, with its gradient, two blocks: the one that computes
    and the one that is fetched.

    Args:
        model: may lie on the meta device.
    Returns:
        dict: `sharded`, `gathered` and their sum, `total`; `replicated` is what DDP would take.
    """
    shards = processes // sharding.replicas
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    every = sum(p.numel() for p in model.parameters())
    held = 4 * (every + 3 * trained + (every if ema else 0))
    sizes = [sum(p.numel() for p in block.parameters()) for block in blocks_of(model, sharding)]
    gathered = 4 * 2 * (every - sum(sizes) + 2 * max(sizes))
    return {
        "sharded": -(-held // shards),
        "gathered": gathered,
        "total": -(-held // shards) + gathered,
        "replicated": held,
    }


def _map_state(
    state: dict[int, dict[str, Any]], change: Callable[[int, Tensor], Tensor]
) -> dict[int, dict[str, Any]]:
    return {
        index: {
            name: change(index, value) if isinstance(value, Tensor) else value
            for name, value in values.items()
        }
        for index, values in state.items()
    }


def _list_members(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        yield from child if isinstance(child, nn.ModuleList) else _list_members(child)


def _template(model: nn.Module) -> nn.Module:
    """The model's structure with empty parameters and the model's own buffers."""
    memo: dict[int, Any] = {id(buffer): buffer for buffer in model.buffers()}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
    return copy.deepcopy(model, memo)


def _writes() -> bool:
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def _is_set(name: str) -> bool:
    return os.environ.get(name, "false").lower() in ("true", "1", "yes", "on")


def total_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Norm of all gradients, whole on every process."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    return whole(nn.utils.get_total_norm(gradients))
