"""The index of tar shards: where in which shard each clip lies, and what is known about it.

index.jsonl beside the shards, or in the user's cache for shards that can't be written beside. Its
first line is the header:

    format       "vidtwin-shards-1"
    clips        their number
    shards       of each: name, size in bytes, clips; sha256 of those that `vidtwin shards` made,
                 stamp (entity tag or time of change) of others
    label_names  the name of each label
    factors      name of a factor of content or motion -> its classes
    made_from    digest of the list of clips that the shards were made from

then comes one line for each clip, shard by shard: shard (its number), member (name in the tar),
offset and size of its bytes, and where known sha256 of these bytes, name (in the data set that the
shards were made from), captions, label, factors.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidtwin.data.clips import Clip
from vidtwin.files import written_whole

__all__ = [
    "FORMAT",
    "INDEX_NAME",
    "ShardIndex",
    "expand_braces",
    "filesystem",
    "list_shards",
    "read_index",
    "shard_folder",
    "shard_states",
    "write_index",
]

FORMAT = "vidtwin-shards-1"
INDEX_NAME = "index.jsonl"
# What fsspec may open; others of its file systems fill templates, or read archives and indices.
PROTOCOLS = frozenset(
    {
        *("file", "local", "memory", "http", "https", "s3", "s3a", "gs", "gcs", "hf"),
        *("az", "abfs", "abfss", "adl", "simplecache", "filecache"),
    }
)
# What file systems call that which changes with a file.
STAMPS = ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated", "created")
# Of a shard's name, as in data-{000..127}.tar and {train,extra}-0.tar.
BRACES = re.compile(r"\{([^{}]*)\}")
NUMBER_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def expand_braces(pattern: str) -> list[str]:
    """The patterns that one with ranges "{000..127}" and lists "{a,b}" stands for."""
    parts = BRACES.split(pattern)  # text and what is in braces take turns
    choices = []
    for place, part in enumerate(parts):
        found = NUMBER_RANGE.fullmatch(part) if place % 2 else None
        if found:
            first, last = found.groups()
            numbers = range(int(first), int(last) + 1)
            choices.append([str(number).zfill(len(first)) for number in numbers])
        else:
            choices.append(part.split(",") if place % 2 else [part])
    return ["".join(words) for words in product(*choices)]


def shard_folder(path: str) -> tuple[str, list[str]]:
    """The folder of shards as a URL or an absolute path, and the patterns of their names.

    Raises:
        ValueError: for a pattern whose shards lie in several folders.
    """
    folder, _, last = path.rstrip("/").rpartition("/")
    patterns = ["*.tar"]
    if last.endswith(".tar") or re.search(r"[*?\[{]", last):
        patterns = expand_braces(last)
        folder = folder or ("/" if path.startswith("/") else ".")
    else:
        folder = path.rstrip("/") or "/"
    if re.search(r"[*?\[{]", folder) or any("/" in pattern for pattern in patterns):
        raise ValueError(
            f"data.path={path!r} must name shards of one folder; only the last part of it may "
            "have * ? [] and {}"
        )
    if "://" not in folder:
        folder = str(Path(folder).expanduser().absolute())
    return folder, patterns


def filesystem(folder: str) -> tuple[Any, str]:
    """The fsspec file system of a folder, and the folder's path in it.

    Taken anew for each use: instances are kept by fsspec, and must not pass a fork.

    Raises:
        ValueError: for a URL that fsspec does not know, or lacks a package for.
    """
    import fsspec

    protocols = re.findall(r"([^:/]+)(?=::|://)", folder)
    if unknown := [name for name in protocols if name not in PROTOCOLS]:
        raise ValueError(
            f"data.path={folder!r}: {unknown[0]} is none of the protocols that shards are read "
            f"over, {', '.join(sorted(PROTOCOLS))}"
        )
    try:
        return fsspec.core.url_to_fs(folder)  # type: ignore[no-any-return]
    except (ImportError, ValueError) as error:
        raise ValueError(f"data.path={folder!r} can't be opened: {error}") from error


def list_shards(path: str) -> list[str]:
    """The names of the shards that a path stands for, in their order.

    Raises:
        ValueError: if there are none.
    """
    folder, patterns = shard_folder(path)
    if not any(re.search(r"[*?\[]", pattern) for pattern in patterns):
        return patterns  # also where a server does not list
    system, root = filesystem(folder)
    try:
        there = sorted(PurePosixPath(item).name for item in system.ls(root, detail=False))
    except OSError as error:
        raise ValueError(
            f"data.path must name a folder of shards, but {folder}: {error}"
        ) from error
    return _matching([name for name in there if name.endswith(".tar")], patterns, folder)


def _matching(names: Sequence[str], patterns: Iterable[str], where: str) -> list[str]:
    """The names that match one of the patterns, each once, in their own order."""
    known, chosen = set(names), set()
    for pattern in patterns:
        found = {pattern} & known or set(fnmatch.filter(names, pattern))
        if not found:
            raise ValueError(f"{where} has no shard {pattern}, of {len(names)} that end in .tar")
        chosen |= found
    return [name for name in names if name in chosen]


def shard_states(folder: str, names: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Of each shard its size in bytes and a stamp: its entity tag, or the time of its last change.

    Raises:
        ValueError: naming a shard that is not there.
    """
    system, root = filesystem(folder)
    listed: dict[str, Mapping[str, Any]] = {}
    # Not every server lists; then each shard is asked for.
    with contextlib.suppress(OSError, NotImplementedError):
        listed = {PurePosixPath(item["name"]).name: item for item in system.ls(root, detail=True)}
    for name in names:
        info = listed.get(name, {})
        try:
            if info.get("size") is None:
                info = system.info(f"{root}/{name}")
        except FileNotFoundError:
            raise ValueError(f"{folder} lacks the shard {name}") from None
        yield info["size"], next((str(info[key]) for key in STAMPS if info.get(key)), "")


class ShardIndex:
    """The clips of a folder of shards, by their number; their lines are parsed as they are needed.

    Args:
        folder: URL or path of the shards.
        header: the first line of the index.
        lines: the others, the bytes of the file.
        where: the file, for messages.
    Raises:
        ValueError: if the lines are not as many as the header says.
    """

    def __init__(self, folder: str, header: dict[str, Any], lines: bytes, where: str):
        self.folder, self.where = folder, where
        self.shards: list[dict[str, Any]] = header["shards"]
        self.label_names: list[str] = header["label_names"]
        self.factors = {name: tuple(classes) for name, classes in header["factors"].items()}
        self.made_from: str | None = header.get("made_from")
        self._lines = lines
        ends = np.flatnonzero(np.frombuffer(lines, np.uint8) == ord("\n"))
        self._starts = np.concatenate([[0], ends + 1])
        counts = [shard["clips"] for shard in self.shards]
        for shard in self.shards:
            if re.search(r"[/\\]|::", shard["name"]):
                raise ValueError(f"the shard {shard['name']} lies elsewhere than the index")
        if not len(ends) == header["clips"] == sum(counts) or self._starts[-1] != len(lines):
            raise ValueError(
                f"{where} lists {len(ends)} clips instead of {header['clips']}: it was cut off; "
                + how_to_make(folder)
            )
        self.shard_of: NDArray[np.int64] = np.repeat(np.arange(len(counts)), counts)

    def __len__(self) -> int:
        return len(self.shard_of)

    def entry(self, number: int) -> dict[str, Any]:
        """The line of a clip."""
        start, end = self._starts[number : number + 2]
        found: dict[str, Any] = json.loads(self._lines[start:end])
        return found

    def name(self, number: int) -> str:
        """The name of a clip in its data set."""
        entry = self.entry(number)
        return str(entry.get("name", entry["member"]))

    def clip(self, number: int) -> Clip:
        """A clip; its path is "SHARD.tar/MEMBER"."""
        entry = self.entry(number)
        shard, label = self.shards[entry["shard"]]["name"], entry.get("label", -1)
        caption, *others = entry.get("captions") or [""]
        factors = dict(entry.get("factors", {}))
        if "class" in self.factors and label >= 0:
            factors.setdefault("class", self.label_names[label])
        return Clip(
            path=f"{shard}/{entry['member']}",
            name=entry.get("name", entry["member"]),
            caption=caption,
            other_captions=tuple(others),
            label=label,
            factors=factors,
        )

    def select(self, patterns: Iterable[str]) -> NDArray[np.int64]:
        """The numbers of the clips in the shards whose names match.

        Raises:
            ValueError: if a pattern matches no shard.
        """
        names = [shard["name"] for shard in self.shards]
        chosen = set(_matching(names, patterns, self.where))
        wanted = np.array([name in chosen for name in names], dtype=bool)
        return np.flatnonzero(wanted[self.shard_of])

    def check_shards(self, numbers: Iterable[int]) -> None:
        """Refuses shards that are not those of the index, as far as a listing tells.

        Raises:
            ValueError: naming the first shard that is missing or was changed.
        """
        shards = [self.shards[number] for number in numbers]
        states = shard_states(self.folder, [shard["name"] for shard in shards])
        for shard, (size, stamp) in zip(shards, states, strict=True):
            if size != shard["size"]:
                self.refuse(shard["name"], f"{size} bytes instead of {shard['size']}")
            if shard.get("stamp", stamp) != stamp:
                self.refuse(shard["name"], f"stamp {stamp} instead of {shard['stamp']}")

    def refuse(self, shard: str, why: str) -> None:
        """Raises a ValueError that a shard is not the one that the index describes."""
        raise ValueError(
            f"{self.folder}/{shard} was changed since {self.where} was made ({why}); restore it, "
            f"or {how_to_make(self.folder)}"
        )


def how_to_make(folder: str) -> str:
    """The command that makes an index."""
    return f"make the index with `vidtwin shards index={folder}`"


def _cached_index(folder: str) -> Path:
    """Where the index of shards lies that it can't be written beside."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    digest = hashlib.sha256(folder.encode()).hexdigest()[:16]
    return cache / "vidtwin" / "shards" / f"{digest}.jsonl"


def read_index(folder: str) -> ShardIndex:
    """The index of a folder of shards.

    Raises:
        ValueError: if there is none, with the command that makes it, or it can't be used.
    """
    system, root = filesystem(folder)
    cached = _cached_index(folder)
    try:
        content, where = system.cat_file(f"{root}/{INDEX_NAME}"), f"{folder}/{INDEX_NAME}"
    except FileNotFoundError:
        if not cached.is_file():
            there = "://" in folder or Path(folder).is_dir()
            what = f"has no {INDEX_NAME}" if there else "does not exist"
            raise ValueError(
                f"data.path must name a folder of shards with an index, but {folder} {what}; "
                + how_to_make(folder)
            ) from None
        content, where = cached.read_bytes(), str(cached)
    first, _, lines = content.partition(b"\n")
    try:
        header = json.loads(first)
        if header["format"] != FORMAT:
            raise ValueError(f"format {header['format']!r} instead of {FORMAT!r}")
        return ShardIndex(folder, header, lines, where)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{where} is no index of shards: {error}") from error


def write_index(
    folder: str, header: Mapping[str, Any], entries: Iterable[Mapping[str, Any]]
) -> Path:
    """Writes the index beside the shards of a local folder, else into the user's cache.

    Returns:
        Path: of the index.
    """
    path = Path(folder) / INDEX_NAME
    if "://" in folder or not os.access(folder, os.W_OK):
        path = _cached_index(folder)
    with written_whole(path) as partial, partial.open("w", encoding="utf-8") as file:
        for line in ({"format": FORMAT, **header}, *entries):
            file.write(json.dumps(line) + "\n")
    return path
