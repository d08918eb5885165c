"""Locks of folders: one writer at a time."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vidtwin.files import folder_lock, release_locks

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def released() -> Iterator[None]:
    yield
    release_locks()


def locked_elsewhere(folder: Path, then: str) -> subprocess.Popen[str]:
    """Another process that has locked the folder, and goes on as told."""
    code = f"from vidtwin.files import folder_lock; from pathlib import Path; import os, sys\n\
folder_lock(Path({str(folder)!r})); print('locked', flush=True); {then}"
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    return process


def test_a_running_process_keeps_its_folder_and_gives_it_back(tmp_path):
    with locked_elsewhere(tmp_path, "sys.stdin.read()") as other:
        message = rf"in use by process {other.pid} on .*, since \d{{4}}-.*; wait for it"
        with pytest.raises(ValueError, match=message):
            folder_lock(tmp_path)
        assert os.listdir(tmp_path) == [".lock"]
        other.communicate()
    assert os.listdir(tmp_path) == []
    folder_lock(tmp_path)
    folder_lock(tmp_path)  # its own
    release_locks()
    assert os.listdir(tmp_path) == []


def test_the_lock_of_a_killed_process_is_taken_over_with_a_word(tmp_path, caplog):
    with locked_elsewhere(tmp_path, "os.kill(os.getpid(), 9)") as other:
        other.wait()
    with caplog.at_level(logging.WARNING):
        folder_lock(tmp_path)
    assert f"from process {other.pid} on " in caplog.text
    assert json.loads((tmp_path / ".lock").read_text())["process"] == os.getpid()
    assert os.listdir(tmp_path) == [".lock"]


@pytest.mark.parametrize("change", [{"started": "1"}, {"process": os.getpid()}])
def test_a_number_that_another_process_has_now_holds_nothing(tmp_path, change):
    with locked_elsewhere(tmp_path, "sys.stdin.read()") as other:
        lock = tmp_path / ".lock"
        lock.write_text(json.dumps(json.loads(lock.read_text()) | change))
        folder_lock(tmp_path)
        other.communicate()
    assert json.loads(lock.read_text())["process"] == os.getpid()  # the other left it alone


def test_another_hosts_lock_is_refused_with_the_way_to_remove_it(tmp_path):
    folder_lock(tmp_path)
    lock = tmp_path / ".lock"
    lock.write_text(json.dumps(json.loads(lock.read_text()) | {"host": "elsewhere"}))
    with pytest.raises(ValueError, match=r"on elsewhere, .*if that process is gone, remove .*lock"):
        folder_lock(tmp_path)
    lock.write_text("")
    with pytest.raises(ValueError, match=r"\.lock can't be read; .*remove it"):
        folder_lock(tmp_path)
