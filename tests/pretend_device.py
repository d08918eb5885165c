"""A device without hardware: shows on a CPU what would go wrong, or wait, on a GPU.

    with pretend_device() as device:
        model.to("gpu")
        loss = model(video.to("gpu")).mean()
        loss.backward()
    print(device.waits_by_line())

Each tensor of the device "gpu" wraps a CPU tensor. A dispatch mode computes every operation on the
CPU, after it has looked for what CUDA refuses:

* a CPU tensor with dimensions beside device tensors (copies and indices may lie on the CPU);
* a CPU generator that is to draw numbers on the device;
* a collective on a tensor that is not on the device, as with NCCL (`pretend_accelerator`).

It notes the source line of each point where the CPU would wait for the device: reading a value
(`float(x)`, `.item()`, `if x:`, `.tolist()`), copying to the CPU, and operations whose result has
a size that depends on values (`nonzero`, boolean indices).

Limits: there is one device, without autocast, streams, pinned memory, generators of its own, or
limits of kernels and memory. Copies to the device never count as waits. Waits inside the backward
pass have no line of ours. Under `torch.inference_mode` results are not checked for aliasing.
Parameters change their class when a module moves, with their identity kept.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

ROOT = Path(__file__).resolve().parents[1]
TESTS = Path(__file__).resolve().parent
NAME = "gpu"
aten = torch.ops.aten

# Operations that may have tensors of both devices.
COPIES = {aten.copy_.default, aten._to_copy.default, aten._local_scalar_dense.default}
INDEXING = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
    aten._unsafe_index.Tensor,
    aten._unsafe_index_put.default,
}
# Operations whose result has a size that the CPU must be told.
SIZED_BY_VALUES = {
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.unique_consecutive.default,
    aten.repeat_interleave.Tensor,
    aten.equal.default,
}


class DeviceMixupError(RuntimeError):
    """What CUDA or NCCL would have refused."""


@dataclass(frozen=True)
class Wait:
    """A point where the CPU waits for the device."""

    path: str
    function: str
    line: int
    operation: str


class DeviceTensor(torch.Tensor):
    """A tensor of the device; `held` is the CPU tensor with its values."""

    held: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> DeviceTensor:
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(NAME, 0),
        )
        tensor.held = held
        return tensor

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        raise DeviceMixupError(f"{func} on a device tensor outside of `pretend_device()`")

    def __repr__(self, **kwargs: Any) -> str:
        return f"DeviceTensor(shape={tuple(self.shape)}, dtype={self.dtype})"

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        if id(self) not in memo:
            copied = self.detach().clone().requires_grad_(self.requires_grad)
            if getattr(self, "_is_param", False):
                copied._is_param = True  # type: ignore[attr-defined]
            memo[id(self)] = copied
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Written to a file as a CPU tensor."""
        return self.detach().cpu().__reduce_ex__(protocol)

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.held.untyped_storage()

    def tolist(self) -> Any:
        return self.detach().cpu().tolist()


class PretendDevice(TorchDispatchMode):
    """Computes what concerns the device, checks it, and collects waits."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[Wait] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        leaves = tree_leaves((args, kwargs))
        on_device = [leaf for leaf in leaves if isinstance(leaf, DeviceTensor)]
        place = kwargs.get("device")
        if not on_device and (place is None or torch.device(place).type != NAME):
            return func(*args, **kwargs)
        if func is aten._fused_sdp_choice.default:
            return 0  # the attention that is made of plain operations
        self._check(func, args, kwargs, leaves)
        goes_to_cpu = self._note_wait(func, args, kwargs)
        if place is not None:
            kwargs["device"] = torch.device("cpu")
        inputs = {id(tensor.held): tensor for tensor in on_device}
        args, kwargs = tree_map_only(DeviceTensor, lambda tensor: tensor.held, (args, kwargs))
        result = func(*args, **kwargs)
        if goes_to_cpu:
            return result

        def wrapped(tensor: torch.Tensor) -> torch.Tensor:
            return inputs[id(tensor)] if id(tensor) in inputs else DeviceTensor(tensor)

        return tree_map_only(torch.Tensor, wrapped, result)

    def _check(self, func: Any, args: Any, kwargs: Any, leaves: list[Any]) -> None:
        """Raises for arguments that CUDA refuses beside those of the device."""
        drawing = [leaf for leaf in leaves if isinstance(leaf, torch.Generator)]
        if any(generator.device.type == "cpu" for generator in drawing):
            raise DeviceMixupError(f"{func} draws on the device from a CPU generator")
        if func in COPIES:
            return
        checked = tree_leaves((args[0], args[2:])) if func in INDEXING else leaves
        for leaf in checked:
            plain = isinstance(leaf, torch.Tensor) and not isinstance(leaf, DeviceTensor)
            if plain and leaf.dim() > 0:
                raise DeviceMixupError(
                    f"{func} has a CPU tensor of shape {tuple(leaf.shape)} beside device tensors"
                )
        if func in INDEXING and not isinstance(args[0], DeviceTensor):
            raise DeviceMixupError(f"{func} indexes a CPU tensor by device tensors")

    def _note_wait(self, func: Any, args: Any, kwargs: Any) -> bool:
        """Notes a wait; whether the result lies on the CPU."""
        place = kwargs.get("device")
        to_cpu = (
            func is aten._local_scalar_dense.default
            or func is aten.equal.default
            or (func is aten._to_copy.default and place is not None and place.type == "cpu")
            or (func is aten.copy_.default and not isinstance(args[0], DeviceTensor))
        )
        indices = tree_leaves(args[1]) if func in INDEXING else []
        by_values = any(getattr(index, "dtype", None) == torch.bool for index in indices)
        if to_cpu or by_values or func in SIZED_BY_VALUES:
            path, function, line = _our_line(sys._getframe())
            self.waits.append(Wait(path, function, line, str(func)))
        return to_cpu

    def waits_by_line(self) -> Counter[str]:
        """How often each line waited, "train_ae.py:209 train"."""
        return Counter(f"{wait.path}:{wait.line} {wait.function}" for wait in self.waits)

    def waits_by_function(self) -> Counter[str]:
        """How often each function waited, "train_ae.py:train"; stays when lines move."""
        return Counter(f"{wait.path}:{wait.function}" for wait in self.waits)


def _our_line(frame: FrameType | None) -> tuple[str, str, int]:
    """Path, function and line of the innermost frame of this repository's own code."""
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT) and path != Path(__file__):
            parts = path.relative_to(ROOT).parts
            if "site-packages" not in parts:
                return str(Path(*parts)), frame.f_code.co_name, frame.f_lineno
        frame = frame.f_back
    return "elsewhere", "", 0


_active: list[PretendDevice] = []
SUPPORTED = hasattr(backend_registration, "_setup_privateuseone_for_python_backend")


def _register() -> None:
    """Makes torch know the device.

    Done when this module is imported: autograd counts the devices at the first backward pass of a
    process. Whether the device is available is answered with yes inside `pretend_device()` only.
    """
    rng_state = torch.zeros(1, dtype=torch.uint8)
    module = SimpleNamespace(
        is_available=lambda: bool(_active),
        is_initialized=lambda: True,
        _lazy_init=lambda: None,
        _is_in_bad_fork=lambda: False,
        current_device=lambda: 0,
        device_count=lambda: 1,
        manual_seed_all=lambda seed: None,
        get_rng_state=lambda device=None: rng_state,
        set_rng_state=lambda state, device=None: None,
        synchronize=lambda device=None: None,
        empty_cache=lambda: None,
        mem_get_info=lambda device=None: (1 << 40, 1 << 40),
        max_memory_allocated=lambda device=None: 0,
        get_amp_supported_dtype=lambda: [torch.float16, torch.bfloat16],
    )
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=module)


if SUPPORTED:
    _register()


@contextlib.contextmanager
def pretend_device() -> Iterator[PretendDevice]:
    """Inside, tensors and modules can be moved to "gpu"; skips the test where torch can't."""
    if not SUPPORTED:
        pytest.skip(f"torch {torch.__version__} has no backends in Python")
    swaps = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        with PretendDevice() as device:
            _active.append(device)
            yield device
    finally:
        _active.clear()
        torch._C._set_only_lift_cpu_tensors(False)
        torch.__future__.set_swap_module_params_on_conversion(swaps)


@contextlib.contextmanager
def pretend_accelerator(monkeypatch: pytest.MonkeyPatch) -> Iterator[PretendDevice]:
    """Inside, an Accelerator that is on the device when it is made, with NCCL's rule."""

    def checked(name: str) -> Any:
        collective = getattr(Accelerator, name)

        def call(self: Accelerator, tensor: Any, *args: Any, **kwargs: Any) -> Any:
            for leaf in tree_leaves(tensor):
                if not isinstance(leaf, torch.Tensor) or leaf.device.type != self.device.type:
                    raise DeviceMixupError(
                        f"`{name}` needs tensors on {self.device}, got "
                        f"{getattr(leaf, 'device', type(leaf).__name__)}"
                    )
            return collective(self, tensor, *args, **kwargs)

        return call

    with pretend_device() as device, monkeypatch.context() as patch:
        for name in ("reduce", "gather", "gather_for_metrics", "pad_across_processes"):
            patch.setattr(Accelerator, name, checked(name))
        # The environment may ask for the CPU, which accelerate then compares with the device.
        patch.setattr(AcceleratorState, "_check_initialized", lambda *args, **kwargs: None)
        AcceleratorState._reset_state(reset_partial_state=True)
        PartialState(cpu=True).device = torch.device(NAME, 0)
        try:
            yield device
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)
