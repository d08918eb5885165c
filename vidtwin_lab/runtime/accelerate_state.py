"""What is done around accelerate's save_state and load_state, so that checkpoints are our own."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

logger = logging.getLogger(__name__)


@contextmanager
def without_wrappers(accelerator: Accelerator) -> Iterator[None]:
    """Save and load models under their own names, without `module.` and `_orig_mod.`.

    So a checkpoint goes on with another number of processes, with and without compile.
    """

    from vidtwin_lab.runtime import sharding  # with torch, which commands do not wait for

    def unwrap(model: torch.nn.Module) -> torch.nn.Module:
        model = accelerator.unwrap_model(model, keep_torch_compile=False)
        return getattr(model, "_orig_mod", model)  # compiled before it was prepared

    def before_saving(models: list[Any], weights: list[Any], _folder: str) -> None:
        for index in range(len(weights)):
            weights[index] = sharding.whole_state(unwrap(models[index]))

    def before_loading(models: list[Any], _folder: str) -> None:
        for index, model in enumerate(map(unwrap, models)):
            models[index] = model
            if sharding.is_sharded(model):
                models[index] = sharding.empty_model(model)
                loaded.append((model, models[index]))

    loaded: list[tuple[torch.nn.Module, torch.nn.Module]] = []
    handles = (
        accelerator.register_save_state_pre_hook(before_saving),
        accelerator.register_load_state_pre_hook(before_loading),
    )
    try:
        yield
        for model, source in loaded:
            sharding.take_weights(model, source)
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def weights_only() -> Iterator[None]:
    """Force `weights_only=True` on every torch.load inside.

    accelerate loads the objects of `register_for_checkpointing` with weights_only=False, which
    runs whatever code a checkpoint holds; this switch of torch overrules the call.
    """
    switches = {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "0"}
    before = {name: os.environ.get(name) for name in switches}
    os.environ.update(switches)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def check_random_state(file: Path) -> None:
    """Say so where accelerate, which hides its failure, did not restore the random state."""
    import torch
    from accelerate.utils.other import load as load_tensors

    if not file.is_file():
        logger.warning("no random state of this process in %s", file.parent)
        return
    saved = load_tensors(file, weights_only=True)
    if not torch.equal(saved["torch_manual_seed"], torch.get_rng_state()):
        raise ValueError(f"the random state in {file} could not be restored")
    if torch.cuda.is_available() != ("torch_cuda_manual_seed" in saved):
        logger.warning("%s was written on another kind of device", file.parent)
