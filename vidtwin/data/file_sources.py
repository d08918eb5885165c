"""Which clips a data set has: from a list, class folders, UCF-101's lists, a folder, a pattern.

Every list is in an order that depends on the paths alone, never on the file system.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from vidtwin.data.captions import with_captions
from vidtwin.data.clip_lists import check_listed, list_in, read_clip_list
from vidtwin.data.clips import Clip, ClipList
from vidtwin.data.folders import VIDEO_SUFFIXES, files_matching, pattern_folder, videos_below
from vidtwin.data.registry import SourceOptions, register_source
from vidtwin.text_files import read_lines

if TYPE_CHECKING:
    from vidtwin.data.config import DataConfig

logger = logging.getLogger(__name__)


def _existing(path: str | None, what: str, directory: bool) -> Path:
    """The path, which must be there.

    Raises:
        ValueError: if it isn't, or is a file instead of a folder, or the other way round.
    """
    if not path:
        raise ValueError(f"data.path must name {what}, got {path!r}")
    found = Path(os.path.expanduser(path))
    if not os.path.exists(found):
        raise ValueError(f"data.path must name {what}, but {str(found)!r} does not exist")
    if found.is_dir() != directory:
        came = "a folder" if found.is_dir() else "a file"
        raise ValueError(f"data.path must name {what}, but {str(found)!r} is {came}")
    return found


# Source -> what `data.path` must name, and whether that is a folder.
PLACES = {
    "list": ("a list of clips", False),
    "csv": ("a CSV file", False),
    "jsonl": ("a JSONL file", False),
    "classes": ("a folder of class folders", True),
    "folder": ("a folder of videos", True),
    "ucf101": ("the folder of UCF-101", True),
}


def _place_of(config: DataConfig) -> Path:
    """`data.path` of a source in `PLACES`, which must be there; of a folder, the list in it."""
    if config.source == "list" and config.path and os.path.isdir(os.path.expanduser(config.path)):
        return list_in(Path(os.path.expanduser(config.path)))
    return _existing(config.path, *PLACES[config.source])


def _no_videos(where: str) -> ValueError:
    suffixes = " ".join(sorted(VIDEO_SUFFIXES))
    return ValueError(f"no videos found in {where}; looked for files named {suffixes}")


def _from_list(config: DataConfig) -> ClipList:
    file = _place_of(config)
    root = Path(os.path.expanduser(config.root)) if config.root else file.parent
    if not root.is_dir():
        raise ValueError(f"data.root must name a folder, but {str(root)!r} is not one")
    factors = (*config.content_factors, *config.motion_factors)
    return read_clip_list(file, root, factors, config.captions)


def _from_classes(config: DataConfig) -> ClipList:
    root = _place_of(config)
    folders = sorted(
        path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")
    )
    found: dict[str, list[Path]] = {folder.name: [] for folder in folders}
    for video in videos_below(root):  # all of them at once: a link may lead to another class
        if (name := video.relative_to(root).parts[0]) in found:
            found[name].append(video)
    empty = [name for name, videos in found.items() if not videos]
    if len(empty) == len(found):
        raise _no_videos(f"the class folders of {str(root)!r} ({', '.join(found) or 'none'})")
    if empty:
        logger.warning("class folders of %s without a video: %s", root, ", ".join(empty))
    label_names = [name for name in found if found[name]]
    clips = [
        Clip(
            path=str(path),
            name=path.relative_to(root).as_posix(),
            label=label,
            factors={"class": name},
        )
        for label, name in enumerate(label_names)
        for path in found[name]
    ]
    return ClipList(clips=with_captions(clips, config.captions, root), label_names=label_names)


def _from_folder(config: DataConfig) -> ClipList:
    root = _place_of(config)
    videos = videos_below(root)
    if not videos:
        raise _no_videos(repr(str(root)))
    clips = [Clip(path=str(path), name=path.relative_to(root).as_posix()) for path in videos]
    return ClipList(clips=with_captions(clips, config.captions, root), label_names=[])


def _from_glob(config: DataConfig) -> ClipList:
    pattern, videos = _matches(config)
    # Names start at the pattern's first wildcard, so that a split stays when the folder moves.
    root = pattern_folder(pattern)
    clips = [Clip(path=path, name=Path(path).relative_to(root).as_posix()) for path in videos]
    return ClipList(clips=with_captions(clips, config.captions, root), label_names=[])


def _matches(config: DataConfig) -> tuple[str, list[str]]:
    """The pattern in `data.path` and the files that match it."""
    if not config.path:
        raise ValueError(f"data.path must be a pattern such as 'clips/**/*.mp4', got {config.path}")
    pattern = str(Path(os.path.expanduser(config.path)))
    videos = files_matching(pattern)
    if not videos:
        raise ValueError(f"no videos found: no file matches data.path={pattern!r}")
    return pattern, videos


def _from_files(config: DataConfig) -> ClipList:
    clips = [Clip(path=str(path), name=path.name) for path in _listed(config)]
    clips = check_listed(clips, "data.files")
    root = Path(clips[0].path).parent
    return ClipList(clips=with_captions(clips, config.captions, root), label_names=[])


def _listed(config: DataConfig) -> list[Path]:
    """The videos that `data.files` or `data.path` name."""
    files = config.files or ((config.path,) if config.path else ())
    if not files:
        raise ValueError("data.files must list videos, or data.path name one; got neither")
    return [_existing(file, "a video", directory=False) for file in files]


def _ucf101_lists(root: Path, split: int, part: str) -> list[Path]:
    """The official list files of a split and part."""
    folders = [
        folder
        for folder in (root / "ucfTrainTestlist", root.parent / "ucfTrainTestlist", root)
        if (folder / f"trainlist{split:02d}.txt").is_file()
    ]
    if not folders:
        raise ValueError(
            f"no trainlist{split:02d}.txt in {str(root / 'ucfTrainTestlist')!r} or beside "
            f"{str(root)!r}; unpack UCF101TrainTestSplits-RecognitionTask.zip there"
        )
    kinds = {"train": ["train"], "validation": ["test"], "all": ["train", "test"]}[part]
    return [folders[0] / f"{kind}list{split:02d}.txt" for kind in kinds]


def _ucf101_labels(lists: Path, labels: Iterable[str]) -> list[str]:
    """The label names in the order of classInd.txt, or of the alphabet without one."""
    index = lists.parent / "classInd.txt"
    if not index.is_file():
        return sorted(set(labels))
    names = {}
    for number, line in enumerate(read_lines(index), start=1):
        words = line.split(maxsplit=1)
        if len(words) == 2 and words[0].isdecimal():
            names[int(words[0])] = words[1].strip()
        elif words:
            raise ValueError(f"{index}: line {number} must be a number and a class, got {line!r}")
    return [name for _, name in sorted(names.items())]


def _from_ucf101(config: DataConfig) -> ClipList:
    root = _place_of(config)
    if config.split not in (1, 2, 3):
        raise ValueError(f"data.split must be 1, 2 or 3 for UCF-101, got {config.split}")
    lists = _ucf101_lists(root, config.split, config.part)
    # A train list has "Label/v_Label_g08_c01.avi 1", a test list the path alone.
    names = [line.split()[0] for file in lists for line in read_lines(file) if line.strip()]
    if not names:
        raise ValueError(f"no videos found in {', '.join(map(str, lists))}")
    videos = root / "UCF-101" if (root / "UCF-101").is_dir() else root
    labels = [name.split("/")[0] for name in names]
    label_names = _ucf101_labels(lists[0], labels)
    unknown = sorted(set(labels) - set(label_names))
    if unknown:
        raise ValueError(f"labels of {lists[0]} that classInd.txt lacks: {', '.join(unknown)}")
    clips = [
        Clip(
            path=str(videos / name),
            name=name,
            label=label_names.index(label),
            factors={"class": label},
        )
        for name, label in zip(names, labels, strict=True)
    ]
    clips = check_listed(clips, str(lists[0]))
    return ClipList(clips=with_captions(clips, config.captions, videos), label_names=label_names)


# All three read any list; the last two are what it was called when it read no other.
LIST_SOURCES = ("list", "csv", "jsonl")
_FINDERS: dict[str, Callable[[DataConfig], ClipList]] = {
    "list": _from_list,
    "csv": _from_list,
    "jsonl": _from_list,
    "classes": _from_classes,
    "ucf101": _from_ucf101,
    "folder": _from_folder,
    "glob": _from_glob,
    "files": _from_files,
}
# Key of the config -> the sources that have it.
KEY_OF = {
    "files": ("files",),
    "root": LIST_SOURCES,
    "split": ("ucf101",),
    "captions": tuple(name for name in _FINDERS if name not in ("csv", "jsonl")),
}


def find_clips(config: DataConfig) -> ClipList:
    """The clips of a source of files, before they are split into parts.

    What `config.source` may be:
        "list", also called "csv" or "jsonl": a CSV, JSON, JSON lines or text file that lists the
            clips, maybe with captions and labels; see `vidtwin.data.clip_lists`;
        "classes": `<label>/<clip>`, as UCF-101 is laid out;
        "ucf101": UCF-101 with its official lists, `config.split` and `config.part`;
        "folder": every video below a folder;
        "glob": every file that matches a pattern, `**` for any folders;
        "files": one video in `config.path`, or several in `config.files`.

    Returns:
        ClipList: in an order that depends on the paths or the list alone.
    Raises:
        ValueError: if something is missing, empty, listed twice or malformed; the message says
            what was expected and what came.
    """
    return _FINDERS[config.source](config)


@register_source(*_FINDERS)
@dataclass(frozen=True, kw_only=True)
class FileOptions(SourceOptions):
    """The sources that read video files; all their keys are those of `DataConfig` itself."""

    reads_files: ClassVar[bool] = True

    def check(self, data: DataConfig) -> None:
        """Refuses keys of another source of files."""
        for key, owners in KEY_OF.items():
            if getattr(data, key) and data.source not in owners:
                raise ValueError(
                    f"data.{key} is for the source {' or '.join(owners)}, got "
                    f"{getattr(data, key)!r} with {data.source!r}; remove it"
                )
        if data.source == "ucf101" and data.validation_fraction > 0:
            raise ValueError(
                "data.source=ucf101 has an official validation part, got data.validation_fraction="
                f"{data.validation_fraction}; set it to 0, or take data.source=classes"
            )

    def check_files(self, data: DataConfig) -> None:
        """Refuses a place where nothing lies."""
        if data.source in PLACES:
            _place_of(data)
        elif data.source == "files":
            _listed(data)
        else:
            _matches(data)

    def build(self, data: DataConfig) -> Any:
        """A `FileDataset`."""
        from vidtwin.data.file_dataset import build_file_dataset

        return build_file_dataset(data)
