"""Short clips for an autoencoder of real video, made from few photographs and videos.

A camera moves over a photograph; cut-outs of other photographs move over it; windows of videos are
taken at many places, scales and speeds. Rendered twice the size that a model of 64 x 64 takes, so
that H.264's halved chroma costs nothing.

    python tools/moving_pictures.py --photos PHOTOS --videos VIDEOS --output CLIPS --clips 6000

Axes: B one, C colour, T frames, H W pixels. Pictures are (C, H, W) in [0, 1].
"""

from __future__ import annotations

import argparse
import math
import random
from pathlib import Path

import numpy as np
import torch
from einops import rearrange, reduce, repeat
from numpy.typing import NDArray
from PIL import Image
from torch.nn.functional import affine_grid, grid_sample

from vidtwin.data.readers import iter_frames, read_video_info
from vidtwin.media import write_video
from vidtwin_lab import runtime

FRAMES, FPS = 16, 8
LONGEST_SIDE = 2048  # of a photograph as it is kept in memory
VIDEO_SIDE = 256  # short side of a video as it is kept in memory
VIDEO_FRAMES = 480
Pyramid = list[torch.Tensor]  # (T or 1, C, H, W), each half the size of the one before


def pyramid(frames: torch.Tensor) -> Pyramid:
    """The frames (T, C, H, W) at full size, half, quarter, ... down to about 32 pixels."""
    levels = [frames]
    while min(levels[-1].shape[-2:]) >= 64:
        even = levels[-1][..., : levels[-1].shape[-2] // 2 * 2, : levels[-1].shape[-1] // 2 * 2]
        levels.append(reduce(even, "t c (h a) (w b) -> t c h w", "mean", a=2, b=2))
    return levels


def read_photo(path: Path) -> Pyramid:
    """A photograph, at most LONGEST_SIDE pixels wide or high."""
    with Image.open(path) as picture:
        picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
        pixels = torch.from_numpy(np.array(picture.convert("RGB")))
    return pyramid(rearrange(pixels, "h w c -> 1 c h w").float() / 255)


def read_video(path: Path) -> torch.Tensor:
    """The first VIDEO_FRAMES frames of a video, (T, C, H, W) uint8, its short side VIDEO_SIDE."""
    info = read_video_info(path)
    scale = min(1.0, VIDEO_SIDE / min(info.height, info.width))
    size = (max(1, round(info.width * scale)), max(1, round(info.height * scale)))
    frames = [
        np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BOX))
        for frame in iter_frames(path, 0, VIDEO_FRAMES)
    ]
    return rearrange(torch.from_numpy(np.stack(frames)), "t h w c -> t c h w")


def camera_path(rng: random.Random, still: float = 0.15) -> torch.Tensor:
    """(T, 4) x, y, log zoom and angle, about 0 in the clip's middle; x, y in widths of the view."""
    time = torch.linspace(-0.5, 0.5, FRAMES)
    if rng.random() < still:
        return torch.zeros(FRAMES, 4)
    columns = []
    speed = math.exp(rng.uniform(math.log(0.05), math.log(1.0)))
    for reach in (speed, speed, 0.4 * speed, 0.3 * speed):
        sway = torch.sin(2 * math.pi * (rng.uniform(0.3, 1.5) * time + rng.random()))
        columns.append(rng.gauss(0, 0.5) * reach * time + rng.gauss(0, 0.08) * reach * sway)
    return torch.stack(columns, dim=1)


def view(levels: Pyramid, path: torch.Tensor, size: int, rng: random.Random) -> torch.Tensor:
    """(T, C, size, size): what a camera sees that follows the path over the picture.

    Args:
        levels: a photograph, or T frames.
        path: from `camera_path`.
        size: pixels along a side.
        rng: chooses where the view lies, and how much of the picture it shows.
    """
    height, width = levels[0].shape[-2:]
    extent = min(height, width) * math.exp(
        rng.uniform(math.log(min(0.9, 80 / min(height, width))), 0)
    )
    room = ((width - extent) / 2, (height - extent) / 2)
    centre = [rng.uniform(-each, each) for each in room]
    level = min(len(levels) - 1, max(0, math.floor(math.log2(extent / size))))
    x, y, zoom, angle = path.unbind(1)
    scale = torch.exp(zoom) * extent / 2
    # Rows of the affine map from the view in [-1, 1] to the picture in [-1, 1].
    cosine, sine = scale * torch.cos(angle), scale * torch.sin(angle)
    theta = torch.stack(
        [
            torch.stack([cosine, -sine, centre[0] + x * extent], 1) * (2 / width),
            torch.stack([sine, cosine, centre[1] + y * extent], 1) * (2 / height),
        ],
        dim=1,
    )
    grid = affine_grid(theta, [FRAMES, 3, size, size], align_corners=False)
    frames = levels[level].expand(FRAMES, -1, -1, -1)
    return grid_sample(frames, grid, padding_mode="reflection", align_corners=False)


def blob(path: torch.Tensor, size: int, rng: random.Random) -> torch.Tensor:
    """(T, 1, size, size) in [0, 1]: a soft-edged mask of random outline that follows the path."""
    axis = (torch.arange(size) + 0.5) / size - 0.5
    centre, radius = (rng.uniform(-0.4, 0.4), rng.uniform(-0.4, 0.4)), rng.uniform(0.08, 0.35)
    x = repeat(axis, "w -> t h w", t=FRAMES, h=size) - centre[0] - path[:, 0, None, None]
    y = repeat(axis, "h -> t h w", t=FRAMES, w=size) - centre[1] - path[:, 1, None, None]
    around = torch.atan2(y, x) + path[:, 3, None, None] * 4
    edge = torch.full_like(around, radius)
    for waves in range(2, 6):
        edge += radius * rng.gauss(0, 0.12) * torch.sin(waves * around + rng.uniform(0, 6.3))
    return torch.sigmoid((edge * torch.exp(path[:, 2, None, None]) - torch.hypot(x, y)) * size)[
        :, None
    ]


def recolour(frames: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """The frames in other light: brightness, contrast, saturation, the order of the colours."""
    if rng.random() < 0.3:
        frames = frames[:, rng.sample(range(3), 3)]
    grey = reduce(frames, "t c h w -> t 1 h w", "mean")
    frames = grey + (frames - grey) * rng.uniform(0.3, 1.3) * (rng.random() > 0.05)
    return ((frames - 0.5) * rng.uniform(0.6, 1.2) + 0.5 + rng.gauss(0, 0.1)).clamp(0, 1)


def clip(
    photos: list[Pyramid], videos: list[torch.Tensor], size: int, rng: random.Random
) -> NDArray[np.uint8]:
    """One clip, (T, H, W, 3) uint8."""
    if rng.random() < 0.4:
        video = rng.choice(videos)
        step = min(rng.choice([1, 1, 2, 2, 3, 4]), (len(video) - 1) // (FRAMES - 1))
        first = rng.randrange(len(video) - step * (FRAMES - 1))
        frames = video[first : first + step * FRAMES : step].float() / 255
        shake = camera_path(rng, still=0.7) * 0.3
        frames = view(pyramid(frames), shake, size, rng)
    else:
        frames = view(rng.choice(photos), camera_path(rng, still=0.3), size, rng)
        for _ in range(rng.choice([0, 0, 1, 2, 3])):
            path = camera_path(rng)
            texture = view(rng.choice(photos), path * rng.choice([0.0, 1.0]), size, rng)
            mask = blob(path, size, rng)
            frames = mask * recolour(texture, rng) + (1 - mask) * frames
    frames = recolour(frames, rng)
    if rng.random() < 0.5:
        frames = frames.flip(-1)
    return rearrange((frames * 255).round().byte(), "t c h w -> t h w c").numpy()


def main() -> None:
    """Writes 00000.mp4, 00001.mp4, ...; those that are there already are kept."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True, help="folder of .jpg and .png")
    parser.add_argument("--videos", type=Path, required=True, help="folder of videos")
    parser.add_argument("--output", type=Path, required=True, help="folder of the clips")
    parser.add_argument("--clips", type=int, default=6000)
    parser.add_argument("--size", type=int, default=128, help="pixels along a side")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    pictures = sorted(p for p in arguments.photos.iterdir() if p.suffix in {".jpg", ".png"})
    photos = [read_photo(path) for path in pictures]
    videos = [read_video(path) for path in sorted(arguments.videos.iterdir())]
    videos = [video for video in videos if len(video) >= FRAMES]
    if not photos or not videos:
        parser.error(f"found {len(photos)} photographs and {len(videos)} videos of {FRAMES} frames")
    for number in range(arguments.clips):
        path = arguments.output / f"{number:05d}.mp4"
        if not path.exists():
            rng = random.Random(f"{arguments.seed}/{number}")
            write_video(path, clip(photos, videos, arguments.size, rng), FPS, crf=8)


if __name__ == "__main__":
    runtime.run_main(main)
