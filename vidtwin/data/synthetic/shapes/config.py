"""Which clips of the moving shapes there are: the section `data.shapes`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from vidtwin.data.registry import SourceOptions, refuse_file_habits, refuse_keys, register_source
from vidtwin.data.synthetic.shapes.attributes import MOTIONS, SPLITS, check_choice
from vidtwin.data.synthetic.shapes.captions import WORDINGS
from vidtwin.data.synthetic.shapes.rendering import check_size

if TYPE_CHECKING:
    from vidtwin.data.config import DataConfig

__all__ = ["ShapesConfig", "ShapesOptions"]

FILE_KEYS = ("path", "files", "root", "captions", "split", "content_factors", "motion_factors")
SHARES = (
    "two_object_fraction",
    "textured_fraction",
    "without_background_fraction",
    "sized_fraction",
    "paced_fraction",
)


@register_source("shapes")
@dataclass(frozen=True, kw_only=True)
class ShapesOptions(SourceOptions):
    """Which clips the source "shapes" draws.

    Args:
        size: number of clips.
        seed: another seed, other clips; `data.seed` only orders them.
        split: "train" never shows the held-out combinations of shape, colour and motion, "test"
            only those, "all" any; None follows `data.part`: "train", or "test" for "validation".
        max_objects: 1 or 2.
        two_object_fraction: share of the clips with two objects, where two are allowed.
        textured_fraction: share of the clips whose background is not plain.
        without_background_fraction: share of the captions that say nothing of the background.
        sized_fraction: share of the objects that are small or large, and are called so (tiny,
            huge, ...); two in a clip have only room to be small.
        paced_fraction: share of the objects that move, turn or grow slowly or quickly, and are
            said to.
        motions: what objects may do, of `MOTIONS`; naming one twice doubles its share.
    """

    paired: ClassVar[bool] = True

    size: int = 20000
    seed: int = 0
    split: str | None = None
    max_objects: int = 2
    two_object_fraction: float = 0.25
    textured_fraction: float = 0.35
    without_background_fraction: float = 0.0
    sized_fraction: float = 0.0
    paced_fraction: float = 0.0
    motions: tuple[str, ...] = MOTIONS

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"`size` must be at least 1 clip, got {self.size}")
        if self.seed < 0:
            raise ValueError(f"`seed` must not be negative, got {self.seed}")
        if self.max_objects not in (1, 2):
            raise ValueError(f"`max_objects` must be 1 or 2, got {self.max_objects}")
        for name in SHARES:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must lie in [0, 1], got {getattr(self, name)}")
        if self.split is not None:
            check_choice("split", self.split, SPLITS)
        if not self.motions:
            raise ValueError("`motions` must name at least one motion, got none")
        for motion in self.motions:
            check_choice("motions", motion, MOTIONS)

    def check(self, data: DataConfig) -> None:
        """Refuses files, and what would make captions untrue."""
        refuse_file_habits(data, "the moving shapes", "captions and labels")
        refuse_keys(data, FILE_KEYS, "reads no files")

    def build(self, data: DataConfig) -> Any:
        """A `ShapesDataset`."""
        from vidtwin.data.synthetic.shapes.dataset import ShapesDataset

        return ShapesDataset(data, self)


@dataclass(frozen=True, kw_only=True)
class ShapesConfig(ShapesOptions):
    """All that the clips of `MovingShapes` follow from.

    Args:
        num_frames, height, width: size of a clip, in frames and pixels.
        split: as in `ShapesOptions`, but never None.
        wordings: "train" never uses the held-out word orders, "test" only those, "all" any.
    """

    num_frames: int = 16
    height: int = 64
    width: int = 64
    split: str = "train"
    wordings: str = "train"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_size(self.num_frames, self.height, self.width)
        check_choice("split", self.split, SPLITS)
        check_choice("wordings", self.wordings, WORDINGS)
