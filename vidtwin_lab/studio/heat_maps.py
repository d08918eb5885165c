"""Where in space and time the dynamics latents act, drawn over a clip.

Axes: C channels, T frames, H W pixels, h w latent rows and columns.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vidtwin import VidTwinLatents
from vidtwin.files import written_whole
from vidtwin.media import to_uint8
from vidtwin_lab.evaluation.report import new_figure, save_figure

__all__ = ["draw_heat_maps", "heat_of"]

SHOWN_FRAMES = 4


def heat_of(latent: torch.Tensor) -> NDArray[np.float32]:
    """How far a dynamics latent (1, C, T, n) is from its mean over time; (T, n).

    What does not change says where things are, not how they move; the mean over time holds it.
    """
    changes = latent - latent.mean(dim=2, keepdim=True)
    heat: NDArray[np.float32] = changes.square().mean(dim=1).sqrt()[0].float().cpu().numpy()
    return heat


def draw_heat_maps(latents: VidTwinLatents, video: torch.Tensor, path: Path) -> Path:
    """Draws the dynamics' changes over time, by column and by row, and on frames of the clip.

    Args:
        latents: of one clip.
        video: (3, T, H, W) in [-1, 1].
        path: the PNG to write.
    """
    across, down = heat_of(latents.dynamics_x), heat_of(latents.dynamics_y)
    frames = to_uint8(video)
    times = np.linspace(0, len(frames) - 1, SHOWN_FRAMES).round().astype(int)
    figure, axes = new_figure(2, SHOWN_FRAMES, size=(2.4, 2.4))
    for axis in axes:
        axis.grid(False)
    panels = ((axes[0], across, "dynamics_x", "column"), (axes[1], down, "dynamics_y", "row"))
    for axis, heat, name, along in panels:
        axis.imshow(heat, aspect="auto", cmap="magma", vmin=0)
        axis.set(title=name, xlabel=along, ylabel="frame")
    mean = float(latents.structure.square().mean())
    structure = latents.structure[0].square().mean(dim=(0, 1)).sqrt().float().cpu().numpy()
    axes[2].imshow(structure, cmap="magma", vmin=0)
    axes[2].set(title=f"structure, rms {mean**0.5:.2f}", xlabel="column", ylabel="row")
    axes[3].plot(across.mean(axis=1), label="x")
    axes[3].plot(down.mean(axis=1), label="y")
    axes[3].set(title="changes over time", xlabel="frame")
    axes[3].legend()
    height, width = frames.shape[1:3]
    strongest = max(float(across.max() + down.max()), 1e-6)
    for axis, time in zip(axes[SHOWN_FRAMES:], times, strict=True):
        step = int(time * len(across) / len(frames))
        axis.imshow(frames[time])
        # A column and a row that both change meet where something moves.
        meeting = across[step][None, :] + down[step][:, None]
        extent = (-0.5, width - 0.5, height - 0.5, -0.5)
        axis.imshow(meeting, cmap="magma", alpha=0.5, vmin=0, vmax=strongest, extent=extent)
        axis.set_title(f"frame {time}")
        axis.set_axis_off()
    with written_whole(path) as partial:
        save_figure(figure, partial)
    return path
