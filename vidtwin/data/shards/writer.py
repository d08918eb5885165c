"""Makes tar shards from video files, each shard by itself: in any order, and again after a kill.

What a shard holds follows from the list of clips alone, so that the bytes are always the same. A
finished shard leaves a record in a working folder; when all have one, they become the index.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vidtwin.data.bad_files import UnusableVideo
from vidtwin.data.clips import Clip
from vidtwin.data.file_dataset import FileDataset
from vidtwin.data.readers import read_video_info
from vidtwin.data.shards.index import INDEX_NAME, read_index, write_index
from vidtwin.files import file_digest, write_json, written_whole

__all__ = ["WORK_FOLDER", "ShardWriter", "shard_bounds"]

WORK_FOLDER = ".unfinished"
BAD_FILES = "bad_files.json"


def shard_bounds(
    sizes: Sequence[int], clips: int | None, size: int | None
) -> list[tuple[int, int]]:
    """The first clip of each shard and the one after its last.

    Args:
        sizes: of each clip, in bytes.
        clips: at most so many in a shard; None for any number.
        size: bytes of videos at most, unless one alone is larger; None for any number.
    """
    bounds, first, total = [], 0, 0
    for place, each in enumerate(sizes):
        full = clips is not None and place - first >= clips
        large = size is not None and place > first and total + each > size
        if full or large:
            bounds.append((first, place))
            first, total = place, 0
        total += each
    return [*bounds, (first, len(sizes))]


class ShardWriter:
    """Shards of the clips of a data set of files.

    Args:
        output: their folder.
        dataset: of the clips; a file that can't be opened is left out and reported.
        clips: at most so many in a shard; None for any number.
        size: bytes of videos in a shard at most; None for any number.
    """

    def __init__(self, output: Path, dataset: FileDataset, clips: int | None, size: int | None):
        self.output, self.work = output, output / WORK_FOLDER
        self.clips: Sequence[Clip] = dataset.clips
        self.label_names = dataset.label_names
        self.factors = {name: list(each) for name, each in dataset.factor_classes().all.items()}
        self.timeout = dataset.config.timeout
        files = (Path(clip.path) for clip in self.clips)
        sizes = [file.stat().st_size if file.is_file() else 0 for file in files]
        self.bounds = shard_bounds(sizes, clips, size)
        digest = hashlib.sha256(json.dumps([self.bounds, self.label_names, self.factors]).encode())
        for clip, each in zip(self.clips, sizes, strict=True):
            digest.update(json.dumps([self._description(clip), each]).encode())
        self.made_from = digest.hexdigest()

    def _name(self, number: int) -> str:
        return f"shard-{number:06d}.tar"

    def _record_file(self, number: int) -> Path:
        return self.work / f"{number:06d}.json"

    def complete(self) -> bool:
        """Whether all is made.

        Raises:
            ValueError: if the folder holds shards of other clips, or of another size.
        """
        plan = self.work / "plan.json"
        other = (
            f"{self.output} holds shards of other clips, or made with other settings; set another "
            "`output`, or remove it"
        )
        if (self.output / INDEX_NAME).is_file():
            index = read_index(str(self.output.absolute()))
            if index.made_from != self.made_from:
                raise ValueError(other)
            index.check_shards(range(len(index.shards)))
            return True
        if plan.is_file():
            if json.loads(plan.read_text(encoding="utf-8"))["made_from"] != self.made_from:
                raise ValueError(other)
        elif self.output.is_dir() and any(self.output.glob("*.tar")):
            raise ValueError(other)
        return False

    def start(self) -> list[int]:
        """Prepares the folder; returns the numbers of the shards that are to be made."""
        self.work.mkdir(parents=True, exist_ok=True)
        for folder in (self.output, self.work):
            for partial in folder.glob(".*.partial"):
                partial.unlink()  # of a process that was killed
        write_json(self.work / "plan.json", {"made_from": self.made_from})
        return [number for number in range(len(self.bounds)) if not self._made(number)]

    def _made(self, number: int) -> bool:
        if not self._record_file(number).is_file():
            return False
        shard, file = self._record(number)["shard"], self.output / self._name(number)
        return shard["clips"] == 0 or (file.is_file() and file.stat().st_size == shard["size"])

    def _record(self, number: int) -> dict[str, Any]:
        record: dict[str, Any] = json.loads(self._record_file(number).read_text(encoding="utf-8"))
        return record

    def write(self, number: int) -> int:
        """Makes one shard; returns how many clips were looked at."""
        first, end = self.bounds[number]
        file = self.output / self._name(number)
        entries: list[dict[str, Any]] = []
        bad: list[dict[str, str]] = []
        with written_whole(file) as partial:
            with tarfile.open(partial, "w", format=tarfile.PAX_FORMAT) as tar:
                for place in range(first, end):
                    clip = self.clips[place]
                    try:
                        content = self._read(clip)
                    except UnusableVideo as error:
                        bad.append({"path": clip.name, "reason": error.reason})
                    else:
                        entries.append(self._add(tar, f"{place:08d}", clip, content))
            shard = {
                "name": file.name,
                "size": partial.stat().st_size,
                "clips": len(entries),
                "sha256": file_digest(partial),
            }
        if not entries:
            file.unlink()
        write_json(self._record_file(number), {"shard": shard, "entries": entries, "bad": bad})
        return end - first

    def _read(self, clip: Clip) -> bytes:
        """The bytes of a video that can be opened, and whose first frame can be decoded."""
        try:
            content = Path(clip.path).read_bytes()
        except FileNotFoundError:
            raise UnusableVideo(clip.path, "no such file") from None
        if not content:
            raise UnusableVideo(clip.path, "empty file")
        read_video_info(clip.path, timeout=self.timeout, fetch=lambda: content)
        return content

    def _description(self, clip: Clip) -> dict[str, Any]:
        """What the index and KEY.json say of a clip."""
        said: dict[str, Any] = {"name": clip.name, "captions": [c for c in clip.captions if c]}
        if clip.label >= 0:
            said["label"] = clip.label
        return said | {"factors": dict(clip.factors)}

    def _add(self, tar: tarfile.TarFile, key: str, clip: Clip, content: bytes) -> dict[str, Any]:
        """Adds the files of a clip; returns its line of the index."""
        said = self._description(clip)
        member = f"{key}{Path(clip.path).suffix.lower()}"
        offset = _add_file(tar, member, content)
        if clip.caption:
            _add_file(tar, f"{key}.txt", clip.caption.encode())
        if clip.label >= 0:
            _add_file(tar, f"{key}.cls", str(clip.label).encode())
        named = {"label_name": self.label_names[clip.label]} if clip.label >= 0 else {}
        text = json.dumps(said | named, ensure_ascii=False)
        _add_file(tar, f"{key}.json", text.encode("utf-8", "surrogateescape"))
        digest = hashlib.sha256(content).hexdigest()
        place = {"member": member, "offset": offset, "size": len(content), "sha256": digest}
        return place | said

    def finish(self) -> Mapping[str, Any]:
        """Writes the index and the report of bad files, once every shard is made.

        Returns:
            Mapping: clips, shards and bytes of all, and "bad", the path and reason of each file
            that was left out.
        Raises:
            ValueError: if not one file can be used.
        """
        records = [self._record(number) for number in range(len(self.bounds))]
        bad = [item for record in records for item in record["bad"]]
        full = [record for record in records if record["entries"]]
        write_json(self.output / BAD_FILES, {"files": len(self.clips), "bad": bad})
        if not full:
            raise ValueError(
                f"none of the {len(bad)} videos can be used, such as {bad[0]['path']}: "
                f"{bad[0]['reason']}; all are in {self.output / BAD_FILES}"
            )
        header = {
            "clips": sum(record["shard"]["clips"] for record in full),
            "shards": [record["shard"] for record in full],
            "label_names": self.label_names,
            "factors": self.factors,
            "made_from": self.made_from,
        }
        write_index(str(self.output), header, _lines(full))
        self.clean()
        size = sum(record["shard"]["size"] for record in full)
        return {"clips": header["clips"], "shards": len(full), "bytes": size, "bad": bad}

    def clean(self) -> None:
        """Removes the working folder."""
        shutil.rmtree(self.work, ignore_errors=True)


def _lines(records: Iterable[Mapping[str, Any]]) -> Iterable[dict[str, Any]]:
    """The lines of the index."""
    for number, record in enumerate(records):
        yield from ({"shard": number, **entry} for entry in record["entries"])


def _add_file(tar: tarfile.TarFile, name: str, content: bytes) -> int:
    """Adds a file that looks the same whenever and by whomever it is added; where its bytes are."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))
    return tar.offset - -(-len(content) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
