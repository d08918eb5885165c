"""The videos named on a command line, where their results go, and their frames as streams.

Axes: T frames, H W pixels.
"""

from __future__ import annotations

import glob
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray

from vidtwin.data.bad_files import UnusableVideo
from vidtwin.data.folders import videos_below
from vidtwin.data.frames import fit_frame, nearest_frames
from vidtwin.data.readers import iter_frames, read_video_info

__all__ = ["InputVideo", "OpenVideo", "find_videos", "fit_uint8", "open_video"]

# Names of our own results; such a file is one if its contact sheet lies beside it.
RESULT = re.compile(
    r"(?P<stem>.+)\.(reconstruction|structure|dynamics|(structure|dynamics)_of_.+)\.mp4"
)


@dataclass(frozen=True)
class InputVideo:
    """One video and where its results go.

    Args:
        source: the video.
        target: folder and stem of every result.
    """

    source: Path
    target: Path

    def result(self, ending: str) -> Path:
        """The result's path: `target` with this ending."""
        return self.target.with_name(f"{self.target.name}.{ending}")


def find_videos(
    inputs: Sequence[str], output: Path | None
) -> tuple[list[InputVideo], list[tuple[str, str]]]:
    """The videos that the inputs name, and the inputs that name no video.

    Args:
        inputs: files, folders (searched recursively, except for our own results) and patterns.
        output: folder for the results, with the subfolders of the inputs; None puts each result
            beside its video.
    Returns:
        The videos, each with its own target, and (input, reason) pairs.
    """
    found: list[tuple[Path, Path]] = []  # the file, its place below the output folder
    failed: list[tuple[str, str]] = []
    for name in inputs:
        path = Path(name).expanduser()
        if path.is_dir():
            inside = [video for video in videos_below(path) if not _is_result(video)]
            found += [(video, video.relative_to(path)) for video in inside]
            if not inside:
                failed.append((name, "no videos in this folder"))
        elif path.exists():
            found.append((path, Path(path.name)))
        else:
            matches = sorted(filter(Path.is_file, map(Path, glob.glob(str(path), recursive=True))))
            found += [(match, Path(match.name)) for match in matches]
            if not matches:
                failed.append((name, "no such file"))
    videos: dict[Path, InputVideo] = {}
    targets: set[Path] = set()
    for source, place in found:
        key = source.resolve()
        if key in videos:
            continue
        full = (output / place) if output is not None else source
        target = full.with_suffix("")
        number = 1
        while target in targets:  # x.mp4 and x.avi, or a/x.mp4 and b/x.mp4 in one folder
            number += 1
            target = full if number == 2 else full.with_name(f"{full.name}-{number}")
        targets.add(target)
        videos[key] = InputVideo(source, target)
    return list(videos.values()), failed


@dataclass(frozen=True, kw_only=True)
class OpenVideo:
    """A video ready to be read, its frames selected and resized.

    Args:
        path: the file.
        fps: frames per second of `frames`.
        source_fps: frames per second of the file.
        total: number of frames.
        size: (H, W) of a frame.
        backend: the library that decodes it.
        frames: (H, W, 3) uint8 each; can be read once.
    """

    path: Path
    fps: float
    source_fps: float
    total: int
    size: tuple[int, int]
    backend: str
    frames: Iterator[NDArray[np.uint8]]


def open_video(
    path: Path,
    fps: float | None = None,
    max_frames: int | None = None,
    size: tuple[int, int] | None = None,
) -> OpenVideo:
    """A video's frames as a stream, in memory that doesn't grow with its length.

    Args:
        path: the file.
        fps: take the frames nearest to multiples of 1 / fps seconds, at most the file's own rate;
            None takes all.
        max_frames: stop after this many.
        size: (H, W) to scale to (short side, then centre crop); None keeps the video's own.
    Raises:
        UnusableVideo: if the file can't be read as a video or has a lower rate than `fps`.
    """
    info = read_video_info(path)
    # 30 fps may be requested of a file with 29.97.
    if fps is not None and fps > info.fps * 1.002:
        raise UnusableVideo(str(path), f"has {info.fps:.6g} frames per second, fewer than {fps:g}")
    if fps is None:
        indices = np.arange(info.num_frames)
    else:
        instants = np.arange(max(1, math.ceil(info.duration * fps - 1e-6))) / fps
        indices = nearest_frames(info.timestamps, instants)
    indices = indices[:max_frames]
    frames = _pick(iter_frames(path, stop=int(indices[-1]) + 1), indices)
    height, width = size or (info.height, info.width)
    if size is not None:
        frames = (fit_uint8(frame, height, width) for frame in frames)
    return OpenVideo(
        path=path,
        fps=fps or info.fps,
        source_fps=info.fps,
        total=len(indices),
        size=(height, width),
        backend=info.backend,
        frames=frames,
    )


def fit_uint8(frame: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """The frame scaled to cover height x width, then centre-cropped; (H, W, 3) uint8."""
    if frame.shape[:2] == (height, width):
        return frame
    pixels = fit_frame(frame, height, width).round().clamp(0, 255).to(torch.uint8)
    return rearrange(pixels, "c h w -> h w c").contiguous().numpy()


def _pick(
    frames: Iterator[NDArray[np.uint8]], indices: NDArray[np.intp]
) -> Iterator[NDArray[np.uint8]]:
    """The frames with these non-decreasing indices; a repeated index repeats its frame."""
    wanted = iter(indices.tolist())
    next_index = next(wanted, None)
    for index, frame in enumerate(frames):
        while next_index == index:
            yield frame
            next_index = next(wanted, None)


def _is_result(path: Path) -> bool:
    """Whether we wrote the file: a second run on a folder must not take its results as input."""
    match = RESULT.fullmatch(path.name)
    return match is not None and any(path.parent.glob(f"{glob.escape(match['stem'])}.*sheet.png"))
