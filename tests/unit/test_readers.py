"""Reading frames: the right ones, the right way up, from both backends, and never invented ones.

Axes: T frames, H W pixels. Frame k of a test video has the gray level 20 + 4 k, so that it can be
told which frame was read.
"""

from __future__ import annotations

import io
import pickle
import resource
import struct
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from vidtwin.data import pyav_reader, readers
from vidtwin.data.readers import UnusableVideo, iter_frames, read_clip, read_frames, read_video_info

decord = pytest.importorskip("decord", reason="decord has no build for this platform")
BACKENDS = ("auto", "decord", "pyav")


def write_video(
    path: Path,
    num_frames: int,
    *,
    size: tuple[int, int] = (64, 96),
    fps: int = 10,
    codec: str = "libx264",
    gop: int = 250,
    b_frames: int = 0,
    rotation: int = 0,
    times: list[int] | None = None,
    marked: bool = False,
) -> Path:
    """A video of gray frames; `marked` paints the top left quarter white."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=fps)
        stream.height, stream.width = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.gop_size, stream.max_b_frames = gop, b_frames
        if codec == "libx264":
            stream.options = {"crf": "5", "bf": str(b_frames), "x264-params": "scenecut=0"}
        else:
            stream.bit_rate = 4_000_000
        if rotation:
            stream.set_display_rotation(rotation)
        for index in range(num_frames):
            pixels = np.full((*size, 3), 20 + 4 * index, dtype=np.uint8)
            if marked:
                pixels[: size[0] // 2, : size[1] // 2] = 255
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = index if times is None else times[index]
            frame.time_base = Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def which(frames: np.ndarray) -> list[int]:
    """The index each frame was written at."""
    return [round((float(frame.mean()) - 20) / 4) for frame in frames]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    return write_video(folder / "clip.mp4", 40, gop=8, b_frames=2)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "indices", [[0], [39], [0, 1, 2], [9, 17, 25], [30, 3, 30, 7], list(range(40))]
)
def test_gives_the_frames_that_were_asked_for(clip: Path, backend: str, indices: list[int]) -> None:
    frames = read_frames(clip, indices, backend=backend)
    assert frames.shape == (len(indices), 64, 96, 3)
    assert frames.dtype == np.uint8
    assert which(frames) == indices


def test_both_backends_give_the_same_pixels(clip: Path) -> None:
    np.testing.assert_array_equal(
        read_frames(clip, backend="decord"), read_frames(clip, backend="pyav")
    )


@pytest.mark.parametrize(
    ("name", "codec", "b_frames"),
    [
        ("clip.avi", "mpeg4", 2),
        ("clip.avi", "mjpeg", 0),
        ("clip.mkv", "libx264", 2),
        ("clip.ts", "mpeg2video", 2),
        ("clip.mpg", "mpeg2video", 2),
        ("clip.mpg", "mpeg1video", 0),
        ("clip.webm", "libvpx", 0),
        ("clip.h264", "libx264", 0),
        ("clip.mjpeg", "mjpeg", 0),
    ],
)
def test_containers_and_codecs(tmp_path: Path, name: str, codec: str, b_frames: int) -> None:
    fps = 25 if name.endswith(("mpg", "mjpeg")) else 10
    path = write_video(tmp_path / name, 30, codec=codec, gop=6, b_frames=b_frames, fps=fps)
    info = read_video_info(path)
    assert info.num_frames == 30
    for indices in ([0, 5, 10], [13, 14, 15, 29], [29]):
        assert which(read_frames(path, indices)) == indices
        assert which(read_frames(path, indices, backend="pyav")) == indices
    assert which(np.stack(list(iter_frames(path)))) == list(range(30))


def test_info(clip: Path) -> None:
    info = read_video_info(clip)
    assert (info.num_frames, info.height, info.width, info.rotation) == (40, 64, 96, 0)
    assert info.fps == pytest.approx(10)
    assert info.duration == pytest.approx(4.0)
    assert info.codec == "h264"
    np.testing.assert_allclose(info.timestamps, np.arange(40) / 10, atol=1e-9)


def test_variable_frame_rate_and_late_start(tmp_path: Path) -> None:
    times = [50, 51, 52, 53, 58, 63, 68]
    path = write_video(tmp_path / "vfr.mp4", 7, fps=10, times=times)
    info = read_video_info(path)
    np.testing.assert_allclose(info.timestamps, (np.array(times) - 50) / 10, atol=1e-6)
    for backend in BACKENDS:
        assert which(read_frames(path, [2, 4, 6], backend=backend)) == [2, 4, 6]


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_rotation_is_honoured(tmp_path: Path, rotation: int) -> None:
    """decord's filter is independent of ours: both must turn the same way."""
    path = write_video(tmp_path / "turned.mp4", 6, rotation=rotation, marked=True)
    by_pyav = read_frames(path, backend="pyav")
    by_decord = read_frames(path, backend="decord")
    height, width = (64, 96) if rotation == 180 else (96, 64)
    assert by_pyav.shape == (6, height, width, 3)
    np.testing.assert_allclose(by_pyav.astype(int), by_decord, atol=4)
    info = read_video_info(path)
    assert (info.height, info.width, info.rotation) == (height, width, rotation)
    assert next(iter_frames(path)).shape == (height, width, 3)
    corners = [by_pyav[0, y, x].mean() for y, x in ((5, 5), (5, -5), (-5, 5), (-5, -5))]
    # The top left corner of the stored picture, seen upright.
    assert int(np.argmax(corners)) == {90: 2, 180: 3, 270: 1}[rotation]


@pytest.mark.parametrize("width", [16, 24, 48, 72])
def test_narrow_videos_that_decord_gets_wrong(tmp_path: Path, width: int) -> None:
    path = write_video(tmp_path / "narrow.mp4", 5, size=(32, width))
    frames = read_frames(path)
    assert frames.shape == (5, 32, width, 3)
    assert which(frames) == list(range(5))
    with pytest.raises(UnusableVideo, match=r"decord: shape \(32, \d+, [46]\)"):
        read_frames(path, backend="decord")


def test_odd_sizes_and_one_frame(tmp_path: Path) -> None:
    path = write_video(tmp_path / "odd.avi", 1, size=(33, 47), codec="mjpeg")
    assert read_frames(path).shape == (1, 33, 47, 3)
    assert read_video_info(path).num_frames == 1


def test_best_of_two_streams(tmp_path: Path) -> None:
    path = tmp_path / "two.mp4"
    with av.open(str(path), "w") as container:
        streams: list[Any] = [container.add_stream("libx264", rate=10) for _ in range(2)]
        for stream, size in zip(streams, ((32, 32), (64, 96)), strict=True):
            stream.height, stream.width = size
            stream.pix_fmt = "yuv420p"
        for _ in range(10):
            for stream in streams:
                noise = np.random.default_rng(0).integers(
                    0, 255, (stream.height, stream.width, 3), dtype=np.uint8
                )
                container.mux(stream.encode(av.VideoFrame.from_ndarray(noise, format="rgb24")))
        for stream in streams:
            container.mux(stream.encode(None))
    # Which one is the best depends on ffmpeg's version: PyAV's, also where decord has another.
    assert read_frames(path, [3]).shape == read_frames(path, [3], backend="pyav").shape


def test_bad_arguments(clip: Path) -> None:
    with pytest.raises(ValueError, match=r"indices must be in \[0, 40\).*got \[40\]"):
        read_frames(clip, [40])
    with pytest.raises(ValueError, match="backend must be one of auto, decord, pyav, got 'cv2'"):
        read_frames(clip, backend="cv2")
    with pytest.raises(ValueError, match="timeout must be above 0 seconds, got 0"):
        read_frames(clip, timeout=0)
    with pytest.raises(ValueError, match="0 <= start <= stop, got 3 and 2"):
        iter_frames(clip, 3, 2)


def sound_only(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((2, 44100), dtype=np.float32), format="fltp")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_what_is_no_video(tmp_path: Path) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(picture, "png")
    contents = {
        "empty.mp4": (b"", "empty file"),
        "text.mp4": (b"not a video at all\n" * 9, "can't be opened: Invalid data"),
        "page.mp4": (b"<html><body>404</body></html>", "can't be opened: Invalid data"),
        "noise.mp4": (np.random.default_rng(0).bytes(20000), "can't be opened: Invalid data"),
        "picture.mp4": (picture.getvalue(), "a still picture"),
        "list.mp4": (
            b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://127.0.0.1:9/a.ts\n",
            "",
        ),
    }
    for name, (content, reason) in contents.items():
        path = tmp_path / name
        path.write_bytes(content)
        for call in (read_frames, read_video_info, lambda path: list(iter_frames(path))):
            with pytest.raises(UnusableVideo) as caught:
                call(path)
            assert reason in caught.value.reason
            assert caught.value.path == str(path)
            assert str(path) in str(caught.value)
    with pytest.raises(UnusableVideo, match="no video stream"):
        read_frames(sound_only(tmp_path / "sound.mp4"))
    with pytest.raises(UnusableVideo, match="no such file"):
        read_frames(tmp_path / "gone.mp4")
    with pytest.raises(UnusableVideo, match="not a file"):
        read_frames(tmp_path)


def noisy_video(path: Path, num_frames: int = 30) -> Path:
    """A video whose frames need many bytes, with the index in front."""
    random = np.random.default_rng(0)
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream: Any = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        for _ in range(num_frames):
            noise = random.integers(0, 255, (64, 96, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(noise, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("backend", ["auto", "pyav"])
def test_truncated_video_gives_what_is_there_and_nothing_more(tmp_path: Path, backend: str) -> None:
    whole = noisy_video(tmp_path / "whole.mp4")
    part = tmp_path / "part.mp4"
    content = whole.read_bytes()
    part.write_bytes(content[: len(content) * 6 // 10])
    first = read_frames(part, [0, 1, 2, 3], backend=backend)
    np.testing.assert_array_equal(first, read_frames(whole, [0, 1, 2, 3]))
    with pytest.raises(UnusableVideo, match="can't be decoded"):
        read_frames(part, backend=backend)
    with pytest.raises(UnusableVideo, match="damaged: frame"):
        list(iter_frames(part))


def test_index_at_the_end_is_lost(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "whole.mp4", 20)
    part = tmp_path / "part.mp4"
    part.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(UnusableVideo, match="can't be opened"):
        read_frames(part)


def test_damaged_video_is_refused(tmp_path: Path) -> None:
    path = noisy_video(tmp_path / "damaged.mp4")
    content = bytearray(path.read_bytes())
    for place in np.random.default_rng(1).integers(len(content) // 3, len(content), 300):
        content[place] ^= 0x5A
    path.write_bytes(bytes(content))
    with pytest.raises(UnusableVideo):
        read_frames(path, backend="pyav")
    with pytest.raises(UnusableVideo):
        list(iter_frames(path))


def write_noise(path: Path, codec: str, pix_fmt: str, **options: str) -> Path:
    """12 frames of noise, each of which takes its share of the file."""
    random = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt, stream.options = 96, 64, pix_fmt, options
        for _ in range(12):
            noise = random.integers(0, 255, (64, 96, 3), dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(noise, format="rgb24")
            container.mux(stream.encode(frame.reformat(format=pix_fmt)))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt", "options"),
    [
        ("h264.mp4", "libx264", "yuv420p", {}),  # without checksums: enough of it must be wrong
        ("hevc.mp4", "libx265", "yuv420p", {"x265-params": "hash=1:log-level=none"}),
        ("png.mov", "png", "rgb24", {}),  # each frame by itself: a lost one is no gap in decoding
        ("png.apng", "apng", "rgb24", {}),
    ],
)
def test_what_a_decoder_conceals_is_found(
    tmp_path: Path, name: str, codec: str, pix_fmt: str, options: dict[str, str], backend: str
) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"PyAV has no {codec} here")
    content = write_noise(tmp_path / name, codec, pix_fmt, **options).read_bytes()
    damaged = tmp_path / f"damaged_{name}"
    random = np.random.default_rng(1)
    flips = 30 if codec == "libx264" else 1
    for places in random.integers(len(content) // 5, len(content) * 9 // 10, (4, flips)):
        changed = bytearray(content)
        for place in places:
            changed[place] ^= 16
        damaged.write_bytes(bytes(changed))
        with pytest.raises(UnusableVideo):
            read_frames(damaged, backend=backend)
        with pytest.raises(UnusableVideo):
            list(iter_frames(damaged))


def gif_of(width: int, height: int) -> bytes:
    """Three frames of one pixel each, on a screen of any size."""
    frame = b"\x21\xf9\x04\x04\x0a\0\0\0\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0)
    screen = struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    return b"GIF89a" + screen + 3 * (frame + b"\x02\x02\x44\x01\0") + b"\x3b"


def test_frames_that_are_too_large_are_never_decoded(tmp_path: Path) -> None:
    bomb, small = tmp_path / "bomb.mp4", tmp_path / "small.gif"
    bomb.write_bytes(gif_of(16000, 16000))
    small.write_bytes(gif_of(16, 16))
    assert read_frames(small).shape == (3, 16, 16, 3)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for call in (
        read_frames,
        read_video_info,
        lambda path: list(iter_frames(path)),
        lambda path: read_video_info(path, fetch=bomb.read_bytes),
    ):
        with pytest.raises(UnusableVideo, match=r"at most data\.max_pixels=35,389,440"):
            call(bomb)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - most
    assert grown * (1 if sys.platform == "darwin" else 1024) < 20e6
    with pytest.raises(UnusableVideo, match=r"at most data\.max_pixels=255"):
        read_frames(small, limits=readers.Limits(pixels=255))


def test_files_of_too_many_frames_are_refused(clip: Path, tmp_path: Path) -> None:
    untold = write_video(tmp_path / "untold.ts", 20, codec="mpeg2video", fps=25)
    for path in (clip, untold):
        with pytest.raises(UnusableVideo, match=r"at most data\.max_frames=19"):
            read_frames(path, [0], limits=readers.Limits(frames=19))
    assert which(read_frames(clip, [3], limits=readers.Limits(frames=40))) == [3]


@pytest.mark.parametrize(
    "text",
    [
        "ffconcat version 1.0\nfile {name}\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{name}\n#EXT-X-ENDLIST\n",
        "[playlist]\nFile1={name}\nNumberOfEntries=1\n",
        '<?xml version="1.0"?><MPD><Period><AdaptationSet><Representation><BaseURL>{name}'
        "</BaseURL></Representation></AdaptationSet></Period></MPD>",
    ],
)
@pytest.mark.parametrize("suffix", [".mp4", ".m3u8", ".txt"])
def test_lists_of_other_files_are_never_followed(clip: Path, text: str, suffix: str) -> None:
    path = clip.with_name(f"list{suffix}")
    path.write_text(text.format(name=clip.name))
    with pytest.raises(UnusableVideo, match="a list of other files, which is never followed"):
        read_frames(path)
    with pytest.raises(UnusableVideo, match="a list of other files, which is never followed"):
        read_video_info(path, fetch=path.read_bytes)


class RepeatingDecord:
    """decord as it behaves on some files: every frame after the first is the same one."""

    def __init__(self, path: str, **_: Any):
        self.frames = read_frames(path, backend="pyav")

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Any:
        return self.get_batch([index], wrong=False)

    def get_batch(self, indices: list[int], wrong: bool = True) -> Any:
        chosen = self.frames[[5] * len(indices) if wrong else indices[0]]
        return type("Array", (), {"asnumpy": lambda self: chosen})()


def test_frames_that_decord_repeats_are_never_given(
    clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decord, "VideoReader", RepeatingDecord)
    with pytest.raises(UnusableVideo, match="decord: another frame 10 than PyAV's"):
        read_frames(clip, [10, 12, 14], backend="decord")
    assert which(read_frames(clip, [10, 12, 14])) == [10, 12, 14]


def test_another_video_or_count_of_decord_is_refused(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = write_video(tmp_path / "other.mp4", 40, marked=True)
    short = write_video(tmp_path / "short.mp4", 39)
    true_reader = decord.VideoReader
    for wrong, why in ((other, "another frame 10"), (short, "39 frames, but there are 40")):
        monkeypatch.setattr(
            decord, "VideoReader", lambda path, wrong=wrong, **_: true_reader(str(wrong))
        )
        with pytest.raises(UnusableVideo, match=f"decord: {why}.*take data.backend=pyav"):
            read_frames(clip, [10, 12], backend="decord")


def test_decord_may_be_absent(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "decord", None)
    assert which(read_frames(clip, [4])) == [4]
    with pytest.raises(UnusableVideo, match="decord is not installed"):
        read_frames(clip, [4], backend="decord")


def test_black_video_is_black(tmp_path: Path) -> None:
    path = tmp_path / "black.mp4"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv420p"
        for _ in range(5):
            black = np.zeros((32, 32, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(black, format="rgb24")))
        container.mux(stream.encode(None))
    for backend in BACKENDS:
        assert read_frames(path, backend=backend).max() <= 2


def test_slow_decoding_ends_at_the_limit(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packets = pyav_reader.PyavReader._packets

    def slow(self: pyav_reader.PyavReader) -> Any:
        for packet in packets(self):
            time.sleep(0.05)
            yield packet

    monkeypatch.setattr(pyav_reader.PyavReader, "_packets", slow)
    began = time.monotonic()
    with pytest.raises(UnusableVideo, match=r"reading took more than 0\.3 seconds"):
        read_frames(clip, timeout=0.3)
    assert time.monotonic() - began < 2
    # The thread looks at the deadline, so it doesn't go on for long.
    time.sleep(0.3)
    assert not [thread for thread in threading.enumerate() if thread.name == "video reader"]


def test_a_hanging_decoder_is_left_behind(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()

    class HangingDecord:
        def __init__(self, *_: Any, **__: Any):
            released.wait(20)

    monkeypatch.setattr(decord, "VideoReader", HangingDecord)
    began = time.monotonic()
    try:
        with pytest.raises(UnusableVideo, match="reading took more than"):
            read_frames(clip, timeout=0.3, backend="decord")
        assert time.monotonic() - began < 2
    finally:
        released.set()


def test_errors_of_the_caller_come_through(clip: Path) -> None:
    def choose(info: readers.VideoInfo) -> np.ndarray:
        raise KeyError(info.num_frames)

    with pytest.raises(KeyError, match="40"):
        read_clip(clip, choose, np.array)


def test_iter_frames(clip: Path) -> None:
    assert which(np.stack(list(iter_frames(clip)))) == list(range(40))
    assert which(np.stack(list(iter_frames(clip, 11, 14)))) == [11, 12, 13]
    assert list(iter_frames(clip, 40)) == []


def test_iter_frames_holds_few_frames_and_ends_when_closed(
    clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[object] = []
    turn = pyav_reader.upright

    def counted(frame: av.VideoFrame, reformatter: Any) -> np.ndarray:
        decoded.append(frame.pts)
        return turn(frame, reformatter)

    monkeypatch.setattr(pyav_reader, "upright", counted)
    frames = iter_frames(clip)
    next(frames)
    time.sleep(0.3)
    assert len(decoded) <= readers.QUEUED_FRAMES + 4
    frames.close()  # type: ignore[attr-defined]
    time.sleep(0.3)
    assert not [thread for thread in threading.enumerate() if thread.name == "video reader"]


def test_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(UnusableVideo("a.mp4", "broken")))
    assert (error.path, error.reason, str(error)) == ("a.mp4", "broken", "a.mp4: broken")
