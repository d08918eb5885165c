"""What a caller asks of the pipeline, checked and made uniform; imports no torch."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Iterable, Sequence, Sized
from typing import Any

__all__ = [
    "check_count",
    "check_lead",
    "check_seed",
    "class_indices",
    "common_length",
    "lead_steps",
    "negative_list",
    "prompt_list",
    "seed_list",
]


def check_count(name: str, value: Any) -> int:
    """The value as a whole number of at least 1.

    Raises:
        ValueError: naming the keyword.
    """
    number = _whole(value)
    if number is None or number < 1:
        raise ValueError(f"`{name}` must be a whole number of at least 1, got {value!r}")
    return number


def check_seed(name: str, seed: Any, count: int = 1) -> int:
    """The seed as a whole number from which as many count on below 2**63.

    Raises:
        ValueError: naming the keyword.
    """
    number = _whole(seed)
    if number is None or not 0 <= number <= 2**63 - count:
        counted = "" if count == 1 else f" for {count} samples that count on from it"
        raise ValueError(
            f"`{name}` must be a whole number from 0 to 2**63 - {count}{counted}, got {seed!r}"
        )
    return number


def prompt_list(prompt: str | Sequence[str] | None, name: str = "prompt") -> list[str] | None:
    """The prompts as a list.

    Raises:
        ValueError: if there is none, or one is empty.
    """
    if prompt is None:
        return None
    prompts = (
        list(prompt) if isinstance(prompt, Sequence) and not isinstance(prompt, str) else [prompt]
    )
    if not prompts:
        raise ValueError(f"`{name}` is an empty list; give at least one text, or None")
    for text in prompts:
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"`{name}` must be a text that says something, got {text!r}")
    return prompts


def negative_list(prompt: str | Sequence[str] | None) -> list[str] | None:
    """The negative prompts as a list; None where they say nothing, as "" and [""] do.

    Raises:
        ValueError: if some of them are empty.
    """
    says_nothing = not prompt or (isinstance(prompt, Sequence) and not any(prompt))
    return None if says_nothing else prompt_list(prompt, "negative_prompt")


def class_indices(
    labels: int | str | Sequence[int | str],
    num_classes: int,
    names: Sequence[str] | None,
    keyword: str = "class_labels",
) -> list[int]:
    """Classes by number or name as numbers.

    Args:
        labels: one or several; a name may also be a number in digits.
        num_classes: of the model.
        names: of the classes, if they have any.
        keyword: that they are given by, for the message.
    Raises:
        ValueError: for a class that is not there, with the nearest names.
    """
    alone = isinstance(labels, str) or not isinstance(labels, Iterable)
    several: Any = [labels] if alone else labels
    given = list(several)
    if not given:
        raise ValueError(f"`{keyword}` is an empty list; give at least one class, or None")
    return [_class_index(label, num_classes, list(names or []), keyword) for label in given]


def _class_index(label: Any, num_classes: int, names: list[str], keyword: str) -> int:
    if isinstance(label, str) and label in names:
        return names.index(label)
    digits = isinstance(label, str) and label.strip().isdecimal()
    number = int(label) if digits else _whole(label)
    if number is not None and 0 <= number < num_classes:
        return number
    if number is not None or not names:
        raise ValueError(
            f"`{keyword}`: there is no class {label!r}; they are numbered 0 to {num_classes - 1}"
        )
    lowered = {name.lower(): name for name in names}
    near = difflib.get_close_matches(str(label).lower(), lowered, n=3, cutoff=0.0)
    nearest = ", ".join(lowered[name] for name in near)
    raise ValueError(f"`{keyword}`: there is no class {label!r}; the nearest names are {nearest}")


def common_length(**given: Sized | None) -> int:
    """How many different videos are asked for, by lists of which each has one or that many.

    Raises:
        ValueError: if two of them have different lengths above 1.
    """
    lengths = {name: len(values) for name, values in given.items() if values is not None}
    count = max(lengths.values(), default=1)
    if not set(lengths.values()) <= {1, count}:
        found = ", ".join(f"`{name}` {length}" for name, length in lengths.items())
        raise ValueError(f"expected one of each, or as many of each, got {found}")
    return count


def check_lead(structure_lead: float, num_inference_steps: int) -> None:
    """Raises ValueError for a lead out of [-1, 1], or one of less than half a solver step."""
    if not -1 <= structure_lead <= 1:  # not a number is neither
        raise ValueError(
            f"`structure_lead` must lie in [-1, 1] (1: the structure first, then the dynamics; 0: "
            f"both together), got {structure_lead}"
        )
    if structure_lead and not lead_steps(structure_lead, num_inference_steps)[1]:
        raise ValueError(
            f"`structure_lead`={structure_lead} is less than half of one of the "
            f"{num_inference_steps} solver steps; take more steps, or leave it out"
        )


def lead_steps(structure_lead: float, num_inference_steps: int) -> tuple[int, int]:
    """(steps of each latent, steps by which the dynamics start after the structure).

    Args:
        structure_lead: share of a latent's schedule, -1 to 1; below 0 the dynamics lead.
        num_inference_steps: of both together.
    """
    own = max(round(num_inference_steps / (1 + abs(structure_lead))), -(-num_inference_steps // 2))
    delay = num_inference_steps - own
    return own, delay if structure_lead > 0 else -delay


def seed_list(seed: int | Sequence[int], batch_size: int) -> list[int]:
    """The seed of each sample.

    Args:
        seed: of the first sample, from which the others count on; or one for each.
        batch_size: B.
    Raises:
        ValueError: for a seed out of range, or another number of them than samples.
    """
    if isinstance(seed, Iterable):
        seeds = [check_seed("seed", one) for one in seed]
        check_length("seed", len(seeds), batch_size)
        return seeds
    first = check_seed("seed", seed, batch_size)
    return list(range(first, first + batch_size))


def check_length(name: str, length: int, batch_size: int) -> None:
    """Raises ValueError unless there is one for each video."""
    if length != batch_size:
        raise ValueError(f"expected one `{name}` for each of the {batch_size} videos, got {length}")


def _whole(value: Any) -> int | None:
    """The value as an int, or None if it isn't a whole number."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None
