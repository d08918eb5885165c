from vidtwin.data.synthetic.sprites.attributes import (
    ACTIONS,
    DIRECTIONS,
    PARTS,
    PUBLISHED_ACTIONS,
    PUBLISHED_DIRECTIONS,
    PUBLISHED_VARIANTS,
)
from vidtwin.data.synthetic.sprites.dataset import (
    LABELS,
    SPLITS,
    TEST_FRACTION,
    Sprites,
    SpritesConfig,
)
from vidtwin.data.synthetic.sprites.sheets import SpriteSheets

__all__ = [
    "ACTIONS",
    "DIRECTIONS",
    "LABELS",
    "PARTS",
    "PUBLISHED_ACTIONS",
    "PUBLISHED_DIRECTIONS",
    "PUBLISHED_VARIANTS",
    "SPLITS",
    "TEST_FRACTION",
    "SpriteSheets",
    "Sprites",
    "SpritesConfig",
]
