"""Tiny autoencoders, quick on one core."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from vidtwin import VidTwinAutoencoder

# A grid of 5 x 7: neither square nor even, so halvings round and the decoder crops.
SIZES: dict[str, Any] = {
    "num_frames": 3,
    "height": 10,
    "width": 14,
    "patch_size": (1, 2, 2),
    "hidden_size": 16,
    "encoder_depth": 2,
    "decoder_depth": 2,
    "encoder_heads": 2,
    "decoder_heads": 4,
    "num_queries": 4,
    "query_hidden_size": 8,
    "query_layers": 2,
    "query_heads": 2,
    "query_intermediate_size": 16,
    "structure_base_channels": 8,
    "structure_channels": 2,
    "dynamics_channels": 2,
}


@pytest.fixture(scope="session")
def tiny_sizes() -> dict[str, Any]:
    return dict(SIZES)


@pytest.fixture(scope="session")
def build_tiny() -> Callable[..., VidTwinAutoencoder]:
    """Builds a model in evaluation mode; `jitter` moves every weight away from special values.

    A new model's temporal attention gives zero, which would make causality hold by itself.
    """

    def build(*, jitter: float = 0.2, seed: int = 0, **changes: Any) -> VidTwinAutoencoder:
        torch.manual_seed(seed)
        model = VidTwinAutoencoder(**SIZES | changes).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=jitter)
        return model

    return build


@pytest.fixture(scope="session")
def random_video() -> Callable[..., torch.Tensor]:
    """Draws a batch of the size that a model takes."""

    def draw(model: VidTwinAutoencoder, batch: int = 2, seed: int = 1) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(batch, *model.sizes.video_shape, generator=generator) * 2 - 1

    return draw
