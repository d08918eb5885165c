"""Which clips a source lists, what it says about a source that can't be used, and how it splits."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from vidtwin.data.clips import Clip, ClipList, split_clips, split_key
from vidtwin.data.config import DataConfig
from vidtwin.data.file_sources import find_clips

PINNED = ["clips/2.mp4", "clips/3.mp4", "clips/7.mp4", "clips/9.mp4"]


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def find(source: str, path: str | None = None, part: str = "all", **options: Any) -> ClipList:
    return find_clips(DataConfig(source=source, path=path, part=part, **options))


def names(clips: list[Clip]) -> list[str]:
    return [clip.name for clip in clips]


def test_csv(tmp_path: Path) -> None:
    touch(tmp_path, "a/one.mp4", "two.mp4")
    absolute = tmp_path / "elsewhere" / "three.mp4"
    touch(absolute.parent, "three.mp4")
    table = tmp_path / "clips.csv"
    table.write_text(
        f'videos,caption,label\na/one.mp4,"a cat, running",run\ntwo.mp4,,walk\n{absolute},x,\n'
    )
    listing = find("csv", str(table))
    assert [clip.path for clip in listing.clips] == [
        str(tmp_path / "a/one.mp4"), str(tmp_path / "two.mp4"), str(absolute)
    ]  # fmt: skip
    assert [clip.caption for clip in listing.clips] == ["a cat, running", "", "x"]
    assert [clip.label for clip in listing.clips] == [0, 1, -1]
    assert listing.label_names == ["run", "walk"]


def test_csv_with_the_released_format_and_another_root(tmp_path: Path) -> None:
    touch(tmp_path, "data/one.mp4")
    table = tmp_path / "lists" / "clips.csv"
    table.parent.mkdir()
    table.write_text("videos\none.mp4\n\n")
    listing = find("csv", str(table), root=str(tmp_path / "data"))
    assert [clip.path for clip in listing.clips] == [str(tmp_path / "data/one.mp4")]
    assert listing.clips[0].label == -1
    assert listing.label_names == []


def test_csv_labels_that_are_numbers_stay(tmp_path: Path) -> None:
    touch(tmp_path, "one.mp4", "two.mp4")
    (tmp_path / "c.csv").write_text("videos,label\none.mp4,10\ntwo.mp4,2\n")
    listing = find("csv", str(tmp_path / "c.csv"))
    assert [clip.label for clip in listing.clips] == [10, 2]
    assert len(listing.label_names) == 11


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "clip,words\none.mp4,x\n",
            r"must have a column 'videos'.*got the columns \['clip', 'words",
        ),
        ("videos\n", "no videos found in .*its column 'videos' is empty"),
        ("", r"got the columns \[\]"),
        ("videos\none.mp4\none.mp4\n", "lists .*one.mp4 twice, as video 1 and 2"),
        (
            "videos\ngone.mp4\nlost.mp4\n",
            "none of the videos .* is there, such as .*gone.mp4.*root",
        ),
    ],
)
def test_csv_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    touch(tmp_path, "one.mp4")
    (tmp_path / "c.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        find("csv", str(tmp_path / "c.csv"))


def test_csv_with_some_missing_files_warns(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path, "one.mp4")
    (tmp_path / "c.csv").write_text("videos\none.mp4\ngone.mp4\n")
    assert len(find("csv", str(tmp_path / "c.csv")).clips) == 2
    assert "1 of 2 videos looked for are not there" in caplog.text
    assert "gone.mp4" in caplog.text


def test_classes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "walk/b.mp4", "run/deep/a.AVI", "run/note.txt", ".hidden/x.mp4", "top.mp4")
    (tmp_path / "empty").mkdir()
    with caplog.at_level(logging.WARNING):
        listing = find("classes", str(tmp_path))
    assert names(listing.clips) == ["run/deep/a.AVI", "walk/b.mp4"]
    assert [clip.label for clip in listing.clips] == [0, 1]
    assert listing.label_names == ["run", "walk"]
    assert "without a video: empty" in caplog.text


def ucf101(root: Path) -> Path:
    clips = [f"{label}/v_{label}_g{g:02d}_c01.avi" for label in ("Bow", "Archery") for g in (1, 8)]
    touch(root / "UCF-101", *clips)
    lists = root / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "classInd.txt").write_text("1 Bow\n2 Archery\n")
    (lists / "trainlist01.txt").write_text(
        "Bow/v_Bow_g08_c01.avi 1\r\nArchery/v_Archery_g08_c01.avi 2\r\n"
    )
    (lists / "testlist01.txt").write_text("Bow/v_Bow_g01_c01.avi\nArchery/v_Archery_g01_c01.avi\n")
    return root


@pytest.mark.parametrize("below", ["", "UCF-101"])
def test_ucf101(tmp_path: Path, below: str) -> None:
    root = str(ucf101(tmp_path) / below)
    train = find("ucf101", root, split=1, part="train")
    assert names(train.clips) == ["Bow/v_Bow_g08_c01.avi", "Archery/v_Archery_g08_c01.avi"]
    assert [clip.label for clip in train.clips] == [0, 1]
    assert train.label_names == ["Bow", "Archery"]  # in the order of classInd.txt
    test = find("ucf101", root, split=1, part="validation")
    assert names(test.clips) == ["Bow/v_Bow_g01_c01.avi", "Archery/v_Archery_g01_c01.avi"]
    assert len(find("ucf101", root, split=1, part="all").clips) == 4
    assert all(Path(clip.path).is_file() for clip in train.clips + test.clips)
    assert len(find("classes", str(tmp_path / "UCF-101")).clips) == 4


def test_ucf101_that_cannot_be_used(tmp_path: Path) -> None:
    root = str(ucf101(tmp_path))
    with pytest.raises(ValueError, match="split must be 1, 2 or 3 for UCF-101, got None"):
        find("ucf101", root)
    with pytest.raises(ValueError, match=r"no trainlist02\.txt in"):
        find("ucf101", root, split=2)


def test_folder_with_captions_beside_the_clips(tmp_path: Path) -> None:
    touch(tmp_path, "b.mp4", "a.mp4", "sub/c.webm", "note.md")
    (tmp_path / "a.txt").write_text("a dog jumps\n", encoding="utf-8")
    listing = find("folder", str(tmp_path))
    assert names(listing.clips) == ["a.mp4", "b.mp4", "sub/c.webm"]
    assert [clip.caption for clip in listing.clips] == ["a dog jumps", "", ""]


def test_folder_with_captions_in_json(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "clips/a.mp4", "clips/b.mp4", "clips/c.mp4")
    captions = tmp_path / "captions.json"
    captions.write_text(json.dumps({"clips/a.mp4": "one", "b.mp4": "two"}))
    for path, given in (
        (tmp_path, "captions.json"),
        (tmp_path, str(captions)),
        (tmp_path / "clips", str(captions)),
    ):
        listing = find("folder", str(path), captions=given)
        assert [clip.caption for clip in listing.clips] == ["one", "two", ""]
    assert "has no caption for 1 of 3 videos, such as" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ('["a"]', "one JSON object of path -> caption"),
        ('{"x.mp4": "none of ours"}', "no caption for any of the 1 videos.*'a.mp4', got 'x.mp4'"),
    ],
)
def test_captions_that_cannot_be_used(tmp_path: Path, content: str, message: str) -> None:
    touch(tmp_path, "a.mp4")
    (tmp_path / "captions.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        find("folder", str(tmp_path), captions="captions.json")
    with pytest.raises(ValueError, match=r"data\.captions must name a JSON file"):
        find("folder", str(tmp_path), captions="gone.json")


def test_glob(tmp_path: Path) -> None:
    touch(tmp_path, "x/b.mp4", "x/a.mp4", "y/c.mp4", "y/d.mkv")
    listing = find("glob", str(tmp_path / "**" / "*.mp4"))
    assert names(listing.clips) == ["x/a.mp4", "x/b.mp4", "y/c.mp4"]
    with pytest.raises(ValueError, match=r"no file matches data.path='.*\*\.avi'"):
        find("glob", str(tmp_path / "*.avi"))


def test_files(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.mp4")
    one = find("files", str(tmp_path / "a.mp4"))
    assert names(one.clips) == ["a.mp4"]
    two = find("files", files=[str(tmp_path / "b.mp4"), str(tmp_path / "a.mp4")])
    assert names(two.clips) == ["b.mp4", "a.mp4"]
    with pytest.raises(ValueError, match=r"twice, as video 1 and 2"):
        find("files", files=[str(tmp_path / "a.mp4")] * 2)
    with pytest.raises(ValueError, match=r"data\.files must list videos"):
        find("files")


@pytest.mark.parametrize("source", ["csv", "classes", "folder", "ucf101", "files"])
def test_missing_path(source: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.path must name .* does not exist"):
        find(source, str(tmp_path / "gone"))


def test_wrong_kind_of_path(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4")
    with pytest.raises(ValueError, match=r"must name a CSV file, but .* is a folder"):
        find("csv", str(tmp_path))
    with pytest.raises(ValueError, match=r"must name a folder of videos, but .* is a file"):
        find("folder", str(tmp_path / "a.mp4"))
    with pytest.raises(ValueError, match=r"must name a folder of videos, got None"):
        find("folder")


def test_nothing_there(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no videos found in .*looked for files named .*\.mp4"):
        find("folder", str(tmp_path))
    with pytest.raises(ValueError, match=r"no videos found in the class folders of .*\(empty\)"):
        find("classes", str(tmp_path))


def test_unknown_source_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"got 'folders'; did you mean 'folder'\?"):
        find("folders", ".")


def test_options_that_a_source_ignores_are_errors(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4")
    for options in ({"split": 1}, {"root": "."}, {"files": ["a.mp4"]}):
        with pytest.raises(ValueError, match=f"data.{next(iter(options))} is for the source"):
            find("folder", str(tmp_path), **options)
    with pytest.raises(ValueError, match=r"data\.captions is for the source .* with 'csv'"):
        find("csv", str(tmp_path), captions="captions.json")


def made(*given: str) -> list[Clip]:
    return [Clip(path=f"/data/{name}", name=name) for name in given]


def test_split_is_a_partition_that_follows_the_path_alone() -> None:
    clips = made(*(f"clips/{number}.mp4" for number in range(1000)))
    train = split_clips(clips, "train", 0.1)
    validation = split_clips(clips, "validation", 0.1)
    assert sorted(names(train + validation)) == sorted(names(clips))
    assert 70 <= len(validation) <= 130
    # Others that come or go, or another order, change no clip's side.
    fewer = split_clips(clips[::-2], "validation", 0.1)
    assert set(names(fewer)) == set(names(validation)) & set(names(clips[::-2]))
    # Pinned: a run that is resumed years later must not see its validation clips in training.
    assert names(validation)[:4] == PINNED
    assert split_clips(clips, "all", 0.1) == clips
    assert split_clips(clips, "train", 0.0) == clips


def test_split_keeps_groups_together() -> None:
    clips = made(
        *(
            f"{label}/v_{label}_g{group:02d}_c{clip:02d}.avi"
            for label in ("Bend", "Walk_Dog")
            for group in range(1, 8)
            for clip in (1, 2)
        )
    )
    sides = [
        {split_key(clip.name) for clip in split_clips(clips, part, 0.3)}
        for part in ("train", "validation")
    ]
    assert not sides[0] & sides[1]
    assert sides[0] | sides[1] == {f"g{group:02d}" for group in range(1, 8)}


def test_split_leaves_no_part_empty() -> None:
    clips = made("a.mp4", "b.mp4", "c.mp4")
    assert len(split_clips(clips, "validation", 0.0001)) == 1
    assert len(split_clips(clips, "train", 0.9999)) == 1
    with pytest.raises(ValueError, match="needs at least two clips or groups"):
        split_clips(clips[:1], "train", 0.5)
