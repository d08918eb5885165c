"""The index of shards that others made, from the headers of their tar files.

Files whose names have the same part before the first dot are one clip, as in WebDataset: a video,
KEY.txt its caption, KEY.cls its class, KEY.json with `captions` or `caption`, `label` (a number or
a name), `label_name`, `name` and `factors`, as far as they are there.
"""

from __future__ import annotations

import json
import logging
import tarfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from vidtwin.data.folders import VIDEO_SUFFIXES
from vidtwin.data.labels import label_indices
from vidtwin.data.shards.index import (
    filesystem,
    list_shards,
    shard_folder,
    shard_states,
    write_index,
)
from vidtwin.data.shards.writer import WORK_FOLDER

__all__ = ["make_index"]

logger = logging.getLogger(__name__)

# Read at once from a server: a header and the short texts around it, not the video after it.
READ_BYTES = 2**16
TEXTS = ("txt", "json", "cls")


def make_index(path: str, num_workers: int = 1) -> tuple[Path, int]:
    """Makes the index of shards that have none, reading no video.

    Args:
        path: a folder, pattern or URL, as in `data.path`.
        num_workers: shards that are read at the same time.
    Returns:
        The file that was written, and the number of clips.
    Raises:
        ValueError: if there are no shards, one is damaged, or none has a video.
    """
    folder, _ = shard_folder(path)
    if (Path(folder) / WORK_FOLDER).is_dir():
        raise ValueError(f"the shards in {folder} aren't complete; run what makes them again")
    names = list_shards(path)
    states = list(shard_states(folder, names))  # before: a shard that changes meanwhile is noticed
    with ThreadPoolExecutor(num_workers) as pool:
        scanned = list(pool.map(lambda name: _scan(folder, name), names))
    found = [(number, clip) for number, clips in enumerate(scanned) for clip in clips]
    if not found:
        suffixes = " ".join(sorted(VIDEO_SUFFIXES))
        raise ValueError(f"no videos found in {len(names)} shards of {folder}, such as {suffixes}")
    places = [f"{names[number]}, {clip['member']}" for number, clip in found]
    texts = [str(clip.get("label", "")) for _, clip in found]
    labels, label_names = label_indices(texts, places, folder)
    for label, (_, clip) in zip(labels, found, strict=True):
        if label >= 0 and "label_name" in clip:
            label_names[label] = str(clip["label_name"])
    repeated = len({clip["member"] for _, clip in found}) < len(found)
    entries = []
    for label, (number, clip) in zip(labels, found, strict=True):
        kept = {"member", "offset", "size", "name", "captions", "factors"} & clip.keys()
        entry = {"shard": number} | {key: clip[key] for key in sorted(kept)}
        if repeated:
            entry.setdefault("name", f"{names[number]}/{clip['member']}")
        entries.append(entry | ({"label": label} if label >= 0 else {}))
    shards = [
        {"name": name, "size": size, "clips": len(clips), "stamp": stamp}
        for name, clips, (size, stamp) in zip(names, scanned, states, strict=True)
    ]
    header = {
        "clips": len(found),
        "shards": shards,
        "label_names": label_names,
        "factors": _factor_classes([clip for _, clip in found], label_names),
    }
    return write_index(folder, header, entries), len(found)


def _factor_classes(clips: Iterable[dict[str, Any]], labels: list[str]) -> dict[str, list[str]]:
    """The factors that the clips tell; the class if none of them tells any."""
    values: dict[str, set[str]] = {}
    told = False
    for clip in clips:
        told |= "factors" in clip
        for name, value in clip.get("factors", {}).items():
            values.setdefault(name, set()).add(value)
    if not told:
        return {"class": labels} if labels else {}
    return {name: sorted(found - {""}) for name, found in values.items()}


def _scan(folder: str, name: str) -> list[dict[str, Any]]:
    """The clips of a shard: where each lies, and what its texts say."""
    system, root = filesystem(folder)
    members: dict[str, dict[str, Any]] = {}
    with system.open(f"{root}/{name}", "rb", block_size=READ_BYTES) as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    if member.isreg() and not member.issparse():
                        _add(members, tar, member)
                file.seek(tar.offset)
            # tarfile takes a header that it can't read for the end.
            if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
                raise tarfile.ReadError(f"no header at byte {tar.offset}")
        except tarfile.TarError as error:
            raise ValueError(f"{folder}/{name} is a damaged tar file: {error}") from error
    return [_clip(parts, f"{name}/{key}") for key, parts in members.items() if "video" in parts]


def _add(members: dict[str, dict[str, Any]], tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
    """Notes where a video lies, or what a text says, under its key."""
    parent, _, base = member.name.rpartition("/")
    stem, _, ending = base.partition(".")
    if not stem:
        return  # a hidden file
    parts = members.setdefault(f"{parent}/{stem}".lstrip("/"), {})
    if ending.lower() in TEXTS:
        content = tar.extractfile(member)
        assert content is not None
        parts[ending.lower()] = content.read().decode("utf-8", errors="replace").strip()
    elif PurePosixPath(base).suffix.lower() in VIDEO_SUFFIXES:
        place = {"member": member.name, "offset": member.offset_data, "size": member.size}
        parts.setdefault("video", place)


def _clip(parts: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A clip from its place in the shard and the texts beside it."""
    try:
        told = json.loads(parts.get("json") or "{}")
    except ValueError as error:
        logger.warning("%s.json is not JSON and is not used: %s", where, error)
        told = {}
    told = told if isinstance(told, dict) else {}
    captions = [text.strip() for text in _list(told.get("captions")) if isinstance(text, str)]
    if not captions:
        one = parts.get("txt") or told.get("caption")
        captions = [one.strip()] if isinstance(one, str) and one.strip() else []
    clip = {**parts["video"]} | ({"captions": captions} if captions else {})
    if isinstance(told.get("factors"), dict):
        clip["factors"] = {str(name): str(value) for name, value in told["factors"].items()}
    if isinstance(told.get("name"), str):
        clip["name"] = told["name"]
    label = parts.get("cls", told.get("label"))
    if isinstance(label, (int, str)) and label not in (-1, "-1"):
        clip["label"] = str(label)
        if isinstance(told.get("label_name"), str) and clip["label"].isdecimal():
            clip["label_name"] = told["label_name"]
    return clip


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
