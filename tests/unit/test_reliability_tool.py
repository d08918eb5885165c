"""The tool that measures reliability: its checks exist, and its kills hit where they should."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def tools(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))


def test_every_check_has_its_function_its_tests_and_a_row_in_the_page():
    import reliability

    page = reliability.PAGE.read_text(encoding="utf-8")
    for check in reliability.CHECKS.values():
        module, _, function = check.measure.partition(":")
        source = ROOT / "tools" / "reliability_checks" / f"{module}.py"
        assert f"\ndef {function}(" in source.read_text(encoding="utf-8")
        assert (ROOT / "tests" / check.tests).is_file()
        assert f"| {check.promise} | `tests/{check.tests}` |" in page


def test_differences_are_found_in_both_directions():
    from reliability_checks.runs import differences

    expected = {"a": b"1", "b": b"2", "folder": None}
    assert differences(expected, dict(expected)) == ([], [])
    came = {"a": b"1", "b": b"3", ".b.77.partial": b""}
    assert differences(expected, came) == (["b differs", "folder is missing"], [".b.77.partial"])


WORK = """
import os, sys
from pathlib import Path
sys.path[:0] = {paths!r}
from reliability_checks import hooks
hooks.FUNCTIONS, hooks.MARKS = ("os:fsync",), {{"work": {{}}}}
os.setsid()
hooks.install({plan!r}, Path("notes"), "work")
from vidtwin.files import written_whole
with written_whole("whole") as partial:
    partial.write_text("content")
"""
EVENTS = ["os.mkdir", "open", "os:fsync", "os.rename"]


@pytest.mark.parametrize("killed_before", [*range(len(EVENTS)), None])
def test_a_kill_comes_right_before_its_event(tmp_path, killed_before):
    plan = {} if killed_before is None else {"event": killed_before}
    code = WORK.format(paths=[str(ROOT), str(ROOT / "tools")], plan=plan)
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False)
    notes = [json.loads(line) for line in (tmp_path / "notes").read_text().splitlines()]
    events = [note["event"] for note in notes if "event" in note]
    left = {path.name.split(".")[-1] for path in tmp_path.iterdir()} - {"notes"}
    if killed_before is None:
        assert ended.returncode == 0
        assert events[: len(EVENTS)] == EVENTS
        assert left == {"whole"}
    else:
        assert ended.returncode == -signal.SIGKILL
        assert events == EVENTS[: killed_before + 1]
        assert left == (set() if killed_before < 2 else {"partial"})
