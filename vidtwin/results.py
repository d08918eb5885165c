"""Files that scripts leave for people: a clip in its three forms, and reports as JSON.

Axes: T frames, H W pixels.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidtwin.media import write_gif, write_video
from vidtwin.reconstruction.latent_files import save_windows
from vidtwin.tiling import LatentWindow
from vidtwin.whole_files import written_whole

__all__ = ["check_folder", "write_clip", "write_json", "written_whole"]

MAX_GIF_FPS = 50.0


def check_folder(folder: Path, option: str = "--output", *, make: bool = False) -> None:
    """Raises if results could not be written there.

    Args:
        folder: where results will go; need not exist yet.
        option: by which the user chose it, for the message.
        make: make the folder; else nothing is made.
    Raises:
        ValueError: naming the folder and the reason.
    """
    try:
        if make:
            folder.mkdir(parents=True, exist_ok=True)
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise ValueError(
            f"can't write to the folder {folder} ({error.strerror or error}); "
            f"choose another with {option}"
        ) from error


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


def write_json(path: Path, content: Mapping[str, Any]) -> Path:
    """Writes a report, whole or not at all; what JSON does not know is written as its text."""
    with written_whole(path) as partial:
        partial.write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")
    return path
