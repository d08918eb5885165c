"""Every clip once through the autoencoder: its latents, those of its reconstruction, verdicts.

Axes: N clips, B batch, D latent values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from vidtwin import AutoencoderConfig, VidTwinAutoencoder, VidTwinLatents
from vidtwin.data import BadFileLog, SkippedFile, VideoDataset, iterate_variants
from vidtwin_lab.evaluation.disentanglement.judges import Judge
from vidtwin_lab.evaluation.report import Processes, batches_of

__all__ = ["LATENTS", "Clips", "encode_clips", "flatten_latents"]

# The two halves of what is measured; the dynamics are dynamics_x and dynamics_y together.
LATENTS = ("structure", "dynamics")


@dataclass(frozen=True, eq=False)
class Clips:
    """What is known of all clips, on every process.

    Args:
        index: of each clip in the data set.
        path: of each clip.
        labels: factor -> (N,) class.
        real: factor -> (N,) class that the judge sees in the clip.
        reconstructed: factor -> (N,) class that it sees in the reconstruction.
        latents: name -> (N, D) float32, modes of the clips' posteriors.
        again: name -> (N, D), the latents of the reconstructions.
        sizes: of the autoencoder.
    """

    index: list[int]
    path: list[str]
    labels: dict[str, NDArray[np.int64]]
    real: dict[str, NDArray[np.int64]]
    reconstructed: dict[str, NDArray[np.int64]]
    latents: dict[str, NDArray[np.float32]]
    again: dict[str, NDArray[np.float32]]
    sizes: AutoencoderConfig

    def __len__(self) -> int:
        return len(self.index)

    def centered(self, name: str, values: NDArray[Any]) -> NDArray[np.float64]:
        """Latents as their deviation from the mean over all clips.

        Args:
            name: of LATENTS.
            values: (n, D) latents of that name.
        """
        mean = self.latents[name].astype(np.float64).mean(0)
        return values.astype(np.float64) - mean

    def batch(self, structure_of: Sequence[int], dynamics_of: Sequence[int]) -> VidTwinLatents:
        """The structures of some clips with the dynamics of others, by place; on the CPU."""
        structure = torch.from_numpy(self.latents["structure"][list(structure_of)])
        dynamics = torch.from_numpy(self.latents["dynamics"][list(dynamics_of)])
        return restore_latents(structure, dynamics, self.sizes)


def flatten_latents(latents: VidTwinLatents) -> dict[str, Tensor]:
    """Name of LATENTS -> (B, D) float32 on the CPU."""
    structure, dynamics_x, dynamics_y = (
        rearrange(tensor.float().cpu(), "b ... -> b (...)") for tensor in latents.tensors()
    )
    return {"structure": structure, "dynamics": torch.cat([dynamics_x, dynamics_y], dim=1)}


def restore_latents(
    structure: Tensor, dynamics: Tensor, sizes: AutoencoderConfig
) -> VidTwinLatents:
    """What `flatten_latents` came from."""
    along_x = int(np.prod(sizes.dynamics_x_shape))
    dynamics_x, dynamics_y = dynamics[:, :along_x], dynamics[:, along_x:]
    return VidTwinLatents(
        structure.reshape(-1, *sizes.structure_shape),
        dynamics_x.reshape(-1, *sizes.dynamics_x_shape),
        dynamics_y.reshape(-1, *sizes.dynamics_y_shape),
    )


@torch.inference_mode()
def encode_clips(
    model: VidTwinAutoencoder,
    dataset: VideoDataset,
    chosen: Sequence[int],
    judge: Judge,
    processes: Processes,
    *,
    batch_size: int,
    num_workers: int = 0,
) -> tuple[Clips, list[SkippedFile]]:
    """Encodes, reconstructs, judges and encodes again every chosen clip.

    Args:
        chosen: indices of clips whose factors are all known.
        batch_size: clips of one forward pass.
        num_workers: processes that read.
    Returns:
        What is known of the usable clips, in the order of their indices, and the others.
    Raises:
        ValueError: if no clip can be used.
        TooManyBadFiles: if more than `data.max_bad_fraction` of them can't.
    """
    mine = processes.share(batches_of(len(chosen), batch_size))
    keys = [[(chosen[place], 0) for place in batch] for batch in mine]
    rows: list[dict[str, Any]] = []
    skipped: list[SkippedFile] = []
    for batch in iterate_variants(dataset, keys, num_workers=num_workers):
        skipped += batch["skipped"]
        if batch["video"] is not None:
            rows += _encode_batch(model, batch["video"], batch["rows"], judge, processes.device)
    rows = processes.gather_sorted(rows)
    skipped = processes.gather(skipped)
    BadFileLog(len(chosen), dataset.config.max_bad_fraction).add(skipped)
    if not rows:
        raise ValueError("no clip could be used; the log says why each was skipped")
    labels = [dataset.factors(row["index"]) for row in rows]
    return (
        Clips(
            index=[row["index"] for row in rows],
            path=[row["path"] for row in rows],
            labels=_columns(labels, judge.factors),
            real=_columns([row["real"] for row in rows], judge.factors),
            reconstructed=_columns([row["reconstructed"] for row in rows], judge.factors),
            latents={name: np.stack([row["latents"][name] for row in rows]) for name in LATENTS},
            again={name: np.stack([row["again"][name] for row in rows]) for name in LATENTS},
            sizes=model.sizes,
        ),
        skipped,
    )


def _encode_batch(
    model: VidTwinAutoencoder,
    video: Tensor,
    rows: list[dict[str, Any]],
    judge: Judge,
    device: torch.device,
) -> list[dict[str, Any]]:
    video = video.to(device)
    latents = model.encode(video).mode()
    reconstruction = model.decode(latents)
    # What is encoded again is a video as anyone could be given it, its colours within range.
    again = flatten_latents(model.encode(reconstruction.clamp(-1, 1)).mode())
    flat = flatten_latents(latents)
    real, reconstructed = judge(video), judge(reconstruction)
    return [
        {
            "index": row["index"],
            "path": row["path"],
            "real": real[place],
            "reconstructed": reconstructed[place],
            "latents": {name: flat[name][place].numpy() for name in LATENTS},
            "again": {name: again[name][place].numpy() for name in LATENTS},
        }
        for place, row in enumerate(rows)
    ]


def _columns(
    rows: Sequence[Mapping[str, int]], factors: Sequence[str]
) -> dict[str, NDArray[np.int64]]:
    return {name: np.array([row[name] for row in rows], np.int64) for name in factors}
