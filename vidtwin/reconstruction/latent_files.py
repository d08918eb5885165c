"""The latents of a whole video in one safetensors file.

Axes: N windows, C channels, Q structure queries, T frames of a window, h w grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from vidtwin.files import written_whole
from vidtwin.latents import VidTwinLatents
from vidtwin.tiling import LatentWindow

__all__ = ["load_windows", "save_windows"]

NAMES = ("structure", "dynamics_x", "dynamics_y")


def save_windows(
    path: str | Path, windows: Sequence[LatentWindow], metadata: Mapping[str, str] | None = None
) -> Path:
    """Writes the latents of one video, whole or not at all.

    The file contains `structure` (N, C_s, Q, h', w'), `dynamics_x` (N, C_d, T, w'), `dynamics_y`
    (N, C_d, T, h'), raw (not whitened), and `start` and `size` (N, 3) in frames, rows, columns.

    Args:
        path: the file to write.
        windows: of one video (B = 1), as `vidtwin.tiling.encode_windows` gives them.
        metadata: text stored in the file's header.
    Returns:
        Path: the file.
    Raises:
        ValueError: without windows, or if they are of more than one video.
    """
    if not windows or any(window.latents.batch_size != 1 for window in windows):
        raise ValueError(
            "expected the windows of one video, got "
            + (f"a batch of {windows[0].latents.batch_size}" if windows else "none")
        )
    joined = VidTwinLatents.cat([window.latents for window in windows])
    tensors = dict(zip(NAMES, (t.cpu().contiguous() for t in joined.tensors()), strict=True))
    tensors["start"] = torch.tensor([window.start for window in windows])
    tensors["size"] = torch.tensor([window.size for window in windows])
    with written_whole(path) as partial:
        save_file(tensors, str(partial), metadata=dict(metadata or {}))
    return Path(path)


def load_windows(path: str | Path) -> tuple[list[LatentWindow], dict[str, str]]:
    """What `save_windows` wrote; `decode_windows(model, windows)` reconstructs the video.

    Args:
        path: the file.
    Returns:
        The windows, and the metadata.
    Raises:
        ValueError: if the file is not a safetensors file of latents.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            missing = {*NAMES, "start", "size"} - set(file.keys())
            if missing:
                raise ValueError(f"{path} holds no latents: {', '.join(sorted(missing))} missing")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = dict(file.metadata() or {})
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from error
    latents = VidTwinLatents(*(tensors[name] for name in NAMES))
    starts, sizes = tensors["start"].tolist(), tensors["size"].tolist()
    windows = [
        LatentWindow(start=tuple(start), size=tuple(size), latents=one)
        for start, size, one in zip(starts, sizes, latents, strict=True)
    ]
    return windows, metadata
