"""What adapters of docs/recipes/lora.md do: objects asked to go round in a circle, and what the
pipeline could do before, without the adapters and with them at several strengths.

python tools/measure_lora.py --lora outputs/lora/lora --output outputs/lora_measured

Writes lora.json. `orbits` is the share of videos whose object goes around at least half of the area
of a circle: the twenty clips do (0.97 of it), of 200 clips of the shapes' own motions none (0.19 at
most). `others` is the share of videos of the test split's prompts that are in all as they say, by
the judge of docs/results/shapes.md. All strengths have the same prompts and noise.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from diffusion import VidTwinPipeline
from diffusion.lora import load_adapters
from vidtwin.data.synthetic.shapes import MovingShapes, ShapesConfig
from vidtwin.data.synthetic.shapes.attributes import BACKGROUNDS, COLORS, SHAPES
from vidtwin.media import to_uint8
from vidtwin_lab import runtime
from vidtwin_lab.evaluation.intervals import share_of
from vidtwin_lab.evaluation.judges.shapes_judge import find_objects, judge_video

ROUND = 0.5
Videos = list[NDArray[np.uint8]]


def roundness(video: NDArray[np.uint8]) -> float:
    """The area around which the object of a (T, H, W, 3) video goes, over that of a circle of its
    mean distance: 1 for once around a circle, 0 for a straight way, there or there and back."""
    _, found = find_objects(video, 1)
    if not found:
        return 0.0
    x, y = (each - each.mean() for each in (found[0].track.x, found[0].track.y))
    distance = float(np.mean(x**2 + y**2))
    # What hardly moves goes round nothing.
    if math.sqrt(distance) < 0.1 * video.shape[2]:
        return 0.0
    area = abs(float(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)))) / 2
    return area / (math.pi * distance)


def sampled(pipeline: VidTwinPipeline, prompts: list[str], steps: int) -> Videos:
    """A (T, H, W, 3) video of each prompt, of seeds 0, 1, ..."""
    made: Videos = []
    for start in range(0, len(prompts), 8):
        seeds = list(range(start, min(start + 8, len(prompts))))
        asked = prompts[start : start + 8]
        videos = pipeline(asked, seed=seeds, num_inference_steps=steps).videos
        made += [to_uint8(2 * video - 1) for video in videos]
    return made


@torch.no_grad()
def main() -> None:
    """Measures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pipeline", default="checkpoints/shapes", help="(%(default)s)")
    parser.add_argument("--lora", type=Path, required=True, help="folder of the adapters")
    parser.add_argument("--output", type=Path, required=True, help="folder")
    parser.add_argument("--prompts", type=int, default=64, help="of each kind (%(default)s)")
    parser.add_argument("--steps", type=int, default=15, help="(%(default)s)")
    parser.add_argument("--scales", type=float, nargs="+", default=[0.0, 0.5, 1.0])
    arguments = parser.parse_args()
    pipeline = VidTwinPipeline.from_pretrained(arguments.pipeline)
    pipeline.set_progress_bar_config(disable=True)
    worlds = list(itertools.product(COLORS, SHAPES, BACKGROUNDS))
    order = np.random.default_rng(0).permutation(len(worlds))[: arguments.prompts]
    orbits = [
        f"a {color} {shape} orbiting on a {background} background"
        for color, shape, background in (worlds[index] for index in order)
    ]
    shapes = MovingShapes(ShapesConfig(max_objects=1, split="test", wordings="test"))
    clips = [shapes.clip(index) for index in range(arguments.prompts)]
    found = {}
    for scale in arguments.scales:
        if scale:
            load_adapters(pipeline, [(arguments.lora, scale)])
        rounds = [roundness(video) for video in sampled(pipeline, orbits, arguments.steps)]
        others = sampled(pipeline, [clip.caption for clip in clips], arguments.steps)
        verdicts = [
            judge_video(video, 1).against(clip.attributes)
            for video, clip in zip(others, clips, strict=True)
        ]
        found[scale] = {
            "orbits": share_of(each >= ROUND for each in rounds),
            "others": share_of(all(verdict.values()) for verdict in verdicts),
            "roundness": [round(each, 2) for each in rounds],
        }
        print(scale, found[scale]["orbits"], found[scale]["others"], flush=True)
        if scale:
            pipeline.unload_lora_weights()
    arguments.output.mkdir(parents=True, exist_ok=True)
    report = {
        "protocol": {key: str(value) for key, value in vars(arguments).items()},
        "found": found,
    }
    (arguments.output / "lora.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    runtime.run_main(main)
