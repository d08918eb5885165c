"""What tells apart weights and files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

__all__ = ["file_digest", "weights_digest"]


def weights_digest(model: torch.nn.Module) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of all names and weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def file_digest(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
