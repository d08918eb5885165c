"""Moving shapes: a procedural data set of captioned clips that needs no download.

attributes says what can be seen, rendering draws it, captions describes it, dataset puts clips
together, judge says what a video shows.
"""

from vidtwin.shapes.attributes import (
    BACKGROUNDS,
    COLORS,
    LABELS,
    MOTIONS,
    SHAPES,
    SPLITS,
    TEXTURES,
    ShapesAttributes,
    ShapesObject,
    draw_attributes,
    is_held_out,
)
from vidtwin.shapes.captions import (
    WORDINGS,
    canonical_caption,
    caption,
)
from vidtwin.shapes.dataset import (
    MovingShapes,
    ShapesClip,
    ShapesConfig,
    unseen_clip,
)
from vidtwin.shapes.judge import (
    JudgedObject,
    Judgement,
    judge_against,
    judge_video,
)
from vidtwin.shapes.rendering import (
    render_attributes,
)

__all__ = [
    "BACKGROUNDS",
    "COLORS",
    "LABELS",
    "MOTIONS",
    "SHAPES",
    "SPLITS",
    "TEXTURES",
    "WORDINGS",
    "JudgedObject",
    "Judgement",
    "MovingShapes",
    "ShapesAttributes",
    "ShapesClip",
    "ShapesConfig",
    "ShapesObject",
    "canonical_caption",
    "caption",
    "draw_attributes",
    "is_held_out",
    "judge_against",
    "judge_video",
    "render_attributes",
    "unseen_clip",
]
