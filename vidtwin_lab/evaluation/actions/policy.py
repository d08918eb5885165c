"""A behaviour-cloned policy that is shown what to do, by the dynamics vector or by something else.

A demonstration is an arm that moves, in another look. The policy is told the start of its own arm
(joints and their velocities) and a representation of the demonstration, and gives the torques of
all frames at once; it is trained to give the demonstration's. Then the simulator plays them: the
arm has reached what was shown if its tip ends within `tolerance` of where the demonstration's does.

Axes: N clips, T frames, A actions, D values of a representation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor, nn

from vidtwin import load_autoencoder
from vidtwin.data import build_dataset
from vidtwin.data.synthetic.physics import PhysicsDataset
from vidtwin_lab.evaluation.actions.clips import thumbnails
from vidtwin_lab.evaluation.actions.config import PolicyConfig
from vidtwin_lab.evaluation.actions.networks import train_to_best
from vidtwin_lab.evaluation.intervals import interval_text, mean_interval, share_of
from vidtwin_lab.evaluation.report import (
    COLORS,
    Processes,
    Report,
    batches_of,
    data_protocol,
    fields_of,
    model_protocol,
    new_figure,
    save_figure,
    software_protocol,
)

__all__ = ["describe", "measure"]

Array = NDArray[Any]
Found = dict[str, Any]
# What a policy is told of a demonstration -> how the table calls it.
TOLD = {
    "dynamics": "the dynamics vector",
    "pixels": "as many principal components of its pixels",
    "nothing": "nothing",
    "actions": "its torques themselves",
}


@dataclass(frozen=True, eq=False)
class Demonstrations:
    """Clips in another look than the policy's own arm has.

    Args:
        starts: (N, S) joints and velocities of the first frame.
        dynamics: (N, D).
        frames: (N, T, 3, 32, 32) uint8.
        actions: (N, T, A).
        tips: (N, 2) where the tip ends, in metres.
    """

    starts: Array
    dynamics: Array
    frames: Array
    actions: Array
    tips: Array


def _subject(config: PolicyConfig, device: Any = "cpu") -> tuple[Any, PhysicsDataset]:
    model, _ = load_autoencoder(config.autoencoder)
    dataset = build_dataset(config.data_for(model.sizes))
    assert isinstance(dataset, PhysicsDataset)
    dataset.factor_classes()  # refuses several scenes at once
    return model.to(device), dataset


def describe(config: PolicyConfig) -> Found:
    """What would be measured."""
    model, dataset = _subject(config)
    sizes = model.sizes
    values = sum(int(np.prod(s)) for s in (sizes.dynamics_x_shape, sizes.dynamics_y_shape))
    return {
        "autoencoder": config.autoencoder,
        "values": values,
        "clips": {"train": config.train_clips, "test": config.test_clips},
        "actions": list(dataset.action_names),
        "policies": {"seeds": config.seeds, "told": list(TOLD)},
    }


@torch.no_grad()
def _collect(
    config: PolicyConfig, model: Any, dataset: PhysicsDataset, processes: Processes
) -> Demonstrations:
    rows = []
    count = config.train_clips + config.test_clips
    for batch in processes.share(batches_of(count, config.batch_size)):
        clips = [dataset.clip(index) for index in batch]
        played, videos = zip(*(dataset.played(clip) for clip in clips))
        video = torch.stack(videos)
        dynamics = model.encode_dynamics(video.to(processes.device)).float().cpu().numpy()
        small = thumbnails(video)
        for place, index in enumerate(batch):
            start = np.concatenate([played[place].positions[0], played[place].velocities[0]])
            rows.append(
                {
                    "index": index,
                    "starts": start,
                    "dynamics": dynamics[place],
                    "frames": small[place],
                    "actions": clips[place].motion.actions,
                    "tips": played[place].recording.sites[-1, 0, :2],
                }
            )
    rows = processes.gather_sorted(rows)
    names = Demonstrations.__annotations__
    return Demonstrations(**{name: np.stack([row[name] for row in rows]) for name in names})


def _representations(shown: Demonstrations, train: int) -> dict[str, Array]:
    """Name -> (N, D) of what a policy is told."""
    size = shown.dynamics.shape[1]
    frames = torch.from_numpy(shown.frames).float()
    frames = nn.functional.avg_pool2d(rearrange(frames, "n t c h w -> (n t) c h w"), 2)
    pixels = rearrange(frames, "(n t) c h w -> n (t c h w)", n=len(shown.frames))
    mean = pixels[:train].mean(0)
    # The rows' own products: there are fewer clips than pixels.
    _, _, axes = torch.linalg.svd(pixels[:train] - mean, full_matrices=False)
    return {
        "dynamics": shown.dynamics,
        "pixels": ((pixels - mean) @ axes[:size].T).numpy(),
        "nothing": np.zeros((len(pixels), 1)),
        "actions": shown.actions.reshape(len(pixels), -1),
    }


def _clone(
    config: PolicyConfig, told: Array, starts: Array, actions: Array, seed: int
) -> tuple[Array, int]:
    """(N, T A) torques of every clip by a policy cloned from the first ones, and its best step."""
    inputs = []
    for part in (told, starts):
        mean, spread = part[: config.train_clips].mean(0), part[: config.train_clips].std(0)
        # One scale for a whole representation, so that weak components stay weak.
        inputs.append((part - mean) / max(float(np.sqrt(np.square(spread).mean())), 1e-6))
    rows = torch.from_numpy(np.concatenate(inputs, axis=1)).float()
    wanted = torch.from_numpy(actions.reshape(len(rows), -1)).float()
    rng = np.random.default_rng([seed, 12])
    order = rng.permutation(config.train_clips)
    held_out, used = np.split(order, [max(1, config.train_clips // 10)])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Linear(rows.shape[1], config.hidden_size), nn.GELU(),
            nn.Linear(config.hidden_size, config.hidden_size), nn.GELU(),
            nn.Linear(config.hidden_size, wanted.shape[1]),
        )  # fmt: skip

    def loss() -> Tensor:
        batch = torch.from_numpy(used[rng.integers(len(used), size=64)])
        return (network(rows[batch]) - wanted[batch]).square().mean()

    def error() -> Tensor:
        clips = torch.from_numpy(held_out)
        return (network(rows[clips]) - wanted[clips]).square().mean()

    chosen = train_to_best(network, config, loss, error)
    with torch.no_grad():
        made: Tensor = network(rows).clamp(-1, 1)
    return made.numpy(), chosen


def _ends(dataset: PhysicsDataset, index: int, actions: Array) -> Array:
    """(2,): where the tip of clip `index`'s arm ends by other torques."""
    clip = dataset.clip(index)
    motion = replace(clip.motion, actions=actions, controls=actions)
    played = dataset.simulated(replace(clip, motion=motion), draw=False)
    tip: Array = played.recording.sites[-1, 0, :2]
    return tip


def measure(config: PolicyConfig, processes: Processes) -> Report:
    """Success rates of policies by what they are told, over seeds."""
    model, dataset = _subject(config, processes.device)
    shown = _collect(config, model, dataset, processes)
    test = range(config.train_clips, config.train_clips + config.test_clips)
    rows: list[Found] = []
    for name, told in _representations(shown, config.train_clips).items():
        for seed in range(config.seed, config.seed + config.seeds):
            torques, step = _clone(config, told, shown.starts, shown.actions, seed)
            own = []
            for index in processes.share(test):
                ends = _ends(dataset, index, torques[index].reshape(shown.actions.shape[1:]))
                gap = float(np.linalg.norm(ends - shown.tips[index]))
                own.append({"index": index, "clip": index, "told": name, "seed": seed, "gap": gap})
            rows += [row | {"step": step} for row in processes.gather_sorted(own)]
    found = _summarise(config, rows)
    return Report(
        name="policy",
        protocol={
            **model_protocol(config.autoencoder, model),
            "data": data_protocol(dataset.config, config.train_clips + config.test_clips),
            "start": "the simulator's joints and velocities of the first frame",
            "control": "open loop: the torques of all frames at once",
            **fields_of(
                config,
                "train_clips",
                "test_clips",
                "tolerance",
                "seed",
                "seeds",
                "steps",
                "hidden_size",
                "learning_rate",
                "weight_decay",
                "batch_size",
            ),
            **software_protocol(processes),
        },
        found=found,
        rows=[{k: v for k, v in row.items() if k != "index"} for row in rows],
        markdown=_markdown(config, found),
        draw=_drawing(config, rows),
    )


def _summarise(config: PolicyConfig, rows: Sequence[Found]) -> Found:
    found: Found = {}
    for name in TOLD:
        own = [row for row in rows if row["told"] == name]
        seeds = sorted({row["seed"] for row in own})
        by_seed = [[row for row in own if row["seed"] == seed] for seed in seeds]
        # Of a clip over the seeds, so that the interval is over clips alone.
        gaps = np.array([[row["gap"] for row in each] for each in by_seed])  # (seeds, N)
        reached = gaps <= config.tolerance
        found[name] = {
            "success": mean_interval(reached.mean(0).tolist()),
            "success_of_each_seed": [share_of(each.tolist()) for each in reached],
            "gap_m": mean_interval(gaps.mean(0).tolist()),
        }
    return found


def _markdown(config: PolicyConfig, found: Mapping[str, Any]) -> list[tuple[str, str]]:
    cells = [("autoencoder", config.autoencoder)]
    for name, text in TOLD.items():
        cells.append(
            (f"told {text}, success, %", interval_text(found[name]["success"], ".1f", 100))
        )
    return cells


def _drawing(config: PolicyConfig, rows: Sequence[Found]) -> Any:
    def draw(path: Path) -> None:
        figure, (panel,) = new_figure(1, 1, size=(6.4, 4.2))
        for (name, text), color in zip(TOLD.items(), COLORS):
            gaps = np.sort([100 * row["gap"] for row in rows if row["told"] == name])
            shares = 100 * np.arange(1, len(gaps) + 1) / len(gaps)
            panel.plot(gaps, shares, color=color, label=f"told {text}")
        panel.axvline(100 * config.tolerance, color="#999999", linewidth=0.8)
        panel.set_xlabel("distance of the tip from where it should end, cm")
        panel.set_ylabel("share of clips within it, %")
        panel.legend(fontsize=7)
        save_figure(figure, path)

    return draw
