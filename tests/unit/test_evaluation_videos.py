"""Where videos come from: the same for any number of processes, and complaints in one line."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vidtwin import DataConfig, LatentWindow, decode_windows
from vidtwin.data import TooManyBadFiles
from vidtwin.media import write_video
from vidtwin.reconstruction.latent_files import save_windows
from vidtwin_lab.evaluation.config import VideosConfig, model_sizes
from vidtwin_lab.evaluation.generated_videos import (
    FolderVideos,
    LatentVideos,
    PipelineVideos,
    build_generated,
)
from vidtwin_lab.evaluation.report import Processes
from vidtwin_lab.evaluation.videos import DataVideos, Video, iterate_videos

SIZES = (8, 16, 24)  # of the tiny pipeline
CLASSES = ["bend", "jump", "wave"]


def write_clip(path: Path, seed: int, size: tuple[int, int] = SIZES[1:], frames: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    colour = rng.integers(0, 255, 3)
    video = np.broadcast_to(colour, (frames, *size, 3)).astype(np.uint8)
    write_video(path, video, 8)


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """Class folders with 4, 3 and 2 clips, one of the first a text file."""
    folder = tmp_path_factory.mktemp("clips")
    for label, name in enumerate(CLASSES):
        for number in range(4 - label):
            write_clip(folder / name / f"{number}.mp4", 10 * label + number)
    (folder / "bend" / "3.mp4").write_text("not a video")
    return folder


def config_of(folder: Path, **changes: Any) -> DataConfig:
    options: dict[str, Any] = {
        "source": "classes",
        "path": str(folder),
        "part": "all",
        "num_frames": 8,
        "height": 16,
        "width": 24,
        "start": "first",
        "crop": "center",
        "max_bad_fraction": 0.5,
    }
    return DataConfig(**options | changes)


def on_processes(count: int, work: Callable[[Processes], Any]) -> list[Any]:
    """What each of several processes, played by threads, makes of it."""
    barrier = threading.Barrier(count)
    mailbox: list[list[Any]] = [[] for _ in range(count)]
    results: list[Any] = [None] * count

    def run(rank: int) -> None:
        def gather(rows: list[Any]) -> list[Any]:
            mailbox[rank] = rows
            barrier.wait(60)
            everything = [row for each in mailbox for row in each]
            barrier.wait(60)
            return everything

        results[rank] = work(Processes(rank=rank, count=count, gather=gather))

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return results


def names(videos: list[Video]) -> list[dict[str, Any]]:
    return [{"name": video.name, "label": video.label, "index": video.index} for video in videos]


def test_any_number_of_processes_sees_the_same_videos_in_order(clips) -> None:
    def work(processes: Processes) -> list[Any]:
        source = DataVideos(config_of(clips), seed=3)
        return list(iterate_videos(source, 6, 2, processes, names, "real"))

    expected = work(Processes())
    assert sum(len(rows) for rows, _ in expected) == 6
    for count in (2, 3):
        assert on_processes(count, work) == [expected] * count


def test_bad_files_are_named_and_others_take_their_place(clips) -> None:
    source = DataVideos(config_of(clips), seed=0)
    batches = list(iterate_videos(source, 8, 3, Processes(), names, "real"))
    found = [row["name"] for rows, _ in batches for row in rows]
    bad = [file for _, files in batches for file in files]
    assert len(found) == len(set(found)) == 8
    assert [Path(file.path).name for file in bad] == ["3.mp4"]
    with pytest.raises(ValueError, match=r"num_real asks for 9 .* there are 8 \(1 files"):
        list(iterate_videos(DataVideos(config_of(clips)), 9, 3, Processes(), names, "real"))
    with pytest.raises(ValueError, match=r"num_videos asks for 10 generated videos .* 9"):
        list(iterate_videos(source, 10, 3, Processes(), names, "generated"))
    everything = iterate_videos(source, None, 4, Processes(), names, "real")
    assert sum(len(rows) for rows, _ in everything) == 8
    strict = DataVideos(config_of(clips, max_bad_fraction=0.0))
    with pytest.raises(TooManyBadFiles, match=r"3\.mp4"):
        list(iterate_videos(strict, None, 4, Processes(), names, "real"))


def test_the_order_is_random_but_known(clips) -> None:
    one, same, other = (DataVideos(config_of(clips), seed) for seed in (1, 1, 2))
    assert one.order.tolist() == same.order.tolist() != other.order.tolist()
    assert sorted(one.labels(9)) == [0, 0, 0, 0, 1, 1, 1, 2, 2]
    video = next(v for v in one.load(range(9)) if isinstance(v, Video))
    assert video.frames.shape == (3, *SIZES)
    assert Path(video.name).parent.name == CLASSES[video.label]
    threaded = DataVideos(config_of(clips), 1, threads=3).load(range(9))
    for first, second in zip(one.load(range(9)), threaded, strict=True):
        if isinstance(first, Video):
            assert isinstance(second, Video) and torch.equal(first.frames, second.frames)


def test_the_cache_knows_an_exchanged_file(tmp_path) -> None:
    for number in range(2):
        write_clip(tmp_path / "a" / f"{number}.mp4", number)
    before = DataVideos(config_of(tmp_path)).identity()
    assert DataVideos(config_of(tmp_path)).identity() == before
    assert DataVideos(config_of(tmp_path, start="center")).identity() != before
    write_clip(tmp_path / "a" / "1.mp4", 7, frames=9)
    assert DataVideos(config_of(tmp_path)).identity() != before


def test_the_cache_knows_an_exchanged_sheet(sheets, tmp_path) -> None:
    own = shutil.copytree(sheets, tmp_path / "sheets")
    config = DataConfig(source="sprites", path=str(own), num_frames=8, height=64, width=64)
    before = DataVideos(config).identity()
    assert DataVideos(config).identity() == before
    sheet = next(own.rglob("*.png"))
    os.utime(sheet, ns=(1, 1))
    assert DataVideos(config).identity() != before


def test_a_folder_of_samples_has_the_classes_that_were_asked_for(tmp_path) -> None:
    rows = []
    for index in range(3):
        write_clip(tmp_path / f"sample_{index:04d}.mp4", index)
        asked = ["wave", "bend", "class 1"][index]
        files = [f"anywhere/sample_{index:04d}.mp4"]
        rows.append({"class_label": 1, "asked": asked, "files": files})
    (tmp_path / "sample.json").write_text(
        json.dumps({"samples": rows, "made_by": {"seconds": 3, "pipeline": "p"}})
    )
    source = FolderVideos(str(tmp_path), SIZES, CLASSES)
    videos = [video for video in source.load(range(3)) if isinstance(video, Video)]
    assert [video.label for video in videos] == [2, 0, 1]
    assert source.protocol(3)["made_by"] == {"pipeline": "p"}
    write_clip(tmp_path / "sample_0003.mp4", 3, size=(32, 24))
    assert len(FolderVideos(str(tmp_path), SIZES)) == 3  # what the list lacks is not measured
    (tmp_path / ".sampling").mkdir()
    with pytest.raises(ValueError, match=r"was interrupted; run sample\.py again"):
        FolderVideos(str(tmp_path), SIZES)
    (tmp_path / ".sampling").rmdir()
    (tmp_path / "sample.json").unlink()
    with pytest.raises(ValueError, match=r"sample_0003.mp4 has 32x24 pixels.*16x24"):
        FolderVideos(str(tmp_path), SIZES).load([3])


def test_latents_are_decoded_as_the_pipeline_does(tmp_path, build_pipeline) -> None:
    pipeline = build_pipeline()
    pipeline.save_pretrained(tmp_path / "pipeline")
    made = pipeline(["a red circle"] * 2, seed=[4, 5], num_inference_steps=2)
    for index, latents in enumerate(made.latents):
        window = LatentWindow(start=(0, 0, 0), size=SIZES, latents=latents)
        name = f"sample_{index:04d}.latents.safetensors"
        save_windows(tmp_path / "latents" / name, [window], {"fps": "8.0"})
    (tmp_path / "latents" / "z.latents.safetensors").write_text("nothing")
    folder, decoder = str(tmp_path / "latents"), str(tmp_path / "pipeline")
    source = LatentVideos(folder, decoder, torch.device("cpu"), CLASSES)
    assert (len(source), source.sizes) == (3, SIZES)
    *videos, bad = source.load(range(3))
    for video, expected in zip(videos, made.videos, strict=True):
        assert isinstance(video, Video) and video.fps == 8
        shown = ((video.frames + 1) / 2).clamp(0, 1)
        torch.testing.assert_close(shown, expected, atol=1e-5, rtol=1e-5)
    assert "not a safetensors file" in str(bad)
    with pytest.raises(ValueError, match="no latents found"):
        LatentVideos(str(tmp_path / "pipeline"), decoder, torch.device("cpu"))
    config = VideosConfig(kind="latents", path=folder, autoencoder=decoder)
    assert model_sizes(config) == SIZES
    assert decode_windows(pipeline.autoencoder, [window]).shape[2:] == SIZES


def test_a_sample_depends_on_its_index_alone(tmp_path, build_pipeline, clips) -> None:
    pipeline = build_pipeline(text=False, classes=True)
    pipeline.save_pretrained(tmp_path)
    real = DataVideos(config_of(clips))
    options: dict[str, Any] = {"path": str(tmp_path), "num_inference_steps": 2, "seed": 10}
    source = PipelineVideos(VideosConfig(**options), real, 7, torch.device("cpu"))
    alone = source.load([4])[0]
    among = source.load([3, 4])[1]
    assert isinstance(alone, Video) and isinstance(among, Video)
    assert (alone.label, alone.asked) == (1, "class jump")
    torch.testing.assert_close(alone.frames, among.frames, atol=1e-4, rtol=1e-4)
    made = pipeline(class_labels="jump", seed=14, num_inference_steps=2).videos[0]
    torch.testing.assert_close((alone.frames + 1) / 2, made, atol=1e-4, rtol=1e-4)
    assert model_sizes(VideosConfig(path=str(tmp_path))) == SIZES
    assert source.protocol(7)["seeds"] == [10, 16]
    as_data = VideosConfig(**options, class_distribution="data")
    source = PipelineVideos(as_data, real, 9, torch.device("cpu"))
    assert [source.label(index) for index in range(9)] == real.labels(9)


def test_a_text_pipeline_is_asked_for_the_captions(tmp_path, build_pipeline, clips) -> None:
    build_pipeline().save_pretrained(tmp_path)
    config = VideosConfig(path=str(tmp_path), num_inference_steps=1)
    shapes = DataConfig(num_frames=8, height=16, width=24).with_options(size=3)
    real = DataVideos(shapes)
    source = PipelineVideos(config, real, 5, torch.device("cpu"))
    asked = [video.asked for video in source.load(range(5)) if isinstance(video, Video)]
    captions = [real.caption(index) for index in range(3)]
    assert asked == captions + captions[:2]
    with pytest.raises(ValueError, match="have no caption"):
        PipelineVideos(config, DataVideos(config_of(clips)), 5, torch.device("cpu"))
    square = DataVideos(DataConfig(num_frames=8, height=16, width=16).with_options(size=3))
    with pytest.raises(ValueError, match=r"\(8, 16, 24\), the real ones \(8, 16, 16\)"):
        build_generated(config, square, 5, torch.device("cpu"))
    plain = DataVideos(config_of(clips, source="folder"))
    wanted = VideosConfig(path=str(tmp_path), conditions="classes")
    with pytest.raises(ValueError, match=r"has none; take data\.source"):
        PipelineVideos(wanted, plain, 5, torch.device("cpu"))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"kind": "movies"}, "pipeline, videos, latents, data"),
        ({"path": None}, "must name a pipeline"),
        ({"kind": "latents", "path": None}, "a folder of latents"),
        ({"kind": "data"}, "data set of generated.kind=data"),
        ({"conditions": "words"}, "generated.conditions"),
        ({"scheduler": "abacus"}, "generated.scheduler"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
    ],
)
def test_configs_that_make_no_sense(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        VideosConfig(**{"path": "p"} | changes)
