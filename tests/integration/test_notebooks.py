"""The notebooks of examples/, run as Jupyter runs them, with smaller numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from script_runs import ENVIRONMENT, ROOT

nbformat = pytest.importorskip("nbformat", reason="the notebooks need nbclient")
nbclient = pytest.importorskip("nbclient", reason="the notebooks need nbclient")
pytest.importorskip("ipykernel", reason="the notebooks need ipykernel")

NOTEBOOKS = sorted(path.name for path in (ROOT / "examples").glob("*.ipynb"))
# What stands in the cell of parameters -> what makes it a matter of seconds.
SMALL: dict[str, dict[str, Any]] = {
    "prompt.ipynb": {"steps": 2, "videos": 1},
    "swap.ipynb": {},
    "train_on_a_folder.ipynb": {"clips": 6, "autoencoder_steps": 2, "diffusion_steps": 2},
    "actions.ipynb": {"clips": 3},
}


def read(name: str) -> Any:
    return nbformat.read(ROOT / "examples" / name, as_version=4)


def execute(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, **variables: str) -> str:
    """What a notebook prints and shows, with small parameters; a failing cell raises."""
    for key, value in {**ENVIRONMENT, "PYTHONPATH": str(ROOT), "TQDM_DISABLE": "1"}.items():
        monkeypatch.setenv(key, value)
    for key, value in variables.items():
        monkeypatch.setenv(key, value)
    notebook = read(name)
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", ()):
            known = {line.partition(" = ")[0] for line in cell.source.splitlines()}
            assert known >= SMALL[name].keys()
            cell.source += "".join(f"\n{key} = {value}" for key, value in SMALL[name].items())
    resources = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(notebook, timeout=300, resources=resources).execute()
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", ())]
    shown = [out["text"] if "text" in out else " ".join(out["data"]) for out in outputs]
    return "\n".join(shown)


def test_there_are_four_and_each_is_run_here() -> None:
    assert sorted(SMALL) == NOTEBOOKS


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_is_kept_without_output(name: str) -> None:
    for cell in read(name).cells:
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None)


def test_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = execute("prompt.ipynb", tmp_path, monkeypatch)
    assert shown.count("image/gif") == 1 and shown.count("image/png") == 3
    pictures = {path.name for path in (tmp_path / "outputs").iterdir()}
    assert pictures == {"star.gif", "seeds.png", "steps.png", "guidance.png"}


def test_swap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = execute("swap.ipynb", tmp_path, monkeypatch)
    *_, decibels = shown.partition("PSNR, dB: [")
    assert all(float(text) > 22 for text in decibels.partition("]")[0].split(", "))
    assert "image/png" in shown


def test_train_on_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = execute("train_on_a_folder.ipynb", tmp_path, monkeypatch)
    assert "loss of the first steps" in shown and "image/png" in shown
    assert (tmp_path / "outputs" / "clips_64" / "autoencoder_ema").is_dir()
    assert len(list((tmp_path / "outputs" / "samples").glob("*.mp4"))) == 2


def test_actions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mujoco", reason="MuJoCo is not installed")
    shown = execute("actions.ipynb", tmp_path, monkeypatch)
    if "no renderer" in shown:
        pytest.skip(shown)
    assert "partner found by dynamics" in shown and "by chance 33%" in shown
    assert shown.count("image/png") == 2


def test_actions_without_a_renderer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mujoco", reason="MuJoCo is not installed")
    shown = execute("actions.ipynb", tmp_path, monkeypatch, MUJOCO_GL="disable")
    assert "Skipped, there is nothing to show: MuJoCo finds no renderer" in shown
    assert "image/png" not in shown
