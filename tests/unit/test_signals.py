"""Which signals a program handles itself, and where none is left waiting."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from vidtwin_lab.runtime.signals import (
    SIGNALS,
    InterruptedRunError,
    StopRequest,
    ended_at_once,
    terminated_as_interrupted,
)

# A call that waits outside Python for longer than any test: its handler would run at its end.
WAITING = """
import ctypes, sys
from vidtwin_lab.runtime.signals import ended_at_once, terminated_as_interrupted
with terminated_as_interrupted(), ended_at_once():
    print("waiting", flush=True)
    libc = ctypes.PyDLL(None)
    libc.pause.restype = ctypes.c_int
    while True:
        libc.pause()
"""


@pytest.mark.parametrize("number", SIGNALS)
def test_a_wait_outside_python_ends_at_once(number: int) -> None:
    with subprocess.Popen([sys.executable, "-c", WAITING], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        began = time.monotonic()
        process.send_signal(number)
        assert process.wait(20) == -number  # a shell shows 128 + number
        assert time.monotonic() - began < 5


def test_handlers_come_back() -> None:
    with terminated_as_interrupted():
        with ended_at_once():
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        with pytest.raises(InterruptedRunError, match="terminated"):
            signal.raise_signal(signal.SIGTERM)


def test_the_second_signal_ends_what_listens() -> None:
    request = StopRequest()
    with request.listening():
        signal.raise_signal(signal.SIGTERM)
        assert request.number == signal.SIGTERM
        with pytest.raises(InterruptedRunError):
            signal.raise_signal(signal.SIGINT)
