"""Which clips are measured and paired, and every clip once through the autoencoder.

Axes: N clips, B batch, D latent values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vidtwin import AutoencoderConfig, VidTwinAutoencoder, VidTwinLatents, nearest_name
from vidtwin.data import (
    BadFileLog,
    Factors,
    SkippedFile,
    VideoDataset,
    factor_labels,
    iterate_variants,
)
from vidtwin_lab.evaluation.disentanglement.config import DisentanglementConfig
from vidtwin_lab.evaluation.judges.choice import Judge
from vidtwin_lab.evaluation.report import Processes, batches_of

__all__ = [
    "LATENTS",
    "Clips",
    "choose_clips",
    "choose_factors",
    "encode_clips",
    "flatten_latents",
    "groups_of",
]

# The two halves of what is measured; the dynamics are dynamics_x and dynamics_y together.
LATENTS = ("structure", "dynamics")
DYNAMICS = ("dynamics_x", "dynamics_y")


def groups_of(factors: Factors) -> dict[str, tuple[str, ...]]:
    """The names of the factors of content and of motion."""
    return {"content": tuple(factors.content), "motion": tuple(factors.motion)}


@dataclass(frozen=True, eq=False)
class Clips:
    """What is known of all clips, on every process.

    Args:
        index: of each clip in the data set.
        path: of each clip.
        labels: factor -> (N,) class.
        real: factor -> (N,) class that the judge sees in the clip.
        reconstructed: factor -> (N,) class that the judge sees in the reconstruction.
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
    plain = latents.to("cpu", torch.float32)
    return {"structure": plain.pack(["structure"]), "dynamics": plain.pack(DYNAMICS)}


def restore_latents(
    structure: Tensor, dynamics: Tensor, sizes: AutoencoderConfig
) -> VidTwinLatents:
    """What `flatten_latents` came from."""
    shapes = (getattr(sizes, f"{name}_shape") for name in VidTwinLatents.names)
    like = VidTwinLatents(*(structure.new_empty(0, *shape) for shape in shapes))
    return VidTwinLatents.unpack(torch.cat([structure, dynamics], dim=1), like)


@torch.no_grad()
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
    # Clamped, as the colours of a written video are.
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


RULE = (
    "A goes through the clips in a drawn order; B is drawn from the clips that differ from A in "
    "every judged factor of content and of motion, so that each verdict can only follow one of "
    "the two; no pair twice"
)


class Pairs(NamedTuple):
    """(A, B) of each pair as places among the clips, and the clips that have no partner."""

    places: list[tuple[int, int]]
    without_partner: list[int]


def draw_pairs(codes: NDArray[np.int64], count: int, seed: int) -> Pairs:
    """Pairs of clips that differ in every factor.

    Args:
        codes: (N, F) class of each clip in each factor.
        count: of pairs; fewer come where the clips have fewer.
        seed: of the draws.
    Raises:
        ValueError: if no clip differs from any other in all factors.
    """
    number = len(codes)
    order = np.random.default_rng([seed, 0]).permutation(number).tolist()
    partners: dict[int, list[int]] = {}
    for place in order:
        different = np.flatnonzero((codes != codes[place]).all(1))
        drawn = np.random.default_rng([seed, 1, place]).permutation(different)
        partners[place] = drawn.tolist()
    places: list[tuple[int, int]] = []
    round_number = 0
    while len(places) < count:
        more = [
            (place, partners[place][round_number])
            for place in order
            if round_number < len(partners[place])
        ]
        if not more:
            break
        places += more
        round_number += 1
    if not places:
        raise ValueError(
            f"no two of the {number} clips differ in every factor of content and motion, so none "
            "can be swapped; take more clips (samples=...) or fewer factors (content=[...])"
        )
    return Pairs(places[:count], sorted(place for place in order if not partners[place]))


def choose_factors(dataset: VideoDataset, names: tuple[str, ...]) -> Factors:
    """The factors that are measured; those with a single class are left out.

    Raises:
        ValueError: if the data have none, or do not know one of the names.
    """
    known = factor_labels(dataset)
    for name in names:
        if name not in known.all:
            raise ValueError(
                f"`factors` must be of {', '.join(known.all)}, got {name!r}; "
                f"did you mean {nearest_name(name, list(known.all))!r}?"
            )
    chosen = names or tuple(known.all)
    content, motion = (
        {name: classes for name, classes in group.items() if name in chosen and len(classes) > 1}
        for group in (known.content, known.motion)
    )
    if not content and not motion:
        raise ValueError(f"none of the factors {', '.join(chosen)} has two classes to tell apart")
    return Factors(content=content, motion=motion)


def choose_clips(
    dataset: VideoDataset, factors: Factors, config: DisentanglementConfig
) -> tuple[list[int], list[tuple[str, str]]]:
    """Indices of the clips to measure, in order, and (clip, reason) of those without labels.

    Raises:
        ValueError: if the data have fewer than were asked for.
    """
    chosen: list[int] = []
    unlabelled: list[tuple[str, str]] = []
    wanted = len(dataset) if config.samples is None else config.samples
    for index in np.random.default_rng([config.seed, 2]).permutation(len(dataset)).tolist():
        if len(chosen) == wanted:
            break
        labels = dataset.factors(index)
        missing = [name for name in factors.all if labels.get(name, -1) < 0]
        if missing:
            unlabelled.append((f"clip {index}", f"unknown: {', '.join(missing)}"))
        else:
            chosen.append(index)
    if len(chosen) < wanted and config.samples is not None:
        raise ValueError(
            f"samples={config.samples} clips were asked for, the data have {len(chosen)} with all "
            f"labels ({len(unlabelled)} without); set samples=null for all of them"
        )
    return sorted(chosen), unlabelled
