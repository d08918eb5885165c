"""Frame lists that are kept: the same frames as those of a file that is read for the first time."""

from __future__ import annotations

import os
from array import array
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from vidtwin.data import pyav_reader
from vidtwin.data.frame_lists import KEPT, FrameList, KeptLists, VideoInfo
from vidtwin.data.readers import Limits, UnusableVideo, read_frames, read_video_info

FRAMES = 60


@pytest.fixture(autouse=True)
def forgotten():
    KEPT.clear()
    yield
    KEPT.clear()


def write(path: Path, options: dict[str, str], times: list[int] | None = None) -> Path:
    """A video in which every frame has pixels of its own."""
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.options = {"threads": "1", **options}
        for index in range(FRAMES):
            pixels = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = index if times is None else times[index]
            frame.time_base = Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


KINDS: dict[str, tuple[dict[str, str], list[int] | None]] = {
    "B-frames": ({"g": "12", "bf": "3", "x264-params": "b-pyramid=normal:scenecut=0"}, None),
    "open GOP": ({"x264-params": "keyint=12:min-keyint=12:open-gop=1:bframes=3:scenecut=0"}, None),
    "variable rate": (
        {"g": "12", "bf": "2"},
        np.cumsum(np.random.default_rng(1).integers(1, 9, FRAMES)).tolist(),
    ),
    "one key frame": ({"g": "250", "bf": "2"}, None),
}


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "avi"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_known_gives_the_frames_of_one_that_is_not(tmp_path, kind, suffix) -> None:
    if suffix == "avi" and kind == "variable rate":
        pytest.skip("AVI has one rate")
    path = write(tmp_path / f"clip.{suffix}", *KINDS[kind])
    everything = read_frames(path)
    info = read_video_info(path)
    for indices in ([0], [11, 12, 13], [23, 25, 40], [59], [30, 7, 30], list(range(FRAMES))):
        KEPT.clear()
        first = read_frames(path, indices)
        again = read_frames(path, indices)
        np.testing.assert_array_equal(first, again)
        np.testing.assert_array_equal(first, everything[indices])
    assert read_video_info(path) == info
    np.testing.assert_array_equal(read_video_info(path).timestamps, info.timestamps)


def packets_read(monkeypatch) -> list[int]:
    """Counts the packets of every file that is read from here on."""
    packets, counted = pyav_reader.PyavReader._packets, [0]

    def counting(self: Any) -> Any:
        for packet in packets(self):
            counted[0] += 1
            yield packet

    monkeypatch.setattr(pyav_reader.PyavReader, "_packets", counting)
    return counted


def test_what_is_known_is_not_listed_again(tmp_path, monkeypatch) -> None:
    path = write(tmp_path / "clip.mp4", {"g": "6", "bf": "0"})
    counted = packets_read(monkeypatch)
    read_frames(path, [58])
    assert counted[0] > FRAMES
    counted[0] = 0
    read_frames(path, [58])
    assert 1 <= counted[0] <= 12


def test_another_file_under_the_same_name_is_listed_anew(tmp_path) -> None:
    path = write(tmp_path / "clip.mp4", {"g": "12"})
    before = read_frames(path)
    other = write(tmp_path / "other.mp4", {"g": "60"}, [2 * index for index in range(FRAMES)])
    os.replace(other, path)
    assert read_video_info(path).duration == pytest.approx(FRAMES / 12.5, rel=0.02)
    assert read_frames(path).shape == before.shape


def test_a_file_that_could_not_be_read_to_its_end_is_listed_anew(tmp_path, monkeypatch) -> None:
    path = write(tmp_path / "clip.mp4", {"g": "12"})
    demux = pyav_reader.PyavReader._packets

    def broken(self: Any) -> Any:
        for number, packet in enumerate(demux(self)):
            if number == 20:
                self.cut_off = True
                return
            yield packet

    with monkeypatch.context() as patch:
        patch.setattr(pyav_reader.PyavReader, "_packets", broken)
        assert read_video_info(path).num_frames == 20
    assert read_video_info(path).num_frames == FRAMES


def test_limits_hold_for_what_is_known(tmp_path) -> None:
    path = write(tmp_path / "clip.mkv", {"g": "12"})
    read_frames(path, [0])
    with pytest.raises(UnusableVideo, match=r"60 frames or more, expected at most data.max_frames"):
        read_frames(path, [0], limits=Limits(frames=59))


def test_a_file_that_goes_away_is_named(tmp_path, monkeypatch) -> None:
    path = write(tmp_path / "clip.mp4", {"g": "12"})
    monkeypatch.setattr("vidtwin.data.readers._check_file", lambda path, *_: str(path))
    path.unlink()
    with pytest.raises(UnusableVideo, match=r"clip.mp4.*can't be opened: No such file"):
        read_frames(path, [0])


def frame_list(count: int) -> FrameList:
    info = VideoInfo(
        path="", num_frames=count, fps=1, duration=1, height=1, width=1, rotation=0, codec="",
        backend="", timestamps=np.arange(count, dtype=float),
    )  # fmt: skip
    times = array("q", range(0, 2 * count, 2))
    return FrameList(pts=times, key_pts=array("q"), gaps=array("q"), timed=True, info=info)


def test_the_lists_that_were_not_asked_for_longest_are_forgotten() -> None:
    kept = KeptLists(most=2 * frame_list(1000).nbytes)
    for name in ("a", "b"):
        kept.keep(name, frame_list(1000))
    kept.keep("b", frame_list(1000))  # not counted twice
    assert kept.get("a") is not None
    kept.keep("c", frame_list(1000))
    assert [name for name in "abc" if kept.get(name)] == ["a", "c"]
    kept.keep("d", frame_list(10_000))  # more than all of it
    assert not any(map(kept.get, "abcd"))


def test_frames_are_found_by_their_time() -> None:
    frames = frame_list(3)
    assert [frames.index_of(pts) for pts in (0, 2, 4)] == [0, 1, 2]
    assert [frames.index_of(pts) for pts in (None, -1, 1, 5, 6)] == [-1] * 5


def test_one_reformatter_gives_the_pixels_of_one_for_each_frame(tmp_path) -> None:
    path = write(tmp_path / "clip.mp4", {"g": "12", "bf": "2"})
    with av.open(str(path)) as container:
        expected = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    np.testing.assert_array_equal(read_frames(path), np.stack(expected))
