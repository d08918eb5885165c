"""Measures an autoencoder on a data set while it is being trained.

Axes: B batch, C channels, T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from einops import rearrange

from vidtwin.autoencoder import VidTwinAutoencoder
from vidtwin.media import to_uint8
from vidtwin.metrics import Lpips, psnr, ssim

Measures = dict[str, float]


@torch.no_grad()
def measure_reconstructions(
    model: VidTwinAutoencoder,
    batches: Iterable[dict[str, Any]],
    *,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    lpips: Lpips | None = None,
) -> tuple[list[tuple[int, Measures]], np.ndarray | None]:
    """PSNR, SSIM and, where it is at hand, LPIPS of each clip, with posteriors at their mode.

    Args:
        batches: of a loader, see `vidtwin.data.loading.collate`.
        autocast: makes the context of a batch's forward passes, such as `accelerator.autocast`.
        lpips: leave out for none.
    Returns:
        (index of the clip in the data set, its measures) for every clip, and the first batch as
        one (T, B H, 4 W, 3) uint8 video: input, reconstruction, structure alone, dynamics alone.
    """
    device = next(model.parameters()).device
    rows: list[tuple[int, Measures]] = []
    sheet = None
    training = model.training
    model.eval()
    for batch in batches:
        video = batch["video"].to(device)
        with autocast():
            output = model(video)
            alone = [
                model.decode(output.latents, "structure"),
                model.decode(output.latents, "dynamics"),
            ]
        clips = [video, output.reconstruction.float(), *(clip.float() for clip in alone)]
        measures = {"psnr": psnr(video, clips[1]), "ssim": ssim(video, clips[1])}
        if lpips is not None:
            measures["lpips"] = lpips(video, clips[1])
        for place, index in enumerate(batch["index"].tolist()):
            rows.append((index, {name: float(value[place]) for name, value in measures.items()}))
        if sheet is None and all(clip.isfinite().all() for clip in clips):
            panels = rearrange(torch.stack(clips), "panel b c t h w -> c t (b h) (panel w)")
            sheet = to_uint8(panels)
    model.train(training)
    return rows, sheet


def mean_measures(rows: Iterable[tuple[int, Measures]]) -> Measures:
    """The mean of each measure over all clips, and their number.

    Summed in the order of the clips, so that the result does not depend on which process
    measured which clip.

    Raises:
        ValueError: if there is no clip.
    """
    ordered = [values for _, values in sorted(rows, key=lambda row: row[0])]
    if not ordered:
        raise ValueError("no validation clip could be used; the log says why each was skipped")
    means = {name: sum(v[name] for v in ordered) / len(ordered) for name in ordered[0]}
    return {**means, "clips": float(len(ordered))}
