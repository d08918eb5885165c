"""A clip as scripts leave it for people, in its three forms.

Axes: T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vidtwin.media import write_gif, write_video
from vidtwin.reconstruction.latent_files import save_windows
from vidtwin.tiling import LatentWindow

__all__ = ["write_clip"]

MAX_GIF_FPS = 50.0


def write_clip(
    target: Path,
    frames: NDArray[np.uint8],
    fps: float,
    windows: Sequence[LatentWindow],
    metadata: Mapping[str, str],
) -> list[Path]:
    """Writes TARGET.mp4, TARGET.gif and TARGET.latents.safetensors, each whole or not at all.

    Args:
        target: folder and first part of the names.
        frames: (T, H, W, 3) uint8 RGB.
        fps: frames per second; a GIF gets 50 at most.
        windows: the latents of the clip, see `save_windows`.
        metadata: text stored with the latents.
    Returns:
        list[Path]: the three files.
    """
    return [
        write_video(target.with_name(f"{target.name}.mp4"), frames, fps),
        write_gif(target.with_name(f"{target.name}.gif"), frames, min(fps, MAX_GIF_FPS)),
        save_windows(target.with_name(f"{target.name}.latents.safetensors"), windows, metadata),
    ]
