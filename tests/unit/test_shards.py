"""Tar shards: the same samples as from the files, in an order that resumes, whatever is damaged."""

from __future__ import annotations

import io
import itertools
import json
import tarfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch

from vidtwin.data import (
    DataConfig,
    GlobalBatchSampler,
    TooManyBadFiles,
    UnusableVideo,
    VideoDataset,
    build_dataset,
    build_evaluation_loader,
    build_loader,
)
from vidtwin.data.shards import dataset as shard_reading
from vidtwin.data.shards.config import ShardsOptions
from vidtwin.data.shards.index import expand_braces, shard_folder
from vidtwin.data.shards.scan import make_index
from vidtwin.data.shards.writer import ShardWriter, shard_bounds
from vidtwin.media import write_video
from vidtwin_lab.evaluation.report import Processes
from vidtwin_lab.evaluation.windows import list_windows

SMALL: dict[str, Any] = {"num_frames": 4, "height": 16, "width": 16}
CLIPS = 10


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten clips in two class folders, with captions, a CSV and a JSONL file."""
    root = tmp_path_factory.mktemp("files")
    rows, lines = ["videos,caption,label,person"], []
    for number in range(CLIPS):
        name = f"{'run' if number % 2 else 'walk'}/clip.{number}.{'avi' if number == 3 else 'mp4'}"
        noise = np.random.default_rng(number).integers(0, 255, (12 + number, 24, 64, 3))
        (root / name).parent.mkdir(exist_ok=True)
        write_video(root / f"{name}.mp4", noise.astype(np.uint8), 10.0)
        (root / f"{name}.mp4").rename(root / name)
        (root / name).with_suffix(".txt").write_text(f"clip {number}, ünïcode\n", encoding="utf-8")
        rows.append(f"{name},of the table {number},{'ab'[number % 2]},{'xyz'[number % 3]}")
        captions = [f"{word} {number}" for word in ("one", "two", "three")[: 1 + number % 3]]
        lines.append(json.dumps({"videos": name, "captions": captions, "label": number}))
    (root / "clips.csv").write_text("\n".join(rows))
    (root / "clips.jsonl").write_text("\n".join(lines))
    return root


def files_config(root: Path, source: str = "folder", **options: Any) -> DataConfig:
    path = root / f"clips.{source}" if source in ("csv", "jsonl") else root
    return DataConfig(**{**SMALL, "source": source, "path": str(path), **options})


def shards_config(path: object, shuffle_shards: int | None = None, **options: Any) -> DataConfig:
    sections = {"shards": ShardsOptions(shuffle_shards=shuffle_shards)}
    options = {**SMALL, "source": "shards", "path": str(path), "sections": sections, **options}
    return DataConfig(**options)


def shards(path: object, **options: Any) -> VideoDataset:
    return build_dataset(shards_config(path, **options))


def pack(config: DataConfig, output: Path, clips: int = 3) -> Path:
    dataset: Any = build_dataset(config)
    writer = ShardWriter(output, dataset, clips, None)
    assert not writer.complete()
    for number in reversed(writer.start()):
        writer.write(number)
    writer.finish()
    assert writer.complete()
    return output


@pytest.fixture(scope="module")
def packed(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(files_config(files, part="all"), tmp_path_factory.mktemp("packed") / "shards")


@pytest.fixture
def copied(packed: Path, tmp_path: Path) -> Path:
    """The shards, to be spoilt."""
    (tmp_path / "shards").mkdir()
    for file in packed.iterdir():
        (tmp_path / "shards" / file.name).write_bytes(file.read_bytes())
    return tmp_path / "shards"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def memory() -> Iterator[Callable[[Path], str]]:
    """Puts a folder's files where only fsspec finds them."""
    url = f"memory://{uuid.uuid4().hex}"
    system = fsspec.filesystem("memory")

    def upload(folder: Path) -> str:
        for file in folder.iterdir():
            system.pipe_file(f"{url}/{file.name}", file.read_bytes())
        return url

    yield upload
    system.rm(url, recursive=True)


def assert_same_samples(one: VideoDataset, other: VideoDataset, epochs: int = 2) -> None:
    assert len(one) == len(other) > 0
    assert one.label_names == other.label_names
    assert one.factor_classes() == other.factor_classes()
    for index, epoch in itertools.product(range(len(one)), range(epochs)):
        first, second = one[epoch, index], other[epoch, index]
        assert first.keys() == second.keys()
        assert torch.equal(first["video"], second["video"])
        assert torch.equal(first["frame_indices"], second["frame_indices"])
        for name in ("caption", "label", "index", "fps", "noise_seed", "backend", "skipped"):
            assert first[name] == second[name], name
        assert one.captions(index, 4) == other.captions(index, 4)
        assert one.factors(index) == other.factors(index)


# Reading


@pytest.mark.parametrize("backend", ["auto", "decord"])
def test_samples_are_those_of_the_files(files: Path, packed: Path, backend: str) -> None:
    if backend == "decord":
        pytest.importorskip("decord", reason="decord has no build for this platform")
    options: dict[str, Any] = {"backend": backend, "flip": True, "seed": 3}
    assert_same_samples(build_dataset(files_config(files, **options)), shards(packed, **options))
    assert {shards(packed, backend=backend)[i]["backend"] for i in range(2)} == (
        {"decord"} if backend == "decord" else {"pyav"}
    )


@pytest.mark.parametrize(
    ("source", "options"),
    [
        ("classes", {}),
        ("csv", {"content_factors": ("person",), "motion_factors": ("label",)}),
        ("jsonl", {}),
    ],
)
def test_labels_captions_and_factors_are_those_of_the_list(
    files: Path, tmp_path: Path, source: str, options: dict[str, Any]
) -> None:
    pack(files_config(files, source, part="all", **options), tmp_path / "s")
    expected = build_dataset(files_config(files, source, **options))
    assert_same_samples(expected, shards(tmp_path / "s", **options))
    # The same from what the shards themselves say, without the index that came with them.
    (tmp_path / "s" / "index.jsonl").unlink()
    make_index(str(tmp_path / "s"))
    assert_same_samples(expected, shards(tmp_path / "s", **options))


def test_each_epoch_takes_one_of_several_captions(files: Path) -> None:
    dataset = build_dataset(files_config(files, "jsonl"))
    captions = dataset.captions(2, 9)
    assert sorted(captions) == ["one 2", "three 2", "two 2"]
    assert [dataset[epoch, 2]["caption"] for epoch in range(6)] == captions * 2
    assert dataset.captions(2, 2) == captions[:2]
    assert dataset.captions(0, 3) == ["one 0"]
    first = {tuple(build_dataset(files_config(files, "jsonl", seed=s)).captions(2, 3))
             for s in range(20)}  # fmt: skip
    assert len(first) > 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"clips\.jsonl: line 1 is not JSON"),
        ("[1]", "line 1 must be an object"),
        ('{"clip": "x"}', r"must have a column 'videos'.*got the keys \['clip'\]"),
        ('{"videos": "x", "captions": [1]}', "a caption must be a text or a list of texts"),
    ],
)
def test_a_jsonl_that_cannot_be_used(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "clips.jsonl").write_text(line)
    with pytest.raises(ValueError, match=message):
        build_dataset(files_config(tmp_path, "jsonl"))


def test_the_validation_part_is_that_of_the_files(files: Path, packed: Path) -> None:
    for part in ("train", "validation"):
        options: dict[str, Any] = {"part": part, "validation_fraction": 0.3}
        assert_same_samples(
            build_dataset(files_config(files, **options)), shards(packed, **options), epochs=1
        )
    assert len(shards(packed, max_clips=2)) == 2


def test_paths_patterns_and_urls(
    packed: Path, memory: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, whole = memory(packed), shards(packed)
    monkeypatch.chdir(packed)
    for path, clips in {
        packed: 10, f"{packed}/": 10, f"file://{packed}": 10, url: 10, f"{url}/*.tar": 10,
        packed / "shard-00000[01].tar": 6, f"{url}/shard-{{000001..000002}}.tar": 6,
        "shard-{000000,000003}.tar": 4, f"simplecache::{url}": 10, ".": 10,
    }.items():  # fmt: skip
        dataset = shards(path)
        assert len(dataset) == clips, path
        assert dataset[len(dataset) - 1]["path"] in ({whole[place]["path"] for place in range(10)})
    assert_same_samples(whole, shards(url), epochs=1)
    for path, message in {
        f"{packed}/none-*.tar": r"has no shard none-\*\.tar",
        f"{packed}/shard-{{000003..000004}}.tar": r"has no shard shard-000004\.tar",
        f"{packed.parent}/*/shard-000000.tar": "must name shards of one folder",
        packed.parent / "gone": "gone does not exist",
        "nowhere://x": "nowhere is none of the protocols",
    }.items():
        with pytest.raises(ValueError, match=message):
            shards(path)


def test_braces() -> None:
    assert expand_braces("a-{08..11}.{tar,x}") == [
        f"a-{n}.{end}" for n in ("08", "09", "10", "11") for end in ("tar", "x")
    ]
    assert expand_braces("plain.tar") == ["plain.tar"]
    assert shard_folder("s3://bucket/dir/") == ("s3://bucket/dir", ["*.tar"])
    assert shard_folder("s3://b/{0..1}.tar") == ("s3://b", ["0.tar", "1.tar"])


def test_windows_of_shards_are_listed(files: Path, packed: Path) -> None:
    expected = list_windows(build_dataset(files_config(files)), "all", Processes())
    assert list_windows(shards(packed), "all", Processes()) == expected


def test_keys_that_shards_cannot_follow() -> None:
    for options in ({"root": "x"}, {"captions": "x"}, {"path": None}):
        with pytest.raises(ValueError, match=f"data.{next(iter(options))}"):
            shards_config("x", **options) if "path" not in options else DataConfig(source="shards")
    with pytest.raises(ValueError, match="`shuffle_shards` must be at least 1"):
        ShardsOptions(shuffle_shards=0)


# Order


def stream(dataset: VideoDataset, batches: int, **options: Any) -> list[dict[str, Any]]:
    loader = build_loader(dataset, **{"batch_size": 4, "seed": 5, **options})
    return list(itertools.islice(loader, batches))


@pytest.mark.parametrize("shuffle_shards", [None, 2])
def test_ranks_and_workers_read_each_clip_once(packed: Path, shuffle_shards: int | None) -> None:
    dataset = shards(packed, shuffle_shards=shuffle_shards)
    whole = stream(dataset, 5)  # two epochs of ten clips
    parts = [stream(dataset, 5, rank=rank, world_size=2, num_workers=2) for rank in (0, 1)]
    for one, *two in zip(whole, *parts, strict=True):
        assert one["path"] == [path for part in two for path in part["path"]]
        assert torch.equal(one["video"], torch.cat([part["video"] for part in two]))
    indices = [index for batch in whole for index in batch["index"].tolist()]
    assert sorted(indices[:10]) == sorted(indices[10:]) == list(range(10))
    seen: Counter[str] = Counter()
    for rank in (0, 1):
        loader = build_evaluation_loader(
            dataset, batch_size=2, rank=rank, world_size=2, num_workers=2
        )
        seen.update(path for batch in loader for path in batch["path"])
    assert len(seen) == 10 and set(seen.values()) == {1}


@pytest.mark.parametrize("shuffle_shards", [None, 1])
def test_a_stream_resumes_in_the_middle(packed: Path, shuffle_shards: int | None) -> None:
    whole = stream(shards(packed, shuffle_shards=shuffle_shards), 7)
    resumed = stream(shards(packed, shuffle_shards=shuffle_shards), 4, start_batch=3)
    for one, two in zip(whole[3:], resumed, strict=True):
        assert torch.equal(one["video"], two["video"])
        assert one["caption"] == two["caption"]


def test_an_epoch_keeps_within_few_shards(packed: Path) -> None:
    dataset: Any = shards(packed, shuffle_shards=2)
    orders = [dataset.order(0, epoch) for epoch in range(8)]
    for order in orders:
        assert sorted(order) == list(range(10))
        visited = dataset.shard_index.shard_of[order].tolist()
        first = set(visited[:4])  # the shards have 3, 3, 3 and 1 clips
        sizes = sum([3, 3, 3, 1][shard] for shard in first)
        assert len(first) <= 2 and set(visited[:sizes]).isdisjoint(visited[sizes:])
    assert len({tuple(order) for order in orders}) == 8
    files_order = GlobalBatchSampler(10, 2, 0).order(3)
    assert np.array_equal(shards(packed).order(0, 3), files_order)


# What is damaged, and what was changed


def spoil(shard: Path, entry: dict[str, Any]) -> None:
    content = bytearray(shard.read_bytes())
    content[entry["offset"] + entry["size"] // 2] ^= 255
    shard.write_bytes(content)


def entries(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "index.jsonl").read_text().splitlines()[1:]]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_damaged_clip_is_skipped_counted_and_named(copied: Path, num_workers: int) -> None:
    spoil(copied / "shard-000001.tar", entries(copied)[4])
    dataset = shards(copied, max_bad_fraction=0.2)
    with pytest.raises(UnusableVideo, match=r"^shard-000001.tar/00000004.mp4: damaged: its digest"):
        dataset.get(4)
    loader = build_loader(dataset, batch_size=5, seed=0, num_workers=num_workers)
    batches = list(itertools.islice(loader, 2))
    assert [item.path for batch in batches for item in batch["skipped"]] == [
        "shard-000001.tar/00000004.mp4"
    ]
    assert list(dataset.bad_file_log.files) == ["shard-000001.tar/00000004.mp4"]
    none_bad = shards(copied, max_bad_fraction=0.0)
    strict = build_loader(none_bad, batch_size=5, seed=0, num_workers=num_workers)
    with pytest.raises(TooManyBadFiles, match=r"1 of 10 files .*\n  shard-000001.tar/00000004.mp4"):
        list(itertools.islice(strict, 2))


def test_a_shard_of_another_size_is_refused(copied: Path) -> None:
    with (copied / "shard-000002.tar").open("ab") as file:
        file.write(b"\0" * 512)
    with pytest.raises(ValueError, match=r"shard-000002.tar was changed since .*index.jsonl was"):
        shards(copied)
    assert len(shards(copied / "shard-00000[01].tar")) == 6  # it is not asked for
    (copied / "shard-000002.tar").unlink()
    with pytest.raises(ValueError, match=r"lacks the shard shard-000002.tar"):
        shards(copied)


def test_a_shard_of_the_same_size_is_refused_when_it_is_read(copied: Path) -> None:
    one, two = (copied / f"shard-00000{number}.tar" for number in (0, 1))
    size = max(one.stat().st_size, two.stat().st_size)
    content = two.read_bytes()
    two.write_bytes(one.read_bytes().ljust(size, b"\0")[: len(content)])
    dataset = shards(copied)
    dataset.get(0)
    with pytest.raises(ValueError, match=r"shard-000001.tar was changed .*00000003.mp4 isn't th"):
        dataset.get(3)


def test_an_index_that_cannot_be_used(copied: Path) -> None:
    index = copied / "index.jsonl"
    text = index.read_text()
    for spoilt, message in {
        text[:-30]: "index.jsonl is no index of shards: .* lists 9 clips instead of 10",
        text.replace("vidtwin-shards-1", "vidtwin-shards-9"): "format 'vidtwin-shards-9'",
        "x": "is no index of shards",
    }.items():
        index.write_text(spoilt)
        with pytest.raises(ValueError, match=message):
            shards(copied)


def test_a_server_that_fails_is_asked_again(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Failing:
        def cat_file(self, path: str, start: int, end: int) -> bytes:
            asked.append(start)
            if len(asked) % 3:
                raise OSError("no answer")
            return Path(path).read_bytes()[start:end]

    dataset = shards(packed)
    expected = dataset.get(0)["video"]
    monkeypatch.setattr(shard_reading, "RETRY_AFTER", (0.0, 0.0))
    monkeypatch.setattr(shard_reading, "filesystem", lambda url: (Failing(), url))
    assert torch.equal(dataset.get(0)["video"], expected)
    assert len(asked) == 3
    monkeypatch.setattr(shard_reading, "RETRY_AFTER", (0.0,))
    with pytest.raises(UnusableVideo, match=r"shard-000000.tar/00000000.mp4: can't be read: no an"):
        dataset.get(0)


def test_a_shard_that_answers_too_late_is_unusable(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow:
        def cat_file(self, *_: Any, **__: Any) -> bytes:
            time.sleep(0.5)
            return b""

    dataset = shards(packed, timeout=0.1)
    monkeypatch.setattr(shard_reading, "filesystem", lambda url: (Slow(), url))
    with pytest.raises(UnusableVideo, match=r"reading took more than 0.1 seconds"):
        dataset.get(0)


# Shards that others made


def foreign(folder: Path, files: Path, names: list[list[str]]) -> Path:
    """WebDataset shards with texts of every kind; member names without a video give its texts."""
    folder.mkdir()
    videos = sorted(files.rglob("*.mp4"))
    for number, members in enumerate(names):
        with tarfile.open(folder / f"data-{number:03d}.tar", "w") as tar:
            for member in members:
                name, _, text = member.partition("=")
                content = text.encode() or videos[number].read_bytes()
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return folder


FOREIGN = [
    ["./a/001.json={\"caption\": \"unused\", \"url\": 3}", "./a/001.mp4", "./a/001.txt=a dog\n",
     "./a/001.cls=2", "./a/002.video.mp4", "./a/002.json={\"captions\": [\"x\", \"y\"]}",
     "./a/002.cls=0", "readme.md=hello", ".hidden.mp4"],
    ["001.mp4", "001.json={\"caption\": \"a cat\", \"label\": 1}", "002.txt=no video here",
     f"{'long' * 40}.mp4", f"{'long' * 40}.json=broken", "ümlaut.mp4", "003.mp4=not a video"],
]  # fmt: skip


def test_foreign_shards_are_read(
    files: Path, tmp_path: Path, own_cache: Path, memory: Callable[[Path], str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    folder = foreign(tmp_path / "foreign", files, FOREIGN)
    url = memory(folder)
    command = "has no index.jsonl; make the index with `vidtwin shards index="
    for path in (folder, url):
        with pytest.raises(ValueError, match=f"{command}{path}`"):
            shards(path)
    assert make_index(str(folder)) == (folder / "index.jsonl", 6)
    written, clips = make_index(f"{url}/data-{{000..001}}.tar", num_workers=2)
    assert clips == 6 and written.is_relative_to(own_cache)
    assert (
        "data-001.tar/longlong" in caplog.text
        and "long.json is not JSON and is not used" in caplog.text
    )
    local, remote = shards(folder, max_bad_fraction=0.5), shards(url, max_bad_fraction=0.5)
    assert_same_samples(local, remote)
    assert [clip.path for clip in local.clips] == [  # type: ignore[attr-defined]
        "data-000.tar/./a/001.mp4", "data-000.tar/./a/002.video.mp4", "data-001.tar/001.mp4",
        f"data-001.tar/{'long' * 40}.mp4", "data-001.tar/ümlaut.mp4", "data-001.tar/003.mp4",
    ]  # fmt: skip
    assert [sorted(local.captions(index, 9)) for index in range(4)] == [
        ["a dog"], ["x", "y"], ["a cat"], [""],
    ]  # fmt: skip
    assert [local.get(index)["label"] for index in range(5)] == [2, 0, 1, -1, -1]
    assert local.label_names == ["0", "1", "2"]
    assert local.factor_classes().motion == {"class": ("0", "1", "2")}
    with pytest.raises(UnusableVideo, match=r"^data-001.tar/003.mp4: can't be opened: Invalid"):
        local.get(5)
    fsspec.filesystem("memory").pipe_file(
        f"{url}/data-000.tar", (folder / "data-000.tar").read_bytes()
    )
    with pytest.raises(ValueError, match=r"data-000.tar was changed since .*vidtwin shards index="):
        shards(url)


def test_clips_of_the_same_key_in_several_shards_are_split_apart(
    files: Path, tmp_path: Path
) -> None:
    folder = foreign(tmp_path / "foreign", files, [["0.mp4"], ["0.mp4"], ["0.mp4"]])
    make_index(str(folder))
    dataset: Any = shards(folder)
    assert [clip.name for clip in dataset.clips] == [f"data-00{n}.tar/0.mp4" for n in range(3)]
    parts = [shards(folder, part=p, validation_fraction=0.4) for p in ("train", "validation")]
    assert sum(map(len, parts)) == 3


def test_shards_that_cannot_be_indexed(files: Path, tmp_path: Path) -> None:
    folder = foreign(tmp_path / "foreign", files, [["0.mp4", "0.txt=x", "1.mp4"], ["x.txt=y"]])
    with pytest.raises(ValueError, match="no videos found in 1 shards"):
        make_index(f"{folder}/data-001.tar")
    shard = folder / "data-000.tar"
    content = shard.read_bytes()
    shard.write_bytes(content[:2000])
    with pytest.raises(ValueError, match=r"data-000.tar is a damaged tar file"):
        make_index(str(folder))
    place = content.index(b"1.mp4\0") + 20
    shard.write_bytes(content[:place] + b"garbage" + content[place + 7 :])
    with pytest.raises(ValueError, match=r"data-000.tar is a damaged tar file: no header at byte"):
        make_index(str(folder))
    with pytest.raises(ValueError, match=r"has no shard .*, of 0 that end in .tar"):
        make_index(str(tmp_path))


# Making them


def test_bounds() -> None:
    assert shard_bounds([1] * 7, 3, None) == [(0, 3), (3, 6), (6, 7)]
    assert shard_bounds([4, 4, 9, 1, 1, 1], None, 8) == [(0, 2), (2, 3), (3, 6)]
    assert shard_bounds([4, 4, 1, 1, 1, 1], 3, 8) == [(0, 2), (2, 5), (5, 6)]
    assert shard_bounds([20, 20], None, 8) == [(0, 1), (1, 2)]
    assert shard_bounds([1, 1], None, None) == [(0, 2)]


def test_a_rerun_makes_what_is_missing_with_the_same_bytes(
    files: Path, packed: Path, tmp_path: Path
) -> None:
    expected = {file.name: file.read_bytes() for file in packed.iterdir()}
    dataset: Any = build_dataset(files_config(files, part="all"))
    first = ShardWriter(tmp_path / "s", dataset, 3, None)
    first.start()
    first.write(2)
    first.write(0)
    # What kills may leave: a part of a file, a shard without a record, one that is cut off.
    (tmp_path / "s" / ".shard-000003.tar.99.partial").write_bytes(b"x")
    (tmp_path / "s" / "shard-000001.tar").write_bytes(b"x")
    (tmp_path / "s" / "shard-000000.tar").write_bytes(b"x")
    again = ShardWriter(tmp_path / "s", dataset, 3, None)
    assert not again.complete()
    with pytest.raises(ValueError, match=r"the shards in .* aren't complete"):
        make_index(str(tmp_path / "s"))
    missing = again.start()
    assert missing == [0, 1, 3]
    for number in missing:
        again.write(number)
    again.finish()
    assert {file.name: file.read_bytes() for file in (tmp_path / "s").iterdir()} == expected
    with pytest.raises(ValueError, match="holds shards of other clips, or made with other sett"):
        ShardWriter(tmp_path / "s", dataset, 4, None).complete()


def test_shards_of_others_are_not_written_over(files: Path, tmp_path: Path) -> None:
    folder = foreign(tmp_path / "foreign", files, [["0.mp4"]])
    dataset: Any = build_dataset(files_config(files))
    for _ in range(2):
        with pytest.raises(ValueError, match="holds shards of other clips"):
            ShardWriter(folder, dataset, 3, None).complete()
        make_index(str(folder))


def test_bad_files_are_left_out_and_reported(files: Path, tmp_path: Path) -> None:
    bad = tmp_path / "files"
    bad.mkdir()
    for name, content in (("a", b"no video"), ("b", b""), ("c", None)):
        content = next(files.rglob("*.mp4")).read_bytes() if content is None else content
        (bad / f"{name}.mp4").write_bytes(content)
    with (bad / "clips.csv").open("w") as file:
        file.write("videos\na.mp4\ngone.mp4\nb.mp4\nc.mp4\n")
    pack(files_config(bad, "csv", part="all"), tmp_path / "s", clips=2)
    report = json.loads((tmp_path / "s" / "bad_files.json").read_text())
    assert report["files"] == 4
    assert {item["path"]: item["reason"].partition(":")[0] for item in report["bad"]} == {
        "a.mp4": "can't be opened", "gone.mp4": "no such file", "b.mp4": "empty file",
    }  # fmt: skip
    # The first shard would be empty: there is none.
    assert sorted(file.name for file in (tmp_path / "s").glob("*.tar")) == ["shard-000001.tar"]
    assert len(shards(tmp_path / "s")) == 1
    (bad / "clips.csv").write_text("videos\na.mp4\nb.mp4\n")
    with pytest.raises(ValueError, match=r"none of the 2 videos can be used, such as a.mp4: can't"):
        pack(files_config(bad, "csv", part="all"), tmp_path / "none")
