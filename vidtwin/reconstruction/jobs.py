"""Which videos a script was asked for, where their results go, and their frames as streams.

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
from vidtwin.data.file_sources import videos_below
from vidtwin.data.frames import fit_frame, nearest_frames
from vidtwin.data.readers import iter_frames, read_video_info

__all__ = ["Job", "OpenVideo", "find_jobs", "fit_uint8", "open_video"]

# A result of ours, by its name; it counts as one if a sheet of the same video lies beside it.
RESULT = re.compile(
    r"(?P<stem>.+)\.(reconstruction|structure|dynamics|(structure|dynamics)_of_.+)\.mp4"
)


@dataclass(frozen=True)
class Job:
    """One video and where its results go.

    Args:
        source: the video.
        target: folder and first part of the name of every result.
    """

    source: Path
    target: Path

    def result(self, ending: str) -> Path:
        """The result's path: `target` with this ending."""
        return self.target.with_name(f"{self.target.name}.{ending}")


def find_jobs(
    inputs: Sequence[str], output: Path | None
) -> tuple[list[Job], list[tuple[str, str]]]:
    """The videos that the inputs name, and the inputs that name none.

    Args:
        inputs: files, folders (searched through, our own results left out) and patterns.
        output: folder for the results, which keeps the folders' structure; None puts them
            beside each original.
    Returns:
        Jobs, each with its own target, and (input, reason) pairs.
    """
    found: list[tuple[Path, Path]] = []  # the file, its place below the output folder
    failed: list[tuple[str, str]] = []
    for name in inputs:
        path = Path(name).expanduser()
        if path.is_dir():
            videos = _sources_below(path)
            found += [(video, video.relative_to(path)) for video in videos]
            if not videos:
                failed.append((name, "no videos in this folder"))
        elif path.exists():
            found.append((path, Path(path.name)))
        else:
            matches = sorted(filter(Path.is_file, map(Path, glob.glob(str(path), recursive=True))))
            found += [(match, Path(match.name)) for match in matches]
            if not matches:
                failed.append((name, "no such file"))
    jobs: dict[Path, Job] = {}
    targets: set[Path] = set()
    for source, place in found:
        key = source.resolve()
        if key in jobs:
            continue
        full = (output / place) if output is not None else source
        target = full.with_suffix("")
        number = 1
        while target in targets:  # x.mp4 and x.avi, or a/x.mp4 and b/x.mp4 in one folder
            number += 1
            target = full if number == 2 else full.with_name(f"{full.name}-{number}")
        targets.add(target)
        jobs[key] = Job(source, target)
    return list(jobs.values()), failed


@dataclass(frozen=True, kw_only=True)
class OpenVideo:
    """A video about to be read, after its frames were chosen and fitted.

    Args:
        path: the file.
        fps: frames per second of what is read.
        source_fps: frames per second of the file.
        total: how many frames there are.
        size: (H, W) of a frame.
        backend: what decodes it.
        frames: (H, W, 3) uint8 each, to be read once.
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
    """A video's frames as a stream; memory does not grow with its length.

    Args:
        path: the file.
        fps: take the frames nearest to instants 1 / fps apart, not more than the file has a
            second; None takes all.
        max_frames: stop after so many.
        size: (H, W) to scale to (short side, then centre crop); None keeps the video's own.
    Raises:
        UnusableVideo: if the file can't be read as a video or has a lower rate than `fps`.
    """
    info = read_video_info(path)
    # 30 frames a second may be asked of 29.97.
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
    """The frame scaled until it covers height x width, the centre cut out; (H, W, 3) uint8."""
    if frame.shape[:2] == (height, width):
        return frame
    pixels = fit_frame(frame, height, width).round().clamp(0, 255).to(torch.uint8)
    return rearrange(pixels, "c h w -> h w c").contiguous().numpy()


def _pick(
    frames: Iterator[NDArray[np.uint8]], indices: NDArray[np.intp]
) -> Iterator[NDArray[np.uint8]]:
    """The frames with these increasing indices; one that is named again is given again."""
    wanted = iter(indices.tolist())
    next_index = next(wanted, None)
    for index, frame in enumerate(frames):
        while next_index == index:
            yield frame
            next_index = next(wanted, None)


def _sources_below(folder: Path) -> list[Path]:
    return [path for path in videos_below(folder) if not _is_result(path)]


def _is_result(path: Path) -> bool:
    """Whether the file was written by us: doing a folder twice must not do the results too."""
    match = RESULT.fullmatch(path.name)
    return match is not None and any(path.parent.glob(f"{glob.escape(match['stem'])}.*sheet.png"))
