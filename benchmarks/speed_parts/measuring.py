"""Calls side by side in one process: CPU time, memory, and tables of them."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from cost import KERNELS
from torch.utils.flop_counter import FlopCounterMode

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How everything is measured.

    Args:
        rounds: turns of each call; where there are several, the first is not counted.
        small: tiny models and clips, to see that a part works.
        size: height and width of the autoencoders' clips.
        preset: of the transformers, see `diffusion.DiTConfig.preset`.
        scratch: a folder for files that are needed on the way.
        official: a checkout of the official code; None where there is none.
    """

    rounds: int
    small: bool
    size: int
    preset: str
    scratch: Path
    official: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a part found.

    Args:
        rows: of its table, column by column.
        protocol: what the numbers depend on beyond `Setting`.
        draw: draws a plot into a PNG file; None for none.
    """

    rows: list[dict[str, Any]]
    protocol: dict[str, Any] = field(default_factory=dict)
    draw: Callable[[Path], Any] | None = None


@dataclass(frozen=True)
class Turn:
    """One call: CPU seconds of all threads, and bytes that it needed beyond what was there."""

    seconds: float
    peak: int | None


Turns = dict[str, list[Turn]]


def side_by_side(calls: Mapping[str, Callable[[], Any]], rounds: int) -> Turns:
    """The turns of each call; they alternate, so that a busy machine is equally unfair to all."""
    turns: Turns = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            turns[name].append(timed(call))
    return {name: found[1:] or found for name, found in turns.items()}


def timed(call: Callable[[], Any]) -> Turn:
    """One turn of a call; what it returns is let go."""
    gc.collect()
    before = forget_peak()
    start = time.process_time()
    call()
    seconds = time.process_time() - start
    return Turn(seconds, None if before is None else max(0, status("VmHWM") - before))


def forget_peak() -> int | None:
    """Bytes that are resident, from which the peak counts anew; None where Linux isn't."""
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what was freed is not there any more
        CLEAR.write_text("5")
    except (AttributeError, OSError):
        return None
    return status("VmRSS")


def status(name: str) -> int:
    """Bytes of a line of /proc/self/status."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def seconds(turns: Sequence[Turn]) -> float:
    """The median."""
    return median(turn.seconds for turn in turns)


def ratio(turns: Sequence[Turn], to: Sequence[Turn]) -> float:
    """How often as long: the median over the rounds."""
    return median(one.seconds / other.seconds for one, other in zip(turns, to, strict=True))


def together(turns: Sequence[Turn], others: Sequence[Turn]) -> list[Turn]:
    """Two calls of each round as one, whose peak is not known."""
    pairs = zip(turns, others, strict=True)
    return [Turn(one.seconds + other.seconds, None) for one, other in pairs]


def mebibytes(turns: Sequence[Turn]) -> float | None:
    """The smallest of the peaks: pages of libraries that come in only add to it."""
    peaks = [turn.peak for turn in turns if turn.peak is not None]
    return min(peaks) / 2**20 if peaks else None


def flops(call: Callable[[], Any]) -> int:
    """Of the matrix products of a call; a multiplication and an addition are 2."""
    counter = FlopCounterMode(display=False)
    counter.flop_registry |= {own: counter.flop_registry[known] for own, known in KERNELS.items()}
    with counter:
        call()
    return counter.get_total_flops()


def as_text(value: Any) -> str:
    """A cell of a table: counts in full, other numbers to three digits."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
