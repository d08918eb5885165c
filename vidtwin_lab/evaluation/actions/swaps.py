"""Swaps of simulated bodies: the look of A with the motion of B, held against the exact render.

A and B have the same body; B's motion and look are drawn anew. Of the same body there are three
more renders: A itself, B itself, and what the swap should be, B's motion in A's look. A swap has
the motion of B if it is nearer to the last than to A, and the look of A if it is nearer to the
last than to B, in squared error of pixels. A judge of states, trained on real renders, reads the
positions off the swap; they are compared with the simulator's own.

Axes: T frames, P positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vidtwin import VidTwinAutoencoder
from vidtwin.data.synthetic.physics import PhysicsDataset
from vidtwin.media import to_uint8
from vidtwin.metrics import psnr
from vidtwin_lab.evaluation.actions.clips import thumbnails
from vidtwin_lab.evaluation.actions.networks import StateJudge
from vidtwin_lab.evaluation.actions.probes import r_squared
from vidtwin_lab.evaluation.intervals import mean_interval, share_of
from vidtwin_lab.evaluation.report import Processes, batches_of

__all__ = ["judge_swaps", "summarise_swaps", "swap_rows"]

Row = dict[str, Any]


def _draw(dataset: PhysicsDataset, index: int, seed: int) -> dict[str, Any]:
    """The renders of A, of B and of the swap as it should be, and the positions of A and B."""
    rng = np.random.default_rng([seed, 11, index])
    a = dataset.clip(index)
    wanted = dataset.swapped("motion_swap", a, rng)
    b = dataset.swapped("appearance_swap", wanted, rng)
    played = {name: dataset.played(clip) for name, clip in (("a", a), ("b", b), ("wanted", wanted))}
    videos = {name: video for name, (_, video) in played.items()}
    return {**videos, "positions": {name: played[name][0].positions for name in ("a", "b")}}


def _error(one: Tensor, other: Tensor) -> float:
    return float((one - other).square().mean())


@torch.no_grad()
def judge_swaps(
    model: VidTwinAutoencoder,
    dataset: PhysicsDataset,
    chosen: Sequence[int],
    judge: StateJudge,
    processes: Processes,
    batch_size: int,
    seed: int,
    examples: int = 0,
) -> list[Row]:
    """A row for each pair, sorted by pair, on every process.

    Args:
        chosen: index of A of each pair.
        examples: how many rows keep their videos, for a figure.
    """
    rows: list[Row] = []
    for batch in processes.share(batches_of(len(chosen), batch_size)):
        drawn = [_draw(dataset, chosen[place], seed) for place in batch]
        stacked = {
            name: torch.stack([each[name] for each in drawn]).to(processes.device)
            for name in ("a", "b", "wanted")
        }
        vector = model.encode_dynamics(stacked["b"])
        swapped = model.decode_dynamics(vector, structure_from=stacked["a"]).clamp(-1, 1)
        plain = model(stacked["wanted"]).reconstruction.clamp(-1, 1)
        read = {
            name: judge.read(thumbnails(video))
            for name, video in (("swap", swapped), ("plain", plain), ("real", stacked["wanted"]))
        }
        made = {"psnr": swapped, "psnr_plain": plain}
        decibels = {
            name: psnr(stacked["wanted"], video, pooled=True).tolist()
            for name, video in made.items()
        }
        for number, place in enumerate(batch):
            swap, wanted = swapped[number], stacked["wanted"][number]
            row = {
                "index": place,
                "clip": chosen[place],
                "motion_of_b": _error(swap, wanted) < _error(swap, stacked["a"][number]),
                "look_of_a": _error(swap, wanted) < _error(swap, stacked["b"][number]),
                **{name: each[number] for name, each in decibels.items()},
                "read": {name: each[number] for name, each in read.items()},
                "positions": drawn[number]["positions"],
                "videos": None,
            }
            if place < examples:
                shown = (stacked["a"][number], stacked["b"][number], swap, wanted)
                row["videos"] = [to_uint8(each.cpu()) for each in shown]
            rows.append(row)
    return processes.gather_sorted(rows)


def _distance(row: Row, spread: NDArray[Any], whose: str) -> float:
    """Root mean squared distance of the positions read off a swap, in standard deviations."""
    gap = (row["read"]["swap"] - row["positions"][whose]) / spread
    return float(np.sqrt(np.square(gap).mean()))


def summarise_swaps(rows: Sequence[Row], judge: StateJudge) -> dict[str, Any]:
    """Shares and means over pairs with their intervals."""
    spread = judge.spread.numpy()
    true = np.stack([row["positions"]["b"] for row in rows])
    states = {
        name: r_squared(np.stack([row["read"][name] for row in rows]), true)
        for name in ("swap", "plain", "real")
    }
    nearer = [_distance(row, spread, "b") < _distance(row, spread, "a") for row in rows]
    both = [row["motion_of_b"] and row["look_of_a"] for row in rows]
    return {
        "motion_of_b": share_of(row["motion_of_b"] for row in rows),
        "look_of_a": share_of(row["look_of_a"] for row in rows),
        "both": share_of(both),
        "states_nearer_to_b": share_of(nearer),
        "states_r_squared": states,
        "psnr": mean_interval([row["psnr"] for row in rows]),
        "psnr_of_plain_reconstructions": mean_interval([row["psnr_plain"] for row in rows]),
    }


def swap_rows(looks: str, rows: Sequence[Row], judge: StateJudge) -> list[Mapping[str, Any]]:
    """The lines of the CSV."""
    spread = judge.spread.numpy()
    return [
        {
            "measurement": "swap",
            "looks": looks,
            **{name: row[name] for name in ("clip", "motion_of_b", "look_of_a", "psnr")},
            "distance_to_b": _distance(row, spread, "b"),
            "distance_to_a": _distance(row, spread, "a"),
        }
        for row in rows
    ]
