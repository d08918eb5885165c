"""One latent given, the other sampled: what is kept, and how much the rest varies.

Axes: M videos of a clip.
Source: fixing one latent and sampling the other as in DSVAE (arXiv 1803.02991) and its successors.
Their entropies H(y) and H(y|x) are of a classifier's soft output over all videos, see
`evaluation.accuracy`; these are of the judge's hard verdicts over the videos of one clip.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion import VidTwinPipeline
from vidtwin import VidTwinAutoencoder, weights_digest
from vidtwin.data import Factors
from vidtwin_lab.evaluation.config import autoencoder_path
from vidtwin_lab.evaluation.disentanglement.clips import LATENTS, Clips, groups_of
from vidtwin_lab.evaluation.disentanglement.config import SamplingConfig
from vidtwin_lab.evaluation.disentanglement.swaps import HOLDER
from vidtwin_lab.evaluation.intervals import (
    chance_of,
    entropy_bits,
    interval_of,
    mean_interval,
    share_of,
)
from vidtwin_lab.evaluation.judges.choice import Judge
from vidtwin_lab.evaluation.pipelines import load_pipeline
from vidtwin_lab.evaluation.report import Processes

__all__ = ["pipeline_of", "sample_videos", "sampling_found", "sampling_rows"]

Sampled = dict[str, Any]
DRAWS = 2000  # to learn what entropy so few videos can have


def pipeline_of(autoencoder: VidTwinAutoencoder, path: str) -> VidTwinPipeline:
    """The pipeline of an autoencoder, on its device.

    Raises:
        ValueError: if its autoencoder is another one.
    """
    pipe = load_pipeline(path, autoencoder.device)
    if weights_digest(pipe.autoencoder) != weights_digest(autoencoder):
        raise ValueError(
            f"the autoencoder in pipeline={path} has other weights than the one measured; set "
            f"autoencoder={autoencoder_path(path)}, or pipeline=null"
        )
    return pipe


def sample_videos(
    pipe: VidTwinPipeline,
    clips: Clips,
    judge: Judge,
    processes: Processes,
    config: SamplingConfig,
    seed: int,
) -> list[Sampled]:
    """Judges the videos that a pipeline samples for each given latent.

    Video j of the clip at place k has the noise of seed + k M + j, whichever latent is given.

    Returns:
        One for each video: index, given (of LATENTS), place, seed, seen (factor -> class).
    """
    number = min(config.clips, len(clips))
    tasks = [(given, place) for given in LATENTS for place in range(number)]
    rows: list[Sampled] = []
    for task in processes.share(range(len(tasks))):
        given, place = tasks[task]
        repeated = [place] * config.videos_per_clip
        seeds = [seed + place * config.videos_per_clip + j for j in range(config.videos_per_clip)]
        arguments: dict[str, Any] = {given: clips.batch(repeated, repeated), "seed": seeds}
        output: Any = pipe(
            num_inference_steps=config.steps,
            given_guidance_scale=config.given_guidance_scale,
            **arguments,
        )
        for j, seen in enumerate(judge(2 * output.videos - 1)):
            index = task * config.videos_per_clip + j
            rows.append(
                {"index": index, "given": given, "place": place, "seed": seeds[j], "seen": seen}
            )
    return processes.gather_sorted(rows)


def sampling_found(
    clips: Clips, rows: Sequence[Sampled], factors: Factors, seed: int
) -> dict[str, Any]:
    """Which factors of the given latent are kept, and how those of the other latent vary.

    Returns:
        For "structure" and "dynamics" given: kept (factor, or all of the group -> share of videos
        with the clip's class, and that of plain reconstructions) and varied, see `_variety`.
    """
    groups = groups_of(factors)
    found: dict[str, Any] = {}
    for given in LATENTS:
        own = [row for row in rows if row["given"] == given]
        kept = next(group for group, holder in HOLDER.items() if holder == given)
        other = next(group for group, holder in HOLDER.items() if holder != given)
        found[given] = {
            "clips": len({row["place"] for row in own}),
            "videos": len(own),
            "kept": _kept(clips, own, groups[kept]),
            "varied": _variety(clips, own, groups[other], seed),
        }
    return found


def sampling_rows(
    clips: Clips, rows: Sequence[Sampled], classes: dict[str, tuple[str, ...]]
) -> list[dict[str, Any]]:
    """The lines of the CSV, one for each video."""
    lines = []
    for row in rows:
        place, given = row["place"], row["given"]
        line = {
            "measurement": f"{given} held",
            "seed": row["seed"],
            f"{given}_of": clips.index[place],
            f"{given}_path": clips.path[place],
        }
        for name, names in classes.items():
            seen = row["seen"][name]
            line[f"{name}_of_{given}"] = names[clips.labels[name][place]]
            line[f"{name}_seen"] = names[seen] if seen >= 0 else None
        lines.append(line)
    return lines


def _kept(clips: Clips, rows: Sequence[Sampled], names: Sequence[str]) -> dict[str, Any]:
    """Means over clips, since the videos of one clip are not independent samples."""
    if not names:
        return {"reason": "the data have no labels of this group"}
    places = np.array([row["place"] for row in rows])
    used = np.unique(places)
    right = {
        name: np.array([row["seen"][name] for row in rows]) == clips.labels[name][places]
        for name in names
    }
    ceiling = {name: clips.reconstructed[name][used] == clips.labels[name][used] for name in names}
    right["all"] = np.logical_and.reduce(list(right.values()))
    ceiling["all"] = np.logical_and.reduce(list(ceiling.values()))
    return {
        name: {
            "kept": interval_of(np.array([right[name][places == place].mean() for place in used])),
            "reconstruction": share_of(ceiling[name]),
        }
        for name in right
    }


def _variety(
    clips: Clips, rows: Sequence[Sampled], names: Sequence[str], seed: int
) -> dict[str, Any]:
    """How the verdicts vary, for each factor and for all of the group as one.

    Entropies are in bits: of the verdicts on one clip's videos (and of as many draws from the
    data), of all verdicts, of the data's labels. Then the total variation between all verdicts
    and the labels, how often a video shows the clip's own class (and a draw from the data would),
    and how often the judge knows no class.
    """
    if not names:
        return {"reason": "the data have no labels of this group"}
    members = {name: (name,) for name in names} | ({"all": tuple(names)} if names[1:] else {})
    places = np.array([row["place"] for row in rows])
    found = {}
    for key, factors in members.items():
        columns = [np.array([row["seen"][name] for row in rows]) for name in factors]
        labels, seen = _as_one([clips.labels[name] for name in factors], columns)
        by_clip = [seen[places == place] for place in np.unique(places)]
        found[key] = {
            "bits_within_clip": mean_interval([entropy_bits(each) for each in by_clip]),
            "bits_within_clip_of_draws": _bits_of_draws(labels, len(by_clip[0]), seed),
            "bits_over_all": entropy_bits(seen),
            "bits_of_data": entropy_bits(labels),
            "total_variation": _total_variation(seen, labels),
            "same_as_clip": share_of(seen == labels[places]),
            "same_by_chance": chance_of(labels),
            "unknown": share_of(np.stack(columns).min(0) < 0),
        }
    return found


def _as_one(
    labels: Sequence[NDArray[np.int64]], seen: Sequence[NDArray[np.int64]]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Several factors as one: the combined classes of the data, (N,), and of the videos, (V,)."""
    rows = np.concatenate([np.stack(labels, 1), np.stack(seen, 1)])
    codes = np.unique(rows, axis=0, return_inverse=True)[1].reshape(-1)
    number = len(labels[0])
    return codes[:number], codes[number:]


def _bits_of_draws(labels: NDArray[np.int64], number: int, seed: int) -> float:
    """Mean entropy of `number` clips drawn from the data: few videos can't show all classes."""
    draws = np.random.default_rng([seed, 3]).choice(labels, (DRAWS, number))
    return float(np.mean([entropy_bits(each) for each in draws]))


def _total_variation(seen: NDArray[np.int64], labels: NDArray[np.int64]) -> float:
    """Half the summed difference of two distributions over classes: 0 for the same, up to 1."""
    number = int(max(seen.max(), labels.max())) + 1
    shares = [np.bincount(each, minlength=number) / len(each) for each in (seen, labels)]
    return float(np.abs(shares[0] - shares[1]).sum() / 2)
