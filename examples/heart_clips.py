"""Twenty clips of what the shipped pipeline has never seen, a heart, each with a caption beside it.

    python examples/heart_clips.py outputs/hearts

They stand for your own twenty clips in docs/recipes/lora.md.
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
# Motion -> how far it goes to the right and down (of the picture's side), how much it grows.
MOTIONS = {
    "moving left": (-0.5, 0.0, 0.0),
    "moving right": (0.5, 0.0, 0.0),
    "moving up": (0.0, -0.5, 0.0),
    "moving down": (0.0, 0.5, 0.0),
    "growing": (0.0, 0.0, 0.7),
    "shrinking": (0.0, 0.0, -0.7),
    "staying still": (0.0, 0.0, 0.0),
}


def heart(x: float, y: float, radius: float) -> list[tuple[float, float]]:
    """The outline of a heart around a point, all in pixels."""
    angles = [2 * math.pi * k / 80 for k in range(80)]
    across = [16 * math.sin(a) ** 3 for a in angles]
    up = [
        13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)
        for a in angles
    ]
    return [
        (x + radius * a / 17, y - radius * (b + 2.5) / 17) for a, b in zip(across, up, strict=True)
    ]


def draw(color: str, motion: str, background: str, radius: float) -> np.ndarray:
    """(T, H, W, 3) uint8: a heart of a radius in pixels that moves through the middle."""
    frames = []
    right, down, growth = MOTIONS[motion]
    side = SIZE * SHARPER
    for time in np.linspace(-0.5, 0.5, FRAMES):
        picture = Image.new("RGB", (side, side), BACKGROUNDS[background])
        outline = heart(
            side * (0.5 + right * time),
            side * (0.5 + down * time),
            radius * SHARPER * (1 + growth * time),
        )
        ImageDraw.Draw(picture).polygon(outline, fill=COLORS[color])
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
        color = list(COLORS)[number % len(COLORS)]
        motion = list(MOTIONS)[number % len(MOTIONS)]
        article = "an" if color == "orange" else "a"
        background = rng.choice(list(BACKGROUNDS))
        file = arguments.output / f"{number:02d}.mp4"
        write_video(file, draw(color, motion, background, rng.uniform(11, 16)), FPS, crf=4)
        file.with_suffix(".txt").write_text(
            f"{article} {color} heart {motion} on a {background} background\n"
        )


if __name__ == "__main__":
    main()
