"""Foreign files run nothing, reach nothing else and take no memory: the attacks, one by one."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

FILE = Path(__file__).parents[2] / "tools" / "reliability_checks" / "attacks.py"
spec = importlib.util.spec_from_file_location("attacks", FILE)
assert spec is not None
assert spec.loader is not None
attacks: Any = importlib.util.module_from_spec(spec)
sys.modules["attacks"] = attacks
spec.loader.exec_module(attacks)


@pytest.mark.parametrize("name", attacks.ATTACKS)
def test_holds(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    assert attacks.broken_by(name, folder) is None


def test_an_attack_that_succeeds_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attacks themselves work, where nothing stands against them."""
    import pickle

    def load(folder: Path) -> Any:
        content = pickle.dumps(attacks.Malicious(folder))
        return lambda: pickle.loads(content)

    def ask(_: Path) -> Any:
        return lambda: input("Do you trust it? [y/N]")

    monkeypatch.setitem(attacks.ATTACKS, "pickle", (load, ""))
    monkeypatch.setitem(attacks.ATTACKS, "question", (ask, ""))
    monkeypatch.setitem(attacks.ATTACKS, "nothing", (lambda _: lambda: None, ""))
    for name, why in {
        "pickle": "a program ran",
        "question": "it asked: Do you trust it?",
        "nothing": "it was not refused",
    }.items():
        folder = tmp_path / name / "folder"
        folder.mkdir(parents=True)
        assert attacks.broken_by(name, folder).startswith(why)
