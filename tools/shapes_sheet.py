"""Contact sheets of unseen moving shapes: reconstructions, and two clips with swapped dynamics.

python tools/shapes_sheet.py --model checkpoints/shapes/autoencoder --output docs/images
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from vidtwin import VidTwinLatents
from vidtwin.data.synthetic.shapes import MovingShapes, ShapesConfig
from vidtwin.media import contact_sheet, from_uint8, to_uint8
from vidtwin.reconstruction import DECODED_PARTS, load_autoencoder
from vidtwin_lab import runtime

COLUMNS = 6


@torch.no_grad()
def main() -> None:
    """Writes shapes_sheet.png and shapes_swap.png."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder or run folder")
    parser.add_argument("--output", type=Path, required=True, help="folder of the pictures")
    parser.add_argument("--clips", type=int, nargs="+", default=[0, 6], help="of the test split")
    arguments = parser.parse_args()
    model, _ = load_autoencoder(arguments.model)
    sizes = model.sizes
    shapes = MovingShapes(
        ShapesConfig(
            num_frames=sizes.num_frames, height=sizes.height, width=sizes.width, split="test"
        )
    )
    arguments.output.mkdir(parents=True, exist_ok=True)
    rows = {}
    latents: list[VidTwinLatents] = []
    frames = []
    for number, index in enumerate(arguments.clips, start=1):
        clip = shapes.clip(index)
        print(f"{number}: {clip.caption}")
        latents.append(model.encode(from_uint8(clip.video)[None]).mode())
        frames.append(clip.video)
        rows[f"{number} input"] = clip.video
        for label, part in DECODED_PARTS.items():
            rows[f"{number} {label}"] = to_uint8(model.decode(latents[-1], part)[0])
    contact_sheet(rows, arguments.output / "shapes_sheet.png", num_columns=COLUMNS)
    first, second = latents[:2]
    swaps = {
        "1": frames[0],
        "2": frames[1],
        "structure 1, dynamics 2": to_uint8(model.decode(second.with_structure(first))[0]),
        "structure 2, dynamics 1": to_uint8(model.decode(first.with_structure(second))[0]),
    }
    contact_sheet(swaps, arguments.output / "shapes_swap.png", num_columns=COLUMNS)


if __name__ == "__main__":
    runtime.run_main(main)
