"""Measures, with the judge of the moving shapes, how much of what was asked for a model shows.

    python benchmarks/measure_adherence.py --pipeline checkpoints/shapes --mode prompt \
        --samples 256 --output docs/results/shapes_prompt.json

Modes, each on the attributes that were asked for or that were to be kept:
    prompt          videos of captions: colour, shape, motion, background
    structure-from  a rendered clip's structure, sampled dynamics: colour, shape, background
    dynamics-from   a rendered clip's dynamics, sampled structure: motion
    reconstruction  clips through the autoencoder alone: what the other modes can reach
Beside the JSON stands a CSV with one line per video.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import runtime
from diffusion import VidTwinPipeline
from diffusion.pipeline import GUIDANCE_SCALE, NUM_INFERENCE_STEPS
from vidtwin import VidTwinAutoencoder
from vidtwin.media import contact_sheet, from_uint8, to_uint8
from vidtwin.reconstruction import load_autoencoder, software_versions, weights_digest
from vidtwin.shapes import SPLITS, WORDINGS, MovingShapes, ShapesClip, ShapesConfig
from vidtwin.shapes.judge import Judgement, judge_video

OBJECT = ("color", "shape", "motion")
JUDGED: dict[str, tuple[str, ...]] = {
    "prompt": (*OBJECT, "background"),
    "structure-from": ("color", "shape", "background"),
    "dynamics-from": ("motion",),
    "reconstruction": (*OBJECT, "background"),
}
PARTS = ("autoencoder", "transformer", "latent_stats", "text_encoder")
FAILURES_SHOWN = 16


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--pipeline", required=True, help="folder; for reconstruction, an autoencoder's also does"
    )
    parser.add_argument("--mode", choices=JUDGED, default="prompt")
    parser.add_argument("--samples", type=int, default=256, help="videos")
    parser.add_argument("--split", choices=SPLITS, default="test", help="of the attributes")
    parser.add_argument("--wordings", choices=WORDINGS, default="test", help="of the prompts")
    parser.add_argument("--max-objects", type=int, choices=(1, 2), default=1)
    parser.add_argument("--steps", type=int, default=NUM_INFERENCE_STEPS)
    parser.add_argument("--guidance-scale", type=float, default=GUIDANCE_SCALE)
    parser.add_argument("--seed", type=int, default=0, help="of the clips, and of the first video")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, required=True, help="JSON file")
    parser.add_argument("--failures", type=Path, help="PNG file of videos judged wrong")
    arguments = parser.parse_args()
    if arguments.samples < 1 or arguments.batch_size < 1:
        parser.error("--samples and --batch-size must be at least 1")
    if arguments.output.suffix != ".json":
        parser.error(f"--output must be a .json file, got {arguments.output}")
    return arguments


def load(arguments: argparse.Namespace) -> tuple[VidTwinPipeline | None, VidTwinAutoencoder]:
    """The pipeline, unless the mode needs none, and the autoencoder; in float32."""
    if arguments.mode == "reconstruction":
        model, _ = load_autoencoder(arguments.pipeline)
        return None, model.float().eval().to(arguments.device)
    pipe = VidTwinPipeline.from_pretrained(arguments.pipeline)
    pipe.to(arguments.device)
    pipe.set_progress_bar_config(disable=True)
    return pipe, pipe.autoencoder


@torch.no_grad()
def make_videos(
    arguments: argparse.Namespace,
    pipe: VidTwinPipeline | None,
    model: VidTwinAutoencoder,
    clips: Sequence[ShapesClip],
    seeds: list[int],
) -> np.ndarray:
    """(B, T, H, W, 3) uint8: one video for each clip, from the noise of its own seed."""
    originals = torch.stack([from_uint8(clip.video) for clip in clips]).to(arguments.device)
    if pipe is None:
        videos = model.decode(model.encode(originals).mode()).cpu()
        return np.stack([to_uint8(video) for video in videos])
    sampling: dict[str, Any] = {"num_inference_steps": arguments.steps, "seed": seeds}
    if arguments.mode == "prompt":
        sampling["prompt"] = [clip.caption for clip in clips]
        sampling["guidance_scale"] = arguments.guidance_scale
    else:  # without a prompt there is nothing to guide
        sampling[arguments.mode.removesuffix("-from")] = originals
        sampling["guidance_scale"] = 1.0
    output: Any = pipe(**sampling, output_type="pt")
    return np.stack([to_uint8(2 * video.cpu() - 1) for video in output.videos])


def measure(
    arguments: argparse.Namespace, data: MovingShapes, pipe: Any, model: VidTwinAutoencoder
) -> Iterator[tuple[dict[str, Any], ShapesClip, Judgement, np.ndarray]]:
    """(line of the CSV, clip, what was seen, video) of each sample."""
    match_by = [name for name in JUDGED[arguments.mode] if name in OBJECT]
    for start in tqdm(range(0, len(data), arguments.batch_size), unit="batch"):
        indices = range(start, min(start + arguments.batch_size, len(data)))
        clips = [data.clip(index) for index in indices]
        seeds = [arguments.seed + index for index in indices]
        videos = make_videos(arguments, pipe, model, clips, seeds)
        for index, seed, clip, video in zip(indices, seeds, clips, videos, strict=True):
            attributes = clip.attributes
            seen = judge_video(video, len(attributes.objects))
            verdict = seen.against(attributes, match_by)
            verdict = {name: verdict[name] for name in JUDGED[arguments.mode]}
            row = {
                "index": index,
                "seed": seed,
                "caption": clip.caption,
                "asked": describe(attributes.objects, attributes.background),
                "texture": attributes.texture,
                "seen": describe(seen.objects, seen.background),
                **{name: int(right) for name, right in verdict.items()},
                "all": int(all(verdict.values())),
                "number": int(len(judge_video(video).objects) == len(attributes.objects)),
            }
            yield row, clip, seen, video


def describe(objects: Sequence[Any], background: str | None) -> str:
    """Objects and background in one cell."""
    each = [f"{item.color}/{item.shape}/{item.motion}" for item in objects]
    return "; ".join([*each, f"on {background}"])


def wilson(right: int, number: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % confidence interval of a share."""
    share = right / number
    center = (share + z * z / (2 * number)) / (1 + z * z / number)
    half = z * math.sqrt(share * (1 - share) / number + z * z / (4 * number * number))
    half /= 1 + z * z / number
    return max(0.0, center - half), min(1.0, center + half)


def summarize(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Share, interval and counts of each attribute, of all of them together, and of the videos in
    which the judge, if it isn't told, counts as many objects as were asked for."""
    found = {}
    for name in (*names, "all", "number"):
        right = sum(row[name] for row in rows)
        found[name] = {
            "share": right / len(rows),
            "interval_95": wilson(right, len(rows)),
            "right": right,
            "n": len(rows),
        }
    return found


def confusions(
    pairs: Sequence[tuple[ShapesClip, Judgement]], names: Sequence[str]
) -> dict[str, dict[str, int]]:
    """How often "asked -> seen", where they differ, in clips of one object."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in names}
    for clip, seen in pairs:
        if len(clip.attributes.objects) > 1:
            continue
        for name in names:
            holders: tuple[Any, Any] = (clip.attributes, seen)
            if name in OBJECT:
                holders = (clip.attributes.objects[0], seen.objects[0])
            asked, came = (getattr(holder, name) for holder in holders)
            if asked != came:
                counts[name][f"{asked} -> {came}"] += 1
    return {name: dict(count.most_common()) for name, count in counts.items()}


def protocol(
    arguments: argparse.Namespace, data: MovingShapes, pipe: Any, model: VidTwinAutoencoder
) -> dict[str, Any]:
    """Everything that the figures depend on."""
    parts: dict[str, Any] = {"autoencoder": model}
    sampling: dict[str, Any] = {}
    if pipe is not None:
        parts = {name: getattr(pipe, name) for name in PARTS if getattr(pipe, name) is not None}
        sampling = {
            "steps": arguments.steps,
            "guidance_scale": arguments.guidance_scale if arguments.mode == "prompt" else None,
            "scheduler": type(pipe.scheduler).__name__,
            "seeds": [arguments.seed, arguments.seed + len(data) - 1],
        }
    return {
        "mode": arguments.mode,
        "n": len(data),
        "judge": "vidtwin.shapes.judge on uint8 frames, told how many objects but for `number`",
        "posterior": "mode",
        "data": runtime.config_to_dict(data.config),
        **sampling,
        "batch_size": arguments.batch_size,
        "dtype": "float32",
        "device": str(arguments.device),
        "pipeline": arguments.pipeline,
        "weights_sha256": {name: weights_digest(part) for name, part in parts.items()},
        "software": software_versions(),
    }


def main() -> None:
    arguments = parse_arguments()
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    pipe, model = load(arguments)
    sizes = model.sizes
    config = ShapesConfig(
        num_frames=sizes.num_frames,
        height=sizes.height,
        width=sizes.width,
        size=arguments.samples,
        seed=arguments.seed,
        max_objects=arguments.max_objects,
        split=arguments.split,
        wordings=arguments.wordings,
    )
    data, names = MovingShapes(config), JUDGED[arguments.mode]
    rows: list[dict[str, Any]] = []
    pairs: list[tuple[ShapesClip, Judgement]] = []
    failures: dict[str, np.ndarray] = {}
    for row, clip, seen, video in measure(arguments, data, pipe, model):
        rows.append(row)
        pairs.append((clip, seen))
        if not row["all"] and len(failures) < FAILURES_SHOWN:
            failures[f"{row['index']} {row['asked']}"] = video
    record = {
        "found": summarize(rows, names),
        "by_number_of_objects": {
            str(number): summarize(chosen, names)
            for number in (1, 2)
            if (
                chosen := [
                    row
                    for row, (clip, _) in zip(rows, pairs, strict=True)
                    if len(clip.attributes.objects) == number
                ]
            )
        },
        "confusions_one_object": confusions(pairs, names),
        "protocol": protocol(arguments, data, pipe, model),
    }
    arguments.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    with arguments.output.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    if arguments.failures is not None and failures:
        contact_sheet(failures, arguments.failures)
    print_row(arguments, record["found"])


def print_row(arguments: argparse.Namespace, found: dict[str, dict[str, Any]]) -> None:
    """A Markdown table of one line, in percent."""
    cells = {"mode": arguments.mode, "split": arguments.split, "n": str(arguments.samples)}
    for name, value in found.items():
        low, high = (100 * bound for bound in value["interval_95"])
        cells[name] = f"{100 * value['share']:.1f} ({low:.1f} to {high:.1f})"
    for line in (cells.keys(), ["-"] * len(cells), cells.values()):
        print(f"| {' | '.join(line)} |")


if __name__ == "__main__":
    runtime.run_main(main)
