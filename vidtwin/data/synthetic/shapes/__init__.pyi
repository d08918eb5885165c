from vidtwin.data.synthetic.shapes.attributes import (
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
from vidtwin.data.synthetic.shapes.captions import WORDINGS, canonical_caption, caption
from vidtwin.data.synthetic.shapes.clips import MovingShapes, ShapesClip, unseen_clip
from vidtwin.data.synthetic.shapes.config import ShapesConfig, ShapesOptions
from vidtwin.data.synthetic.shapes.rendering import render_attributes

__all__ = [
    "BACKGROUNDS",
    "COLORS",
    "LABELS",
    "MOTIONS",
    "SHAPES",
    "SPLITS",
    "TEXTURES",
    "WORDINGS",
    "MovingShapes",
    "ShapesAttributes",
    "ShapesClip",
    "ShapesConfig",
    "ShapesObject",
    "ShapesOptions",
    "canonical_caption",
    "caption",
    "draw_attributes",
    "is_held_out",
    "render_attributes",
    "unseen_clip",
]
