"""Lists of clips and other text that users wrote: read as it was meant, or refused in one line."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import re
import resource
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vidtwin.data.clips import ClipList
from vidtwin.data.config import DataConfig
from vidtwin.data.file_dataset import FileDataset
from vidtwin.data.file_sources import find_clips
from vidtwin.data.labels import MAX_CLASSES, label_indices
from vidtwin.hub_names import check_local_path
from vidtwin.text_files import read_lines, read_text


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    touch(tmp_path, "a.mp4", "b.mp4", "c.mp4", "sub/a.mp4")
    return tmp_path


def find(source: str, path: Path | str, **options: Any) -> ClipList:
    return find_clips(DataConfig(source=source, path=str(path), part="all", **options))


def listed(folder: Path, name: str, content: str | bytes, **options: Any) -> ClipList:
    """The clips of a list with this content."""
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return find("list", file, **options)


def refusal(folder: Path, name: str, content: str | bytes, **options: Any) -> str:
    with pytest.raises(ValueError, match=re.escape(name)) as error:
        listed(folder, name, content, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def captions(listing: ClipList) -> list[str]:
    return [clip.caption for clip in listing.clips]


def labels(listing: ClipList) -> list[int]:
    return [clip.label for clip in listing.clips]


def names(listing: ClipList) -> list[str]:
    return [clip.name for clip in listing.clips]


class TestFieldsOfACsv:
    @pytest.mark.parametrize(
        ("text", "came", "expected"),
        [
            ("videos,caption\na.mp4,a dog, running on grass\nb.mp4,a cat\n", 3, 2),
            ("videos,caption,label\na.mp4,a dog, running,Dog\nb.mp4,a cat,Cat\n", 4, 3),
            ("videos\na.mp4,a dog\n", 2, 1),
        ],
    )
    def test_a_comma_without_quotes_is_refused(self, folder, text, came, expected):
        told = refusal(folder, "clips.csv", text)
        assert f"line 2 has {came} fields where the header has {expected}" in told
        assert "must stand in quotes" in told

    def test_too_few_fields_are_refused(self, folder):
        told = refusal(folder, "clips.csv", 'videos,caption\na.mp4,"two\nlines"\n\nb.mp4\n')
        assert "line 5 has 1 field where the header has 2" in told

    def test_empty_fields_at_the_end_are_no_fields(self, folder):
        listing = listed(folder, "clips.csv", "videos,caption,\na.mp4,a dog,,\nb.mp4,a cat,\n,,\n")
        assert captions(listing) == ["a dog", "a cat"]

    def test_spaces_in_the_header(self, folder):
        text = "videos, caption, label\na.mp4,a dog,Dog\nb.mp4,a cat,Cat\n"
        listing = listed(folder, "clips.csv", text)
        assert captions(listing) == ["a dog", "a cat"]
        assert [listing.label_names[label] for label in labels(listing)] == ["Dog", "Cat"]

    def test_a_space_before_a_quote(self, folder):
        text = 'videos,caption\na.mp4, "a dog, running"\nb.mp4, "a cat"\n'
        assert captions(listed(folder, "clips.csv", text)) == ["a dog, running", "a cat"]

    @pytest.mark.parametrize("end", ["", "\n", "\r\n"])
    def test_a_quote_that_is_never_closed(self, folder, end):
        text = 'videos,caption\na.mp4,"a dog\nb.mp4,a cat\nc.mp4,a hen' + end
        told = refusal(folder, "clips.csv", text)
        assert "an opening quote in line 2 is never closed" in told

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ('a.mp4,"a dog\nb.mp4,"a cat"\n', "line 3 has text behind a closing quote"),
            ('a.mp4,"a dog\nb.mp4,a cat\nc.mp4,"\n', "line 2 is closed in line 4"),
            ('a.mp4,"a "big" dog"\n', "write a quote inside a quoted text twice"),
            ('a.mp4,"a \\"big\\" dog"\n', "write a quote inside a quoted text twice"),
        ],
    )
    def test_quotes_that_are_not_in_pairs(self, folder, text, message):
        assert message in refusal(folder, "clips.csv", f"videos,caption\n{text}")

    def test_quotes_that_are(self, folder):
        text = 'videos,caption\na.mp4,"a ""big"" dog\non two lines"\nb.mp4,a 5" ring\n'
        assert captions(listed(folder, "clips.csv", text)) == [
            'a "big" dog\non two lines', 'a 5" ring'
        ]  # fmt: skip

    def test_a_long_field(self, folder):
        limit = csv.field_size_limit()
        text = "word " * 200_000
        listing = listed(folder, "clips.csv", f"videos,caption\na.mp4,{text}\n")
        assert captions(listing) == [text.strip()]
        assert csv.field_size_limit() == limit

    @pytest.mark.parametrize("delimiter", [";", "\t", "|"])
    def test_another_delimiter_is_found(self, folder, delimiter):
        text = f"videos{delimiter}caption\na.mp4{delimiter}a dog, running\n"
        assert captions(listed(folder, "clips.csv", text)) == ["a dog, running"]
        told = refusal(folder, "clips.csv", f"{text}b.mp4{delimiter}a{delimiter}b\n")
        assert "line 3 has 3 fields where the header has 2" in told

    @pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
    def test_ends_of_lines(self, folder, end):
        text = end.join(["", "videos,caption", "a.mp4,a dog", "", "b.mp4,a\u2028cat", ""])
        assert captions(listed(folder, "clips.csv", text)) == ["a dog", "a\u2028cat"]

    def test_tab_separated(self, folder):
        listing = listed(folder, "clips.tsv", "path\ttext\na.mp4\ta dog, running\n")
        assert captions(listing) == ["a dog, running"]


class TestColumns:
    def test_capitals_are_refused_with_the_name_that_is_meant(self, folder):
        text = "videos,Caption,Label\na.mp4,a dog,Dog\nb.mp4,a cat,Cat\n"
        told = refusal(folder, "clips.csv", text)
        assert "the columns Caption, Label are not read; did you mean caption, label?" in told
        told = refusal(folder, "clips.csv", "Videos\na.mp4\n")
        assert "got the columns ['Videos']; did you mean videos?" in told

    def test_columns_that_nobody_reads_are_named(self, folder, caplog):
        listing = listed(folder, "clips.csv", "videos,captoin,width\na.mp4,a dog,640\n")
        assert captions(listing) == [""]
        assert "the columns captoin, width are not read; did you mean caption?" in caplog.text

    def test_factors_are_read(self, folder, caplog):
        text = "videos,person,action\na.mp4,Ann,run\nb.mp4,Bob,\n"
        options = {"content_factors": ("person",), "motion_factors": ("action",)}
        listing = listed(folder, "clips.csv", text, **options)
        assert listing.clips[1].factors == {"person": "Bob", "action": ""}
        assert not caplog.text
        told = refusal(folder, "clips.csv", "videos\na.mp4\n", **options)
        assert "lacks person, action" in told

    def test_a_column_that_stands_twice(self, folder):
        told = refusal(folder, "clips.csv", "videos,caption, caption\na.mp4,a dog,a cat\n")
        assert "has the column caption twice" in told

    @pytest.mark.parametrize("path", ["videos", "video", "path", "file_name", "media_path"])
    @pytest.mark.parametrize("caption", ["caption", "text", "cap", "prompt"])
    def test_names_of_other_programs(self, folder, path, caption):
        table = f"{path},{caption}\na.mp4,a dog\n"
        rows = json.dumps({path: "a.mp4", caption: "a dog"})
        for name, content in (("a.csv", table), ("a.jsonl", rows), ("a.json", f"[{rows}]")):
            listing = listed(folder, name, content)
            assert (names(listing), captions(listing)) == (["a.mp4"], ["a dog"])

    def test_a_row_without_a_path(self, folder):
        told = refusal(folder, "clips.csv", "videos,caption\na.mp4,a dog\n,a cat\n")
        assert "line 3 must have a path in 'videos'" in told

    @pytest.mark.parametrize("source", ["csv", "jsonl", "list"])
    def test_names_of_the_source(self, folder, source):
        (folder / "clips.jsonl").write_text('{"video": "a.mp4"}\n')
        assert names(find(source, folder / "clips.jsonl")) == ["a.mp4"]


class TestLabels:
    @staticmethod
    def of(folder: Path, *column: str) -> ClipList:
        rows = "".join(f"{name}.mp4,{each}\n" for name, each in zip("abc", column, strict=False))
        return listed(folder, "clips.csv", f"videos,label\n{rows}")

    def test_minus_one_is_none(self, folder):
        listing = self.of(folder, "0", "1", "-1")
        assert labels(listing) == [0, 1, -1]
        assert listing.label_names == ["0", "1"]
        listing = self.of(folder, "dog", "-1", "")
        assert (labels(listing), listing.label_names) == ([0, -1, -1], ["dog"])

    def test_whole_floats_are_the_numbers(self, folder):
        listing = self.of(folder, "2.0", "10.0", "0.0")
        assert labels(listing) == [2, 10, 0]
        assert listing.label_names == [str(number) for number in range(11)]
        assert labels(self.of(folder, "2", "nan", "0.0")) == [2, -1, 0]

    def test_other_numbers_are_in_the_order_of_their_size(self, folder):
        listing = self.of(folder, "10.5", "2.5", "-3")
        assert (labels(listing), listing.label_names) == ([2, 1, 0], ["-3", "2.5", "10.5"])

    def test_one_based_numbers_are_read_with_a_warning(self, folder, caplog):
        listing = self.of(folder, "1", "2", "2")
        assert labels(listing) == [1, 2, 2]
        assert "class 0 has no clip" in caplog.text
        caplog.clear()
        self.of(folder, "0", "2", "2")
        assert not caplog.text

    @pytest.mark.parametrize("label", ["2000000000", "9" * 5000, f"{MAX_CLASSES}", "-2"])
    def test_a_number_that_is_no_class(self, folder, label):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(ValueError, match=f"the label {label[:20]}.* in line 2 must be the num"):
            self.of(folder, label, "1")
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB

    def test_names_stay_in_the_order_of_the_alphabet(self, folder):
        listing = self.of(folder, "walk", "10", "2")
        assert listing.label_names == ["10", "2", "walk"]

    def test_a_json_holds_numbers(self, folder):
        rows = [{"video": "a.mp4", "label": 2}, {"video": "b.mp4", "label": None},
                {"video": "c.mp4", "label": 0.0}]  # fmt: skip
        assert labels(listed(folder, "clips.json", json.dumps(rows))) == [2, -1, 0]
        told = refusal(folder, "clips.json", '[{"video": "a.mp4", "label": [1]}]')
        assert "'label' in entry 1 must be a name or a number" in told

    @settings(deadline=None, database=None, derandomize=True)
    @given(st.lists(st.integers(-1, 300), min_size=1))
    def test_whole_numbers_are_never_permuted(self, numbers):
        for write in (str, float, lambda number: f" {number}".strip()):
            column = [str(write(number)) for number in numbers]
            assert label_indices(column, [""] * len(column), "x")[0] == numbers


class TestSeveralCaptions:
    TWICE = "videos,caption\na.mp4,a dog\nb.mp4,a cat\na.mp4,a dog that runs\n"

    def test_a_clip_that_is_listed_twice(self, folder):
        listing = listed(folder, "clips.csv", self.TWICE)
        assert names(listing) == ["a.mp4", "b.mp4"]
        assert listing.clips[0].captions == ("a dog", "a dog that runs")

    def test_each_epoch_draws_one(self, folder):
        listing = listed(folder, "clips.csv", self.TWICE)
        drawn = []
        for seed in range(20):
            config = DataConfig(source="list", path="x", part="all", seed=seed)
            dataset = FileDataset(config, listing.clips, [])
            assert dataset.captions(1, 4) == ["a cat"]
            found = dataset.captions(0, 4)
            assert sorted(found) == ["a dog", "a dog that runs"]
            assert dataset.captions(0, 1) == found[:1]
            drawn.append(found[0])
        assert set(drawn) == {"a dog", "a dog that runs"}

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("videos,caption\na.mp4,a dog\na.mp4,a dog\n", "twice, as video 1 and 2; remove one"),
            ("videos,caption,label\na.mp4,x,1\na.mp4,y,2\n", "with different labels"),
        ],
    )
    def test_a_clip_that_is_listed_twice_for_no_reason(self, folder, text, message):
        assert message in refusal(folder, "clips.csv", text)

    def test_a_list_of_captions(self, folder):
        listing = listed(folder, "clips.json", '[{"path": "a.mp4", "cap": ["a dog", "it runs"]}]')
        assert [clip.captions for clip in listing.clips] == [("a dog", "it runs")]
        told = refusal(folder, "clips.json", '[{"path": "a.mp4", "cap": ["a dog", 3]}]')
        assert "entry 1: a caption must be a text or a list of texts" in told

    def test_a_caption_in_one_row_and_captions_in_another(self, folder, caplog):
        rows = (
            '{"video": "a.mp4", "caption": "x", "captions": ["a dog", "it runs"]}',
            '{"video": "b.mp4", "caption": "a cat"}',
            '{"video": "c.mp4", "captions": []}',
        )
        listing = listed(folder, "clips.jsonl", "\n".join(rows))
        assert [c.captions for c in listing.clips] == [("a dog", "it runs"), ("a cat",), ("",)]
        assert not caplog.text

    def test_captions_of_a_folder(self, folder):
        (folder / "captions.json").write_text('{"a.mp4": ["a dog", "it runs"], "b.mp4": "a cat"}')
        listing = find("folder", folder, captions="captions.json")
        assert listing.clips[0].captions == ("a dog", "it runs")
        assert listing.clips[1].captions == ("a cat",)


class TestPaths:
    def test_backslashes(self, folder):
        for name, text in (
            ("clips.csv", "videos,caption\nsub\\a.mp4,a dog\n"),
            ("clips.json", '{"sub\\\\a.mp4": "a dog"}'),
            ("clips.txt", "sub\\a.mp4\n"),
        ):
            listing = listed(folder, name, text)
            assert names(listing) == ["sub/a.mp4"]
            assert Path(listing.clips[0].path).is_file()

    def test_a_name_with_a_backslash_of_its_own(self, folder):
        touch(folder, "x\\y.mp4")
        assert names(listed(folder, "clips.csv", "videos\nx\\y.mp4\n")) == ["x\\y.mp4"]

    def test_a_path_that_no_file_can_have(self, folder):
        told = refusal(folder, "clips.json", '["a.mp4", "b\\u0000.mp4"]')
        assert "entry 2 must have a path" in told
        listing = listed(folder, "clips.csv", f"videos\na.mp4\n{'x' * 5000}.mp4\n")
        assert len(listing.clips) == 2  # one of them is missing, as the log tells

    def test_a_video_instead_of_a_list(self, folder):
        with pytest.raises(ValueError, match=r"a\.mp4 is a video.*set data\.source=files"):
            find("list", folder / "a.mp4")


class TestOtherFormats:
    LINES = '{"video": "a.mp4", "caption": "a dog"}\n\n{"video": "b.mp4", "caption": "a cat"}\n'

    def test_json_lines(self, folder):
        listing = listed(folder, "clips.jsonl", self.LINES)
        assert (names(listing), captions(listing)) == (["a.mp4", "b.mp4"], ["a dog", "a cat"])

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("x.jsonl", LINES + "{\n", "line 4 is not JSON"),
            ("x.jsonl", LINES + "[]\n", "line 4 must be an object"),
            ("x.jsonl", LINES + "{}\n", "line 4 must have a path in 'video'"),
            ("x.jsonl", '{"video": "a.mp4", "video": "b.mp4"}', "names 'video' twice"),
            ("x.json", "3", "must hold a list of clips"),
            ("x.json", '{"clips": [{"path": "a.mp4"}]}', "known keys are videos, video, path"),
            ("x.json", "[" * 100_000, "is not JSON"),
            ("x.json", '["\\ud800.mp4"]', "is not JSON"),
            ("x.json", "[]", "got the keys []"),
            ("x.txt", "\n", "no videos found"),
            ("x.txt", "a.mp4\nb.mp4,a dog\n", "line 2 must be a path"),
        ],
    )
    def test_what_is_refused(self, folder, name, content, message):
        assert message in refusal(folder, name, content)

    def test_json(self, folder):
        for content in (
            '["a.mp4", "b.mp4"]',
            '{"a.mp4": "", "b.mp4": []}',
            '{"a.mp4": {"label": ""}, "b.mp4": {}}',
            '[{"file_name": "a.mp4"}, {"file_name": "b.mp4"}]',
        ):
            assert names(listed(folder, "clips.json", content)) == ["a.mp4", "b.mp4"]
        assert names(listed(folder, "clips.json", '{"path": "a.mp4", "cap": "x"}')) == ["a.mp4"]

    def test_text(self, folder):
        (folder / "a.txt").write_text("a dog")
        listing = listed(folder, "list.txt", "a.mp4\n\nsub/a.mp4\n")
        assert (names(listing), captions(listing)) == (["a.mp4", "sub/a.mp4"], ["a dog", ""])
        listing = listed(folder, "list.txt", "a.mp4 2\nb.mp4 0\n")
        assert (names(listing), labels(listing)) == (["a.mp4", "b.mp4"], [2, 0])
        touch(folder, "d e.mp4 3")
        assert names(listed(folder, "list.txt", "d e.mp4 3\n")) == ["d e.mp4 3"]

    @pytest.mark.parametrize("beside", ["prompts.txt", "prompt.txt", "captions.txt"])
    def test_videos_and_prompts(self, folder, beside):
        (folder / beside).write_text("a dog\n\nit\u2028runs\n\n")
        listing = listed(folder, "videos.txt", "a.mp4\nb.mp4\nsub/a.mp4\n")
        assert captions(listing) == ["a dog", "", "it\u2028runs"]
        (folder / beside).write_text("a dog\na cat\n")
        told = refusal(folder, "videos.txt", "a.mp4\nb.mp4\nsub/a.mp4\n")
        assert "has 2 lines and" in told
        assert "videos.txt has 3" in told

    def test_captions_of_a_text_list(self, folder):
        (folder / "words.txt").write_text("a dog\na cat")
        (folder / "words.json").write_text('{"a.mp4": "a dog", "b.mp4": "a cat"}')
        for given_captions in ("words.txt", str(folder / "words.txt"), "words.json"):
            listing = listed(folder, "list.txt", "a.mp4\nb.mp4\n", captions=given_captions)
            assert captions(listing) == ["a dog", "a cat"]
        with pytest.raises(ValueError, match=r"data\.captions must name a file"):
            listed(folder, "list.txt", "a.mp4\n", captions="gone.txt")
        with pytest.raises(ValueError, match=r"clips\.csv has captions of its own"):
            listed(folder, "clips.csv", "videos\na.mp4\n", captions="words.json")

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("metadata.csv", "file_name,text\na.mp4,a dog\n"),
            ("metadata.jsonl", '{"file_name": "a.mp4", "text": "a dog"}'),
            ("videos.txt", "a.mp4\n"),
        ],
    )
    def test_a_folder_with_a_list(self, folder, name, content):
        (folder / name).write_text(content)
        assert names(find("list", folder)) == ["a.mp4"]
        (folder / "metadata.json").write_text("[]")
        with pytest.raises(ValueError, match=r"is a folder; looked .* and metadata\.json|json and"):
            find("list", folder)


class TestEncodings:
    def test_a_mark_is_no_part_of_the_text(self, folder):
        mark = "\ufeff"
        (folder / "captions.json").write_text(f'{mark}{{"a.mp4": "a dog"}}', encoding="utf-8")
        assert captions(find("folder", folder, captions="captions.json"))[0] == "a dog"
        (folder / "a.txt").write_text(f"{mark}a dog", encoding="utf-8")
        assert captions(find("folder", folder))[0] == "a dog"
        (folder / "prompts.txt").write_text(f"{mark}a red circle\na blue ring\n", encoding="utf-8")
        assert read_lines(folder / "prompts.txt") == ["a red circle", "a blue ring"]
        for name, content in (
            ("x.csv", "videos\na.mp4\n"), ("x.jsonl", '{"path": "a.mp4"}'),
            ("x.json", '["a.mp4"]'), ("x.txt", "a.mp4"),
        ):  # fmt: skip
            assert names(listed(folder, name, mark + content)) == ["a.mp4"]

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"a red circle\r\na dog\x92s ring\n", "not UTF-8 text: byte 0x92 in line 2 .*save it"),
            ("a red circle\n".encode("utf-16"), "is UTF-16 text .*FF FE.* save it as UTF-8"),
            ("a red circle\n".encode("utf-32"), "is UTF-32 text"),
            ("a\nred circle\n".encode("utf-16-le"), "not UTF-8 text: line 1 holds the byte 0x00"),
        ],
    )
    def test_other_encodings_are_refused(self, folder, content, message):
        file = folder / "a.txt"
        file.write_bytes(content)
        with pytest.raises(ValueError, match=rf"a\.txt (is )?{message}"):
            read_text(file)
        with pytest.raises(ValueError, match=rf"a\.txt (is )?{message}"):
            find("folder", folder)

    def test_a_file_that_cannot_be_read(self, folder):
        for path in (folder, folder / "gone.txt", folder / "a\0b"):
            with pytest.raises(ValueError, match="can't be read"):
                read_text(path)

    def test_lists_of_ucf101(self, folder):
        lists = folder / "ucfTrainTestlist"
        touch(folder, "UCF-101/Bow/v_Bow_g08_c01.avi")
        lists.mkdir()
        (lists / "classInd.txt").write_text("\ufeff1 Bow\n", encoding="utf-8")
        (lists / "trainlist01.txt").write_text("Bow/v_Bow_g08_c01.avi 1\n")
        assert find_clips(
            DataConfig(source="ucf101", path=str(folder), split=1)
        ).label_names == ["Bow"]  # fmt: skip
        (lists / "classInd.txt").write_text("1 Bow\n2\n")
        with pytest.raises(ValueError, match=r"classInd\.txt: line 2 must be a number and a class"):
            find_clips(DataConfig(source="ucf101", path=str(folder), split=1))


class TestLinks:
    """Every clip behind a link is found once, and every loop ends."""

    @pytest.fixture
    def linked(self, tmp_path: Path) -> Path:
        root, store = tmp_path / "clips", tmp_path / "store"
        touch(root, "run/a.mp4", "walk/b.mp4")
        touch(store, "deep/c.mp4", "d.mp4")
        links = {
            "run/more": store,  # a folder elsewhere
            "run/loop": root,  # its own parent: another class lies in it
            "run/e.mp4": store / "d.mp4",  # again by another name
            "walk/self": root / "walk" / "self",
            "walk/gone.mp4": tmp_path / "gone.mp4",
            "also": root / "run",
            "round": root,
        }
        for name, target in links.items():
            (root / name).symlink_to(target)
        return root

    def found(self, listing: ClipList) -> Counter[str]:
        return Counter(os.path.realpath(clip.path) for clip in listing.clips)

    def everything(self, root: Path) -> Counter[str]:
        files = (root / "run/a.mp4", root / "walk/b.mp4", root.parent / "store/deep/c.mp4")
        return Counter(map(str, (*files, root.parent / "store/d.mp4")))

    @pytest.mark.timeout(20)
    def test_in_a_folder(self, linked, caplog):
        listing = find("folder", linked)
        assert self.found(listing) == self.everything(linked)
        assert {"run/a.mp4", "walk/b.mp4"} <= set(names(listing))
        assert "2 folders or links below" in caplog.text
        assert "1 paths below" in caplog.text

    @pytest.mark.timeout(20)
    def test_in_class_folders(self, linked):
        listing = find("classes", linked)
        assert self.found(listing) == self.everything(linked)
        assert listing.label_names == ["run", "walk"]
        by_name = {clip.name: clip.label for clip in listing.clips}
        assert by_name["walk/b.mp4"] == 1
        assert sum(by_name.values()) == 1

    @pytest.mark.timeout(20)
    def test_in_a_pattern(self, linked):
        listing = find("glob", linked / "**" / "*.mp4")
        assert self.found(listing) == self.everything(linked)
        assert "run/a.mp4" in names(find("glob", linked / "*" / "*.mp4"))
        assert names(find("glob", linked / "run" / "**" / "deep" / "*")) == ["more/deep/c.mp4"]

    @pytest.mark.timeout(20)
    def test_many_loops(self, tmp_path):
        touch(tmp_path, *(f"{n}/{n}.mp4" for n in range(30)))
        for one in range(30):
            for other in range(30):
                (tmp_path / f"{one}/to{other}").symlink_to(tmp_path / f"{other}")
        expected = sorted(f"{n}/{n}.mp4" for n in range(30))
        assert names(find("folder", tmp_path)) == expected
        assert names(find("glob", tmp_path / "**" / "*.mp4")) == expected
        assert names(find("classes", tmp_path)) == expected

    def test_links_to_files_elsewhere_keep_their_names(self, tmp_path):
        touch(tmp_path, "store/x1", "store/x2")
        (tmp_path / "clips").mkdir()
        for name, blob in (("a.mp4", "x2"), ("b.mp4", "x1")):
            (tmp_path / "clips" / name).symlink_to(tmp_path / "store" / blob)
        assert names(find("folder", tmp_path / "clips")) == ["a.mp4", "b.mp4"]

    def test_folders_that_cannot_be_read_are_counted(self, tmp_path, caplog, monkeypatch):
        touch(tmp_path, "a.mp4", "closed/b.mp4")
        scan = os.scandir

        def refuse(path):
            if str(path).endswith("closed"):
                raise PermissionError(13, "Permission denied")
            return scan(path)

        monkeypatch.setattr(os, "scandir", refuse)
        assert names(find("folder", tmp_path)) == ["a.mp4"]
        assert "1 folders or links below" in caplog.text


class TestNamesOfFolders:
    """A name that can only be a folder's never goes to the hub."""

    @pytest.mark.parametrize(
        "name",
        ["./nothing", "/nothing/there", "~/nothing-there", "nothing/at/all", "nothing/", "a\\b",
         "outputs/runn1", "checkpoints/shapse", "models/textt", "encodr", "x y/z", ".."],
    )  # fmt: skip
    def test_is_refused(self, tmp_path, monkeypatch, name):
        monkeypatch.chdir(tmp_path)
        for folder in ("models/text", "encoder", "outputs/run1"):
            (tmp_path / folder).mkdir(parents=True)
        if name == "..":
            check_local_path(name, "pipeline")  # a folder that is there
            return
        with pytest.raises(ValueError, match=r"no pipeline in .* does not exist") as error:
            check_local_path(name, "pipeline")
        for typo, meant in (("runn1", "outputs/run1"), ("textt", "models/text")):
            assert typo not in name or f"did you mean '{meant}'?" in str(error.value)

    @pytest.mark.parametrize(
        "name", ["google/t5-v1_1-small", "gpt2", "bert-base-uncased", "some/model", "encoder"]
    )
    def test_an_id_passes(self, tmp_path, monkeypatch, name):
        monkeypatch.chdir(tmp_path)
        for folder in ("encoder", "bert-base-cased"):
            (tmp_path / folder).mkdir()
        check_local_path(name, "text encoder")

    def test_nothing_asks_the_hub(self, monkeypatch):
        import huggingface_hub

        from diffusion import VidTwinPipeline
        from diffusion.text_encoder import TextEncoder

        def asked(*arguments, **options):
            raise AssertionError("the hub was asked")

        monkeypatch.setattr(VidTwinPipeline, "download", asked)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", asked)
        monkeypatch.setattr("transformers.utils.hub.hf_hub_download", asked)
        for name in ("outputs/no-such-run", "checkpoints/shape"):
            with pytest.raises(ValueError, match=f"in {name}: the folder does not exist"):
                VidTwinPipeline.from_pretrained(name)
            with pytest.raises(ValueError, match=f"in {name}: the folder does not exist"):
                TextEncoder.from_pretrained(name)


FRAGMENTS = st.sampled_from(
    ["videos", "caption", "label", "Caption", "path", "a.mp4", "b.mp4", "sub\\a.mp4", "a dog", "",
     " ", "1", "-1", "2.0", "1e9", "99999999999", "nan", '"', '""', "'", ",", ";", "\t", "|", "\n",
     "\r\n", "\r", "\0", "\ufeff", "\u2028", "é", "²", "\\", "{", "}", "[", "]", ":", '"video":',
     '"cap"', "null", "NaN", "../", "~", "x" * 300, "%s", "/", "."]
)  # fmt: skip
MIXTURES = st.lists(st.one_of(FRAGMENTS, st.text(max_size=8)), max_size=40).map("".join)
WITH_HEADER = st.tuples(
    st.sampled_from(["videos,caption,label\n", "videos;label\n", "file_name\ttext\n", ""]), MIXTURES
).map("".join)
QUICK = settings(
    max_examples=100,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def outcome(make: Callable[[], ClipList]) -> tuple[ClipList | None, str]:
    """The result, or the message of a ValueError; any other exception passes."""
    try:
        return make(), ""
    except ValueError as error:
        if type(error) is not ValueError:  # one of the libraries' own
            raise
        return None, str(error)


class TestAnyContent:
    """A result, or a ValueError of one line."""

    @pytest.fixture(scope="class")
    def place(self):
        with tempfile.TemporaryDirectory() as name:
            touch(Path(name), "a.mp4", "b.mp4", "sub/a.mp4")
            logging.disable(logging.WARNING)
            yield Path(name)
            logging.disable(logging.NOTSET)

    def check(self, place: Path, name: str, content: bytes, **options: Any) -> None:
        listing, told = outcome(lambda: listed(place, name, content, **options))
        if listing is None:
            assert len(told.splitlines()) == 1
            assert len(told) < 2000
        else:
            count = max(1, len(listing.label_names))
            assert listing.clips
            assert all(clip.path and -1 <= clip.label < count for clip in listing.clips)

    @QUICK
    @given(text=WITH_HEADER, suffix=st.sampled_from([".csv", ".tsv", ""]))
    def test_tables(self, place, text, suffix):
        self.check(place, f"list{suffix}", text.encode())
        self.check(place, f"list{suffix}", text.encode(), content_factors=("label",))

    @QUICK
    @given(content=st.binary(max_size=60), name=st.sampled_from(["l.csv", "l.json", "videos.txt"]))
    def test_bytes(self, place, content, name):
        self.check(place, name, b"videos,caption\n" + content)
        self.check(place, name, content)

    @QUICK
    @given(text=MIXTURES, prompts=MIXTURES)
    def test_text(self, place, text, prompts):
        (place / "prompts.txt").write_bytes(prompts.encode())
        self.check(place, "videos.txt", text.encode())
        self.check(place, "other.txt", text.encode())

    @QUICK
    @given(
        content=st.recursive(
            st.one_of(st.none(), st.booleans(), st.floats(), st.integers(), st.text(max_size=9),
                      FRAGMENTS),
            lambda inner: st.one_of(
                st.lists(inner, max_size=3), st.dictionaries(FRAGMENTS, inner, max_size=4)
            ),
            max_leaves=12,
        )
    )  # fmt: skip
    def test_json(self, place, content):
        self.check(place, "l.json", json.dumps(content).encode())
        self.check(place, "l.jsonl", json.dumps(content).encode())
        (place / "captions.json").write_text(json.dumps(content))
        _, told = outcome(lambda: find("folder", place, captions="captions.json"))
        assert len(told.splitlines()) <= 1

    @QUICK
    @given(
        texts=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")), max_size=6),
        delimiter=st.sampled_from(",;\t|"),
    )
    def test_what_is_written_is_read(self, place, texts, delimiter):
        written = io.StringIO(newline="")
        writer = csv.writer(written, delimiter=delimiter, quoting=csv.QUOTE_ALL)
        writer.writerows([("videos", "caption"), *((f"{n}.mp4", t) for n, t in enumerate(texts))])
        touch(place, *(f"{n}.mp4" for n in range(len(texts))))
        if texts:
            listing = listed(place, "list.csv", written.getvalue().encode())
            assert captions(listing) == [text.strip() for text in texts]
