"""tools/concept_pictures.py draws its pictures of any pipeline with text."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image
from script_runs import ROOT


def test_all_pictures_are_drawn(build_pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    build_pipeline(num_inference_steps=1).save_pretrained(tmp_path / "pipeline")
    words = ["--pipeline", tmp_path / "pipeline", "--output", tmp_path / "out", "--clips", 3, 5]
    monkeypatch.setattr(sys, "argv", ["concept_pictures.py", *map(str, words)])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(ROOT / "tools" / "concept_pictures.py"), run_name="__main__")
    rows = {"parts": 4, "swap": 4, "held": 5, "motion": 4}
    for name, count in rows.items():
        with Image.open(tmp_path / "out" / f"concepts_{name}.png") as picture:
            assert picture.height > 96 * count
    with Image.open(tmp_path / "out" / "gallery.gif") as animation:
        assert animation.n_frames == 8  # of the pipeline
        assert animation.size == (4 * (24 + 4), 2 * (16 + 4))
