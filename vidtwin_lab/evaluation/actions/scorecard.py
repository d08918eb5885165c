"""What the latents of an autoencoder know of actions, beside baselines of the same size.

Axes: N clips, T frames, D values of a feature, K numbers of a target.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vidtwin import VidTwinAutoencoder, load_autoencoder
from vidtwin.data import VideoDataset, build_dataset
from vidtwin.data.synthetic.physics import PhysicsDataset
from vidtwin_lab.evaluation.actions.clips import (
    ActionClips,
    collect,
    dynamics_by_frame,
    pixel_features,
    targets_of,
    thumbnails,
)
from vidtwin_lab.evaluation.actions.config import ActionsConfig
from vidtwin_lab.evaluation.actions.networks import StateJudge, train_judge, train_latent_actions
from vidtwin_lab.evaluation.actions.probes import probe, r_squared
from vidtwin_lab.evaluation.actions.swaps import judge_swaps, summarise_swaps, swap_rows
from vidtwin_lab.evaluation.disentanglement.figure import mosaic
from vidtwin_lab.evaluation.intervals import interval_text, share_of
from vidtwin_lab.evaluation.report import (
    COLORS,
    Processes,
    Report,
    data_protocol,
    fields_of,
    model_protocol,
    new_figure,
    save_figure,
    software_protocol,
)

__all__ = ["describe", "measure"]

Found = dict[str, Any]
Features = dict[str, list[np.ndarray]]
PROBES = ("linear", "network")


@dataclass(frozen=True, eq=False)
class Subject:
    """An autoencoder, and the clips that it is measured on.

    Args:
        datasets: name of a set of test clips -> data set; the training clips are the first of the
            first one. Of "physics" "seen" and "unseen" show the same motions.
    """

    config: ActionsConfig
    model: VidTwinAutoencoder
    datasets: dict[str, VideoDataset]

    @property
    def first(self) -> VideoDataset:
        """The data set that the training clips are of."""
        return next(iter(self.datasets.values()))

    @property
    def test(self) -> range:
        """Indices of the test clips."""
        start = self.config.train_clips
        return range(start, start + self.config.test_clips)


def _subject(config: ActionsConfig, device: Any = "cpu") -> Subject:
    model, _ = load_autoencoder(config.autoencoder)
    looks = ("seen", "unseen") if config.data.source == "physics" else (None,)
    datasets = {name or "test": build_dataset(config.data_for(model.sizes, name)) for name in looks}
    first = next(iter(datasets.values()))
    if not getattr(first, "action_names", ()):
        raise ValueError(
            f"data.source={config.data.source} has no actions; take physics, or lerobot with "
            "data.lerobot.action"
        )
    needed = config.train_clips + config.test_clips
    if len(first) < needed:
        raise ValueError(
            f"train_clips={config.train_clips} and test_clips={config.test_clips} were asked for, "
            f"the data have {len(first)} clips"
        )
    if isinstance(first, PhysicsDataset):
        first.factor_classes()  # refuses several scenes at once
    return Subject(config, model.to(device), datasets)


def describe(config: ActionsConfig) -> Found:
    """What would be measured; reads no clip but the first."""
    subject = _subject(config)
    sizes = subject.model.sizes
    dynamics = sum(int(np.prod(s)) for s in (sizes.dynamics_x_shape, sizes.dynamics_y_shape))
    return {
        "autoencoder": config.autoencoder,
        "values": {"structure": int(np.prod(sizes.structure_shape)), "dynamics": dynamics},
        "clips": {"train": config.train_clips, "test": config.test_clips},
        "sets": list(subject.datasets),
        "actions": list(getattr(subject.first, "action_names", ())),
        "states": list(getattr(subject.first, "state_names", ())),
        "pairs": config.pairs if isinstance(subject.first, PhysicsDataset) else 0,
    }


def measure(config: ActionsConfig, processes: Processes) -> Report:
    """Probes, nearest neighbours and swaps of an autoencoder.

    Args:
        config: what to measure.
        processes: that share reading and encoding.
    Returns:
        Report: with a line of the CSV for each probe and each pair.
    Raises:
        ValueError: for data without actions, or too few.
    """
    subject = _subject(config, processes.device)
    train = _collect(subject, subject.first, range(config.train_clips), processes)
    tests = {
        name: _collect(subject, dataset, subject.test, processes)
        for name, dataset in subject.datasets.items()
    }
    features = _features(subject, train, list(tests.values()))
    found: Found = {"probes": _probe_all(subject, features, train, tests)}
    if len(tests) == 2:
        found["same_motion_found_in_another_look"] = {
            name: _twins(*each) for name, each in features.items()
        }
    rows = _probe_rows(found["probes"])
    pairs: dict[str, list[dict[str, Any]]] = {}
    if isinstance(subject.first, PhysicsDataset):
        judge = _train_judge(subject, train)
        found["swaps"] = {}
        for name, dataset in subject.datasets.items():
            assert isinstance(dataset, PhysicsDataset)
            chosen = [subject.test[place % len(subject.test)] for place in range(config.pairs)]
            pairs[name] = judge_swaps(
                subject.model, dataset, chosen, judge, processes, config.batch_size, config.seed,
                config.examples if name == "seen" else 0,
            )  # fmt: skip
            found["swaps"][name] = summarise_swaps(pairs[name], judge)
            rows += swap_rows(name, pairs[name], judge)
    return Report(
        name="actions",
        protocol=_protocol(subject, features, processes),
        found=found,
        rows=rows,
        markdown=_markdown(config, found),
        draw=_drawing(found, pairs.get("seen", [])),
    )


def _collect(
    subject: Subject, dataset: VideoDataset, chosen: Sequence[int], processes: Processes
) -> ActionClips:
    return collect(subject.model, dataset, chosen, processes, subject.config.batch_size)


def _features(subject: Subject, train: ActionClips, tests: Sequence[ActionClips]) -> Features:
    """Feature -> (N, T, D) of the training clips, then of each set of test clips.

    The structure, which is of a whole clip, is (N, 1, D).
    """
    config, sets = subject.config, (train, *tests)
    size, frames = train.dynamics.shape[1], train.frames.shape[1]
    dynamics_frames = subject.model.sizes.dynamics_x_shape[1]
    dynamics = [dynamics_by_frame(clips, dynamics_frames) for clips in sets]
    structure = [clips.structure[:, None] for clips in sets]
    found: Features = {
        "dynamics": dynamics,
        "structure": structure,
        "both": [
            np.concatenate([one, np.repeat(other, frames, axis=1)], axis=-1)
            for one, other in zip(dynamics, structure, strict=True)
        ],
        **pixel_features(train, tests, size // frames),
    }
    baseline = train_latent_actions(train, size, config.networks, config.seed)
    found["latent actions"] = [baseline.features(clips) for clips in sets]
    return found


def _probe_all(
    subject: Subject, features: Features, train: ActionClips, tests: Mapping[str, ActionClips]
) -> Found:
    """Feature -> probe -> set of test clips -> target -> R²."""
    config, names = subject.config, getattr(subject.first, "state_names", ())
    targets = targets_of(train, names)
    true = {name: targets_of(clips, names) for name, clips in tests.items()}
    found: Found = {}
    for feature, values in features.items():
        for kind in PROBES:
            probed = probe(values, targets, config.probes, kind, config.seed)
            scores = {
                looks: {name: r_squared(each[name], true[looks][name]) for name in targets}
                for looks, each in zip(tests, probed.predictions, strict=True)
            }
            found.setdefault(feature, {})[kind] = {"chosen": probed.chosen, **scores}
    return found


def _twins(train: np.ndarray, seen: np.ndarray, unseen: np.ndarray) -> dict[str, Any]:
    """How often the nearest clip in seen looks to one in an unseen look is the same motion."""
    train, seen, unseen = (each.reshape(len(each), -1) for each in (train, seen, unseen))
    spread = np.maximum(train.std(0), 1e-6 * train.std(0).max())
    gallery, queries = seen / spread, unseen / spread
    squares = np.square(gallery).sum(1) - 2 * queries @ gallery.T  # (queries, gallery)
    return share_of(squares.argmin(1) == np.arange(len(queries)))


def _train_judge(subject: Subject, train: ActionClips) -> StateJudge:
    """The judge of states, on the training clips and on half as many in unseen looks."""
    frames, states = [train.frames], [train.states]
    unseen = subject.datasets["unseen"]
    for index in range(0, subject.config.train_clips, 2):
        sample = unseen.get(index)
        frames.append(thumbnails(sample["video"][None]))
        states.append(sample["states"].numpy()[None])
    clips = ActionClips(
        structure=train.structure,
        dynamics=train.dynamics,
        frames=np.concatenate(frames),
        actions=train.actions,
        states=np.concatenate(states),
    )
    positions = targets_of(clips, getattr(unseen, "state_names", ()))["positions"]
    seen = clips.frames[:, : positions.shape[1]]
    return train_judge(seen, positions, subject.config.networks, subject.config.seed)


def _probe_rows(probes: Found) -> list[Any]:
    return [
        {
            "measurement": "probe",
            "feature": feature,
            "probe": kind,
            "looks": looks,
            "target": target,
            **{name: score[name] for name in ("value", "low", "high", "n")},
        }
        for feature, kinds in probes.items()
        for kind, sets in kinds.items()
        for looks, targets in sets.items()
        if looks != "chosen"
        for target, score in targets.items()
    ]


def _protocol(subject: Subject, features: Features, processes: Processes) -> Found:
    config = subject.config
    return {
        **model_protocol(config.autoencoder, subject.model),
        "posterior": "mode",
        "data": data_protocol(subject.first.config, config.train_clips + config.test_clips),
        "clips": {
            "train": f"the first {config.train_clips}",
            "test": f"the next {config.test_clips}; in every set of looks the same motions",
        },
        "features": {name: list(each[0].shape[1:]) for name, each in features.items()},
        "targets": {
            "actions": list(getattr(subject.first, "action_names", ())),
            "states": list(getattr(subject.first, "state_names", ())),
        },
        **fields_of(config, "probes", "networks", "pairs", "batch_size", "seed"),
        **software_protocol(processes),
    }


def _headline(probes: Found) -> str:
    """The target of the table and the figure."""
    targets = next(iter(probes["dynamics"]["linear"][_sets(probes)[0]]), "actions")
    known = probes["dynamics"]["linear"][_sets(probes)[0]]
    return "velocities" if "velocities" in known else targets


def _sets(probes: Found) -> list[str]:
    return [name for name in probes["dynamics"]["linear"] if name != "chosen"]


def _markdown(config: ActionsConfig, found: Found) -> list[tuple[str, str]]:
    probes, target = found["probes"], _headline(found["probes"])
    cells = [("autoencoder", config.autoencoder)]
    cells += [
        (f"R² of {target}, {kind}, {looks}", interval_text(score[looks][target], ".3f"))
        for kind, score in probes["dynamics"].items()
        for looks in _sets(probes)
    ]
    for looks, swaps in found.get("swaps", {}).items():
        for name in ("motion_of_b", "look_of_a"):
            text = interval_text(swaps[name], ".1f", 100)
            cells.append((f"{name.replace('_', ' ')}, {looks}, %", text))
    return cells


def _drawing(found: Found, pairs: Sequence[Mapping[str, Any]]) -> Any:
    probes, target = found["probes"], _headline(found["probes"])
    shown = [row["videos"] for row in pairs if row["videos"] is not None]

    def draw(path: Path) -> None:
        figure, panels = new_figure(1, 2 if shown else 1, size=(6.4, 4.2))
        bars = [(kind, looks) for kind in PROBES for looks in _sets(probes)]
        for number, (kind, looks) in enumerate(bars):
            scores = [each[kind][looks][target] for each in probes.values()]
            places = np.arange(len(scores)) + 0.8 * (number - (len(bars) - 1) / 2) / len(bars)
            values = [max(0.0, score["value"]) for score in scores]
            label, color = f"{kind}, {looks}", COLORS[number]
            panels[0].barh(places, values, height=0.75 / len(bars), color=color, label=label)
        panels[0].set_yticks(range(len(probes)), list(probes))
        panels[0].invert_yaxis()
        panels[0].set_xlim(0, 1)
        panels[0].set_xlabel(f"R² of {target} on held-out clips")
        panels[0].legend(loc="lower right")
        if shown:
            image, centers = mosaic(shown)
            panels[1].imshow(image, interpolation="nearest")
            names = ("A", "B", "look of A,\nmotion of B", "the simulator's")
            panels[1].set_xticks(centers, names)
            panels[1].xaxis.tick_top()
            panels[1].set_yticks([])
            panels[1].grid(visible=False)
        save_figure(figure, path)

    return draw
