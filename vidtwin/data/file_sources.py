"""Which clips a data set has: from a table, class folders, UCF-101's lists, a folder, a pattern.

Every list is in an order that depends on the paths alone, never on the file system.
"""

from __future__ import annotations

import csv
import glob
import json
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from vidtwin.data.clips import Clip, ClipList
from vidtwin.data.registry import SourceOptions, register_source

if TYPE_CHECKING:
    from vidtwin.data.config import DataConfig

logger = logging.getLogger(__name__)

VIDEO_SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("3gp", "asf", "avi", "flv", "gif", "m2ts", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg"),
        *("mts", "mxf", "ogv", "ts", "vob", "webm", "wmv", "y4m"),
    )
)
# Files of a list that are looked for before a run starts: all of a long list would take minutes on
# a network disk. One that is missing later is skipped like any other bad file.
CHECKED_FILES = 1000


def _existing(path: str | None, what: str, directory: bool) -> Path:
    """The path, which must be there.

    Raises:
        ValueError: if it isn't, or is a file instead of a folder, or the other way round.
    """
    if not path:
        raise ValueError(f"data.path must name {what}, got {path!r}")
    found = Path(path).expanduser()
    if not found.exists():
        raise ValueError(f"data.path must name {what}, but {str(found)!r} does not exist")
    if found.is_dir() != directory:
        came = "a folder" if found.is_dir() else "a file"
        raise ValueError(f"data.path must name {what}, but {str(found)!r} is {came}")
    return found


# Source -> what `data.path` must name, and whether that is a folder.
PLACES = {
    "csv": ("a CSV file", False),
    "jsonl": ("a JSONL file", False),
    "classes": ("a folder of class folders", True),
    "folder": ("a folder of videos", True),
    "ucf101": ("the folder of UCF-101", True),
}


def _place_of(config: DataConfig) -> Path:
    """`data.path` of a source in `PLACES`, which must be there."""
    return _existing(config.path, *PLACES[config.source])


def videos_below(folder: Path) -> list[Path]:
    """Every file below a folder that is named like a video, in the order of the paths."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in VIDEO_SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def _no_videos(where: str) -> ValueError:
    suffixes = " ".join(sorted(VIDEO_SUFFIXES))
    return ValueError(f"no videos found in {where}; looked for files named {suffixes}")


def label_indices(labels: Sequence[str]) -> tuple[list[int], list[str]]:
    """The label of each clip as an index, and the names. Labels that are all numbers stay as they
    are; "" is no label."""
    known = {label for label in labels if label}
    if known and all(label.isdecimal() for label in known):
        names = [str(number) for number in range(max(map(int, known)) + 1)]
        return [int(label) if label else -1 for label in labels], names
    names = sorted(known)
    position = {name: index for index, name in enumerate(names)}
    return [position[label] if label else -1 for label in labels], names


def _check_listed(clips: Sequence[Clip], where: str) -> None:
    """Complain about files that a list names and that aren't there.

    Raises:
        ValueError: if a file is listed twice, or none is there.
    """
    seen: dict[str, int] = {}
    for position, clip in enumerate(clips, start=1):
        if clip.path in seen:
            raise ValueError(
                f"{where} lists {clip.path} twice, as video {seen[clip.path]} and {position}; "
                "remove one of them"
            )
        seen[clip.path] = position
    step = -(-len(clips) // CHECKED_FILES)
    looked = clips[::step]
    missing = [clip.path for clip in looked if not Path(clip.path).exists()]
    if len(missing) == len(looked):
        raise ValueError(
            f"none of the videos that {where} lists is there, such as {missing[0]}; "
            "data.root is the folder that relative paths start from"
        )
    if missing:
        found = f"{len(missing)} of {len(looked)}"
        message = "%s videos looked for are not there, such as %s (listed in %s)"
        logger.warning(message, found, missing[0], where)


def _read_captions(path: Path) -> dict[str, str]:
    """Path -> caption from a JSON file.

    Raises:
        ValueError: if it isn't an object of strings.
    """
    if not path.is_file():
        raise ValueError(f"data.captions must name a JSON file, but {str(path)!r} is not a file")
    try:
        captions = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(captions, dict) or not all(isinstance(c, str) for c in captions.values()):
        raise ValueError(f"{path} must hold one JSON object of path -> caption")
    return captions


def _with_captions(clips: list[Clip], captions: str | None, root: Path) -> list[Clip]:
    """The clips with their captions from a JSON file, or from the `.txt` beside each."""
    if captions is None:
        beside = [Path(clip.path).with_suffix(".txt") for clip in clips]
        return [
            replace(clip, caption=text.read_text(encoding="utf-8").strip())
            if text.is_file()
            else clip
            for clip, text in zip(clips, beside, strict=True)
        ]
    given = Path(captions).expanduser()
    file = given if given.is_file() or given.is_absolute() else root / given
    table = _read_captions(file)
    # A key is the clip's path from the data set's folder or from the JSON's own; or its bare name.
    by_path = {str((file.parent / key).resolve()): text for key, text in table.items()}
    captioned = []
    for clip in clips:
        text = table.get(clip.name, by_path.get(str(Path(clip.path).resolve())))
        text = table.get(Path(clip.name).name, "") if text is None else text
        captioned.append(replace(clip, caption=text))
    without = [clip.name for clip in captioned if not clip.caption]
    if len(without) == len(clips):
        raise ValueError(
            f"{file} has no caption for any of the {len(clips)} videos; its keys must be paths "
            f"such as {clips[0].name!r}, got {next(iter(table), None)!r}"
        )
    if without:
        count = f"{len(without)} of {len(clips)}"
        logger.warning("%s has no caption for %s videos, such as %s", file, count, without[0])
    return captioned


def _csv_rows(file: Path) -> Iterator[dict[str, Any]]:
    with file.open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream)
        _check_columns(file, reader.fieldnames or [])
        yield from reader


def _jsonl_rows(file: Path) -> Iterator[dict[str, Any]]:
    with file.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"line {number} of {file} is not JSON: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f"line {number} of {file} must be a JSON object, got {line[:80]}")
            _check_columns(file, row)
            yield row


def _check_columns(file: Path, columns: Collection[str]) -> None:
    if "videos" not in columns:
        raise ValueError(
            f"{file} must have a column 'videos' with the paths (and may have 'caption' and "
            f"'label'), got the columns {list(columns)}"
        )


def _captions(row: dict[str, Any], source: str) -> list[str]:
    """All captions of a row, at least one; only JSON can list several."""
    several = row.get("captions") if source == "jsonl" else None
    if several is not None and not isinstance(several, list):
        raise ValueError(f"'captions' of a clip must be a list of texts, got {several!r}")
    return [_text(caption) for caption in several or [row.get("caption")]]


def _text(value: Any) -> str:
    """A cell as text: JSON also has numbers, and null for what isn't known."""
    return "" if value is None else str(value).strip()


def _from_table(config: DataConfig) -> ClipList:
    file = _place_of(config)
    root = Path(config.root).expanduser() if config.root else file.parent
    if not root.is_dir():
        raise ValueError(f"data.root must name a folder, but {str(root)!r} is not one")
    rows = list(_csv_rows(file) if config.source == "csv" else _jsonl_rows(file))
    columns = list(dict.fromkeys(name for row in rows for name in row))
    factors = (*config.content_factors, *config.motion_factors)
    missing = [column for column in factors if column not in columns]
    rows = [row for row in rows if _text(row["videos"])]
    if not rows:
        raise ValueError(f"no videos found in {file}: its column 'videos' is empty")
    if missing:
        raise ValueError(
            f"{file} must have the columns that data.content_factors and data.motion_factors "
            f"name, but lacks {', '.join(missing)}; it has {columns}"
        )
    labels, label_names = label_indices([_text(row.get("label")) for row in rows])
    clips = []
    for row, label in zip(rows, labels, strict=True):
        caption, *others = _captions(row, config.source)
        clips.append(
            Clip(
                path=str(root / _text(row["videos"])),
                name=Path(_text(row["videos"])).as_posix(),
                caption=caption,
                other_captions=tuple(others),
                label=label,
                factors={name: _text(row.get(name)) for name in factors},
            )
        )
    _check_listed(clips, str(file))
    return ClipList(clips=clips, label_names=label_names)


def _from_classes(config: DataConfig) -> ClipList:
    root = _place_of(config)
    folders = sorted(
        path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")
    )
    found = {folder.name: videos_below(folder) for folder in folders}
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
    return ClipList(clips=_with_captions(clips, config.captions, root), label_names=label_names)


def _from_folder(config: DataConfig) -> ClipList:
    root = _place_of(config)
    videos = videos_below(root)
    if not videos:
        raise _no_videos(repr(str(root)))
    clips = [Clip(path=str(path), name=path.relative_to(root).as_posix()) for path in videos]
    return ClipList(clips=_with_captions(clips, config.captions, root), label_names=[])


def _from_glob(config: DataConfig) -> ClipList:
    pattern, videos = _matches(config)
    # Names start at the pattern's first wildcard, so that a split stays when the folder moves.
    fixed = Path(pattern.split("*")[0].split("?")[0].split("[")[0])
    root = fixed if fixed.is_dir() else fixed.parent
    clips = [Clip(path=path, name=Path(path).relative_to(root).as_posix()) for path in videos]
    return ClipList(clips=_with_captions(clips, config.captions, root), label_names=[])


def _matches(config: DataConfig) -> tuple[str, list[str]]:
    """The pattern in `data.path` and the files that match it."""
    if not config.path:
        raise ValueError(f"data.path must be a pattern such as 'clips/**/*.mp4', got {config.path}")
    pattern = str(Path(config.path).expanduser())
    videos = sorted(path for path in glob.glob(pattern, recursive=True) if Path(path).is_file())
    if not videos:
        raise ValueError(f"no videos found: no file matches data.path={pattern!r}")
    return pattern, videos


def _from_files(config: DataConfig) -> ClipList:
    clips = [Clip(path=str(path), name=path.name) for path in _listed(config)]
    _check_listed(clips, "data.files")
    root = Path(clips[0].path).parent
    return ClipList(clips=_with_captions(clips, config.captions, root), label_names=[])


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
    rows = [line.split(maxsplit=1) for line in index.read_text().splitlines() if line.strip()]
    return [name for _, name in sorted((int(number), name.strip()) for number, name in rows)]


def _from_ucf101(config: DataConfig) -> ClipList:
    root = _place_of(config)
    if config.split not in (1, 2, 3):
        raise ValueError(f"data.split must be 1, 2 or 3 for UCF-101, got {config.split}")
    lists = _ucf101_lists(root, config.split, config.part)
    # A train list has "Label/v_Label_g08_c01.avi 1", a test list the path alone.
    names = [
        line.split()[0] for file in lists for line in file.read_text().splitlines() if line.strip()
    ]
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
    _check_listed(clips, str(lists[0]))
    return ClipList(clips=_with_captions(clips, config.captions, videos), label_names=label_names)


_FINDERS: dict[str, Callable[[DataConfig], ClipList]] = {
    "csv": _from_table,
    "jsonl": _from_table,
    "classes": _from_classes,
    "ucf101": _from_ucf101,
    "folder": _from_folder,
    "glob": _from_glob,
    "files": _from_files,
}
# Key of the config -> the sources that have it.
KEY_OF = {
    "files": ("files",),
    "root": ("csv", "jsonl"),
    "split": ("ucf101",),
    "captions": tuple(name for name in _FINDERS if name not in ("csv", "jsonl")),
}


def find_clips(config: DataConfig) -> ClipList:
    """The clips of a source of files, before they are split into parts.

    What `config.source` may be:
        "csv": a file with a column `videos` and optional `caption` and `label`;
        "jsonl": the same with a JSON object in each line; also `captions`, a list;
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
