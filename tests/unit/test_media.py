"""Videos, GIFs and contact sheets are read back as they were meant."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from vidtwin.files import write_json, written_whole
from vidtwin.media import (
    FrameSampler,
    VideoWriter,
    contact_sheet,
    eight_bit,
    frame_rate,
    from_uint8,
    to_uint8,
    write_gif,
    write_video,
)


def smooth_frames(num_frames: int, height: int, width: int) -> np.ndarray:
    """Colour ramps that move slowly: kind to chroma subsampling, so errors are the encoder's."""
    rows = np.linspace(0, 200, height)[:, None, None]
    columns = np.linspace(0, 50, width)[None, :, None]
    tint = np.array([0.0, 30.0, 60.0])
    return np.stack(
        [(rows * 0.5 + columns + tint + 3 * t).clip(0, 255) for t in range(num_frames)]
    ).astype(np.uint8)


def read_back(path: Path) -> tuple[np.ndarray, Fraction | None]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert stream.codec_context.name == "h264"
        return np.stack(frames), stream.average_rate


@pytest.mark.parametrize(
    ("height", "width"), [(64, 64), (32, 48), (33, 48), (32, 47), (33, 47), (1, 1), (2, 2), (17, 2)]
)
def test_size_frames_and_colours_are_kept(tmp_path, height, width) -> None:
    frames = smooth_frames(5, height, width)
    path = write_video(tmp_path / "video.mp4", frames, fps=8)
    decoded, fps = read_back(path)
    assert decoded.shape == frames.shape
    assert fps == 8
    assert np.abs(decoded.astype(int) - frames).mean() < 2.0


@pytest.mark.parametrize(
    ("fps", "exact"),
    [
        (8, Fraction(8)),
        (29.97002997002997, Fraction(30000, 1001)),
        (Fraction(24000, 1001), Fraction(24000, 1001)),
        (12.5, Fraction(25, 2)),
        (0.5, Fraction(1, 2)),
    ],
)
def test_frame_rates_are_exact(tmp_path, fps, exact) -> None:
    assert frame_rate(fps) == exact
    path = write_video(tmp_path / "video.mp4", smooth_frames(30, 16, 16), fps)
    decoded, rate = read_back(path)
    assert rate == exact
    assert len(decoded) == 30


@pytest.mark.parametrize("suffix", [".mov", ".mkv"])
def test_other_containers(tmp_path, suffix) -> None:
    path = write_video(tmp_path / f"video{suffix}", smooth_frames(4, 16, 18), 10)
    assert read_back(path)[0].shape == (4, 16, 18, 3)


def test_a_single_frame_and_a_new_folder(tmp_path) -> None:
    path = write_video(tmp_path / "new" / "deep" / "one.mp4", smooth_frames(1, 16, 16), 25)
    assert len(read_back(path)[0]) == 1


def test_colours_are_tagged(tmp_path) -> None:
    path = write_video(tmp_path / "video.mp4", smooth_frames(2, 16, 16), 8)
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        assert (int(context.colorspace), int(context.color_range)) == (1, 1)


def test_a_failed_write_leaves_nothing_and_keeps_the_old_file(tmp_path) -> None:
    path = tmp_path / "video.mp4"
    write_video(path, smooth_frames(3, 16, 16), 8)
    before = path.read_bytes()

    def broken_source():
        yield from smooth_frames(2, 32, 32)
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_video(path, broken_source(), 8)
    assert path.read_bytes() == before
    with pytest.raises(ValueError, match="at least one frame"):
        write_video(path, [], 8)
    assert [entry.name for entry in tmp_path.iterdir()] == ["video.mp4"]
    assert path.read_bytes() == before


def test_any_file_is_written_whole_or_not_at_all(tmp_path) -> None:
    def fail(path: Path) -> None:
        with written_whole(path) as partial:
            partial.write_text("half", encoding="utf-8")
            raise KeyError

    report = write_json(tmp_path / "new" / "report.json", {"n": 1})
    before = report.read_text(encoding="utf-8")
    with pytest.raises(KeyError):
        fail(report)
    assert report.read_text(encoding="utf-8") == before
    assert [entry.name for entry in report.parent.iterdir()] == ["report.json"]


def test_the_file_appears_only_when_complete(tmp_path) -> None:
    path = tmp_path / "video.mp4"
    writer = VideoWriter(path, 8)
    for frame in smooth_frames(3, 16, 16):
        writer.write(frame)
        assert not path.exists()
    writer.close()
    writer.close()
    assert len(read_back(path)[0]) == writer.num_frames == 3
    with pytest.raises(ValueError, match="is closed"):
        writer.write(smooth_frames(1, 16, 16)[0])


def test_bad_videos(tmp_path) -> None:
    frames = smooth_frames(2, 16, 16)
    with pytest.raises(ValueError, match=r"written as .mp4, .mov, .mkv, got 'video.avi'"):
        write_video(tmp_path / "video.avi", frames, 8)
    with pytest.raises(ValueError, match="crf must be from 0"):
        write_video(tmp_path / "video.mp4", frames, 8, crf=99)
    for fps in (0, -1, float("nan"), float("inf"), 1e-9):
        with pytest.raises(ValueError, match="fps must be"):
            write_video(tmp_path / "video.mp4", frames, fps)
    with pytest.raises(ValueError, match="all frames must have the size of the first, 16x16"):
        write_video(tmp_path / "video.mp4", [frames[0], frames[1][:8]], 8)
    with pytest.raises(ValueError, match="got float64"):
        write_video(tmp_path / "video.mp4", frames / 255.0, 8)
    assert not list(tmp_path.iterdir())
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(OSError, match="file"):
        write_video(blocked / "video.mp4", frames, 8)


def test_gif(tmp_path) -> None:
    frames = np.zeros((8, 12, 15, 3), np.uint8)
    frames[:, :, :, 0] = np.arange(8)[:, None, None] * 30
    path = write_gif(tmp_path / "video.gif", frames, fps=8)
    with Image.open(path) as picture:
        assert picture.size == (15, 12)
        assert getattr(picture, "n_frames", 1) == 8
        durations = []
        for index in range(8):
            picture.seek(index)
            durations.append(picture.info["duration"])
    assert sum(durations) == 1000, "eight frames at 8 fps last a second, though 12.5 is no count"
    with pytest.raises(ValueError, match="at most 50 frames per second"):
        write_gif(tmp_path / "fast.gif", frames, fps=60)


def test_uint8_and_back_is_exact() -> None:
    frames = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    video = from_uint8(frames)
    assert video.shape == (3, 1, 16, 16)
    assert video.min() == -1
    assert video.max() == 1
    assert np.array_equal(to_uint8(video), frames)
    assert np.array_equal(to_uint8(from_uint8(frames[0])), frames[0])
    assert np.array_equal(to_uint8(video.to(torch.float64)), frames)


def test_eight_bits_are_those_of_a_file() -> None:
    video = torch.linspace(-1.5, 1.5, 3 * 2 * 4 * 4).reshape(3, 2, 4, 4)
    assert torch.equal(eight_bit(video), from_uint8(to_uint8(video)))
    video[0, 0, 0, 0] = torch.nan
    assert eight_bit(video).isnan().sum() == 1


def test_uint8_clips_and_refuses() -> None:
    assert to_uint8(torch.full((3, 1, 1), 1.7)).max() == 255
    assert to_uint8(torch.full((3, 1, 1), -9.0)).max() == 0
    with pytest.raises(ValueError, match="not finite"):
        to_uint8(torch.full((3, 1, 1), float("nan")))
    with pytest.raises(ValueError, match=r"\(2, 3, 1, 1, 1\)"):
        to_uint8(torch.zeros(2, 3, 1, 1, 1))


def test_contact_sheet(tmp_path) -> None:
    frames = np.zeros((20, 10, 20, 3), np.uint8)
    frames[:, :, :, 1] = 200
    rows = {"input": frames, "a long label": frames[:, :, :10]}
    path = contact_sheet(rows, tmp_path / "sheet.png", num_columns=4, title="clip", cell_height=40)
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    green = (pixels == (0, 200, 0)).all(-1)
    assert green.sum() == 4 * 40 * 80 + 4 * 40 * 40
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [entry.name for entry in tmp_path.iterdir()] == ["sheet.png"]


def test_contact_sheet_shows_first_and_last(tmp_path) -> None:
    frames = np.zeros((11, 4, 4, 3), np.uint8)
    frames[0], frames[-1] = (250, 0, 0), (0, 0, 250)
    path = contact_sheet({"x": frames}, tmp_path / "sheet.png", num_columns=3, cell_height=8)
    pixels = np.asarray(Image.open(path).convert("RGB"))
    for colour in ((250, 0, 0), (0, 0, 250)):
        assert (pixels == colour).all(-1).sum() == 64


def test_bad_contact_sheets(tmp_path) -> None:
    frames = np.zeros((3, 4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match=r"equal lengths, got \{'a': 3, 'b': 2\}"):
        contact_sheet({"a": frames, "b": frames[:2]}, tmp_path / "sheet.png")
    with pytest.raises(ValueError, match="got 0 rows"):
        contact_sheet({}, tmp_path / "sheet.png")
    with pytest.raises(ValueError, match="row 'a'"):
        contact_sheet({"a": frames[..., :1]}, tmp_path / "sheet.png")
    with pytest.raises(ValueError, match="expected 3 frame_numbers"):
        contact_sheet({"a": frames}, tmp_path / "sheet.png", frame_numbers=[1])


@pytest.mark.parametrize("length", [0, 1, 7, 8, 15, 16, 17, 100, 1001])
def test_sampler_is_even_and_bounded(length) -> None:
    sampler, made = FrameSampler(8), 0
    for number in range(length):
        wanted = sampler.wants()
        made += wanted
        sampler.add(number if wanted else None)
    assert sampler.entries() == sampler.numbers()
    assert None not in sampler.entries()
    assert min(length, 8) <= len(sampler.entries()) <= 16
    assert set(np.diff(sampler.numbers())) <= {sampler.stride}
    assert made <= 8 * 10
