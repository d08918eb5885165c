"""Clips a second from video files, by one process without workers.

Files are H.264 at 25 frames per second, 320 x 240 as in UCF-101, with a key frame every 12 frames:
ten seconds, and a long one. A clip is 16 frames at 8 frames per second from a random place.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np

from speed_parts.measuring import Found, Setting, ratio, seconds, side_by_side
from vidtwin.data import DataConfig, build_dataset
from vidtwin.data.frame_lists import KEPT

HEIGHT, WIDTH, RATE, KEY_EVERY = 240, 320, 25, 12
LENGTHS = {"10 s": 10, "4 min": 240}
SIZES = (224, 64)
CLIPS = 8
# How a file is read -> whether what is known of it is forgotten each time, and keys of the config.
WAYS: dict[str, tuple[bool, dict[str, Any]]] = {
    "for the first time": (True, {}),
    "again": (False, {}),
    "again, resize=cover_uint8": (False, {"resize": "cover_uint8"}),
}


def write_file(path: Path, length: int) -> None:
    """A video of so many seconds: a picture with detail that moves."""
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (HEIGHT // 8, 2 * WIDTH // 8, 3), dtype=np.uint8)
    wide = blocks.repeat(8, axis=0).repeat(8, axis=1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        stream.options = {"g": str(KEY_EVERY), "preset": "veryfast", "threads": "1"}
        for number in range(length * RATE):
            left = 2 * number % WIDTH
            picture = np.ascontiguousarray(wide[:, left : left + WIDTH])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def reader(path: Path, size: int, forgets: bool, options: dict[str, Any]) -> Callable[[], None]:
    """Reads some clips of a file, each time those of another epoch.

    Args:
        forgets: list the frames of the file for each clip anew.
        options: keys of the config.
    """
    sizes = {"height": size, "width": size}
    config = DataConfig(source="files", path=str(path), part="all", **sizes, **options)
    dataset = build_dataset(config)
    epochs = iter(range(10**6))

    def read() -> None:
        for _ in range(CLIPS):
            if forgets:
                KEPT.clear()
            dataset.get(0, next(epochs))

    return read


def measure(setting: Setting) -> Found:
    """A row for each length of file, size of clip and way to read."""
    lengths = {"1 s": 3} if setting.small else LENGTHS
    rows = []
    for name, length in lengths.items():
        path = setting.scratch / f"{length}.mp4"
        write_file(path, length)
        for size in SIZES:
            calls = {way: reader(path, size, *how) for way, how in WAYS.items()}
            turns = side_by_side(calls, setting.rounds)
            first = next(iter(turns.values()))
            rows += [
                {
                    "file": name,
                    "px": size,
                    "way": way,
                    "clips/s": CLIPS / seconds(found),
                    "time, ×": ratio(found, first),
                }
                for way, found in turns.items()
            ]
    return Found(rows=rows, protocol={"file": [HEIGHT, WIDTH], "rate": RATE, "clips": CLIPS})
