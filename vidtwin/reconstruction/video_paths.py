"""The videos named on a command line, and where their results go; imports no torch."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vidtwin.data.folders import videos_below

if TYPE_CHECKING:
    from vidtwin.latents import Part

__all__ = ["DECODED_PARTS", "InputVideo", "find_videos"]

# Name of each result -> the part of the latents that is decoded for it.
DECODED_PARTS: dict[str, Part] = {
    "reconstruction": "both",
    "structure": "structure",
    "dynamics": "dynamics",
}
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


def _is_result(path: Path) -> bool:
    """Whether we wrote the file: a second run on a folder must not take its results as input."""
    match = RESULT.fullmatch(path.name)
    return match is not None and any(path.parent.glob(f"{glob.escape(match['stem'])}.*sheet.png"))
