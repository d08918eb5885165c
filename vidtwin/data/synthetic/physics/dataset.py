"""Simulated bodies as a data set: clips with actions, states, captions, labels and exact pairs.

Axes: C colour channels, T frames, H W pixels, A actions, P positions, V velocities.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vidtwin.data.config import DataConfig
from vidtwin.data.dataset import Draws, Factors, VideoDataset
from vidtwin.data.synthetic.physics.config import PhysicsOptions
from vidtwin.data.synthetic.physics.engine import simulate
from vidtwin.data.synthetic.physics.looks import COLORS, FLOORS, Look, draw_look
from vidtwin.data.synthetic.physics.scenes import (
    DIRECTIONS,
    SCENES_BY_NAME,
    Body,
    Motion,
    Scene,
    Simulated,
)
from vidtwin.media import from_uint8

__all__ = ["PhysicsClip", "PhysicsDataset"]

VALIDATION_SEED = 1_000_003
# Streams of random numbers of a clip: one of each part, so that none depends on another.
BODY, MOTION, LOOK, CAPTION = range(4)
TEMPLATES = (
    "{subject} {does} on {floor}",
    "on {floor}, {subject} {does}",
    "a video in which {subject} {does} on {floor}",
    "{subject} {does}, on {floor}",
)


@dataclass(frozen=True, eq=False)
class PhysicsClip:
    """What a clip follows from: three parts that are drawn independently."""

    scene: Scene
    body: Body
    motion: Motion
    look: Look


class PhysicsDataset(VideoDataset):
    """Simulated clips; each is labelled and captioned, knows its actions, and can't be unusable.

    A sample also has "actions" (T, A) and "states" (T, P + V), float32; where several scenes are
    mixed, the missing columns of a scene are zeros. `action_names` and `state_names` name them.

    Raises:
        ValueError: if MuJoCo or a renderer is missing.
    """

    def __init__(self, config: DataConfig, options: PhysicsOptions):
        super().__init__(config, min(options.size, config.max_clips or options.size))
        self.options = options
        self.fps = config.fps or 8.0
        self.looks = options.looks or {"train": "seen", "validation": "unseen"}.get(
            config.part, "all"
        )
        names = tuple(dict.fromkeys(options.scenes))
        self.scenes = [SCENES_BY_NAME[name] for name in options.scenes]
        self.label_names = [f"{name} {direction}" for name in names for direction in DIRECTIONS]
        self.action_names = _columns([SCENES_BY_NAME[n].action_names for n in names], "action")
        states = [sum(SCENES_BY_NAME[name].state_names(), ()) for name in names]
        self.state_names = _columns(states, "state")
        self.simulated(self.clip(0))  # a missing renderer is found before anything begins

    def _rng(self, index: int, stream: int) -> np.random.Generator:
        seed = self.options.seed + (self.config.part == "validation") * VALIDATION_SEED
        return np.random.default_rng([seed, index, stream])

    def _draw_motion(self, rng: np.random.Generator, scene: Scene, body: Body) -> Motion:
        return scene.draw_motion(rng, body, self.config.num_frames, self.fps)

    def _draw_look(self, rng: np.random.Generator) -> Look:
        return draw_look(rng, self.looks, self.options.camera_range)

    def clip(self, index: int) -> PhysicsClip:
        """What clip `index` follows from."""
        rng = self._rng(index, BODY)
        scene = self.scenes[rng.integers(len(self.scenes))]
        body = scene.draw_body(rng)
        motion = self._draw_motion(self._rng(index, MOTION), scene, body)
        return PhysicsClip(scene, body, motion, self._draw_look(self._rng(index, LOOK)))

    def simulated(self, clip: PhysicsClip, draw: bool = True) -> Simulated:
        """The clip's simulation, with its video unless `draw` is False."""
        scene, motion, config = clip.scene, clip.motion, self.config
        mjcf, substeps = scene.mjcf(clip.body, clip.look, self.fps)
        camera = clip.look.camera(scene.lookat, scene.elevation, scene.distance)
        recording = simulate(
            mjcf,
            (motion.qpos, motion.qvel),
            motion.controls,
            motion.gravity,
            substeps,
            (camera, config.height, config.width) if draw else None,
        )
        return scene.read(recording)

    def played(self, clip: PhysicsClip) -> tuple[Simulated, torch.Tensor]:
        """The clip's simulation and its (3, T, H, W) video in [-1, 1]."""
        result = self.simulated(clip)
        assert result.recording.video is not None
        return result, from_uint8(result.recording.video)

    def video(self, clip: PhysicsClip) -> torch.Tensor:
        """(3, T, H, W) in [-1, 1]."""
        return self.played(clip)[1]

    def swapped(self, change: str, clip: PhysicsClip, rng: np.random.Generator) -> PhysicsClip:
        """The same body and motion in another look, or the same body and look in another motion."""
        assert change in ("appearance_swap", "motion_swap"), change
        if change == "appearance_swap":
            return PhysicsClip(clip.scene, clip.body, clip.motion, self._draw_look(rng))
        motion = self._draw_motion(rng, clip.scene, clip.body)
        return PhysicsClip(clip.scene, clip.body, motion, clip.look)

    def load(self, index: int, draws: Draws) -> dict[str, Any]:
        """The simulated clip; of the draws the epoch alone counts, it words the caption."""
        clip = self.clip(index)
        result, video = self.played(clip)
        states = np.concatenate([result.positions, result.velocities], axis=1)
        return {
            "video": video,
            "caption": self._caption(index, draws.epoch, clip, result),
            "label": self.label_names.index(f"{clip.scene.name} {result.direction}"),
            "path": f"physics/{self.looks}/{self.config.part}/{self.options.seed}/{index}",
            "fps": self.fps,
            "actions": _padded(clip.motion.actions, len(self.action_names)),
            "states": _padded(states, len(self.state_names)),
        }

    def draw_pair(self, change: str, index: int, rng: np.random.Generator) -> torch.Tensor:
        """Exactly this motion in another look of the part, or this look in another motion."""
        return self.video(self.swapped(change, self.clip(index), rng))

    def _caption(self, index: int, epoch: int, clip: PhysicsClip, result: Simulated) -> str:
        subject, does = clip.scene.clause(clip.body, clip.look, result)
        floor = FLOORS[clip.look.floor][0]
        template = TEMPLATES[self._rng(index, CAPTION + epoch).integers(len(TEMPLATES))]
        return template.format(subject=subject, does=does, floor=floor)

    def captions(self, index: int, count: int) -> list[str]:
        """The wordings of a clip's caption in the first epochs, without drawing it."""
        clip = self.clip(index)
        result = self.simulated(clip, draw=False)
        return [self._caption(index, epoch, clip, result) for epoch in range(count)]

    def factor_classes(self) -> Factors:
        """Colours and floor; where the body that acts ends up.

        Raises:
            ValueError: if clips show several scenes.
        """
        if len(set(self.options.scenes)) > 1:
            raise ValueError(
                "labels of content and motion are those of one scene, but the clips show "
                f"{', '.join(self.options.scenes)}; set data.physics.scenes=[arm]"
            )
        colors = tuple(COLORS)
        return Factors(
            content={"color": colors, "second": colors, "floor": tuple(FLOORS)},
            motion={"direction": DIRECTIONS},
        )

    def factors(self, index: int) -> dict[str, int]:
        """Those of `factor_classes`, without drawing the clip."""
        clip = self.clip(index)
        seen = {**vars(clip.look), "direction": self.simulated(clip, draw=False).direction}
        return {name: names.index(seen[name]) for name, names in self.factor_classes().all.items()}

    def label_factors(self, label: int) -> dict[str, int]:
        """The direction."""
        return {"direction": label % len(DIRECTIONS)} if label >= 0 else {}


def _columns(names: list[tuple[str, ...]], kind: str) -> tuple[str, ...]:
    """Those of the one scene, or numbers up to the most that a scene has."""
    if len(names) == 1:
        return names[0]
    return tuple(f"{kind} {n}" for n in range(max(map(len, names))))


def _padded(array: np.ndarray, columns: int) -> torch.Tensor:
    wide = np.pad(array, ((0, 0), (0, columns - array.shape[1])))
    return torch.from_numpy(wide.astype(np.float32))
