"""Whether a clip that is given for its structure or dynamics is of the kind that a pipeline knows.

Axes: C channels, T frames, H W pixels.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vidtwin import VidTwinAutoencoder
from vidtwin.media import to_uint8
from vidtwin.metrics import psnr

__all__ = ["FOREIGN_PSNR", "given_clips"]

logger = logging.getLogger(__name__)

# dB; clips of the kind that a small autoencoder was trained on have 25 to 30, others 14 to 18.
FOREIGN_PSNR = 21.0


def given_clips(
    autoencoder: VidTwinAutoencoder, options: Mapping[str, Any]
) -> tuple[dict[str, NDArray[np.uint8]], dict[str, float]]:
    """The clips among a pipeline's keywords, (T, H, W, 3), and how well the autoencoder keeps each.

    What it loses can't be kept by the videos that are sampled; a warning says so where it is much.

    Args:
        autoencoder: of the pipeline.
        options: "structure" or "dynamics" a (3, T, H, W) video in [-1, 1], in its size.
    Returns:
        Name of the clip -> frames to show; name -> PSNR in dB.
    """
    names = [name for name in ("structure", "dynamics") if name in options]
    clips = {f"{name}_from": to_uint8(options[name]) for name in names}
    kept = {f"{name}_from_psnr": _kept(autoencoder, options[name], name) for name in names}
    return clips, kept


@torch.no_grad()
def _kept(autoencoder: VidTwinAutoencoder, clip: Tensor, name: str) -> float:
    video = clip[None].to(autoencoder.device, autoencoder.dtype)
    found = float(psnr(video, autoencoder.decode(autoencoder.encode(video).mode())))
    if found < FOREIGN_PSNR:
        logger.warning(
            "the clip of --%s-from passes through the pipeline's autoencoder at %.1f dB (25 and "
            "more on what it was trained on), so little of it can be kept: reconstruct.py shows "
            "what is left; give a clip of that kind, or a pipeline trained on such clips "
            "(--pipeline)",
            *(name, found),
        )
    return round(found, 3)
