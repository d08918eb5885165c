"""Whether a clip that is given for its structure or dynamics is of the kind that a pipeline knows.

Axes: C channels, T frames, H W pixels.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from vidtwin import VidTwinAutoencoder
from vidtwin.metrics import psnr

__all__ = ["FOREIGN_PSNR", "check_given_clip"]

logger = logging.getLogger(__name__)

# dB; clips of the kind that a small autoencoder was trained on have 25 to 30, others 14 to 18.
FOREIGN_PSNR = 21.0


@torch.no_grad()
def check_given_clip(autoencoder: VidTwinAutoencoder, clip: Tensor, name: str) -> float:
    """How well a clip passes through the autoencoder, in dB; warns where it does not.

    What the autoencoder loses can't be kept by the videos that are sampled.

    Args:
        autoencoder: of the pipeline.
        clip: (C, T, H, W) in [-1, 1], in its size.
        name: of the flag that gives it, with "_" for "-".
    """
    video = clip[None].to(autoencoder.device, autoencoder.dtype)
    found = float(psnr(video, autoencoder.decode(autoencoder.encode(video).mode())))
    if found < FOREIGN_PSNR:
        logger.warning(
            "the clip of --%s passes through the pipeline's autoencoder at %.1f dB (25 and more on "
            "what it was trained on), so little of it can be kept: reconstruct.py shows what is "
            "left; give a clip of that kind, or a pipeline trained on such clips (--pipeline)",
            *(name.replace("_", "-"), found),
        )
    return found
