"""The pictures of docs/concepts.md and docs/gallery.md: parts, a swap, a slider, videos by prompt.

    python tools/concept_pictures.py
    python tools/concept_pictures.py --pipeline outputs/diffusion_shapes/pipeline --output pictures

All are of the shipped pipeline and of two clips that its training never showed; the first seeds,
none chosen.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from diffusion import VidTwinPipeline
from vidtwin.data.synthetic.shapes import MovingShapes, ShapesConfig
from vidtwin.files import shipped_path
from vidtwin.media import contact_sheet, from_uint8, to_uint8, write_gif
from vidtwin.reconstruction import DECODED_PARTS
from vidtwin_lab import runtime

PROMPT = "a blue square moving right on a gray background"
GALLERY = (
    "a red circle moving left on a black background",
    "a yellow star growing on a navy background",
    "a green square bouncing up and down on a tan background",
    "a white cross moving up on a maroon background",
    "a blue ring bouncing left and right on a gray background",
    "an orange triangle shrinking on a dark green background",
    "a pink star moving right on a black background",
    "a cyan cross turning clockwise on a navy background",
)
COLUMNS, CELL, GAP = 8, 96, 2
Rows = dict[str, NDArray[np.uint8]]


@torch.no_grad()
def clip_pictures(pipeline: VidTwinPipeline, indices: Sequence[int]) -> dict[str, Rows]:
    """Rows of three pictures of two clips: the first one's parts, their swap, samples around it."""
    model, sizes = pipeline.autoencoder, pipeline.autoencoder.sizes
    shapes = MovingShapes(
        ShapesConfig(
            num_frames=sizes.num_frames, height=sizes.height, width=sizes.width,
            split="test", textured_fraction=0.0, max_objects=1,
        )
    )  # fmt: skip
    clips = [shapes.clip(index).video for index in indices]
    a, b = (model.encode(from_uint8(clip)[None]).mode() for clip in clips)

    def decoded(latents: Any, part: str = "both") -> NDArray[np.uint8]:
        return to_uint8(model.decode(latents, part)[0])

    parts = {label: decoded(a, part) for label, part in DECODED_PARTS.items()}
    swap = {
        "A": clips[0],
        "B": clips[1],
        "structure A, dynamics B": decoded(b.with_structure(a)),
        "structure B, dynamics A": decoded(a.with_structure(b)),
    }
    held = {
        "A": clips[0],
        "structure of A, seed 0": sampled(pipeline, structure=a, seed=0),
        "structure of A, seed 1": sampled(pipeline, structure=a, seed=1),
        "dynamics of A, seed 0": sampled(pipeline, dynamics=a, seed=0),
        "dynamics of A, seed 1": sampled(pipeline, dynamics=a, seed=1),
    }
    return {"parts": {"clip": clips[0], **parts}, "swap": swap, "held": held}


def sampled(pipeline: VidTwinPipeline, **options: Any) -> NDArray[np.uint8]:
    """(T, H, W, 3): one video."""
    return to_uint8(2 * pipeline(**options).videos[0] - 1)


def slider(pipeline: VidTwinPipeline) -> Rows:
    """Rows of one prompt and seed with more and more motion."""
    return {
        f"motion scale {scale:g}": sampled(pipeline, prompt=PROMPT, seed=0, motion_scale=scale)
        for scale in (0.0, 0.5, 1.0, 1.5)
    }


def grid(videos: Sequence[NDArray[np.uint8]], columns: int = 4) -> NDArray[np.uint8]:
    """(T, H, W, 3): videos side by side in rows, with white between them."""
    edge = ((0, 0), (GAP, GAP), (GAP, GAP), (0, 0))
    cells = [np.pad(video, edge, constant_values=255) for video in videos]
    lines = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    return np.concatenate([np.concatenate(line, axis=2) for line in lines], axis=1)


def main(argv: Sequence[str] | None = None) -> None:
    """Writes concepts_*.png and gallery.gif."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pipeline", type=Path, default=shipped_path("checkpoints/shapes"))
    parser.add_argument("--output", type=Path, default=Path("docs/images"))
    parser.add_argument("--clips", type=int, nargs=2, default=[39, 34], help="of the test split")
    arguments = parser.parse_args(argv)
    pipeline = VidTwinPipeline.from_pretrained(arguments.pipeline)
    pipeline.set_progress_bar_config(disable=True)
    arguments.output.mkdir(parents=True, exist_ok=True)
    pictures = clip_pictures(pipeline, arguments.clips) | {"motion": slider(pipeline)}
    for name, rows in pictures.items():
        path = arguments.output / f"concepts_{name}.png"
        print(contact_sheet(rows, path, num_columns=COLUMNS, cell_height=CELL))
    videos = [sampled(pipeline, prompt=prompt, seed=n) for n, prompt in enumerate(GALLERY)]
    fps = pipeline.config["fps"] or 8.0
    print(write_gif(arguments.output / "gallery.gif", grid(videos), fps))


if __name__ == "__main__":
    runtime.run_main(main)
