"""Commands that answer without torch, the `vidtwin` command, and what ships with the package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vidtwin.files import folder_written_whole, former_folder, shipped_path
from vidtwin_lab import cli

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("vidtwin", "vidtwin.data", "vidtwin.reconstruction", "diffusion", "vidtwin_lab.runtime",
            "vidtwin_lab.evaluation", "vidtwin_lab.language.tasks")  # fmt: skip
HEAVY = {"torch", "transformers", "diffusers", "accelerate"}


def test_packages_are_light() -> None:
    names = "RunConfig, find_checkpoint, load_config, parse_arguments, run_main"
    code = f"import sys, {', '.join(PACKAGES)}\nfrom vidtwin_lab.runtime import {names}"
    words = [sys.executable, "-c", f"{code}\nprint(*sys.modules)"]
    loaded = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "vidtwin_lab.runtime.checkpoints" in loaded.split()
    assert not HEAVY & {*loaded.split()}


def test_packages_give_what_their_stubs_list() -> None:
    import vidtwin

    assert {"VidTwinAutoencoder", "load_autoencoder"} <= set(dir(vidtwin)) == set(vidtwin.__all__)
    with pytest.raises(AttributeError, match="module 'vidtwin' has no attribute 'nothing'"):
        _ = vidtwin.nothing  # type: ignore[attr-defined]


def test_the_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["smaple"])
    assert caught.value.code == 2
    assert "unknown command 'smaple'; the nearest is 'sample'" in capsys.readouterr().err


def test_every_command_is_a_script_and_is_completed(capsys: pytest.CaptureFixture[str]) -> None:
    scripts = {path.stem for path in ROOT.glob("*.py")} - {"setup"}
    assert {name.replace("-", "_") for name in cli.COMMANDS} == scripts
    cli.main(["completion"])
    script = capsys.readouterr().out
    assert all(name in script for name in cli.COMMANDS)
    assert "ae/shapes.yaml" in script
    assert subprocess.run(["bash", "-n", "-c", script], check=False).returncode == 0


def test_what_ships_is_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert shipped_path("ae/shapes.yaml") == ROOT / "configs" / "ae" / "shapes.yaml"
    assert shipped_path("checkpoints/shapes") == ROOT / "checkpoints" / "shapes"
    assert shipped_path("nothing/here") == Path("nothing/here")
    (tmp_path / "ae").mkdir()
    (tmp_path / "ae" / "shapes.yaml").touch()
    assert shipped_path("ae/shapes.yaml") == Path("ae/shapes.yaml")


def test_a_folder_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    with folder_written_whole(folder) as writing:
        (writing / "a").write_text("first")
    with pytest.raises(IsADirectoryError), folder_written_whole(folder) as writing:
        writing.write_text("second")
    assert (folder / "a").read_text() == "first"
    folder.rename(former_folder(folder))  # as a kill between the two renames leaves it
    with pytest.raises(IsADirectoryError), folder_written_whole(folder) as writing:
        writing.write_text("second")
    assert (folder / "a").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
