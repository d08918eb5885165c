"""Questions that captions of moving shapes answer, for probes of text encoders."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from vidtwin.data.synthetic.shapes.attributes import (
    BACKGROUNDS,
    COLORS,
    MOTIONS,
    SHAPES,
    ShapesAttributes,
    check_choice,
    draw_attributes,
)
from vidtwin.data.synthetic.shapes.captions import SHAPE_WORDS, WORDINGS, caption

# Question -> its possible answers. Of captions of two objects: what belongs to the one whose shape
# comes first in the alphabet ("bound_"), what belongs to a shape, asked at its word ("_at_shape"),
# and whether the first in the alphabet is named first.
QUESTIONS: dict[str, tuple[str, ...]] = {
    "color": tuple(COLORS),
    "shape": tuple(SHAPES),
    "motion": tuple(MOTIONS),
    "background": tuple(BACKGROUNDS),
    "bound_color": tuple(COLORS),
    "bound_motion": tuple(MOTIONS),
    "color_at_shape": tuple(COLORS),
    "motion_at_shape": tuple(MOTIONS),
    "order": ("first", "second"),
}
_SINGLE = ("color", "shape", "motion", "background")


class ProbeText(NamedTuple):
    """A caption, the number of the answer, and the characters it is asked at (None: the whole)."""

    text: str
    label: int
    place: tuple[int, int] | None = None


def caption_questions(name: str, count: int, seed: int, wordings: str = "all") -> list[ProbeText]:
    """Random captions with the answer to one question.

    Args:
        name: a key of `QUESTIONS`.
        count: how many captions.
        seed: the only source of randomness.
        wordings: of the captions; see `caption`.
    Raises:
        ValueError: if `name` or `wordings` is unknown.
    """
    check_choice("question", name, QUESTIONS)
    check_choice("wordings", wordings, WORDINGS)
    rng = np.random.default_rng([seed, list(QUESTIONS).index(name)])
    return [_ask(name, rng, wordings) for _ in range(count)]


def _ask(name: str, rng: np.random.Generator, wordings: str) -> ProbeText:
    single = name in _SINGLE
    shown = draw_attributes(rng, two_object_fraction=0.0 if single else 1.0)
    while not single and len({item.shape for item in shown.objects}) == 1:
        shown = draw_attributes(rng, two_object_fraction=1.0)
    text = caption(shown, rng, wordings)
    if name.endswith("_at_shape"):
        item = shown.objects[int(rng.integers(2))]
        answer = getattr(item, name.removesuffix("_at_shape"))
        return ProbeText(text, QUESTIONS[name].index(answer), _shape_place(text, item.shape))
    return ProbeText(text, QUESTIONS[name].index(_ANSWERS[name](shown)))


def _first(shown: ShapesAttributes) -> int:
    """Which object's shape comes first in the alphabet."""
    return min(range(len(shown.objects)), key=lambda i: shown.objects[i].shape)


_ANSWERS: dict[str, Callable[[ShapesAttributes], str]] = {
    "color": lambda shown: shown.objects[0].color,
    "shape": lambda shown: shown.objects[0].shape,
    "motion": lambda shown: shown.objects[0].motion,
    "background": lambda shown: shown.background,
    "bound_color": lambda shown: shown.objects[_first(shown)].color,
    "bound_motion": lambda shown: shown.objects[_first(shown)].motion,
    "order": lambda shown: ("first", "second")[_first(shown)],
}


def _shape_place(text: str, shape: str) -> tuple[int, int]:
    """The characters of the word for a shape."""
    words = sorted(SHAPE_WORDS[shape], key=len, reverse=True)
    found = re.search(rf"\b({'|'.join(map(re.escape, words))})\b", text, re.IGNORECASE)
    assert found is not None, f"{shape} is not named in {text!r}"
    return found.span()
