"""Samples: the right frames in time, the right size, and the same whatever reads them."""

from __future__ import annotations

import dataclasses
import logging
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from vidtwin.data import (
    BadFileLog,
    DataConfig,
    GlobalBatchSampler,
    SkippedFile,
    TooManyBadFiles,
    UnusableVideo,
    VideoDataset,
    build_dataset,
    build_evaluation_loader,
    build_loader,
)
from vidtwin.data import frames as frame_choice

SMALL: dict[str, Any] = {"num_frames": 4, "height": 16, "width": 16}


def write_video(path: Path, num_frames: int = 20, fps: int = 10, level: int = 20) -> Path:
    """A video whose frame k has the gray level `level` + 4 k."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=fps)
        stream.height, stream.width, stream.pix_fmt = 32, 64, "yuv420p"
        stream.options = {"crf": "5"}
        for index in range(num_frames):
            pixels = np.full((32, 64, 3), level + 4 * index, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clips")
    for number in range(6):
        write_video(root / f"{number}.mp4", num_frames=12 + 2 * number)
    return root


def files(folder: Path, **options: Any) -> VideoDataset:
    return build_dataset(DataConfig(source="folder", path=str(folder), **SMALL, **options))


# Which frames


def test_frames_by_time_at_a_divisor_of_the_rate() -> None:
    times = np.arange(100) / 24
    chosen = frame_choice.frames_by_time(times, 100 / 24, 16, 8.0, 0.0)
    assert chosen is not None
    np.testing.assert_array_equal(chosen, np.arange(16) * 3)


@pytest.mark.parametrize("rate", [30.0, 30000 / 1001, 25.0, 12.5])
def test_frames_by_time_never_drift(rate: float) -> None:
    times = np.arange(400) / rate
    for position in (0.0, 0.3, 0.999):
        chosen = frame_choice.frames_by_time(times, 400 / rate, 64, 8.0, position)
        assert chosen is not None
        wanted = times[chosen[0]] + np.arange(64) / 8
        assert np.abs(times[chosen] - wanted).max() <= 0.5 / rate + 1e-6


def test_frames_by_time_with_a_variable_rate() -> None:
    times = np.concatenate([np.arange(30) / 30, 1 + np.arange(10) / 5])
    chosen = frame_choice.frames_by_time(times, 3.0, 8, 5.0, 0.0)
    assert chosen is not None
    np.testing.assert_array_equal(chosen, [0, 6, 12, 18, 24, 30, 31, 32])


def test_frames_repeat_above_the_rate_by_the_nearest_time() -> None:
    chosen = frame_choice.frames_by_time(np.arange(5) / 4, 5 / 4, 8, 8.0, 0.0)
    assert chosen is not None
    np.testing.assert_array_equal(chosen, [0, 0, 1, 1, 2, 2, 3, 3])


def test_one_frame_too_few_is_too_short() -> None:
    rate = 30000 / 1001
    for count, fits in ((16, True), (15, False)):
        times = np.arange(count) / rate
        chosen = frame_choice.frames_by_time(times, count / rate, 16, rate, 0.5)
        assert (chosen is not None) == fits
        assert (frame_choice.frames_by_stride(count, 16, 1, 0.5) is not None) == fits
    assert frame_choice.frames_by_stride(31, 16, 2, 0.9) is not None
    assert frame_choice.frames_by_stride(30, 16, 2, 0.9) is None


def test_windows_reach_both_ends_and_stay_inside() -> None:
    times = np.arange(50) / 10
    starts = set()
    for position in np.linspace(0, 1, 200, endpoint=False):
        for chosen in (
            frame_choice.frames_by_time(times, 5.0, 4, 5.0, position),
            frame_choice.frames_by_stride(50, 4, 2, position),
        ):
            assert chosen is not None
            np.testing.assert_array_equal(np.diff(chosen), 2)
            assert chosen[0] >= 0
            assert chosen[-1] <= 49
            starts.add(int(chosen[0]))
    assert starts == set(range(44))


def test_repeating_the_last_frame() -> None:
    times = np.arange(3) / 8
    np.testing.assert_array_equal(
        frame_choice.frames_repeating_last(times, 6, 8.0, None), [0, 1, 2, 2, 2, 2]
    )
    np.testing.assert_array_equal(
        frame_choice.frames_repeating_last(times, 4, None, 2), [0, 2, 2, 2]
    )


# One frame at the model's size


def test_fit_frame_leaves_a_frame_of_the_right_size_alone() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    fitted = frame_choice.fit_frame(frame, 16, 24)
    np.testing.assert_array_equal(fitted.numpy().transpose(1, 2, 0), frame)
    flipped = frame_choice.fit_frame(frame, 16, 24, flip=True)
    np.testing.assert_array_equal(flipped.numpy().transpose(1, 2, 0), frame[:, ::-1])


@pytest.mark.parametrize("size", [(48, 640), (137, 241), (16, 16), (1, 7), (300, 20)])
@pytest.mark.parametrize("resize", ["cover", "stretch"])
def test_fit_frame_covers_any_size(size: tuple[int, int], resize: str) -> None:
    frame = np.full((*size, 3), 77, dtype=np.uint8)
    for corner in ((0.0, 0.0), (0.999, 0.999)):
        fitted = frame_choice.fit_frame(frame, 32, 48, resize, corner)
        assert fitted.shape == (3, 32, 48)
        torch.testing.assert_close(fitted, torch.full_like(fitted, 77.0), atol=1e-3, rtol=0)


@pytest.mark.parametrize("resize", ["cover", "stretch"])
def test_fit_frame_in_gray_levels_is_a_level_off_at_most(resize: str) -> None:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    for size in ((32, 48), (60, 60), (200, 160)):
        exact = frame_choice.fit_frame(coarse, *size, resize, (0.3, 0.9), True)
        fast = frame_choice.fit_frame(coarse, *size, f"{resize}_uint8", (0.3, 0.9), True)
        assert fast.dtype == torch.float32 and fast.shape == exact.shape
        assert torch.equal(fast, fast.round())
        assert 0 < (fast - exact).abs().max() < 1.6


def test_fit_frame_averages_when_it_shrinks() -> None:
    """Without antialias, a fine checkerboard would turn into flat black or white."""
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    fitted = frame_choice.fit_frame(np.repeat(board[:, :, None], 3, axis=2), 8, 8)
    assert (fitted - 127.5).abs().max() < 10


def test_crop_places() -> None:
    frame = np.zeros((10, 30, 3), dtype=np.uint8)
    frame[:, :, 0] = np.arange(30)
    for place, first in ((0.0, 0), (0.5, 10), (0.999, 20)):
        fitted = frame_choice.fit_frame(frame, 10, 10, crop=(0.5, place))
        assert fitted[0, 0].tolist() == list(range(first, first + 10))


# Configuration


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "cvs"}, "data.source must be one of .* got 'cvs'; did you mean 'csv'"),
        ({"short": "repeat"}, "got 'repeat'; did you mean 'repeat_last'"),
        ({"stride": 4}, "exactly one of data.fps and data.stride .* fps=8.0 and stride=4"),
        ({"fps": None}, "exactly one of data.fps and data.stride"),
        ({"fps": 0.0}, "data.fps must be above 0"),
        ({"fps": None, "stride": 0}, "data.stride must be at least 1"),
        ({"num_frames": 0}, "data.num_frames must be at least 1, got 0"),
        ({"validation_fraction": 1.0}, r"validation_fraction must be in \[0, 1\), got 1.0"),
        ({"max_bad_fraction": 5.0}, r"max_bad_fraction must be in \[0, 1\], got 5.0"),
        ({"timeout": 0.0}, "data.timeout must be above 0 seconds"),
        ({"seed": -1}, "must not be negative"),
        ({"flip": True}, "flip=true would make the captions"),
        ({"path": "clips"}, "shapes reads no files, got data.path='clips'"),
        ({"validation_fraction": 0.1}, "have a validation part of their own"),
    ],
)
def test_config_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataConfig(**options)


def test_validation_on_the_training_clips_warns(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files(folder, part="validation")
    assert "the validation clips are the training clips" in caplog.text


# Samples


def test_sample_of_a_file(folder: Path) -> None:
    dataset = files(folder, fps=5.0, start="first", crop="center")
    sample = dataset[2]
    assert sample["video"].shape == (3, 4, 16, 16)
    assert sample["video"].dtype == torch.float32
    assert sample["frame_indices"].tolist() == [0, 2, 4, 6]
    levels = sample["video"].mean(dim=(0, 2, 3))
    expected = (20 + 4 * sample["frame_indices"]) / 127.5 - 1
    torch.testing.assert_close(levels, expected, atol=0.02, rtol=0)
    assert sample["path"] == str(folder / "2.mp4")
    assert (sample["index"], sample["label"], sample["caption"]) == (2, -1, "")
    assert sample["fps"] == 5.0
    assert sample["skipped"] == []


def test_stride_states_the_rate_it_gives(folder: Path) -> None:
    sample = files(folder, fps=None, stride=2, start="center")[0]
    assert sample["fps"] == pytest.approx(5.0)
    np.testing.assert_array_equal(np.diff(sample["frame_indices"]), 2)


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    names = ("index", "noise_seed", "path", "caption")
    equal = all(first[name] == second[name] for name in names)
    return equal and torch.equal(first["video"], second["video"])


def test_everything_follows_from_seed_epoch_and_index(folder: Path) -> None:
    options: dict[str, Any] = {"fps": 10.0, "flip": True}
    dataset = files(folder, **options)
    first = dataset[(3, 4)]
    dataset[(0, 1)]
    assert same(first, files(folder, **options)[(3, 4)])
    assert same(dataset[(0, 4)], dataset[4])
    for other in (dataset[(2, 4)], files(folder, seed=1, **options)[(3, 4)]):
        assert other["noise_seed"] != first["noise_seed"]
    windows = {tuple(dataset[(epoch, 5)]["frame_indices"].tolist()) for epoch in range(12)}
    assert len(windows) > 3
    seeds = {dataset[(epoch, index)]["noise_seed"] for epoch in range(3) for index in range(6)}
    assert len(seeds) == 18
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_short_videos(tmp_path: Path) -> None:
    path = write_video(tmp_path / "short.mp4", num_frames=3)

    def build(short: str) -> VideoDataset:
        config = DataConfig(source="files", path=str(path), fps=10.0, short=short, **SMALL)
        return build_dataset(config)

    assert build("repeat_last")[0]["frame_indices"].tolist() == [0, 1, 2, 2]
    with pytest.raises(
        UnusableVideo,
        match=r"too short: 3 frames, 0\.300 s, for 4 frames at 10.*data\.short=repeat_last",
    ):
        build("skip").get(0)
    with pytest.raises(ValueError, match=r"short\.mp4: too short.*set data\.short to skip or"):
        build("error")[0]


def test_shapes_parts_are_disjoint_and_finite() -> None:
    config = DataConfig(**SMALL).with_options(size=7)
    train, validation = (
        build_dataset(dataclasses.replace(config, part=part)) for part in ("train", "validation")
    )
    assert len(train) == 7
    sample = train[(1, 3)]
    assert sample["video"].shape == (3, 4, 16, 16)
    assert -1 <= sample["video"].min() < sample["video"].max() <= 1
    assert sample["caption"]
    assert 0 <= sample["label"] < len(train.label_names)
    assert torch.equal(sample["video"], train[(2, 3)]["video"])
    assert not torch.equal(sample["video"], validation[(1, 3)]["video"])
    with pytest.raises(IndexError, match=r"index must be in \[0, 7\), got 7"):
        train[7]


# Bad files


@pytest.fixture
def spoilt(tmp_path: Path) -> Path:
    for number in range(9):
        write_video(tmp_path / f"{number}.mp4", num_frames=8)
    (tmp_path / "9.mp4").write_text("not a video")
    return tmp_path


def test_bad_file_is_replaced_counted_and_logged(
    spoilt: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = files(spoilt, fps=10.0, max_bad_fraction=0.1)
    sample = dataset[(2, 9)]
    (skipped,) = sample["skipped"]
    assert skipped.path == str(spoilt / "9.mp4")
    assert "can't be opened" in skipped.reason
    assert sample["index"] != 9
    assert sample["path"] == str(spoilt / f"{sample['index']}.mp4")
    assert dataset.bad_file_log.files == {skipped.path: skipped.reason}
    assert f"skipped {skipped.path}: can't be opened" in caplog.text
    # What takes the slot follows from (seed, epoch, index) too, and not from what came before.
    assert same(sample, files(spoilt, fps=10.0, max_bad_fraction=0.1)[(2, 9)])
    assert caplog.text.count("skipped") == 2  # once for each of the two data sets
    others = {dataset[(epoch, 9)]["index"] for epoch in range(8)}
    assert len(others) > 1
    assert caplog.text.count("skipped") == 2
    with pytest.raises(UnusableVideo):
        dataset.get(9)


def test_too_many_bad_files_stop_with_the_list(spoilt: Path) -> None:
    dataset = files(spoilt, fps=10.0, max_bad_fraction=0.0)
    with pytest.raises(TooManyBadFiles, match=r"1 of 10 files can't be used, more than the 0\.0%"):
        dataset[9]
    with pytest.raises(TooManyBadFiles, match=r"9\.mp4: can't be opened"):
        dataset[9]


def test_only_bad_files(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.mp4").write_text("not a video")
    with pytest.raises(TooManyBadFiles, match=r"[123] clips drawn|can't be used"):
        files(tmp_path, max_bad_fraction=1.0)[0]


def test_bad_file_log() -> None:
    log = BadFileLog(total_files=99, max_bad_fraction=0.05)
    log.add([SkippedFile("a", "broken"), SkippedFile("a", "broken"), SkippedFile("b", "short")])
    log.add([SkippedFile(name, "gone") for name in "cd"])
    with pytest.raises(TooManyBadFiles, match=r"5 of 99 files") as caught:
        log.add([SkippedFile("e", "gone")])
    assert [file.path for file in caught.value.files] == ["a", "b", "c", "d", "e"]
    for line in ("  a: broken", "  b: short", "  e: gone"):
        assert line in str(caught.value)


@pytest.mark.parametrize(
    ("total", "bad", "stops"),
    [(11, 2, False), (11, 3, True), (4, 1, False), (3, 1, True), (50, 3, False), (50, 4, True)],
)
def test_a_few_bad_files_do_not_stop_a_small_data_set(total: int, bad: int, stops: bool) -> None:
    for fraction in (0.05, 0.0):
        log = BadFileLog(total, fraction)
        log.record([SkippedFile(str(number), "broken") for number in range(bad)])
        assert log.too_many == (stops or not fraction)


# The order of the samples


def test_ranks_share_the_stream_of_one_process() -> None:
    whole = list(islice(GlobalBatchSampler(10, 4, seed=3), 12))
    for world_size in (2, 4):
        ranks = [GlobalBatchSampler(10, 4, 3, rank, world_size) for rank in range(world_size)]
        for batch, *shares in islice(zip(whole, *ranks, strict=False), 12):
            assert batch == [item for share in shares for item in share]


def test_every_epoch_has_every_sample_once_and_in_another_order() -> None:
    stream = [item for batch in islice(GlobalBatchSampler(10, 4, seed=0), 10) for item in batch]
    for epoch in range(4):
        part = stream[10 * epoch : 10 * epoch + 10]
        assert {number for number, _ in part} == {epoch}
        assert sorted(index for _, index in part) == list(range(10))
    assert stream[:10] != [(0, index) for _, index in stream[10:20]]
    ordered = GlobalBatchSampler(10, 4, seed=0, shuffle=False)
    assert next(iter(ordered)) == [(0, 0), (0, 1), (0, 2), (0, 3)]


def test_batch_size_changes_no_sample() -> None:
    streams = []
    for batch_size in (2, 3, 25):
        batches = islice(GlobalBatchSampler(10, batch_size, seed=5), 60 // batch_size + 1)
        streams.append([item for batch in batches for item in batch][:50])
    assert streams[0] == streams[1] == streams[2]


def test_going_on_equals_not_having_stopped() -> None:
    whole = list(islice(GlobalBatchSampler(7, 4, 1, rank=1, world_size=2), 20))
    later = list(islice(GlobalBatchSampler(7, 4, 1, rank=1, world_size=2, start_batch=9), 11))
    assert later == whole[9:]


def test_sampler_errors() -> None:
    with pytest.raises(ValueError, match="must be a multiple of the 3 processes, got 4"):
        GlobalBatchSampler(10, 4, 0, world_size=3)
    with pytest.raises(ValueError, match=r"rank must be in \[0, 2\), got 2"):
        GlobalBatchSampler(10, 4, 0, rank=2, world_size=2)
    with pytest.raises(ValueError, match="num_samples must be at least 1"):
        GlobalBatchSampler(0, 4, 0)


# Loaders


def test_loader_gives_the_same_batches_with_workers_and_ranks(folder: Path) -> None:
    def batches(**options: Any) -> list[dict[str, Any]]:
        loader = build_loader(files(folder, fps=10.0), batch_size=4, seed=2, **options)
        return list(islice(loader, 3))

    alone = batches()
    assert alone[0]["video"].shape == (4, 3, 4, 16, 16)
    assert alone[0]["noise_seed"].dtype == torch.int64
    assert len(alone[0]["path"]) == 4
    assert alone[0]["skipped"] == []
    for one, two in zip(alone, batches(num_workers=2), strict=True):
        assert torch.equal(one["video"], two["video"])
        assert one["path"] == two["path"]
    halves = [batches(rank=rank, world_size=2) for rank in (0, 1)]
    for one, *shares in zip(alone, *halves, strict=True):
        for name in ("video", "index", "noise_seed"):
            assert torch.equal(one[name], torch.cat([share[name] for share in shares]))
    later = next(iter(build_loader(files(folder, fps=10.0), batch_size=4, seed=2, start_batch=2)))
    assert torch.equal(later["video"], alone[2]["video"])


@pytest.mark.parametrize("num_workers", [0, 1])
def test_loader_counts_bad_files_of_its_workers(
    spoilt: Path, num_workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = files(spoilt, fps=10.0, max_bad_fraction=0.1)
    loader = build_loader(dataset, batch_size=10, seed=0, num_workers=num_workers)
    batch = next(iter(loader))
    assert len(batch["video"]) == 10
    assert [Path(file.path).name for file in batch["skipped"]] == ["9.mp4"]
    assert list(loader.bad_file_log.files) == [str(spoilt / "9.mp4")]
    assert caplog.text.count("skipped") == 1
    dataset = files(spoilt, fps=10.0, max_bad_fraction=0.0)
    strict = build_loader(dataset, batch_size=10, seed=0, num_workers=num_workers)
    with pytest.raises(TooManyBadFiles, match=r"^1 of 10 files can't be used") as caught:
        next(iter(strict))
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 0), (3, 0), (2, 1)])
def test_evaluation_sees_every_clip_once(
    spoilt: Path, world_size: int, num_workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[int] = []
    skipped = []
    with caplog.at_level(logging.WARNING):
        for rank in range(world_size):
            dataset = files(spoilt, fps=10.0, start="center", max_bad_fraction=0.5)
            loader = build_evaluation_loader(
                dataset, batch_size=2, rank=rank, world_size=world_size, num_workers=num_workers
            )
            for batch in loader:
                seen += batch["index"].tolist()
            skipped += list(dataset.bad_file_log.files)
    assert sorted(seen) == list(range(9))
    assert skipped == [str(spoilt / "9.mp4")]
    assert "skipped" in caplog.text


def test_evaluation_is_the_same_every_time(folder: Path) -> None:
    def batches() -> list[torch.Tensor]:
        dataset = files(folder, fps=10.0, start="center", crop="center")
        return [batch["video"] for batch in build_evaluation_loader(dataset, batch_size=4)]

    assert all(torch.equal(one, two) for one, two in zip(batches(), batches(), strict=True))
    dataset = files(folder, fps=10.0)
    loader = build_evaluation_loader(dataset, batch_size=2, max_samples=3)
    assert [len(batch["video"]) for batch in loader] == [2, 1]
