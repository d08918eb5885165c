"""The clips of a measurement, and every feature that a probe is given.

Axes: N clips, T frames, A actions, S values of the state, D values of a feature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange, reduce
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from vidtwin import VidTwinAutoencoder
from vidtwin.data import VideoDataset
from vidtwin_lab.evaluation.report import Processes, batches_of

__all__ = [
    "THUMBNAIL",
    "ActionClips",
    "collect",
    "dynamics_by_frame",
    "pixel_features",
    "targets_of",
    "thumbnails",
]

THUMBNAIL = 32  # pixels, of the frames that networks are trained on
COARSE = 16  # pixels, of the frames whose principal components are probed
VELOCITY = " velocity"
Array = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class ActionClips:
    """What is known of some clips, on every process.

    Args:
        structure, dynamics: (N, D) modes of the posteriors; the dynamics in the order of
            `VidTwinAutoencoder.encode_dynamics`.
        frames: (N, T, 3, 32, 32) uint8.
        actions: (N, T, A).
        states: (N, T, S), S may be 0.
    """

    structure: Array
    dynamics: Array
    frames: NDArray[np.uint8]
    actions: Array
    states: Array

    def __len__(self) -> int:
        return len(self.frames)


def thumbnails(video: Tensor) -> NDArray[np.uint8]:
    """(B, 3, T, H, W) in [-1, 1] to (B, T, 3, 32, 32) uint8."""
    frames = rearrange(video, "b c t h w -> (b t) c h w")
    small = interpolate(frames, size=(THUMBNAIL, THUMBNAIL), mode="bilinear", antialias=True)
    bytes_ = ((small.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()
    return rearrange(bytes_, "(b t) c h w -> b t c h w", b=len(video)).numpy()


@torch.no_grad()
def collect(
    model: VidTwinAutoencoder,
    dataset: VideoDataset,
    chosen: Sequence[int],
    processes: Processes,
    batch_size: int,
) -> ActionClips:
    """Reads and encodes clips, each on one of the processes.

    Raises:
        ValueError: (UnusableVideo) if a clip can't be used.
    """
    rows = []
    for batch in processes.share(batches_of(len(chosen), batch_size)):
        samples = [dataset.get(chosen[place]) for place in batch]
        video = torch.stack([sample["video"] for sample in samples]).to(processes.device)
        latents = model.encode(video).mode().to("cpu", torch.float32)
        structure, dynamics = latents.pack(["structure"]).numpy(), latents.to_vector().numpy()
        frames = thumbnails(video)
        for number, (place, sample) in enumerate(zip(batch, samples, strict=True)):
            actions = sample["actions"].numpy()
            rows.append(
                {
                    "index": place,
                    "structure": structure[number],
                    "dynamics": dynamics[number],
                    "frames": frames[number],
                    "actions": actions,
                    "states": sample["states"].numpy() if "states" in sample else actions[:, :0],
                }
            )
    rows = processes.gather_sorted(rows)
    names = [name for name in rows[0] if name != "index"]
    return ActionClips(**{name: np.stack([row[name] for row in rows]) for name in names})


def targets_of(clips: ActionClips, state_names: Sequence[str]) -> dict[str, Array]:
    """Name -> (N, T - 1, K) of what is probed: actions, positions and velocities.

    An action acts from its frame to the next, so that of the last frame has no effect that is seen:
    the last frame is left out.
    """
    moving = [name.endswith(VELOCITY) for name in state_names]
    found = {
        "actions": clips.actions,
        "positions": clips.states[..., [not each for each in moving]],
        "velocities": clips.states[..., moving],
    }
    return {name: target[:, :-1] for name, target in found.items() if target.shape[-1]}


def dynamics_by_frame(clips: ActionClips, dynamics_frames: int) -> Array:
    """(N, T, D): the vector is frame after frame; one that covers several frames is repeated."""
    by_frame = rearrange(clips.dynamics, "n (t d) -> n t d", t=dynamics_frames)
    return np.repeat(by_frame, clips.frames.shape[1] // dynamics_frames, axis=1)


def pixel_features(
    train: ActionClips, others: Sequence[ActionClips], size: int
) -> dict[str, list[Array]]:
    """(N, T, size) features of each frame's pixels, of the training clips, then of the others.

    "pixels" are principal components of the frames at 16 x 16, "frame differences" those of what
    changes from a frame to the next.
    """
    sets = []
    for clips in (train, *others):
        frames = torch.from_numpy(clips.frames).float() / 127.5 - 1
        scale = THUMBNAIL // COARSE
        sets.append(reduce(frames, "n t c (h y) (w x) -> n t (c h w)", "mean", y=scale, x=scale))
    changes = [torch.cat((each.diff(dim=1), 0 * each[:, :1]), dim=1) for each in sets]
    found = {}
    for name, (own, *rest) in {"pixels": sets, "frame differences": changes}.items():
        rows = rearrange(own, "n t d -> (n t) d").double()
        mean = rows.mean(0)
        axes = torch.linalg.eigh((rows - mean).T @ (rows - mean)).eigenvectors
        axes = axes.flip(1)[:, :size].float()  # the strongest first
        found[name] = [((each - mean.float()) @ axes).numpy() for each in (own, *rest)]
    return found
