"""Awkward files give the right clip or a skip with its reason: no crash, no made-up frames.

The first half makes such files itself. The second goes through the project's collection of them,
where it is there.

Axes: T frames, H W pixels, C colour channels.
"""

from __future__ import annotations

import csv
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from vidtwin.data import DataConfig, TooManyBadFiles, UnusableVideo, build_dataset, build_loader
from vidtwin.data.readers import iter_frames, read_frames, read_video_info

SHARED = Path(__file__).parents[3] / "shared" / "data"
SMALL: dict[str, Any] = {"num_frames": 16, "height": 64, "width": 64, "fps": None, "stride": 1}


def write_video(
    path: Path, num_frames: int = 20, size: tuple[int, int] = (48, 64), rotation: int = 0
) -> Path:
    """Noise that moves to the right, one pixel a frame; the codec follows from the name."""
    codec = {".gif": "gif", ".avi": "mjpeg"}.get(path.suffix, "libx264")
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=10)
        stream.height, stream.width = size
        stream.pix_fmt = {"gif": "rgb8", "mjpeg": "yuvj420p"}.get(codec, "yuv420p")
        if rotation:
            stream.set_display_rotation(rotation)
        for index in range(num_frames):
            pixels = np.ascontiguousarray(np.roll(noise, index, axis=1))
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            container.mux(stream.encode(frame.reformat(format=stream.pix_fmt)))
        container.mux(stream.encode(None))
    return path


def write_sound(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((2, 44100), dtype=np.float32), format="fltp")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


# name -> the reason of the skip, or None for a clip.
MADE = {
    "good.mp4": None,
    "animated.gif": None,
    "avi named.mp4": None,
    "empty.mp4": "empty file",
    "fifteen.mp4": "too short: 15 frames",
    "name with spaces & ünïcödé 视频.mp4": None,
    "narrow.mp4": None,
    "odd.avi": None,
    "one.mp4": "too short: 1 frames",
    "rotated.mp4": None,
    "sound.mp4": "no video stream",
    "text.mp4": "can't be opened",
    "truncated.mp4": "can't be opened",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("awkward")
    write_video(root / "good.mp4")
    write_video(root / "animated.gif")
    write_video(root / "other.avi").rename(root / "avi named.mp4")
    (root / "empty.mp4").touch()
    write_video(root / "fifteen.mp4", num_frames=15)
    write_video(root / "name with spaces & ünïcödé 视频.mp4")
    write_video(root / "narrow.mp4", size=(32, 16))
    write_video(root / "odd.avi", size=(37, 51))
    write_video(root / "one.mp4", num_frames=1)
    write_video(root / "rotated.mp4", rotation=90)
    write_sound(root / "sound.mp4")
    (root / "text.mp4").write_text("a note that was saved under a video's name")
    content = (root / "good.mp4").read_bytes()
    (root / "truncated.mp4").write_bytes(content[: len(content) * 6 // 10])
    return root


@pytest.mark.parametrize("name", MADE)
def test_made_file_is_a_clip_or_a_skip(made: Path, name: str) -> None:
    dataset = build_dataset(DataConfig(source="files", path=str(made / name), **SMALL))
    reason = MADE[name]
    if reason is None:
        sample = dataset.get(0)
        assert sample["video"].shape == (3, 16, 64, 64)
        # The noise moves in every frame: none is repeated.
        assert (sample["video"].diff(dim=1).abs().mean(dim=(0, 2, 3)) > 0.01).all()
    else:
        with pytest.raises(UnusableVideo) as caught:
            dataset.get(0)
        assert caught.value.reason.startswith(reason)
        with pytest.raises(TooManyBadFiles, match="1 of 1 files can't be used"):
            dataset[0]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_training_goes_on_among_made_files(
    made: Path, num_workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    config = DataConfig(source="folder", path=str(made), max_bad_fraction=0.5, **SMALL)
    loader = build_loader(build_dataset(config), batch_size=4, seed=0, num_workers=num_workers)
    for batch in islice(loader, 8):
        assert batch["video"].shape == (4, 3, 16, 64, 64)
        assert all(MADE[Path(path).name] is None for path in batch["path"])
    bad = {Path(path).name for path in loader.bad_file_log.files}
    assert bad == {name for name, reason in MADE.items() if reason}
    for name in bad:
        assert sum(f"{name}: " in message for message in caplog.messages) == 1


# The project's collection: name -> (frames, height, width) as read, or the reason of the skip.
# "Short" files are read, but a 16-frame clip of them is refused.
COLLECTION: dict[str, tuple[int, int, int] | str] = {
    "all_black.mp4": (50, 128, 128),
    "alpha_vp9.webm": (30, 240, 320),
    "animated.gif": (20, 120, 160),
    "audio_only.mp3": "no video stream",
    "audio_only.mp4": "no video stream",
    "av1.mkv": (30, 240, 320),
    "base_ok.mp4": (90, 240, 320),
    "corrupt_middle.mp4": "damaged: frame 0 of 90 can't be decoded",  # noise in its first frame
    "cover_art.mp4": (90, 240, 320),
    "decord_corrupted.mp4": (50, 720, 1280),  # the part before the damage
    "edit_list_cut.mp4": (15, 240, 320),  # short once cut
    "ffv1_lossless.mkv": (16, 240, 320),
    "fifteen_frames.mp4": (15, 240, 320),
    "fps_1.mp4": (3, 240, 320),
    "fps_120.mp4": (60, 240, 320),
    "gray_h264.mp4": (30, 240, 320),
    "grey_content_yuv420.mp4": (24, 240, 320),
    "html_error_page.mp4": "can't be opened: Invalid data",
    "huge_3840x2160.mp4": (4, 2160, 3840),
    "interlaced.mpg": (30, 240, 320),
    "long_gop_600f_1key.mp4": (600, 120, 160),
    "mpeg2.ts": (30, 240, 320),
    "name with spaces & ünïcödé 视频.mp4": (24, 240, 320),
    "no_duration.webm": (74, 720, 1280),
    "nonsquare_sar_4_3.mp4": (30, 240, 320),  # pixels stay as they are
    "odd_241x137_mjpeg.avi": (20, 137, 241),
    "odd_241x137_yuv444.mp4": (40, 137, 241),
    "one_frame.mp4": (1, 240, 320),
    "png_renamed.mp4": "a still picture",
    "pure_noise.mp4": (25, 64, 64),
    "random_bytes.mp4": "can't be opened: Invalid data",
    "rotated_meta_180.mp4": (30, 240, 320),
    "rotated_meta_90.mp4": (30, 320, 240),
    "start_pts_12s.mp4": (30, 240, 320),
    "start_pts_12s.ts": (30, 240, 320),
    "tenbit_h264.mp4": (30, 240, 320),
    "tenbit_hevc.mp4": (30, 240, 320),
    "text_renamed.mp4": "can't be opened: Invalid data",
    "three_frames.mp4": (3, 240, 320),
    "tiny_16x16.mp4": (30, 16, 16),
    "truncated_faststart.mp4": (42, 240, 320),  # the part before the cut
    "truncated_no_moov.mp4": "can't be opened: Invalid data",
    "two_video_streams.mp4": (390, 270, 480),  # ffmpeg's best
    "vfr_30_then_5fps.mp4": (40, 240, 320),
    "webm_named.mp4": (30, 240, 320),
    "wide_640x48.mp4": (30, 48, 640),
    "zero_byte.mp4": "empty file",
}
needs_collection = pytest.mark.skipif(
    not (SHARED / "nasty").is_dir(), reason="the collection of awkward files is not there"
)


def plain_frames(path: Path, count: int) -> np.ndarray:
    """The first frames as a straight decoding of the best stream gives them."""
    frames = []
    with av.open(str(path)) as container:
        stream: Any = container.streams.best("video")
        for frame in container.decode(stream):
            frames.append(np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90))
            if len(frames) == count:
                break
    return np.stack(frames)


@needs_collection
def test_the_table_has_every_file() -> None:
    with (SHARED / "nasty" / "manifest.csv").open(newline="", encoding="utf-8") as stream:
        assert {row["file"] for row in csv.DictReader(stream)} == set(COLLECTION)


@needs_collection
@pytest.mark.parametrize("name", COLLECTION)
def test_collection(name: str) -> None:
    path = SHARED / "nasty" / name
    expected = COLLECTION[name]
    dataset = build_dataset(
        DataConfig(source="files", path=str(path), start="first", crop="center", **SMALL)
    )
    if isinstance(expected, str):
        with pytest.raises(UnusableVideo) as caught:
            dataset.get(0)
        assert caught.value.reason.startswith(expected)
        return
    info = read_video_info(path)
    assert (info.num_frames, info.height, info.width) == expected
    assert len(info.timestamps) == info.num_frames
    assert (np.diff(info.timestamps) > 0).all()
    count = min(16, info.num_frames)
    truth = plain_frames(path, count)
    np.testing.assert_array_equal(read_frames(path, range(count)), truth)
    if info.num_frames < 16:
        with pytest.raises(UnusableVideo, match=f"too short: {info.num_frames} frames"):
            dataset.get(0)
    else:
        sample = dataset.get(0)
        assert sample["video"].shape == (3, 16, 64, 64)
        assert sample["frame_indices"].tolist() == list(range(16))
        assert torch.isfinite(sample["video"]).all()


@needs_collection
@pytest.mark.parametrize("name", ["corrupt_middle.mp4", "decord_corrupted.mp4"])
def test_damage_is_never_shown(name: str) -> None:
    """Windows anywhere in a damaged file are sound or refused, whatever decord makes of them."""
    path = SHARED / "nasty" / name
    dataset = build_dataset(DataConfig(source="files", path=str(path), **SMALL))
    reasons = []
    for epoch in range(6):
        try:
            sample = dataset.get(0, epoch)
        except UnusableVideo as error:
            reasons.append(error.reason)
        else:
            assert sample["frame_indices"].max() < 28
    assert reasons
    assert all(reason.startswith("damaged") for reason in reasons)
    with pytest.raises(UnusableVideo, match="damaged"):
        list(iter_frames(path))


@needs_collection
def test_black_is_black_and_variable_rates_are_sampled_by_time() -> None:
    black = build_dataset(
        DataConfig(source="files", path=str(SHARED / "nasty" / "all_black.mp4"), **SMALL)
    ).get(0)
    torch.testing.assert_close(black["video"], torch.full((3, 16, 64, 64), -1.0))
    path = SHARED / "nasty" / "vfr_30_then_5fps.mp4"
    times = read_video_info(path).timestamps
    config = DataConfig(
        source="files", path=str(path), start="first", num_frames=8, height=64, width=64, fps=5.0
    )
    chosen = build_dataset(config).get(0)["frame_indices"].numpy()
    gaps = np.abs(times[chosen] - np.arange(8) / 5)
    assert gaps.max() <= 0.1
    assert len(set(chosen.tolist())) == 8


@needs_collection
def test_training_goes_on_in_the_collection() -> None:
    config = DataConfig(
        source="folder", path=str(SHARED / "nasty"), max_bad_fraction=0.5, timeout=60.0, **SMALL
    )
    loader = build_loader(build_dataset(config), batch_size=8, seed=0)
    for batch in islice(loader, 6):
        assert batch["video"].shape == (8, 3, 16, 64, 64)
    assert loader.bad_file_log.files


@pytest.mark.skipif(not (SHARED / "dev").is_dir(), reason="the development clips are not there")
def test_development_clips() -> None:
    root = SHARED / "dev"
    config = DataConfig(
        source="folder", path=str(root), captions="captions.json", start="center",
        short="repeat_last", num_frames=4, height=64, width=64,
    )  # fmt: skip
    dataset = build_dataset(config)
    assert len(dataset) == 137
    for index in range(0, 137, 9):
        sample = dataset.get(index)
        assert sample["video"].shape == (3, 4, 64, 64)
        assert sample["caption"]
    # A good clip of which decord repeats one wrong frame if a seek is the first thing it does.
    bird = root / "clips" / "cockatoo.mp4"
    np.testing.assert_array_equal(
        read_frames(bird, [100, 104, 108]), plain_frames(bird, 109)[[100, 104, 108]]
    )
    classes = build_dataset(DataConfig(source="classes", path=str(root / "classes")))
    assert len(classes) == 97
    assert len(classes.label_names) == 8
