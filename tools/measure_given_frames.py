"""How well a pipeline goes on from given frames: each clip of the moving shapes' test split, its
frames taken away but for some, beside doing nothing and beside the autoencoder's own limit.

python tools/measure_given_frames.py --pipeline outputs/diffusion_shapes_frames/pipeline \
    --output outputs/given_frames

Writes given_frames.json, and given_frames.png of the first clips. All PSNR is of the frames that
were not given: `sampled` by the caption and what was given, `caption alone`, `held` (the nearest
given frame instead) and `reconstructed` (all frames encoded and decoded); of the squared error's
mean over clips, since a clip that stays still is infinitely right when held.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion import VidTwinPipeline
from diffusion.given_frames import filled_video, given_video
from vidtwin.data.synthetic.shapes import MovingShapes, ShapesConfig
from vidtwin.media import contact_sheet, from_uint8, to_uint8
from vidtwin_lab import runtime
from vidtwin_lab.evaluation.intervals import mean_interval


def regions(video: Tensor) -> dict[str, dict[str, Any]]:
    """What may be given of a (B, 3, T, H, W) video, by keyword of the pipeline."""
    first, last, half = video[:, :, 0], video[:, :, -1], video[:, :, : video.shape[2] // 2]
    return {
        "first frame": {"first_frame": first},
        "last frame": {"last_frame": last},
        "both ends": {"first_frame": first, "last_frame": last},
        "first half": {"prefix": half},
    }


def psnr_interval(errors: list[float]) -> dict[str, float]:
    """PSNR of the mean of squared errors over [-1, 1], with its interval, in dB."""
    found = mean_interval(errors)
    levels = {"value": "value", "low": "high", "high": "low"}
    decibels = {name: -10 * math.log10(found[of] / 4) for name, of in levels.items()}
    return decibels | {"n": found["n"]}


@torch.no_grad()
def main() -> None:
    """Measures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pipeline", required=True, help="folder")
    parser.add_argument("--output", type=Path, required=True, help="folder")
    parser.add_argument("--clips", type=int, default=200, help="(%(default)s)")
    parser.add_argument("--steps", type=int, default=15, help="(%(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, help="(%(default)s)")
    arguments = parser.parse_args()
    pipeline = VidTwinPipeline.from_pretrained(arguments.pipeline)
    pipeline.set_progress_bar_config(disable=True)
    sizes = pipeline.autoencoder.sizes
    shapes = MovingShapes(
        ShapesConfig(
            num_frames=sizes.num_frames, height=sizes.height, width=sizes.width, split="test"
        )
    )
    found: dict[str, dict[str, list[float]]] = {}
    rows = {}
    for start in range(0, arguments.clips, arguments.batch_size):
        numbers = range(start, min(start + arguments.batch_size, arguments.clips))
        clips = [shapes.clip(index) for index in numbers]
        video = torch.stack([from_uint8(clip.video) for clip in clips])
        captions = [clip.caption for clip in clips]
        options: dict[str, Any] = {"num_inference_steps": arguments.steps, "seed": list(numbers)}
        alone = 2 * pipeline(captions, **options).videos - 1
        decoded = pipeline.autoencoder.decode(pipeline.autoencoder.encode(video).mode())
        for name, given in regions(video).items():
            sampled = 2 * pipeline(captions, **given, **options).videos - 1
            first, last, prefix = map(given.get, ("first_frame", "last_frame", "prefix"))
            known = given_video(first, last, prefix, video.shape[1:])
            assert known is not None
            begun, frames = known
            held = filled_video(begun, frames.expand(len(video), -1))
            made = {
                "sampled": sampled,
                "caption alone": alone,
                "held": held,
                "reconstructed": decoded,
            }
            for kind, other in made.items():
                values = (video - other.clamp(-1, 1))[:, :, ~frames].square().mean((1, 2, 3, 4))
                found.setdefault(name, {}).setdefault(kind, []).extend(values.tolist())
            if start == 0:
                for index in range(2):
                    rows[f"{index + 1} clip"] = to_uint8(video[index])
                    rows[f"{index + 1} from {name}"] = to_uint8(sampled[index].clamp(-1, 1))
        print(f"{numbers.stop} of {arguments.clips}", flush=True)
    table = {
        name: {kind: psnr_interval(values) for kind, values in kinds.items()}
        for name, kinds in found.items()
    }
    protocol = {key: str(value) for key, value in vars(arguments).items() if key != "output"}
    arguments.output.mkdir(parents=True, exist_ok=True)
    contact_sheet(dict(sorted(rows.items())), arguments.output / "given_frames.png", num_columns=8)
    text = json.dumps({"protocol": protocol, "psnr": table}, indent=2) + "\n"
    (arguments.output / "given_frames.json").write_text(text, encoding="utf-8")
    for name, kinds in table.items():
        told = ", ".join(f"{kind} {value['value']:.2f}" for kind, value in kinds.items())
        print(f"{name}: {told} dB")


if __name__ == "__main__":
    runtime.run_main(main)
