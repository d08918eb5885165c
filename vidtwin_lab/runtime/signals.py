"""SIGINT (Ctrl-C) and SIGTERM: a training saves before it ends, other programs clean up."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class InterruptedRunError(KeyboardInterrupt):
    """The program was told to end by a signal; the text says what it has done before."""

    def __init__(self, number: int, done: str = "") -> None:
        name = "interrupted" if number == signal.SIGINT else "terminated"
        super().__init__(f"{name}: {done}" if done else name)
        self.number = number
        self.exit_code = 128 + number


class StopRequest:
    """The first signal that came since `listening`; 0 for none.

    Attributes:
        at_once: whether it is raised where the program is, not only noted.
    """

    def __init__(self) -> None:
        self.number = 0
        self.at_once = False

    def _note(self, number: int) -> None:
        if self.number or self.at_once:  # told twice: at once
            raise InterruptedRunError(number)
        self.number = number

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Context in which a signal is noted, and only the second one ends the program."""
        with _handled(SIGNALS, self._note):
            yield


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Context in which SIGTERM raises InterruptedRunError, so that what is begun is cleaned up."""

    def end(number: int) -> None:
        raise InterruptedRunError(number)

    with _handled((signal.SIGTERM,), end):
        yield


@contextmanager
def ended_at_once() -> Iterator[None]:
    """Context in which signals end the process as if no program handled them.

    For calls that wait outside Python, where a handler would not run: processes that look for each
    other wait long for one that is gone. Not for what leaves anything to clean up.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = {number: signal.signal(number, signal.SIG_DFL) for number in SIGNALS}
    try:
        yield
    finally:
        for number, was in former.items():
            signal.signal(number, was)


@contextmanager
def _handled(numbers: tuple[int, ...], handle: Callable[[int], None]) -> Iterator[None]:
    """Context in which this process, but none forked from it, handles signals so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    process = os.getpid()

    def handler(number: int, _: FrameType | None) -> None:
        if os.getpid() == process:
            handle(number)
        else:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    former = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, was in former.items():
            signal.signal(number, was)
