"""What as many numbers as the latents have can do without learning: the lowest frequencies.

Axes: B batch, C channels, T frames, H W pixels, K frequencies along an axis.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["lowest_frequencies"]


@functools.cache
def _cosines(length: int) -> NDArray[np.float64]:
    """(K, length): the orthonormal DCT-II."""
    frequencies, places = np.arange(length)[:, None], np.arange(length)[None, :]
    basis = np.cos(math.pi * frequencies * (places + 0.5) / length)
    basis[0] /= math.sqrt(2)
    return basis * math.sqrt(2 / length)


@functools.cache
def _kept(shape: tuple[int, ...], values: int) -> NDArray[np.bool_]:
    """(C, T, H, W) which coefficients are kept: those of the lowest frequency, in cycles per frame
    and pixel, the same for each channel but for a remainder."""
    channels, *lengths = shape
    axes = np.meshgrid(*(np.arange(length) / length for length in lengths), indexing="ij")
    order = np.argsort(np.square(axes).sum(0).ravel(), kind="stable")
    kept = np.zeros((channels, math.prod(lengths)), bool)
    for channel in range(channels):
        kept[channel, order[: values // channels + (channel < values % channels)]] = True
    return kept.reshape(shape)


def lowest_frequencies(video: Tensor, values: int) -> Tensor:
    """A video from the lowest frequencies of its discrete cosine transform over T, H and W.

    Args:
        video: (B, C, T, H, W).
        values: coefficients of a clip that are kept, of all channels together; which ones depends
            on the clip's size alone, so that nothing else would have to be sent.
    Returns:
        (B, C, T, H, W) of the same dtype.
    """
    shape = tuple(video.shape[1:])
    if not 0 < values <= math.prod(shape):
        raise ValueError(f"`values` must be from 1 to {math.prod(shape)}, got {values}")
    bases = [torch.from_numpy(_cosines(length)).to(video.device) for length in shape[1:]]
    transformed = torch.einsum("bcthw,kt,mh,nw->bckmn", video.double(), *bases)
    kept = transformed * torch.from_numpy(_kept(shape, values)).to(video.device)
    return torch.einsum("bckmn,kt,mh,nw->bcthw", kept, *bases).to(video.dtype)
