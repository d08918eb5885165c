"""Structure of one clip, dynamics of another: what the video shows, and the latents of it.

Axes: N clips, P pairs, B batch, D latent values.
Source: swapping as in DSVAE (Li and Mandt, arXiv 1803.02991), judged by a classifier as in S3VAE
(Zhu et al., arXiv 2005.11437), C-DSVAE (Bai et al., arXiv 2110.12091) and SKD (Berman et al.,
arXiv 2303.17264); VidTwin (arXiv 2412.17726) calls it cross-reenactment. Those papers sample the
other latent as well; see `sampling` beside this for that. Encoding again as in the
cycle consistency of MUNIT's latents (Huang et al., arXiv 1804.04732).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vidtwin import VidTwinAutoencoder
from vidtwin.data import Factors
from vidtwin.media import to_uint8
from vidtwin_lab.evaluation.disentanglement.clips import LATENTS, Clips, flatten_latents, groups_of
from vidtwin_lab.evaluation.intervals import chance_of, mean_interval, share_of
from vidtwin_lab.evaluation.judges.choice import Judge
from vidtwin_lab.evaluation.report import Processes, batches_of

__all__ = ["Swap", "consistency", "swap_accuracy", "swap_pairs"]

# Which of a pair's two clips each latent of the swapped video comes from.
GIVER = {"structure": 0, "dynamics": 1}
# The latent that is meant to hold a group of factors.
HOLDER = {"content": "structure", "motion": "dynamics"}
Swap = dict[str, Any]


@torch.no_grad()
def swap_pairs(
    model: VidTwinAutoencoder,
    clips: Clips,
    pairs: Sequence[tuple[int, int]],
    judge: Judge,
    processes: Processes,
    *,
    batch_size: int,
    examples: int = 0,
) -> list[Swap]:
    """Decodes structure(A) with dynamics(B), judges the video and encodes it again.

    Args:
        pairs: places of A and B among the clips.
        batch_size: videos of one forward pass.
        examples: how many of the first videos to keep.
    Returns:
        One for each pair: index, pair, seen (factor -> class), close (name of the latent -> see
        `_closeness`) and, of the first, video (T, H, W, 3) uint8.
    """
    rows: list[Swap] = []
    for batch in processes.share(batches_of(len(pairs), batch_size)):
        places = [pairs[number] for number in batch]
        latents = clips.batch([one for one, _ in places], [other for _, other in places])
        video = model.decode(latents.to(processes.device))
        seen = judge(video)
        again = flatten_latents(model.encode(video.clamp(-1, 1)).mode())
        close = {
            name: _closeness(clips, name, again[name].numpy(), places, GIVER[name])
            for name in LATENTS
        }
        for row, number in enumerate(batch):
            rows.append(
                {
                    "index": number,
                    "pair": places[row],
                    "seen": seen[row],
                    "close": {
                        name: {measure: float(values[row]) for measure, values in each.items()}
                        for name, each in close.items()
                    },
                    "video": to_uint8(video[row]) if number < examples else None,
                }
            )
    return processes.gather_sorted(rows)


def swap_accuracy(clips: Clips, swaps: Sequence[Swap], factors: Factors) -> dict[str, Any]:
    """How often the judge sees the content of A and the motion of B.

    Returns:
        For "content" and "motion", for each factor and for all of the group at once: swap (share
        of the pairs that show what was given), other (those that show the other clip's: leakage),
        neither, chance (for a clip drawn from the data instead), and the ceilings real and
        reconstruction (share of the clips, and of their reconstructions, that are judged right).
    """
    places = np.array([swap["pair"] for swap in swaps])  # (P, 2)
    found: dict[str, Any] = {}
    for group, names in groups_of(factors).items():
        if not names:
            found[group] = {"reason": f"the data have no labels of {group}"}
            continue
        giver = GIVER[HOLDER[group]]
        verdicts = {name: _verdicts(clips, swaps, name, places, giver) for name in names}
        ceilings = {
            name: (clips.real[name] == clips.labels[name],
                   clips.reconstructed[name] == clips.labels[name])
            for name in names
        }  # fmt: skip
        found[group] = {
            name: _summary(
                [verdicts[each] for each in members],
                [ceilings[each] for each in members],
                [chance_of(clips.labels[each]) for each in members],
            )
            for name, members in {**{name: (name,) for name in names}, "all": names}.items()
        }
    return found


def consistency(clips: Clips, swaps: Sequence[Swap]) -> dict[str, Any]:
    """Whether a swapped video encodes to the latents that it was decoded from.

    Latents are compared as deviations from the mean over all clips, not divided by their spread,
    which would enlarge the values that the KL term keeps near zero.

    Returns:
        For each latent: cosine with the clip that gave it (`kept`) and with the other (`other`),
        `error` |found - given| / |given|, `nearer` (share of the pairs nearer to the giver than to
        the other), and the baselines: `reconstruction` (a plain reconstruction encoded again) and
        `unrelated` (the two clips of each pair).
    """
    places = np.array([swap["pair"] for swap in swaps])
    found: dict[str, Any] = {}
    for name in LATENTS:
        close = {
            measure: [swap["close"][name][measure] for swap in swaps]
            for measure in ("kept", "other", "error", "nearer")
        }
        given = clips.centered(name, clips.latents[name])
        again = clips.centered(name, clips.again[name])
        one, other = given[places[:, 0]], given[places[:, 1]]
        found[name] = {
            "kept": mean_interval(close["kept"]),
            "other": mean_interval(close["other"]),
            "error": mean_interval(close["error"]),
            "nearer": share_of(value > 0 for value in close["nearer"]),
            "reconstruction": {
                "kept": mean_interval(cosine(again, given).tolist()),
                "error": mean_interval(relative_error(again, given).tolist()),
            },
            "unrelated": {
                "kept": mean_interval(cosine(one, other).tolist()),
                "error": mean_interval(relative_error(one, other).tolist()),
            },
        }
    return found


def cosine(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n,): cosine of each row of one with that of the other; 0 where one has no length."""
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return (one * other).sum(1) / np.maximum(lengths, 1e-12)


def relative_error(found: NDArray[np.float64], given: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n,): length of the difference over the length of what was given."""
    lengths = np.maximum(np.linalg.norm(given, axis=1), 1e-12)
    return np.linalg.norm(found - given, axis=1) / lengths


def swap_rows(
    clips: Clips, swaps: Sequence[Swap], classes: dict[str, tuple[str, ...]]
) -> list[dict[str, Any]]:
    """The lines of the CSV, one for each pair."""
    rows = []
    for swap in swaps:
        one, other = swap["pair"]
        row: dict[str, Any] = {
            "measurement": "swap",
            "pair": swap["index"],
            "structure_of": clips.index[one],
            "dynamics_of": clips.index[other],
            "structure_path": clips.path[one],
            "dynamics_path": clips.path[other],
        }
        for name, names in classes.items():
            row[f"{name}_of_structure"] = names[clips.labels[name][one]]
            row[f"{name}_of_dynamics"] = names[clips.labels[name][other]]
            seen = swap["seen"][name]
            row[f"{name}_seen"] = names[seen] if seen >= 0 else None
        for name in LATENTS:
            for measure, value in swap["close"][name].items():
                row[f"{name}_{measure}"] = value
        rows.append(row)
    return rows


def _closeness(
    clips: Clips,
    name: str,
    again: NDArray[np.float32],
    places: Sequence[tuple[int, int]],
    giver: int,
) -> dict[str, NDArray[np.float64]]:
    """(B,) each: cosine with the giver (`kept`) and the other clip, relative error to the giver,
    and by how much nearer the giver is than the other, relative to the giver."""
    given, other = (
        clips.centered(name, clips.latents[name][[pair[side] for pair in places]])
        for side in (giver, 1 - giver)
    )
    found = clips.centered(name, again)
    error = relative_error(found, given)
    distance = np.linalg.norm(found - other, axis=1)
    lengths = np.maximum(np.linalg.norm(given, axis=1), 1e-12)
    return {
        "kept": cosine(found, given),
        "other": cosine(found, other),
        "error": error,
        "nearer": distance / lengths - error,
    }


def _verdicts(
    clips: Clips, swaps: Sequence[Swap], name: str, places: NDArray[np.int64], giver: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(P,) each: whether the giver's class was seen, and whether the other clip's was."""
    seen = np.array([swap["seen"][name] for swap in swaps])
    labels = clips.labels[name]
    return seen == labels[places[:, giver]], seen == labels[places[:, 1 - giver]]


def _summary(
    verdicts: Sequence[tuple[NDArray[np.bool_], NDArray[np.bool_]]],
    ceilings: Sequence[tuple[NDArray[np.bool_], NDArray[np.bool_]]],
    chances: Sequence[float],
) -> dict[str, Any]:
    """Of one factor, or of several that must all be so at once."""
    right = np.logical_and.reduce([one for one, _ in verdicts])
    other = np.logical_and.reduce([one for _, one in verdicts])
    return {
        "swap": share_of(right),
        "other": share_of(other),
        "neither": share_of(~right & ~other),
        "chance": float(np.prod(chances)),
        "real": share_of(np.logical_and.reduce([one for one, _ in ceilings])),
        "reconstruction": share_of(np.logical_and.reduce([one for _, one in ceilings])),
    }
