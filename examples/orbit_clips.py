"""Twenty clips of what the shipped pipeline has never seen, objects that go round in a circle.

    python examples/orbit_clips.py outputs/orbits

Each has a caption beside it. They stand for your own twenty clips in docs/recipes/lora.md.
"""

from __future__ import annotations

import argparse
import math
import random
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from vidtwin.data.synthetic.shapes.attributes import BACKGROUNDS, COLORS
from vidtwin.media import write_video

FRAMES, FPS, SIZE, SHARPER = 16, 8, 64, 4
CORNERS = {"circle": 90, "square": 4, "triangle": 3}


def draw(shape: str, color: str, background: str, radius: float, start: float) -> np.ndarray:
    """(T, H, W, 3) uint8: an object that goes once around the middle, as the hands of a clock do.

    Args:
        radius: of the object, in pixels.
        start: degrees from the right where it begins.
    """
    side, frames = SIZE * SHARPER, []
    for frame in range(FRAMES):
        angle = math.radians(start + 360 * frame / FRAMES)
        x, y = (side * (0.5 + 0.27 * each) for each in (math.cos(angle), math.sin(angle)))
        picture = Image.new("RGB", (side, side), BACKGROUNDS[background])
        pen = ImageDraw.Draw(picture)
        pen.regular_polygon((x, y, radius * SHARPER), CORNERS[shape], fill=COLORS[color])
        frames.append(np.asarray(picture.resize((SIZE, SIZE), Image.Resampling.BOX)))
    return np.stack(frames)


def main() -> None:
    """Writes 00.mp4 and 00.txt, 01.mp4, ..."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--clips", type=int, default=20)
    arguments = parser.parse_args()
    rng = random.Random(0)
    for number in range(arguments.clips):
        shape, color = list(CORNERS)[number % 3], list(COLORS)[number % len(COLORS)]
        background, article = rng.choice(list(BACKGROUNDS)), "an" if color == "orange" else "a"
        video = draw(shape, color, background, rng.uniform(9, 12), rng.uniform(0, 360))
        file = arguments.output / f"{number:02d}.mp4"
        write_video(file, video, FPS, crf=4)
        text = f"{article} {color} {shape} orbiting on a {background} background\n"
        file.with_suffix(".txt").write_text(text)


if __name__ == "__main__":
    main()
