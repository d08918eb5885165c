"""The config of the source "lerobot". Imports no torch."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from vidtwin.data.registry import SourceOptions, refuse_keys, register_source

if TYPE_CHECKING:
    from vidtwin.data.config import DataConfig

__all__ = ["LeRobotOptions"]

OTHER_KEYS = ("files", "root", "captions", "split", "content_factors", "motion_factors")


@register_source("lerobot")
@dataclass(frozen=True, kw_only=True)
class LeRobotOptions(SourceOptions):
    """What is read of a data set in LeRobot's format, a folder with `meta/info.json`.

    Args:
        camera: which video, such as "observation.images.top"; None for the first that is listed.
        action: column of the actions; None to read none.
        state: column of the robot's state; None to read none.
    """

    reads_files: ClassVar[bool] = True

    camera: str | None = None
    action: str | None = "action"
    state: str | None = "observation.state"

    def check(self, data: DataConfig) -> None:
        """Refuses keys of other sources, and mirrored robots."""
        refuse_keys(data, OTHER_KEYS, "has its episodes and their tasks in its own folder")
        if data.flip:
            raise ValueError(
                "data.flip=true would make the actions of a robot untrue (left and right); set "
                "data.flip=false"
            )
        if not data.path:
            raise ValueError(f"data.path must name a folder with meta/info.json, got {data.path!r}")

    def check_files(self, data: DataConfig) -> None:
        """Refuses to begin without the folder or without pyarrow."""
        info = Path(data.path or "").expanduser() / "meta" / "info.json"
        if not info.is_file():
            raise ValueError(
                f"data.path must name a data set in LeRobot's format, but there is no {str(info)!r}"
            )
        if importlib.util.find_spec("pyarrow") is None:
            raise ValueError(
                "data.source=lerobot needs the package pyarrow: pip install 'vidtwin[lerobot]'"
            )

    def build(self, data: DataConfig) -> Any:
        """A `LeRobotDataset`."""
        from vidtwin.data.lerobot.dataset import build_lerobot_dataset

        return build_lerobot_dataset(data, self)
