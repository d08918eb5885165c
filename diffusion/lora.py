"""Low-rank adapters of the transformer: a few weights beside frozen ones, saved by themselves.

Source: LoRA (arXiv 2106.09685). The adapters are peft's, loaded and saved by diffusers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusion.config import LoraConfig
from diffusion.dit import TwinDiT

__all__ = ["add_lora", "load_adapters", "require_peft", "save_lora"]

ADAPTER = "default"


def require_peft() -> Any:
    """The peft package.

    Raises:
        ValueError: without it.
    """
    try:
        import peft
    except ImportError as error:
        raise ValueError('LoRA needs peft: pip install "vidtwin[lora]"') from error
    return peft


def add_lora(transformer: TwinDiT, config: LoraConfig, seed: int) -> None:
    """Puts new adapters into a transformer and freezes all other weights.

    The adapters begin as the identity, and their first weights follow from the seed alone.

    Args:
        transformer: in training mode.
        config: of the adapters.
        seed: of the run.
    Raises:
        ValueError: if no layer has such a name.
    """
    import torch

    peft = require_peft()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer.requires_grad_(False)
        adapter = peft.LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha or config.rank,
            lora_dropout=config.dropout,
            target_modules=list(config.target_modules),
        )
        try:
            transformer.add_adapter(adapter, adapter_name=ADAPTER)
        except ValueError as error:
            raise ValueError(f"lora.target_modules: {error}") from error


def save_lora(transformer: TwinDiT, folder: Path) -> None:
    """Writes the adapters alone, as diffusers' `load_lora_weights` reads them.

    Args:
        transformer: with the adapters of `add_lora`.
        folder: for `pytorch_lora_weights.safetensors`.
    """
    from diffusion.pipeline import VidTwinPipeline

    layers = require_peft().get_peft_model_state_dict(transformer, adapter_name=ADAPTER)
    layers = {name: weight.detach().cpu().contiguous() for name, weight in layers.items()}
    VidTwinPipeline.save_lora_weights(
        folder,
        transformer_lora_layers=layers,
        transformer_lora_adapter_metadata=transformer.peft_config[ADAPTER].to_dict(),
    )


def load_adapters(pipeline: Any, asked: Sequence[tuple[Path, float]]) -> None:
    """Adds up several folders of adapters.

    Args:
        pipeline: a VidTwinPipeline.
        asked: each folder and its scale.
    Raises:
        ValueError: for one that is of another transformer.
    """
    require_peft()
    names = [f"lora_{index}" for index in range(len(asked))]
    for name, (folder, _) in zip(names, asked, strict=True):
        try:
            pipeline.load_lora_weights(folder, adapter_name=name, local_files_only=True)
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"{folder} holds no adapters of this transformer, only of another: {reason}"
            ) from error
    pipeline.set_adapters(names, [scale for _, scale in asked])
