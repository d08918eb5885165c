"""What a clip of Sprites shows, and which clips there are: the section `data.sprites`.

Source: Li and Mandt, Disentangled Sequential Autoencoder (arXiv 1803.02991), whose data are drawn
from the sheets of the Liberated Pixel Cup; where each action stands in a sheet is that project's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from vidtwin.data.registry import SourceOptions, check_choice, refuse_keys, register_source

if TYPE_CHECKING:
    from vidtwin.data.config import DataConfig

# Factor -> folder of its sheets, in the order in which they are drawn.
SHEET_FOLDERS: Mapping[str, str] = MappingProxyType(
    {"skin": "body", "bottomwear": "bottomwear", "topwear": "topwear", "hair": "hair"}
)
CELL = 64  # pixels, of a sheet's cells
SHEET_COLUMNS, SHEET_ROWS = 13, 21
NUM_FRAMES = 8
PUBLISHED_VARIANTS = 6  # of each part: 1,296 characters


@dataclass(frozen=True)
class Action:
    """Where an action stands in a sheet, and which of its columns make the eight frames.

    Args:
        row: of the direction "back"; left, front and right follow.
        columns: as in the published data for walk, spellcast and slash: a walk leaves the standing
            figure of column 0 out and starts with the last step; a spell goes back over column 4
            to the end; a slash goes back over column 4 to the start. The sheets have 8 columns of
            a thrust, taken as they are, and 13 of a shot, of which these are spread evenly.
        phrase: of a caption.
    """

    row: int
    columns: tuple[int, ...]
    phrase: str


ACTIONS: Mapping[str, Action] = MappingProxyType(
    {
        "walk": Action(8, (8, 1, 2, 3, 4, 5, 6, 7), "walking"),
        "spellcast": Action(0, (0, 1, 2, 3, 4, 5, 4, 6), "casting a spell"),
        "slash": Action(12, (0, 1, 2, 3, 4, 5, 4, 0), "slashing"),
        "thrust": Action(4, (0, 1, 2, 3, 4, 5, 6, 7), "thrusting"),
        "shoot": Action(16, (0, 2, 3, 5, 7, 8, 10, 12), "shooting"),
    }
)
# Direction -> rows below the action's first.
DIRECTIONS: Mapping[str, int] = MappingProxyType({"front": 2, "left": 1, "right": 3, "back": 0})
PUBLISHED_ACTIONS = ("walk", "spellcast", "slash")
PUBLISHED_DIRECTIONS = ("front", "left", "right")
SPLITS = ("digest", "published")
LABELS = ("motion", "action", "direction", *SHEET_FOLDERS)
OTHER_KEYS = ("files", "root", "captions", "split", "content_factors", "motion_factors")

# What is seen on a sheet goes by the sheet's pixels (first digits of the SHA-256 of its RGBA
# values), never by its number: other art under the same number would make a caption untrue.
SHEET_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "b0a5fe765bea": "light skin",
        "47edb8749b75": "golden skin",
        "fbb7ef42e407": "gray skin",
        "b92b952a6966": "pale blue skin",
        "d2462708e498": "tan skin",
        "d7a1b0e6925a": "brown skin",
        "d999bec107ff": "green orc skin",
        "54433163c41e": "white trousers",
        "fb2381f67fcf": "golden leg armor",
        "92d83adc8272": "red trousers",
        "3f3c50caf831": "steel leg armor",
        "01d5799d54a6": "teal trousers",
        "a1227044ab0e": "dark green trousers",
        "3a9c8b5e7d19": "a brown skirt",
        "e0cb5e4826ba": "a dark red shirt",
        "fa61a61d8c9f": "a light blue shirt",
        "b45a1b0a9a9d": "a cream shirt",
        "a2f8e3457cca": "a steel breastplate",
        "b034eed8ac8f": "a brown leather vest",
        "59834221d4e6": "a white jacket with a tie",
        "42a8eb8ba7fb": "chain mail",
        "2e2317c354f9": "green spiky hair",
        "f35f0332806b": "blue hair in a bun",
        "0ac764e40bc8": "orange spiky hair",
        "b83be2258831": "white hair",
        "0c7fc0d10887": "dark red hair",
        "8f5f8e8058b6": "purple curly hair",
        "4f5f06f8c441": "half-shaved gray hair",
        "07b1ce544962": "bright red hair",
        "ca85fa9f7522": "pink spiky hair",
        "e27e09f1ddff": "orange curly hair",
    }
)


def caption(names: Mapping[str, str], action: str, direction: str) -> str:
    """One sentence that is true of the clip.

    Args:
        names: factor of SHEET_FOLDERS -> name of what is worn.
        action: of ACTIONS.
        direction: of DIRECTIONS.
    """
    towards = {"front": "the front", "back": "the back"}.get(direction, direction)
    return (
        f"a character with {names['skin']} and {names['hair']}, wearing {names['topwear']} and "
        f"{names['bottomwear']}, is {ACTIONS[action].phrase}, facing {towards}"
    )


@register_source("sprites")
@dataclass(frozen=True, kw_only=True)
class SpritesOptions(SourceOptions):
    """Which clips the source "sprites" draws from the sheets in `data.path`.

    Args:
        actions: of walk, spellcast, slash, thrust and shoot.
        directions: of front, left, right and back.
        variants: take the first n sheets of each part alone (6 in the publication); None for all.
        split: "digest" puts a character on a side by a digest of its sheets' names; "published"
            takes the published test characters, which needs variants=6.
        shoes: draw shoes/1.png over every character, as the published data do.
        label: what a clip's label is: "motion" (action and direction), "action", "direction",
            "skin", "bottomwear", "topwear" or "hair".
    """

    parts: ClassVar[tuple[str, ...]] = ("train", "validation", "all", "test")
    paired: ClassVar[bool] = True

    actions: tuple[str, ...] = PUBLISHED_ACTIONS
    directions: tuple[str, ...] = PUBLISHED_DIRECTIONS
    variants: int | None = None
    split: str = "digest"
    shoes: bool = False
    label: str = "motion"

    def __post_init__(self) -> None:
        check_choices("actions", self.actions, tuple(ACTIONS))
        check_choices("directions", self.directions, tuple(DIRECTIONS))
        check_choice("split", self.split, SPLITS)
        check_choice("label", self.label, LABELS)
        if self.variants is not None and self.variants < 1:
            raise ValueError(f"`variants` must be at least 1 or null, got {self.variants}")
        if self.split == "published" and self.variants != PUBLISHED_VARIANTS:
            raise ValueError(
                "`split` published is a split of six variants of each part, got "
                f"variants={self.variants}; set it to {PUBLISHED_VARIANTS}"
            )

    def check(self, data: DataConfig) -> None:
        """Refuses all but a folder of sheets, and what would make captions untrue."""
        if data.flip:
            raise ValueError(
                "data.flip=true would make the captions and labels of the moving sprites untrue "
                "(left and right); set data.flip=false"
            )
        refuse_keys(data, OTHER_KEYS, "takes a folder of sheets alone")
        if not data.path:
            raise ValueError(
                "data.path must name a folder of sprite sheets "
                f"({', '.join(SHEET_FOLDERS.values())}), got {data.path!r}"
            )
        if data.part == "validation" and data.validation_fraction == 0:
            raise ValueError(
                "the validation part of data.source=sprites is a share of the characters that are "
                "not for testing; set data.validation_fraction=0.05, or data.part=test"
            )

    def check_files(self, data: DataConfig) -> None:
        """Refuses a folder that is not there."""
        folder = Path(data.path or "").expanduser()
        if not folder.is_dir():
            raise ValueError(
                f"data.path must name a folder with {', '.join(SHEET_FOLDERS.values())}, each full "
                f"of PNGs, but {str(folder)!r} is not a folder"
            )

    def build(self, data: DataConfig) -> Any:
        """A `SpritesDataset`."""
        from vidtwin.data.synthetic.sprites.dataset import SpritesDataset

        return SpritesDataset(data, self)


def check_choices(name: str, values: Sequence[str], allowed: Sequence[str]) -> None:
    """Raises a ValueError unless `values` are some of the allowed ones, each once."""
    wrong = [value for value in values if value not in allowed]
    if not values or wrong or len(set(values)) < len(values):
        raise ValueError(
            f"`{name}` must be one or more of {', '.join(allowed)}, each once, got {list(values)}"
        )
