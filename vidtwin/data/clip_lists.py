"""Lists of clips in a file: CSV, JSON, JSON lines or plain text, as other programs write them.

Whatever a list says and this project does not read is named, and whatever does not fit is refused
with its line: see the table in docs/data.md.
"""

from __future__ import annotations

import difflib
import logging
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vidtwin.data.captions import captioned, captions_of, with_captions
from vidtwin.data.clips import Clip, ClipList
from vidtwin.data.folders import VIDEO_SUFFIXES
from vidtwin.data.labels import label_indices
from vidtwin.data.tables import Row, read_table
from vidtwin.text_files import parse_json, read_json, read_lines

__all__ = ["check_listed", "list_in", "read_clip_list"]

logger = logging.getLogger(__name__)

# Ours comes first, then those of other programs; the first one that is there is read.
PATH_NAMES = (
    *("videos", "video", "path", "file_name", "filename", "file", "video_path", "file_path"),
    "media_path",
)
CAPTION_NAMES = ("caption", "captions", "cap", "text", "prompt")
LABEL_NAMES = ("label",)
# The files that stand for a folder of clips, as they are called in data sets on the hub.
LIST_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.json", "videos.txt")
# Beside videos.txt: line n is the caption of its line n.
PROMPT_NAMES = ("prompts.txt", "prompt.txt", "captions.txt")
# What may stand between a path and its label in a text file.
TEXT_CUT = re.compile(r"[ \t,;|]+")
# Files of a list that are looked for before a run starts: all of a long list would take minutes on
# a network disk. One that is missing later is skipped like any other bad file.
CHECKED_FILES = 1000


def list_in(path: Path) -> Path:
    """The list itself, or the one in a folder.

    Raises:
        ValueError: if the folder holds none, or several.
    """
    if not os.path.isdir(path):
        return path
    found = [path / name for name in LIST_NAMES if os.path.isfile(path / name)]
    if len(found) != 1:
        came = " and ".join(file.name for file in found) or "none of them"
        raise ValueError(
            f"data.path must name a list of clips, but {str(path)!r} is a folder; looked in it for "
            f"{', '.join(LIST_NAMES)} and found {came}"
        )
    return found[0]


def read_clip_list(
    file: Path, root: Path, factors: Sequence[str] = (), captions: str | None = None
) -> ClipList:
    """The clips that a file lists, in its order; a clip with several captions once.

    Args:
        file: .csv or .tsv, .json, .jsonl or .ndjson, or .txt; any other is read as CSV.
        root: folder that relative paths start from.
        factors: columns that are read for `Clip.factors`.
        captions: for a .txt: the file of captions, line for line, or a JSON of path -> caption.
    Raises:
        ValueError: in one line that names the file, the place in it, and what to change.
    """
    suffix = file.suffix.lower()
    if suffix in VIDEO_SUFFIXES:
        raise ValueError(f"{file} is a video, expected a list of them; set data.source=files")
    if captions is not None and suffix != ".txt":
        raise ValueError(
            f"data.captions={captions} is for a .txt list; {file.name} has captions of its own"
        )
    if suffix == ".txt":
        columns, rows = _text_rows(file, root, captions)
    else:
        columns, rows = ROWS_OF.get(suffix, _table_rows)(file)
    word = "keys" if suffix in ROWS_OF else "columns"
    path, captioning, label = _roles(file, columns, factors, word)
    clips = []
    for row in rows:
        name = _path(row, path, file, root)
        told = next((row.values[each] for each in captioning if row.values.get(each)), None)
        texts = captions_of(told, f"{file}: {row.place}")
        known = {each: _cell(row, each, file) for each in factors}
        clip = Clip(path=str(root / name), name=Path(name).as_posix(), factors=known)
        clips.append(captioned(clip, texts))
    if not clips:
        raise ValueError(f"no videos found in {file}: its column {path!r} is empty")
    labels = [_cell(row, label, file) if label else "" for row in rows]
    indices, names = label_indices(labels, [row.place for row in rows], str(file))
    clips = [replace(clip, label=index) for clip, index in zip(clips, indices, strict=True)]
    clips = check_listed(clips, str(file))
    if suffix == ".txt" and not captioning:
        clips = with_captions(clips, captions, root)
    return ClipList(clips=clips, label_names=names)


def _table_rows(file: Path) -> tuple[list[str], list[Row]]:
    return read_table(file, PATH_NAMES)


def _json_line_rows(file: Path) -> tuple[list[str], list[Row]]:
    rows = []
    for number, line in enumerate(read_lines(file), start=1):
        if line.strip():
            entry = parse_json(line, f"{file}: line {number}")
            rows.append(_json_row(entry, f"line {number}", file))
    return _keys_of(rows), rows


def _json_rows(file: Path) -> tuple[list[str], list[Row]]:
    """Of a list of objects or paths, of one object, or of an object of path -> caption."""
    content = read_json(file)
    if isinstance(content, dict):
        alone = not content.keys().isdisjoint(PATH_NAMES)
        content = [content] if alone else _entries_by_path(content)
    if not isinstance(content, list):
        raise ValueError(
            f"{file} must hold a list of clips, such as "
            '[{"video": "a.mp4", "caption": "a dog"}], or one object of path -> caption; known '
            f"keys are {', '.join((*PATH_NAMES, *CAPTION_NAMES, *LABEL_NAMES))}"
        )
    rows = [_json_row(each, f"entry {number}", file) for number, each in enumerate(content, 1)]
    return _keys_of(rows), rows


def _entries_by_path(content: dict[str, Any]) -> list[dict[str, Any]] | None:
    """An object of path -> caption, captions or object as a list; None for any other object."""
    entries = []
    for path, value in content.items():
        texts = value if isinstance(value, list) else [value]
        if all(isinstance(text, str) for text in texts):
            entries.append({PATH_NAMES[0]: path, CAPTION_NAMES[0]: texts})
        elif isinstance(value, dict):
            entries.append({**value, PATH_NAMES[0]: path})
        else:
            return None
    return entries


ROWS_OF: dict[str, Callable[[Path], tuple[list[str], list[Row]]]] = {
    ".json": _json_rows,
    ".jsonl": _json_line_rows,
    ".ndjson": _json_line_rows,
}


def _json_row(entry: Any, place: str, file: Path) -> Row:
    if isinstance(entry, str):
        entry = {PATH_NAMES[0]: entry}
    if not isinstance(entry, dict):
        raise ValueError(
            f"{file}: {place} must be an object such as "
            f'{{"video": "a.mp4", "caption": "a dog"}}, got a {type(entry).__name__}'
        )
    return Row(place, {" ".join(name.split()): value for name, value in entry.items()})


def _keys_of(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row.values))


def _roles(
    file: Path, columns: Sequence[str], factors: Sequence[str], word: str
) -> tuple[str, list[str], str | None]:
    """The columns of the path, the captions and the label; warns of columns that nobody reads.

    Raises:
        ValueError: if there is none of paths, a factor is not there, or a name that would be read
            is written in capitals.
    """
    roles = (PATH_NAMES, CAPTION_NAMES, LABEL_NAMES)
    # Ours is read even where it is a factor too; another program's word may mean something else.
    found = [
        next((n for n in names if n in columns and (n == names[0] or n not in factors)), None)
        for names in roles
    ]
    path, caption, label = found
    # A JSON may have a caption in one row, and captions in another.
    captioning = [caption] if caption else []
    if caption == "caption" and "captions" in columns and "captions" not in factors:
        captioning.insert(0, "captions")
    used = {*found, *captioning, *factors, ""}
    unread = [name for name in columns if name not in used]
    open_names = {n for names, one in zip(roles, found, strict=True) if one is None for n in names}
    miswritten = {name: name.lower() for name in unread if name.lower() in open_names}
    hint = f"; did you mean {', '.join(miswritten.values())}?" if miswritten else ""
    if path is None:
        raise ValueError(
            f"{file} must have a column 'videos' with the paths (and may have 'caption' and "
            f"'label'), got the {word} {list(columns)!r:.400}{hint}"
        )
    if miswritten:
        raise ValueError(
            f"{file}: the {word} {', '.join(miswritten)} are not read{hint} Names are written in "
            "small letters"
        )
    if missing := [column for column in factors if column not in columns]:
        raise ValueError(
            f"{file} must have the columns that data.content_factors and data.motion_factors "
            f"name, but lacks {', '.join(missing)}; it has {list(columns)!r:.400}"
        )
    if unread:
        near = [difflib.get_close_matches(name.lower(), open_names, 1, 0.7) for name in unread]
        meant = ", ".join(each[0] for each in near if each)
        message = "%s: the %s %s are not read%s"
        question = f"; did you mean {meant}?" if meant else ""
        logger.warning(message, file, word, ", ".join(unread), question)
    return path, captioning, label


def _path(row: Row, column: str, file: Path, root: Path) -> str:
    """The path of a row; with "/" for the backslashes of Windows, unless a file is called so."""
    value = row.values.get(column)
    name = value.strip() if isinstance(value, str) else ""
    if not name or not _can_be_a_path(name):
        raise ValueError(f"{file}: {row.place} must have a path in {column!r}, got {value!r:.80}")
    return name.replace("\\", "/") if "\\" in name and not os.path.exists(root / name) else name


def _can_be_a_path(name: str) -> bool:
    try:
        return b"\0" not in os.fsencode(name) and len(name.splitlines()) == 1
    except UnicodeEncodeError:
        return False


def _cell(row: Row, column: str, file: Path) -> str:
    """A value as text; "" for none."""
    value = row.values.get(column)
    if isinstance(value, (dict, list)):
        raise ValueError(
            f"{file}: {column!r} in {row.place} must be a name or a number, got {value!r:.80}"
        )
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    return str(value).strip()


def _text_rows(file: Path, root: Path, captions: str | None) -> tuple[list[str], list[Row]]:
    """Of a path in each line, maybe with the number of its label, and the caption in the same line
    of another file."""
    lines = [line.strip() for line in read_lines(file)]
    columns = [PATH_NAMES[0]]
    prompts = _prompts_of(file, captions)
    texts: list[str] = []
    if prompts is not None:
        columns.append(CAPTION_NAMES[0])
        texts = [line.strip() for line in read_lines(prompts)]
        for one, other in ((lines, texts), (texts, lines)):
            while len(one) > len(other) and not one[-1]:
                one.pop()
        if len(texts) != len(lines) or any(not n and t for n, t in zip(lines, texts, strict=True)):
            raise ValueError(
                f"{prompts} has {len(texts)} lines and {file} has {len(lines)}; the caption of "
                "each video must stand in its line"
            )
    rows = []
    for number, line in enumerate(lines, start=1):
        if line:
            values = dict(zip(columns, (line, *texts[number - 1 : number]), strict=True))
            rows.append(Row(f"line {number}", values | _labelled(line, number, file, root)))
    labels = [name for name in LABEL_NAMES if any(name in row.values for row in rows)]
    return [*columns, *labels], rows


def _labelled(line: str, number: int, file: Path, root: Path) -> dict[str, str]:
    """The path and label of a line such as "run/a.mp4 3"; nothing for a path alone."""
    *words, last = TEXT_CUT.split(line)
    cut = any(os.path.splitext(word)[1].lower() in VIDEO_SUFFIXES for word in words)
    if not cut or os.path.exists(root / line):
        return {}
    if not (last.isascii() and last.isdecimal()):
        raise ValueError(
            f"{file}: line {number} must be a path, or a path and the number of its label, got "
            f"{line!r:.80}; captions stand in a CSV, or in prompts.txt beside videos.txt"
        )
    return {PATH_NAMES[0]: line[: -len(last)].rstrip(" \t,;|"), LABEL_NAMES[0]: last}


def _prompts_of(file: Path, captions: str | None) -> Path | None:
    """The file with a caption for each line of a list; None for a JSON, or if there is none."""
    if captions is not None:
        given = Path(os.path.expanduser(captions))
        found = given if given.is_absolute() or os.path.isfile(given) else file.parent / given
        if found.suffix.lower() == ".json":
            return None
        if not os.path.isfile(found):
            raise ValueError(f"data.captions must name a file, but {str(found)!r} is none")
        return found
    beside = [file.with_name(name) for name in PROMPT_NAMES] if file.name == LIST_NAMES[-1] else []
    return next((path for path in beside if os.path.isfile(path)), None)


def check_listed(clips: Sequence[Clip], where: str) -> list[Clip]:
    """The clips, each once: of one that is listed with several captions, all of these.

    Complains about files that a list names and that aren't there.

    Raises:
        ValueError: if a file is listed twice without another caption, or none is there.
    """
    merged = _merge_repeated(clips, where)
    step = -(-len(merged) // CHECKED_FILES)
    looked = merged[::step]
    missing = [clip.path for clip in looked if not os.path.exists(clip.path)]
    if len(missing) == len(looked):
        raise ValueError(
            f"none of the videos that {where} lists is there, such as {missing[0]}; "
            "data.root is the folder that relative paths start from"
        )
    if missing:
        found = f"{len(missing)} of {len(looked)}"
        message = "%s videos looked for are not there, such as %s (listed in %s)"
        logger.warning(message, found, missing[0], where)
    return merged


def _merge_repeated(clips: Sequence[Clip], where: str) -> list[Clip]:
    positions: dict[str, list[int]] = {}
    for position, clip in enumerate(clips):
        positions.setdefault(clip.path, []).append(position)
    merged = []
    for path, places in positions.items():
        first = clips[places[0]]
        if len(places) > 1:
            same = [clips[place] for place in places]
            twice = f"{where} lists {path} twice, as video {places[0] + 1} and {places[1] + 1}"
            if any((each.label, each.factors) != (first.label, first.factors) for each in same):
                raise ValueError(f"{twice}, with different labels; remove one of them")
            texts = list(dict.fromkeys(t for each in same for t in each.captions if t))
            if len(texts) < 2:
                raise ValueError(f"{twice}; remove one of them")
            first = captioned(first, texts)
        merged.append(first)
    return merged
