"""`vidtwin doctor`: what it finds wrong, what it says, and how it ends."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from vidtwin.data import UnusableVideo, readers
from vidtwin.media import write_gif
from vidtwin_lab.doctor import environment
from vidtwin_lab.doctor.command import main
from vidtwin_lab.doctor.environment import check_environment
from vidtwin_lab.doctor.page import Page
from vidtwin_lab.doctor.rehearsal import duration, find_config
from vidtwin_lab.runtime import ConfigError

GIB = environment.GIB


def faults(page: Page) -> dict[str, str]:
    return {each["name"]: f"{each['told']} -> {each['cure']}" for each in page.wrong}


@pytest.fixture
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_healthy_machine(in_a_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json", "found.json"]) == 0
    told = capsys.readouterr().out
    assert "nothing wrong was found" in told
    assert "pyav          reads 8 of 8 frames" in told
    found = json.loads(Path("found.json").read_text())
    assert found["fine"]
    assert {"Software", "Devices", "Video", "Room"} == set(found["parts"])
    assert [path.name for path in in_a_folder.iterdir()] == ["found.json"]


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="this torch has no MKL")
def test_products_that_convolutions_outrun_are_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    threads = torch.get_num_threads()
    for factor, hint in ((0.0, True), (1e9, False)):
        monkeypatch.setattr(environment, "SLOW_PATH", factor)
        page = Page()
        environment._check_devices(page)
        told = capsys.readouterr().out
        assert "GFLOP/s a thread in float32" in told
        assert ("docs/performance.md" in told) == hint
        assert not page.wrong or {each["name"] for each in page.wrong} == {"gpu"}
    assert torch.get_num_threads() == threads


def test_what_is_wrong_is_named_with_its_cure(
    in_a_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unreadable(path: Path, **_: object) -> None:
        raise UnusableVideo(str(path), "no decoder")

    sizes = shutil.disk_usage(in_a_folder)
    monkeypatch.setattr(readers, "read_frames", unreadable)
    monkeypatch.setattr(environment.shutil, "disk_usage", lambda _: sizes._replace(free=GIB // 8))
    monkeypatch.setattr(environment, "available_memory", lambda: GIB)
    monkeypatch.setattr(environment.importlib.metadata, "requires", lambda _: ["torch>=99"])
    monkeypatch.setattr(environment, "_nvidia_driver", lambda: "1.0")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    page = Page()
    check_environment(page, in_a_folder / "run")
    found = faults(page)
    assert set(found) >= {"torch", "gpu", "pyav", "decord", "disk", "memory"}
    assert 'pip install "torch>=99"' in found["torch"]
    assert "set data.backend=decord" in found["pyav"]
    assert "another folder: output=FOLDER" in found["disk"]
    assert page.end(None) == 1
    assert f"{len(found)} things wrong" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "name", "said"),
    [
        (["ae/clips_64.yaml", "data.pth=x"], "config", "the nearest known key is `data.path`"),
        (["ae/clips_64.yaml", "data.path=nowhere"], "inputs", "'nowhere' does not exist"),
        (["encode/clips.yaml", "autoencoder=nowhere"], "inputs", "nowhere does not exist"),
        (["diffusion/shapes.yaml", "cache=nowhere"], "inputs", "no latent cache"),
        (["ae/shapes.yaml", "steps=9"], "config", "`optimizer.warmup_steps` must be less"),
        (["README.md"], "config", "README.md"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_config_that_would_not_run(
    words: list[str], name: str, said: str, in_a_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vidtwin_lab.doctor.command.check_environment", lambda *_: None)
    assert main(["--config", *words, "--json", "found.json", "--no-steps"]) == 1
    parts = json.loads(Path("found.json").read_text())["parts"]
    (wrong,) = [each for part in parts.values() for each in part if not each["fine"]]
    assert wrong["name"] == name
    assert said in wrong["told"]


def test_clips_that_cannot_be_read_are_named(
    in_a_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vidtwin_lab.doctor.command.check_environment", lambda *_: None)
    (in_a_folder / "clips").mkdir()
    for number in range(3):
        (in_a_folder / "clips" / f"{number}.mp4").write_bytes(b"no video")
    keys = ("data.path=clips", "data.validation_fraction=0")
    assert main(["--config", "ae/clips_64.yaml", *keys, "--no-steps"]) == 1
    told = " ".join(capsys.readouterr().out.split())
    assert "3 clips, listed in" in told
    assert "0 of 3 read" in told
    assert "clips/0.mp4" in told


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_every_clip_of_a_small_folder_is_read(
    bad: int, in_a_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever its place, and though one of the three is held out."""
    monkeypatch.setattr("vidtwin_lab.doctor.command.check_environment", lambda *_: None)
    frames = np.random.default_rng(0).integers(0, 256, (24, 16, 16, 3), dtype=np.uint8)
    (in_a_folder / "clips").mkdir()
    for number in range(3):
        path = in_a_folder / "clips" / f"{number}.gif"
        path.write_bytes(b"no video") if number == bad else write_gif(path, frames, 8)
    assert main(["--config", "ae/clips_64.yaml", "data.path=clips", "--no-steps"]) == 1
    told = " ".join(capsys.readouterr().out.split())
    assert "2 of 3 read" in told
    assert f"clips/{bad}.gif" in told


def test_the_script_is_told_by_the_config() -> None:
    names = {"ae/shapes_debug.yaml": "train_ae", "diffusion/shapes_debug.yaml": "train_diffusion",
             "language/shapes_bert_debug.yaml": "train_language",
             "encode/shapes_debug.yaml": "encode"}  # fmt: skip
    for path, script in names.items():
        assert find_config(path, [], None)[0] == script
    with pytest.raises(ConfigError, match="unknown key `nonsense`"):
        find_config("ae/shapes_debug.yaml", ["nonsense=1"], None)


def test_a_wrong_command_line_is_refused() -> None:
    with pytest.raises(ValueError, match="'steps=3' changes a config: name it with --config"):
        main(["steps=3"])
    with pytest.raises(ValueError, match="there is no flag --confg; the nearest is --config"):
        main(["--confg", "x"])


def test_durations() -> None:
    assert [duration(s) for s in (5, 600, 9000, 200_000)] == [
        *("5 seconds", "10.0 minutes", "2.5 hours", "2.3 days")
    ]
