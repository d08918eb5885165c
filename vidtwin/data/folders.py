"""The video files below a folder or of a pattern. Links are followed, and each file found once."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["VIDEO_SUFFIXES", "files_matching", "pattern_folder", "videos_below"]

logger = logging.getLogger(__name__)

VIDEO_SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("3gp", "asf", "avi", "flv", "gif", "m2ts", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg"),
        *("mts", "mxf", "ogv", "ts", "vob", "webm", "wmv", "y4m"),
    )
)


def videos_below(folder: Path) -> list[Path]:
    """Every file below a folder that is named like a video, in the order of the paths.

    Names that begin with a dot are left out. Links to files and folders are followed; a file that
    several paths lead to is listed once, by the path without a link, or else the shortest.
    """
    top = str(folder)
    tree = _walk(top)
    _warn_of_unreadable(tree.unreadable, top)
    return sorted(map(Path, _once(tree.videos, top)))


def files_matching(pattern: str) -> list[str]:
    """Every file that matches a pattern, sorted; links and repeats as in `videos_below`.

    Args:
        pattern: as of `glob.glob`, with "**" for any number of folders.
    """
    found = {str(Path(path)) for path in _matches(Path(pattern).parts) if os.path.isfile(path)}
    return sorted(_once(found, str(pattern_folder(pattern))))


def pattern_folder(pattern: str) -> Path:
    """The folder that the part of a pattern before its first wildcard names."""
    fixed = Path(pattern.split("*")[0].split("?")[0].split("[")[0])
    return fixed if fixed.is_dir() else fixed.parent


@dataclass
class _Tree:
    """What lies below a folder."""

    folders: list[str] = field(default_factory=list)
    videos: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)


def _walk(top: str) -> _Tree:
    """Every folder below one once, real ones before those behind links: so loops end, and a link
    never takes a folder from the place where it really is."""
    tree, seen, links = _Tree(), set[str](), [top]
    while links:
        further: list[str] = []
        for link in sorted(links, key=_depth):
            inside = [(link, os.path.realpath(link))]
            while inside:
                path, real = inside.pop()
                if real not in seen:
                    seen.add(real)
                    tree.folders.append(path)
                    inside += _scan(path, real, tree, further)
        links = further
    return tree


def _scan(path: str, real: str, tree: _Tree, links: list[str]) -> list[tuple[str, str]]:
    """Sorts a folder's entries into a tree, and gives its own folders with their real paths."""
    folders = []
    try:
        with os.scandir(path) as scanned:
            entries = [entry for entry in scanned if not entry.name.startswith(".")]
    except OSError:
        tree.unreadable.append(path)
        return []
    for entry in entries:
        suffix = os.path.splitext(entry.name)[1].lower()
        if entry.is_dir(follow_symlinks=False):
            folders.append((entry.path, os.path.join(real, entry.name)))
        elif entry.is_symlink() and os.path.isdir(entry.path):
            links.append(entry.path)
        elif suffix in VIDEO_SUFFIXES and os.path.isfile(entry.path):
            tree.videos.append(entry.path)
        elif suffix in ("", *VIDEO_SUFFIXES) and not os.path.exists(entry.path):
            tree.unreadable.append(entry.path)
    return folders


def _matches(parts: tuple[str, ...]) -> set[str]:
    """The paths that match a pattern. `glob` alone would go around a loop of links 40 times."""
    if "**" not in parts:
        return set(glob.glob(os.path.join(*parts)))
    place = parts.index("**")
    rest = parts[place + 1 :] or ("*",)
    found: set[str] = set()
    for base in glob.glob(os.path.join(*parts[:place])) if place else ["."]:
        if os.path.isdir(base):
            tree = _walk(base)
            _warn_of_unreadable(tree.unreadable, base)
            for folder in tree.folders:
                found |= _matches((glob.escape(folder), *rest))
    return found


def _once(paths: Iterable[str], top: str) -> list[str]:
    """The paths without those that lead to the same file as another."""
    real_top, folders = os.path.realpath(top), dict[str, str]()
    by_file: dict[str, list[str]] = {}
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        real = os.path.join(folders[folder], name)
        file = os.path.realpath(real) if os.path.islink(real) else real
        by_file.setdefault(file, []).append(path)

    def leads_over_a_link(path: str, real: str) -> bool:
        return real != os.path.join(real_top, os.path.relpath(path, top))

    chosen = [
        min((leads_over_a_link(path, real), *_depth(path)) for path in each)[-1]
        for real, each in by_file.items()
    ]
    repeated = sum(map(len, by_file.values())) - len(chosen)
    if repeated:
        message = "%d paths below %s lead over links to files that have another path; left out"
        logger.warning(message, repeated, top)
    return chosen


def _depth(path: str) -> tuple[int, str]:
    return path.count(os.sep), path


def _warn_of_unreadable(paths: list[str], top: str) -> None:
    if paths:
        message = "%d folders or links below %s can't be read, such as %s"
        logger.warning(message, len(paths), top, min(paths))
