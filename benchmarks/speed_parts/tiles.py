"""Memory of reconstruct.py over the length of a video: windows come and go."""

from __future__ import annotations

from speed_parts.commands import run
from speed_parts.measuring import Found, Setting
from vidtwin.data import DataConfig, build_dataset
from vidtwin.media import to_uint8, write_video

FPS = 25


def measure(setting: Setting) -> Found:
    """A row for each length: the peak of the command, from its start to its end."""
    lengths = (1, 2) if setting.small else (10, 100)
    clip = to_uint8(build_dataset(DataConfig(source="shapes", height=64, width=96)).get(0)["video"])
    rows, peaks = [], []
    for length in lengths:
        video = setting.scratch / f"{length}.mp4"
        frames = (clip[index % len(clip)] for index in range(length * FPS))
        write_video(video, list(frames), FPS)
        arguments = [str(video), "--output", str(setting.scratch / "tiles"), "--lpips", "none"]
        ended = run(["reconstruct.py", *arguments])
        peaks.append(ended.peak)
        rows.append(
            {
                "video, s": length,
                "frames": length * FPS,
                "CPU s": ended.seconds,
                "peak, MiB": ended.peak / 2**20,
                "× the first's": ended.peak / peaks[0],
            }
        )
    return Found(rows=rows, protocol={"size": [64, 96], "fps": FPS, "model": "checkpoints/clips"})
