"""English captions of moving shapes: a small grammar with synonyms and varied word order.

Synonyms of colours, shapes and backgrounds are all in the "train" wording, since a model can't
guess that an unseen word names a colour; "test" holds out word orders and ways to name a motion.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from vidtwin.data.synthetic.shapes.attributes import ShapesAttributes, ShapesObject, check_choice

__all__ = [
    "SHAPE_WORDS",
    "WORDINGS",
    "caption",
]

Choice = TypeVar("Choice")

WORDINGS = ("train", "test", "all")

COLOR_WORDS: dict[str, tuple[str, ...]] = {
    "red": ("red", "crimson", "scarlet", "ruby", "bright red"),
    "orange": ("orange", "tangerine", "bright orange"),
    "yellow": ("yellow", "lemon", "bright yellow", "golden yellow"),
    "green": ("green", "emerald", "bright green", "grass green"),
    "cyan": ("cyan", "turquoise", "aqua", "teal"),
    "blue": ("blue", "azure", "cobalt", "bright blue", "royal blue"),
    "purple": ("purple", "violet", "bright purple"),
    "pink": ("pink", "rose", "light pink", "bright pink"),
    "white": ("white", "snow-white", "bright white"),
}
SHAPE_WORDS: dict[str, tuple[str, ...]] = {
    "circle": ("circle", "disc", "disk", "ball"),
    "square": ("square", "box", "block"),
    "triangle": ("triangle", "three-sided shape", "triangular shape"),
    "star": ("star", "five-pointed star", "star shape"),
    "cross": ("cross", "plus sign", "plus"),
    "ring": ("ring", "hoop", "donut"),
}
BACKGROUND_WORDS: dict[str, tuple[str, ...]] = {
    "black": ("black", "jet-black", "pitch-black"),
    "navy": ("navy", "navy blue", "dark blue", "midnight blue"),
    "gray": ("gray", "grey"),
    "dark green": ("dark green", "forest green", "deep green"),
    "maroon": ("maroon", "dark red", "burgundy"),
    "tan": ("tan", "beige", "sandy"),
}
SIZE_WORDS: dict[str, tuple[str, ...]] = {
    "small": ("small", "tiny", "little"),
    "large": ("large", "huge", "big"),
}
SPEED_WORDS: dict[str, tuple[str, ...]] = {
    "slow": ("slowly",),
    "fast": ("quickly", "rapidly", "fast"),
}
# Most people leave "plain" out, so it is mostly left out.
TEXTURE_WORDS: dict[str, tuple[str, ...]] = {
    "plain": ("", "", "", "plain", "solid"),
    "striped": ("striped", "stripy"),
    "checkered": ("checkered", "chequered", "checked"),
    "dotted": ("dotted", "polka-dot", "spotted"),
    "gradient": ("gradient", "shaded"),
}


def _cross(verbs: str, endings: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """(participle, finite) phrases: every verb of "moving/moves ..." with every ending."""
    pairs = [verb.replace("_", " ").split("/") for verb in verbs.split()]
    return tuple(
        (f"{pair[0]} {ending}".rstrip(), f"{pair[1]} {ending}".rstrip())
        for pair in pairs
        for ending in endings
    )


_MOVE = "moving/moves drifting/drifts sliding/slides gliding/glides floating/floats going/goes"
_TURN = "turning/turns rotating/rotates spinning/spins"
_BOUNCE = "bouncing/bounces rebounding/rebounds"
_UP_AND_DOWN = ("up and down", "vertically", "between top and bottom")
_LEFT_AND_RIGHT = ("left and right", "from side to side", "horizontally")
_COUNTERCLOCKWISE = ("counterclockwise", "counter-clockwise", "anticlockwise")

# Motion -> (participle, finite) phrases, the plain one first.
MOTION_WORDS: dict[str, tuple[tuple[str, str], ...]] = {
    "moving left": _cross(_MOVE, ("left", "to the left", "leftwards", "from right to left")),
    "moving right": _cross(_MOVE, ("right", "to the right", "rightwards", "from left to right")),
    "moving up": _cross(_MOVE + " rising/rises", ("up", "upwards", "towards the top"))
    + _cross("rising/rises climbing/climbs", ("",)),
    "moving down": _cross(_MOVE + " falling/falls", ("down", "downwards", "towards the bottom"))
    + _cross("sinking/sinks descending/descends", ("",)),
    "turning clockwise": _cross(_TURN, ("clockwise", "in a clockwise direction")),
    "turning counterclockwise": _cross(_TURN, _COUNTERCLOCKWISE),
    "growing": _cross(
        "growing/grows expanding/expands getting_bigger/gets_bigger swelling/swells "
        "becoming_larger/becomes_larger",
        ("",),
    ),
    "shrinking": _cross(
        "shrinking/shrinks contracting/contracts getting_smaller/gets_smaller "
        "becoming_smaller/becomes_smaller dwindling/dwindles",
        ("",),
    ),
    "bouncing up and down": _cross(_BOUNCE, _UP_AND_DOWN),
    "bouncing left and right": _cross(_BOUNCE, _LEFT_AND_RIGHT),
    "staying still": _cross("staying/stays standing/stands holding/holds", ("still",))
    + _cross("staying/stays remaining/remains", ("in place", "motionless"))
    + (("not moving", "does not move"),),
}
# Phrases of the "test" wording alone: new verbs, or new endings to known ones.
_HELD_OUT_MOVE = "heading/heads travelling/travels"
HELD_OUT_MOTION_WORDS: dict[str, tuple[tuple[str, str], ...]] = {
    "moving left": _cross(_HELD_OUT_MOVE, ("left", "to the left", "towards the left side")),
    "moving right": _cross(_HELD_OUT_MOVE, ("right", "to the right", "towards the right side")),
    "moving up": _cross(_HELD_OUT_MOVE, ("up", "upwards", "towards the upper edge")),
    "moving down": _cross(_HELD_OUT_MOVE, ("down", "downwards", "towards the lower edge")),
    "turning clockwise": _cross("revolving/revolves", ("clockwise",)),
    "turning counterclockwise": _cross("revolving/revolves", _COUNTERCLOCKWISE),
    "growing": _cross("growing/grows getting/gets", ("in size", "larger and larger")),
    "shrinking": _cross("shrinking/shrinks", ("in size", "smaller and smaller")),
    "bouncing up and down": _cross("bouncing_back_and_forth/bounces_back_and_forth", _UP_AND_DOWN),
    "bouncing left and right": _cross("moving_back_and_forth/moves_back_and_forth", ("sideways",)),
    "staying still": _cross("remaining/remains", ("still", "at rest")),
}

# Fields: {doing} "a red circle moving left", {does} "a red circle moves left", {is_doing} "a red
# circle is moving left", {on} "on a navy background", {backdrop} "a navy background"; for one
# object also {thing} "a red circle", {motion} "moving left", {moves} "moves left".
TEMPLATES: tuple[str, ...] = (
    "{doing} {on}",
    "{doing} {on}",
    "{does} {on}",
    "{is_doing} {on}",
    "{on}, {does}",
    "{on}, {is_doing}",
    "{on} there is {doing}",
    "there is {doing} {on}",
    "a video of {doing} {on}",
    "a clip in which {does} {on}",
    "{backdrop} with {doing}",
)
SINGLE_TEMPLATES: tuple[str, ...] = (
    "{thing} {on}, {motion}",
    "{motion} {on}, {thing}",
    "{thing} that {moves} {on}",
    "{thing} {on} {moves}",
)
# Of captions that say nothing of the background, in every wording.
BARE_TEMPLATES: tuple[str, ...] = (
    "{doing}",
    "{doing}",
    "{does}",
    "{is_doing}",
    "there is {doing}",
    "a video of {doing}",
    "a clip in which {does}",
)
HELD_OUT_TEMPLATES: tuple[str, ...] = (
    "{is_doing}, with {backdrop} behind",
    "{backdrop} on which {does}",
    "watch how {does} {on}",
    "{on} we see {doing}",
    "{doing}, all {on}",
)
HELD_OUT_SINGLE_TEMPLATES: tuple[str, ...] = (
    "{thing}, {motion}, {on}",
    "{on}, {motion}: {thing}",
)


def _article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _pick(rng: np.random.Generator, choices: Sequence[Choice]) -> Choice:
    return choices[int(rng.integers(len(choices)))]


def _thing(item: ShapesObject, rng: np.random.Generator) -> str:
    color = _pick(rng, COLOR_WORDS[item.color])
    shape = _pick(rng, SHAPE_WORDS[item.shape])
    if item.size is not None:
        color = f"{_pick(rng, SIZE_WORDS[item.size])} {color}"
    form = rng.random()
    if form < 0.06:
        return _article(f"{color} colored {shape}")
    if form < 0.12:
        return f"the {color} {shape}"
    if form < 0.18:
        return f"one {color} {shape}"
    return _article(f"{color} {shape}")


def _doing(
    item: ShapesObject, rng: np.random.Generator, words: dict[str, tuple[tuple[str, str], ...]]
) -> tuple[str, str]:
    """("moving left", "moves left"), with how fast where that is to be said."""
    phrase = _pick(rng, words[item.motion])
    if item.speed is None:
        return phrase
    adverb = _pick(rng, SPEED_WORDS[item.speed])
    if adverb != "fast" and rng.random() < 0.5:
        return f"{adverb} {phrase[0]}", f"{adverb} {phrase[1]}"
    return f"{phrase[0]} {adverb}", f"{phrase[1]} {adverb}"


def _setting(attributes: ShapesAttributes, rng: np.random.Generator) -> tuple[str, str]:
    """("on a navy background", "a navy background")."""
    color = _pick(rng, BACKGROUND_WORDS[attributes.background])
    texture = _pick(rng, TEXTURE_WORDS[attributes.texture])
    words = f"{texture} {color}".strip()
    noun = _pick(rng, ("background", "background", "backdrop", "surface"))
    backdrop = _article(f"{words} {noun}")
    place = _pick(rng, ("on", "on", "against", "over", "in front of"))
    bare = attributes.texture == "plain" and rng.random() < 0.3
    return f"{place} {words if bare else backdrop}", backdrop


def canonical_caption(attributes: ShapesAttributes) -> str:
    """The plain caption, "a red circle moving left on a striped navy background"."""
    things = []
    for item in attributes.objects:
        size = "" if item.size is None else f"{SIZE_WORDS[item.size][0]} "
        speed = "" if item.speed is None else f" {SPEED_WORDS[item.speed][0]}"
        things.append(f"{_article(f'{size}{item.color} {item.shape}')} {item.motion}{speed}")
    texture = "" if attributes.texture == "plain" else f"{attributes.texture} "
    return f"{' and '.join(things)} on {_article(f'{texture}{attributes.background} background')}"


def caption(
    attributes: ShapesAttributes,
    rng: np.random.Generator,
    wordings: str = "train",
    without_background_fraction: float = 0.0,
) -> str:
    """A random caption that names every attribute, but for the background where it is left out.

    Args:
        attributes: what the clip shows.
        rng: the only source of randomness.
        wordings: "train"; "test" for word orders that "train" never has, and some phrases; "all".
        without_background_fraction: of captions that say nothing of the background.
    Returns:
        One sentence, mostly in lower case and without a full stop.
    Raises:
        ValueError: if `wordings` is none of the three.
    """
    check_choice("wordings", wordings, WORDINGS)
    held_out = wordings == "test" or (wordings == "all" and rng.random() < 0.3)
    single = len(attributes.objects) == 1
    templates = HELD_OUT_TEMPLATES if held_out else TEMPLATES
    if single:
        templates += HELD_OUT_SINGLE_TEMPLATES if held_out else SINGLE_TEMPLATES
    # Drawn only where it can matter: other data sets keep their captions.
    if without_background_fraction and rng.random() < without_background_fraction:
        templates = BARE_TEMPLATES
    things, phrases = [], []
    for item in attributes.objects:
        things.append(_thing(item, rng))
        new = held_out and rng.random() < 0.5
        phrases.append(_doing(item, rng, HELD_OUT_MOTION_WORDS if new else MOTION_WORDS))
    doing = [f"{thing} {phrase[0]}" for thing, phrase in zip(things, phrases, strict=True)]
    does = [f"{thing} {phrase[1]}" for thing, phrase in zip(things, phrases, strict=True)]
    is_doing = [f"{thing} is {phrase[0]}" for thing, phrase in zip(things, phrases, strict=True)]
    on, backdrop = _setting(attributes, rng)
    joint = _pick(rng, (" and ", " while ", " as ") if held_out else (" and ", " while "))
    text = _pick(rng, templates).format(
        doing=" and ".join(doing),
        does=joint.join(does),
        is_doing=joint.join(is_doing),
        on=on,
        backdrop=backdrop,
        thing=things[0],
        motion=phrases[0][0],
        moves=phrases[0][1],
    )
    style = rng.random()
    if style < 0.1:
        return f"{text[0].upper()}{text[1:]}."
    return f"{text}." if style < 0.15 else text
