"""Pipelines as every measurement uses them: loaded alike, known by the weights of their parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from diffusion import VidTwinPipeline
from vidtwin import weights_digest

__all__ = ["load_pipeline", "own_unless", "parts_digests"]


def load_pipeline(
    path: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> VidTwinPipeline:
    """A pipeline on its device, that draws no bars.

    Args:
        path: see `find_pipeline`.
        device: of all its parts.
        dtype: of all its parts.
    Raises:
        ValueError: naming the part that is missing, or does not belong.
    """
    pipeline = VidTwinPipeline.from_pretrained(path, torch_dtype=dtype)
    pipeline.to(device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def own_unless(value: Any, pipeline: Any, name: str) -> Any:
    """What a config gives for a keyword of the pipeline's call, or else the pipeline's own."""
    return pipeline.config[name] if value is None else value


def parts_digests(parts: Mapping[str, Any]) -> dict[str, str]:
    """Part -> digest of its weights; parts without weights are left out.

    Args:
        parts: by name, such as the `components` of a pipeline.
    """
    return {
        name: weights_digest(part)
        for name, part in parts.items()
        if isinstance(part, torch.nn.Module)
    }
