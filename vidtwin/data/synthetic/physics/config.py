"""Which clips of simulated bodies there are: the section `data.physics`."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from vidtwin.data.registry import (
    SourceOptions,
    check_choice,
    refuse_file_habits,
    refuse_keys,
    register_source,
)

if TYPE_CHECKING:
    from vidtwin.data.config import DataConfig

__all__ = ["LOOKS", "SCENES", "PhysicsOptions"]

SCENES = ("arm", "pusher", "runner", "bodies")
LOOKS = ("seen", "unseen", "all")
OTHER_KEYS = (
    "path",
    "files",
    "root",
    "captions",
    "split",
    "stride",
    "content_factors",
    "motion_factors",
)


@register_source("physics")
@dataclass(frozen=True, kw_only=True)
class PhysicsOptions(SourceOptions):
    """Which clips the source "physics" simulates with MuJoCo.

    Args:
        size: number of clips.
        seed: another seed, other clips; `data.seed` only orders them.
        scenes: of "arm" (two links that reach), "pusher" (pushes an object), "runner" and "bodies"
            (fall, roll and collide on a table that tilts); naming one twice doubles its share.
        looks: "seen" never shows the held-out colours and cameras, "unseen" only those, "all" any;
            None follows `data.part`: "seen", or "unseen" for "validation".
        camera_range: how far the camera wanders: 1.0 turns it by up to 25 degrees, 0.0 not at all.
    """

    paired: ClassVar[bool] = True

    size: int = 20000
    seed: int = 0
    scenes: tuple[str, ...] = SCENES
    looks: str | None = None
    camera_range: float = 1.0

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"`size` must be at least 1 clip, got {self.size}")
        if self.seed < 0:
            raise ValueError(f"`seed` must not be negative, got {self.seed}")
        if not self.scenes:
            raise ValueError(f"`scenes` must name some of {', '.join(SCENES)}, got none")
        for scene in self.scenes:
            check_choice("scenes", scene, SCENES)
        if self.looks is not None:
            check_choice("looks", self.looks, LOOKS)
        if not 0 <= self.camera_range <= 1:
            raise ValueError(f"`camera_range` must lie in [0, 1], got {self.camera_range}")

    def check(self, data: DataConfig) -> None:
        """Refuses files, and what would make captions and actions untrue."""
        refuse_file_habits(data, "simulated bodies", "captions and actions")
        refuse_keys(data, OTHER_KEYS, "reads no files, and simulates data.fps")

    def check_files(self, data: DataConfig) -> None:
        """Refuses to begin without MuJoCo."""
        if importlib.util.find_spec("mujoco") is None:
            raise ValueError(
                "data.source=physics needs the package mujoco: pip install 'vidtwin[physics]'"
            )

    def build(self, data: DataConfig) -> Any:
        """A `PhysicsDataset`."""
        from vidtwin.data.synthetic.physics.dataset import PhysicsDataset

        return PhysicsDataset(data, self)
