"""The pipeline that comes with the repository: it is small, loads, and follows its prompts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from diffusion import VidTwinPipeline
from vidtwin.data.synthetic.shapes import MovingShapes, ShapesConfig, canonical_caption
from vidtwin_lab.evaluation.judges.shapes_judge import judge_video

SHIPPED = Path(__file__).parents[2] / "checkpoints" / "shapes"
MAX_BYTES = 60e6


@pytest.fixture(scope="module")
def pipeline() -> VidTwinPipeline:
    pipeline = VidTwinPipeline.from_pretrained(SHIPPED)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_it_is_small_and_tells_no_paths():
    files = [path for path in SHIPPED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < MAX_BYTES
    for path in files:
        assert path.suffix in {".json", ".safetensors", ".txt"}, path
        if path.suffix == ".json":
            assert "_name_or_path" not in json.loads(path.read_text())


def test_colors_and_backgrounds_are_those_of_the_prompt(pipeline):
    """Of combinations that training never showed."""
    shapes = MovingShapes(ShapesConfig(split="test", max_objects=1, textured_fraction=0.0, seed=5))
    asked = [shapes.attributes(index) for index in range(6)]
    videos = pipeline(
        prompt=[canonical_caption(attributes) for attributes in asked],
        num_inference_steps=10,
        seed=0,
    ).videos
    assert videos.shape == (6, 3, 16, 64, 64)
    right = 0
    for video, attributes in zip(videos, asked):
        frames = (255 * video).round().to(torch.uint8).permute(1, 2, 3, 0).numpy()
        seen = judge_video(frames, num_objects=1)
        right += seen.background == attributes.background
        right += seen.objects[0].color == attributes.objects[0].color
    assert right >= 11
