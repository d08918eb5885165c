"""Guidance by one of `diffusers.guiders` in place of our own; imports torch where it is used.

A guider combines two predictions: of all that is asked for (prompt and class together), and of
nothing, or of the negative prompt. So it has one scale, its own `guidance_scale`, and stands where
the prompt's and the class's stood. Latents that are given are known to both, and their guidance is
added as without a guider:

    guided = guider(with all conditions, without) + (given scale - 1) (without - nothing known)

With a lead of one latent each track has a copy of the guider, so that what a guider says of steps
(`start`, `stop`, momentum, zeroed first steps) is of that latent's own schedule.

Source: the guiders name theirs; autoguidance skips blocks in the prediction without conditions.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import yaml

from vidtwin.files import nearest_name

if TYPE_CHECKING:
    from torch import Tensor, nn

    from diffusion.tracks import Track
    from vidtwin import VidTwinLatents

__all__ = [
    "GUIDER_NAMES",
    "build_guider",
    "check_guider",
    "guide_tracks",
    "parse_guider",
    "refuse_scales",
]

# Of the command line -> class. Other guiders of diffusers need images or its own attention.
GUIDER_NAMES = {
    "cfg": "ClassifierFreeGuidance",
    "apg": "AdaptiveProjectedGuidance",
    "cfg_zero": "ClassifierFreeZeroStarGuidance",
    "autoguidance": "AutoGuidance",
}


def parse_guider(text: str) -> tuple[str, dict[str, Any]]:
    """Name and options of a guider: "apg eta=0 start=0.2".

    The values are YAML without spaces, such as auto_guidance_config={"indices":[4]}.

    Raises:
        ValueError: for an unknown name, or an option that is not key=value.
    """
    name, *words = text.split() or [""]
    if name not in GUIDER_NAMES:
        raise ValueError(f"`guider` must be one of {', '.join(GUIDER_NAMES)}; got {name!r}")
    options: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not key or not equals or not value or key in options:
            raise ValueError(f"`guider` {name}: expected key=value, each key once, got {word!r}")
        try:
            options[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"`guider` {name}: {word!r} has no YAML value") from error
    return name, options


def build_guider(text: str, guidance_scale: float) -> Any:
    """A guider from its name and options.

    Args:
        text: see `parse_guider`.
        guidance_scale: unless the options have one.
    Raises:
        ValueError: for an unknown option, or a value that the guider does not take.
    """
    from diffusers import guiders

    name, options = parse_guider(text)
    kind = getattr(guiders, GUIDER_NAMES[name])
    accepted = inspect.signature(kind.__init__).parameters
    known = [key for key in accepted if key != "self"]
    for key in options:
        if key not in known:
            raise ValueError(
                f"`guider` {name}: no option {key!r}; the nearest is {nearest_name(key, known)}"
            )
        number = type(accepted[key].default) in (int, float)
        if number and not (type(options[key]) in (int, float) and math.isfinite(options[key])):
            raise ValueError(f"`guider` {name}: {key} must be a number, got {options[key]!r}")
    try:
        guider = kind(**{"guidance_scale": guidance_scale} | options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`guider` {name}: {error}") from error
    check_guider(guider)
    return guider


def check_guider(guider: Any) -> None:
    """Raises ValueError for what does not guide latents, each sample by itself."""
    kinds = {*GUIDER_NAMES.values()}
    if type(guider).__name__ not in kinds:
        raise ValueError(
            f"`guider` must be one of diffusers.guiders' {', '.join(sorted(kinds))}; got "
            f"{type(guider).__name__}"
        )
    for skipped in getattr(guider, "auto_guidance_config", ()):
        if skipped.dropout != 1.0 or not isinstance(skipped.indices, list):
            raise ValueError(
                "autoguidance must skip whole blocks (a random part would make a video depend on "
                'others in its batch): auto_guidance_config={"indices":[4]}'
            )
        if not (skipped.skip_attention and skipped.skip_ff):
            raise ValueError("autoguidance must skip attention and MLP of a block together")


def refuse_scales(**scales: float | None) -> None:
    """Raises ValueError for a scale beside a guider, which has its own."""
    for name, value in scales.items():
        if value is not None:
            raise ValueError(
                f"`{name}` is {value}, and `guider` has a `guidance_scale` of its own; leave out "
                "one of them"
            )


def guide_tracks(
    tracks: Sequence[Track],
    call: int,
    predict: Callable[[bool], VidTwinLatents],
    transformer: nn.Module,
) -> dict[frozenset[str], Tensor]:
    """The (B, values) predictions of the tracks that move, each by its own guider.

    Args:
        tracks: with guiders.
        call: of the model, in this window.
        predict: whether the conditions are known -> the model's predictions.
        transformer: the model, whose blocks a guider may skip.
    """
    from diffusion.caching import caches_of_a_call, let_blocks_be_hooked
    from diffusion.dit import Block

    let_blocks_be_hooked(Block)
    # By the guiders' names for them; two tracks take the same predictions.
    found: dict[str, VidTwinLatents] = {}
    guided = {}
    for track in tracks:
        if not track.moves(call):
            continue
        guider, own = track.guider, track.index(call)
        guider.set_state(own, len(track.solver), track.timestep(call))
        variants = guider.prepare_inputs({"known": (True, False)})
        for variant in variants:
            name = getattr(variant, guider._identifier_key)
            guider.prepare_models(transformer)
            try:
                if name not in found:
                    with caches_of_a_call(transformer, name):
                        found[name] = predict(variant.known)
            finally:
                guider.cleanup_models(transformer)
            variant.noise_pred = found[name].pack(track.names)
        guided[track.names] = guider(variants).pred
    return guided
