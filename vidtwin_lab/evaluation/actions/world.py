"""How well a pipeline that takes actions foretells a simulation, read off its videos.

A pipeline is given the first frames of a clip and the actions of all its frames. A judge that was
trained on real renders reads off what it makes where the point that acts is (an arm's tip), and
that is held against the simulator's own place of it, in every frame that was not given.

Axes: N clips, T frames, G given frames, A actions; a place is (x, y) in metres.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from diffusion.given_frames import filled_video
from vidtwin.data import build_dataset
from vidtwin.data.synthetic.physics import PhysicsDataset
from vidtwin.metrics import psnr
from vidtwin_lab.evaluation.actions.clips import thumbnails
from vidtwin_lab.evaluation.actions.config import WorldConfig
from vidtwin_lab.evaluation.actions.networks import StateJudge, train_judge
from vidtwin_lab.evaluation.intervals import interval_text, mean_interval
from vidtwin_lab.evaluation.pipelines import load_pipeline, parts_digests
from vidtwin_lab.evaluation.report import (
    COLORS,
    Processes,
    Report,
    batches_of,
    data_protocol,
    fields_of,
    new_figure,
    save_figure,
    software_protocol,
)

__all__ = ["describe", "measure"]

Array = NDArray[Any]
Found = dict[str, Any]
PENALTY = 1e-3  # of the ridge regression, relative to the number of clips
# What makes the places -> how the table calls it.
PREDICTORS = {
    "real": "real renders: the judge's own error",
    "reconstruction": "reconstructions",
    "world": "given frames and actions",
    "no_actions": "given frames alone",
    "other_actions": "given frames and another clip's actions",
    "copy": "the last given frame, copied",
    "linear": "linear, from the same frames and actions",
}
VIDEOS = ("real", "reconstruction", "world", "no_actions", "other_actions")


@dataclass(frozen=True, eq=False)
class Played:
    """Simulated clips: (N, T, 3, 32, 32) uint8 frames, (N, T, A) actions, (N, T, 2) places."""

    frames: Array
    actions: Array
    places: Array


def _play(dataset: PhysicsDataset, index: int) -> tuple[Tensor, Array, Array]:
    """(3, T, H, W) video, (T, A) actions and (T, 2) places of a clip."""
    clip = dataset.clip(index)
    result, video = dataset.played(clip)
    return video, clip.motion.actions, result.recording.sites[:, 0, :2]


def _gathered(dataset: PhysicsDataset, count: int, batch: int, processes: Processes) -> Played:
    """The first clips of a data set, on every process."""
    rows = []
    for part in processes.share(batches_of(count, batch)):
        for index in part:
            video, actions, places = _play(dataset, index)
            small = thumbnails(video[None])[0]
            rows.append({"index": index, "frames": small, "actions": actions, "places": places})
    rows = processes.gather_sorted(rows)
    return Played(*(np.stack([row[name] for row in rows]) for name in Played.__annotations__))


def _features(places: Array, actions: Array, given: int) -> Array:
    """(N, D): what the linear baseline sees, (N, T, 2) places read off real renders among it."""
    seen = rearrange(places[:, :given], "n g p -> n (g p)")
    return np.concatenate([seen, rearrange(actions, "n t a -> n (t a)"), seen[:, :1] * 0 + 1], 1)


def _fit_linear(judge: StateJudge, train: Played, given: int) -> Array:
    """(D, (T - G) 2): from given places and all actions to the other places, by ridge regression.

    The arm has turned before it is pushed, so no linear map is exact; it is the best of them.
    """
    features = _features(judge.read(train.frames), train.actions, given)
    wanted = rearrange(train.places[:, given:], "n t p -> n (t p)")
    penalty = PENALTY * len(features) * np.eye(features.shape[1])
    weights: Array = np.linalg.solve(features.T @ features + penalty, features.T @ wanted)
    return weights


def _subject(config: WorldConfig, device: Any = "cpu") -> tuple[Any, PhysicsDataset, Any]:
    """The pipeline, the judge's clips, and the clips that are foretold."""
    pipeline = load_pipeline(config.pipeline, device)
    sizes = pipeline.autoencoder.sizes
    if pipeline.transformer.sizes.action_size is None:
        raise ValueError(
            f"the pipeline {config.pipeline} takes no actions; train one with "
            "action_conditional=true, such as configs/diffusion/physics_actions.yaml"
        )
    if not pipeline.transformer.sizes.given_frames:
        raise ValueError(f"the pipeline {config.pipeline} takes no given frames; set `given`")
    if config.given_frames >= sizes.num_frames:
        raise ValueError(
            f"given_frames must be below the pipeline's {sizes.num_frames} frames, got "
            f"{config.given_frames}"
        )
    judged, tested = (build_dataset(data) for data in config.data_for(sizes))
    assert isinstance(judged, PhysicsDataset)
    return pipeline, judged, tested


def describe(config: WorldConfig) -> Found:
    """What would be measured."""
    pipeline, _, dataset = _subject(config)
    return {
        "pipeline": config.pipeline,
        "actions": pipeline.config["action_names"],
        "clips": {"judge": config.judge_clips, "test": config.clips},
        "looks": dataset.looks,
        "frames": {"given": config.given_frames, "all": pipeline.autoencoder.sizes.num_frames},
    }


def measure(config: WorldConfig, processes: Processes) -> Report:
    """The error of the place of the point that acts, of the pipeline and of baselines.

    Raises:
        ValueError: for a pipeline without actions or given frames.
    """
    pipeline, judged, dataset = _subject(config, processes.device)
    train = _gathered(judged, config.judge_clips, config.batch_size, processes)
    judge = train_judge(train.frames, train.places.astype(np.float32), config.networks, config.seed)
    linear = _fit_linear(judge, train, config.given_frames)
    rows: list[Found] = []
    for batch in processes.share(batches_of(config.clips, config.batch_size)):
        rows += _measure_batch(config, pipeline, dataset, list(batch), judge, linear)
    rows = processes.gather_sorted(rows)
    found = _summarise(rows)
    return Report(
        name="world",
        protocol={
            "pipeline": config.pipeline,
            "weights_sha256": parts_digests(pipeline.components),
            "looks": dataset.looks,
            "data": data_protocol(dataset.config, config.clips),
            "actions": pipeline.config["action_names"],
            **fields_of(
                config,
                *("judge_clips", "clips", "given_frames", "steps", "batch_size", "seed"),
                "networks",
            ),
            **software_protocol(processes),
        },
        found=found,
        rows=[
            {
                "clip": row["index"],
                "predictor": name,
                "error": float(row["errors"][name].mean()),
                "error_of_last_frame": float(row["errors"][name][-1]),
                "psnr": row["psnr"].get(name, ""),
            }
            for row in rows
            for name in PREDICTORS
        ],
        markdown=_markdown(config, found),
        draw=_drawing(found, config.given_frames),
    )


def _measure_batch(
    config: WorldConfig,
    pipeline: Any,
    dataset: PhysicsDataset,
    batch: Sequence[int],
    judge: StateJudge,
    linear: Array,
) -> list[Found]:
    """A row for each clip: the distance to the true place in each frame that isn't given."""
    given = config.given_frames
    played = [_play(dataset, index) for index in batch]
    real = torch.stack([video for video, _, _ in played]).to(pipeline.device)
    actions, places = (np.stack([each[number] for each in played]) for number in (1, 2))
    videos = _foretold(config, pipeline, real, torch.from_numpy(actions).float(), batch)
    read = {name: judge.read(thumbnails(video)) for name, video in videos.items()}
    features = _features(read["real"], actions, given)
    read["copy"] = np.repeat(read["real"][:, given - 1 : given], real.shape[2], axis=1)
    guessed = rearrange(features @ linear, "n (t p) -> n t p", p=2)
    read["linear"] = np.concatenate([read["real"][:, :given], guessed], axis=1)
    seen = {name: videos[name] for name in VIDEOS[1:]}
    seen["copy"] = real[:, :, given - 1 : given].expand_as(real)
    decibels = {
        name: psnr(real[:, :, given:], video[:, :, given:], pooled=True).tolist()
        for name, video in seen.items()
    }
    rows = []
    for place, index in enumerate(batch):
        gaps = {name: each[place, given:] - places[place, given:] for name, each in read.items()}
        errors = {name: np.linalg.norm(gap, axis=-1) for name, gap in gaps.items()}
        made = {name: each[place] for name, each in decibels.items()}
        rows.append({"index": index, "errors": errors, "psnr": made})
    return rows


@torch.no_grad()
def _foretold(
    config: WorldConfig, pipeline: Any, real: Tensor, actions: Tensor, batch: Sequence[int]
) -> dict[str, Tensor]:
    """Name -> (B, 3, T, H, W) in [-1, 1]."""
    given = config.given_frames
    frames = (torch.arange(real.shape[2]) < given).expand(len(real), -1)
    options: Found = {
        "prefix": real[:, :, :given],
        "seed": [config.seed + index for index in batch],
        "num_inference_steps": config.steps,
    }
    if pipeline.autoencoder.sizes.structure_frame is not None:
        # The structure of a clip is that of its first frame, so it is known.
        options["structure"] = filled_video(real, frames)
    found = {"real": real, "reconstruction": pipeline.autoencoder(real).reconstruction}
    asked: dict[str, dict[str, Any]] = {
        "world": {"actions": actions},
        "no_actions": {"num_videos_per_prompt": 1},
        "other_actions": {"actions": actions.roll(1, 0)},
    }
    for name, more in asked.items():
        found[name] = 2 * pipeline(**options, **more).videos - 1
    return found


def _summarise(rows: Sequence[Found]) -> Found:
    found: Found = {}
    for name in PREDICTORS:
        errors = np.stack([row["errors"][name] for row in rows])  # (N, T - G)
        found[name] = {
            "error_m": mean_interval(errors.mean(1).tolist()),
            "error_m_of_last_frame": mean_interval(errors[:, -1].tolist()),
            "error_m_by_frame": errors.mean(0).tolist(),
        }
        if name in rows[0]["psnr"]:
            found[name]["psnr"] = mean_interval([row["psnr"][name] for row in rows])
    gains = [(row["errors"]["linear"] - row["errors"]["world"]).mean() for row in rows]
    found["linear_minus_world_m"] = mean_interval([float(gain) for gain in gains])
    return found


def _markdown(config: WorldConfig, found: Mapping[str, Any]) -> list[tuple[str, str]]:
    cells = [("pipeline", config.pipeline)]
    for name, text in PREDICTORS.items():
        cells.append((f"{text}, cm", interval_text(found[name]["error_m"], ".1f", 100)))
    return cells


def _drawing(found: Mapping[str, Any], given: int) -> Any:
    def draw(path: Path) -> None:
        figure, (panel,) = new_figure(1, 1, size=(6.4, 4.2))
        for (name, text), color in zip(PREDICTORS.items(), COLORS, strict=True):
            errors = 100 * np.asarray(found[name]["error_m_by_frame"])
            panel.plot(given + np.arange(len(errors)), errors, color=color, label=text)
        panel.set_ylim(0, None)
        panel.set_xlabel("frame")
        panel.set_ylabel("error of the place, cm")
        panel.legend(fontsize=7)
        save_figure(figure, path)

    return draw
