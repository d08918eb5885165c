"""reconstruct.py from files to files, with a tiny random model; and what it says of bad input."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file
from script_runs import ROOT, Ended, read_back, read_json, run, run_apart, run_python, weights

from vidtwin import VidTwinAutoencoder
from vidtwin.media import write_video
from vidtwin.reconstruction.latent_files import load_windows
from vidtwin.tiling import decode_windows

FRAMES, HEIGHT, WIDTH = 13, 33, 50


def make_frames(num_frames: int, height: int, width: int) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    frames = [(rows * 3 + columns * 2 + 8 * t) % 256 for t in range(num_frames)]
    return np.stack([np.stack(frames)] * 3, axis=-1).astype(np.uint8)


@pytest.fixture(scope="module")
def workdir(build_autoencoder, tmp_path_factory) -> Path:
    """A folder with a model of 4 x 16 x 24, two videos of other sizes and a file of text."""
    folder = tmp_path_factory.mktemp("reconstruct")
    model = build_autoencoder(num_frames=4, structure_downsamples=1, dynamics_downsamples=1)
    model.save_pretrained(folder / "model")
    model.save_pretrained(folder / "run" / "autoencoder_ema")
    videos = folder / "videos"
    write_video(videos / "odd.mp4", make_frames(FRAMES, HEIGHT, WIDTH), 30000 / 1001)
    write_video(videos / "deep" / "small.mp4", make_frames(3, 16, 16), 8)
    bad = folder / "bad"
    bad.mkdir()
    (bad / "text.mp4").write_text("I am not a video.")
    return folder


@pytest.fixture(scope="module")
def reconstruct(workdir) -> Callable[..., Ended]:
    """Runs the script in the folder."""

    def call(*arguments: object, model: object = "model") -> Ended:
        given = [] if model is None else ["--model", model]
        # The weights of LPIPS are a download.
        return run("reconstruct", *arguments, *given, "--lpips", "none", folder=workdir)

    return call


def test_several_processes_are_refused(workdir, tmp_path) -> None:
    words = ("videos", "--model", "model", "--lpips", "none", "--output", tmp_path / "out")
    ended = run_apart("reconstruct", *words, folder=workdir, processes=2)
    lines = [line for line in ended.err.splitlines() if "error: " in line]
    assert ended.code == 2 and "Traceback" not in ended.err
    assert lines and all("reconstruct.py is one process, 2 were started" in x for x in lines)
    assert not (tmp_path / "out").exists()


def test_a_folder(reconstruct, workdir, tmp_path) -> None:
    out = tmp_path / "out"
    printed = reconstruct(
        "videos", "--output", out, "--save-latents", "--tile-batch-size", 3
    ).done()
    for name in ("reconstruction", "structure", "dynamics"):
        frames, fps = read_back(out / f"odd.{name}.mp4")
        assert frames.shape == (FRAMES, HEIGHT, WIDTH, 3)
        assert fps == pytest.approx(30000 / 1001)
        frames, fps = read_back(out / "deep" / f"small.{name}.mp4")
        assert (frames.shape, fps) == ((3, 16, 16, 3), 8)
    with Image.open(out / "odd.sheet.png") as sheet:
        assert sheet.format == "PNG"
        assert min(sheet.size) > 4 * 128
    assert str(out / "odd.sheet.png") in printed
    check_report(read_json(out / "reconstruct.json"))
    check_latents(out / "odd.latents.safetensors", out / "odd.reconstruction.mp4", workdir)


def check_report(report: dict) -> None:
    assert report["failed"] == []
    protocol = report["protocol"]
    for key in ("split", "n", "resolution", "frames", "stride", "fps", "backend", "seed"):
        assert key in protocol
    assert protocol["n"] == 2
    assert len(protocol["model_sha256"]) == 16
    assert protocol["versions"]["torch"]
    assert report["compression_rate"] == pytest.approx(
        (2 * 2 * 1 * 2 + 2 * 4 * 2 + 2 * 4 * 1) / (3 * 4 * 16 * 24)
    )
    odd = next(video for video in report["videos"] if video["video"].endswith("odd.mp4"))
    assert odd["frames"] == FRAMES
    assert odd["resolution"] == [HEIGHT, WIDTH]
    assert odd["measured"] == "reconstruction"
    assert 0 < odd["psnr"] < 40
    assert -1 <= odd["ssim"] <= 1
    assert odd["lpips"] is None
    assert odd["reasons"]["lpips"]
    assert report["mean"]["psnr"] == pytest.approx(
        np.mean([video["psnr"] for video in report["videos"]])
    )


def check_latents(path: Path, video: Path, workdir: Path) -> None:
    """The latents on disk decode to the video on disk."""
    windows, metadata = load_windows(path)
    assert float(metadata["fps"]) == pytest.approx(30000 / 1001)
    model = VidTwinAutoencoder.from_pretrained(workdir / "model")
    decoded = decode_windows(model, windows)
    assert tuple(decoded.shape) == (1, 3, FRAMES, HEIGHT, WIDTH)
    levels = ((decoded[0].clamp(-1, 1) + 1) * 127.5).numpy().transpose(1, 2, 3, 0)
    assert np.abs(levels - read_back(video)[0]).mean() < 8


def test_results_lie_beside_the_original_and_are_not_taken_for_videos(
    reconstruct, tmp_path
) -> None:
    write_video(tmp_path / "clip.mp4", make_frames(5, 16, 24), 8)
    for _ in range(2):
        printed = reconstruct(tmp_path).done()
        assert "1 done, 0 failed" in printed
    names = ("dynamics", "reconstruction", "structure")
    expected = {f"clip.{name}.mp4" for name in names} | {"clip.sheet.png", "reconstruct.json"}
    assert {path.name for path in tmp_path.iterdir()} == expected | {"clip.mp4"}


@pytest.mark.parametrize("part", ["structure", "dynamics", "both"])
def test_one_part(reconstruct, tmp_path, part) -> None:
    reconstruct("videos/odd.mp4", "--output", tmp_path, "--part", part).done()
    name = "reconstruction" if part == "both" else part
    assert [path.name for path in tmp_path.glob("*.mp4")] == [f"odd.{name}.mp4"]
    report = read_json(tmp_path / "reconstruct.json")
    assert report["videos"][0]["measured"] == name


def test_resize_max_frames_and_fps(reconstruct, tmp_path) -> None:
    reconstruct(
        "videos/odd.mp4", "--output", tmp_path, "--resize", "--fps", 10, "--max-frames", 4
    ).done()
    frames, fps = read_back(tmp_path / "odd.reconstruction.mp4")
    assert frames.shape == (4, 16, 24, 3)
    assert fps == 10
    record = read_json(tmp_path / "reconstruct.json")["videos"][0]
    assert record["stride"] == pytest.approx(2.997, abs=1e-3)


def test_patterns_and_equal_names(reconstruct, tmp_path) -> None:
    for name in ("a/x.mp4", "b/x.mp4"):
        write_video(tmp_path / name, make_frames(2, 16, 24), 8)
    reconstruct(tmp_path / "*" / "x.mp4", "--output", tmp_path / "out", "--part", "both").done()
    videos = sorted(path.name for path in (tmp_path / "out").glob("*.mp4"))
    assert videos == ["x.mp4.reconstruction.mp4", "x.reconstruction.mp4"]


def test_swap_goes_both_ways(reconstruct, tmp_path) -> None:
    reconstruct("videos/odd.mp4", "--swap", "videos/deep/small.mp4", "--output", tmp_path).done()
    one, fps = read_back(tmp_path / "odd.dynamics_of_small.mp4")
    other, _ = read_back(tmp_path / "odd.structure_of_small.mp4")
    assert one.shape == other.shape == (3, HEIGHT, WIDTH, 3), "as long as the shorter one"
    assert fps == pytest.approx(30000 / 1001)
    assert not np.array_equal(one, other)
    assert (tmp_path / "odd.swap_with_small.sheet.png").exists()
    record = read_json(tmp_path / "reconstruct.json")["videos"][0]
    assert record["psnr"] is None
    assert "no original" in record["reasons"]["psnr"]


def test_swap_with_itself_is_the_reconstruction(reconstruct, tmp_path) -> None:
    video = "videos/odd.mp4"
    reconstruct(video, "--output", tmp_path).done()
    reconstruct(video, "--swap", video, "--output", tmp_path).done()
    reconstruction, _ = read_back(tmp_path / "odd.reconstruction.mp4")
    for name in ("dynamics_of_odd", "structure_of_odd"):
        assert np.array_equal(read_back(tmp_path / f"odd.{name}.mp4")[0], reconstruction)


def test_run_folder_and_precision(reconstruct, tmp_path) -> None:
    arguments = ("videos/deep/small.mp4", "--output", tmp_path, "--dtype", "bfloat16")
    reconstruct(*arguments, model="run").done()
    report = read_json(tmp_path / "reconstruct.json")
    assert report["protocol"]["model"] == str(Path("run") / "autoencoder_ema")
    assert report["protocol"]["dtype"] == "bfloat16"


def test_dry_run_writes_nothing(reconstruct, tmp_path) -> None:
    out = tmp_path / "out"
    printed = reconstruct("videos", "--output", out, "--dry-run").done()
    assert not out.exists()
    assert "parameters" in printed
    assert "structure (2, 2, 1, 2)" in printed
    assert "13 x 33 x 50 at 29.97 fps, 4 x 3 x 3 windows" in printed


def test_it_says_how_much_there_is_to_do(reconstruct, tmp_path, caplog) -> None:
    write_video(tmp_path / "long.mp4", make_frames(40, HEIGHT, WIDTH), 8)
    with caplog.at_level("INFO", "vidtwin"):
        reconstruct("videos/odd.mp4", "--part", "all", "--output", tmp_path / "a").done()
        assert "odd.mp4: 36 windows (4 x 3 x 3), about " in caplog.text
        assert "--resize" not in caplog.text
        reconstruct(tmp_path / "long.mp4", "--part", "all", "--output", tmp_path / "b").done()
        assert "117 windows (13 x 3 x 3), about" in caplog.text
        assert "; with --resize 13 windows" in caplog.text
        caplog.clear()
        reconstruct(tmp_path / "long.mp4", "--resize", "--output", tmp_path / "c").done()
        assert "13 windows (13 x 1 x 1), about" in caplog.text
        assert "--resize" not in caplog.text
        reconstruct("videos/odd.mp4", "--swap", "videos/odd.mp4", "--output", tmp_path / "d").done()
        assert "36 windows (4 x 3 x 3)" in caplog.text


def test_a_bad_file_does_not_stop_the_others(reconstruct, tmp_path) -> None:
    ended = reconstruct("bad", "videos", "--output", tmp_path)
    assert ended.refused().startswith("error: bad/text.mp4: ")
    assert "2 done, 1 failed" in ended.out
    assert (tmp_path / "odd.reconstruction.mp4").exists()
    assert not list(tmp_path.glob("text.*"))
    (failed,) = read_json(tmp_path / "reconstruct.json")["failed"]
    assert failed["video"] == "bad/text.mp4"


@pytest.mark.parametrize(
    ("arguments", "model", "message"),
    [
        (["nothing.mp4"], "model", "error: nothing.mp4: no such file"),
        (["none/*.mp4"], "model", "error: none/*.mp4: no such file"),
        (["model"], "model", "error: model: no videos in this folder"),
        (["bad/text.mp4"], "model", "error: bad/text.mp4: "),
        ([], "model", "name a video, a folder or a pattern, or try --demo"),
        (["videos", "--part", "sound"], "model", "--part invalid choice: 'sound'"),
        (["videos", "--swap", "bad/text.mp4"], "model", "text.mp4"),
        (["videos", "--swap", "nothing.mp4"], "model", "nothing.mp4"),
        (["videos", "--output", "model/config.json"], "model", "can't write to the folder"),
        (["videos"], "nowhere", "the model nowhere does not exist"),
        (["videos"], "videos", "holds no autoencoder: expected config.json"),
        (["videos"], "bad/text.mp4", "must be a released checkpoint"),
        (["videos", "--tile-overlap", 4, 0, 0], "model", "`tile_overlap` in frames must be from"),
        (["videos", "--tile-batch-size", 0], "model", "--tile-batch-size must be at least 1"),
        (["videos", "--max-frames", 0], "model", "--max-frames must be at least 1, got 0"),
        (["videos", "--fps", -1], "model", "--fps must be more than 0, got -1"),
        (["videos/deep/small.mp4", "--fps", 30], "model", "has 8 frames per second, fewer than 30"),
        (["videos", "--device", "abacus"], "model", "abacus can't be used"),
        (["--demo"], "model", "--demo trains its own model"),
    ],
)
def test_bad_input_takes_one_clear_line(reconstruct, tmp_path, arguments, model, message) -> None:
    if "--output" not in arguments:
        arguments = [*arguments, "--output", tmp_path]
    assert message in reconstruct(*arguments, model=model).refused()


def test_weights_that_do_not_fit_are_refused(reconstruct, workdir, tmp_path) -> None:
    broken = tmp_path / "broken"
    VidTwinAutoencoder.from_pretrained(workdir / "model").save_pretrained(broken)
    (file,) = broken.glob("*.safetensors")
    kept = weights(file)
    name = sorted(kept)[0]
    del kept[name]
    save_file(kept, file, metadata={"format": "pt"})
    arguments = ("videos", "--output", tmp_path / "out")
    assert name in reconstruct(*arguments, model=broken).refused()
    file.unlink()
    assert "can't be loaded" in reconstruct(*arguments, model=broken).refused()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_output(reconstruct, tmp_path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    assert "can't write to the folder" in reconstruct("videos", "--output", folder).refused()


def test_demo_says_what_it_would_run(reconstruct, tmp_path) -> None:
    printed = reconstruct("--demo", "--dry-run", "--output", tmp_path / "demo", model=None).done()
    assert "train_ae.py" in printed
    assert "shapes_demo.yaml" in printed
    assert not (tmp_path / "demo").exists()


def test_from_any_folder_as_a_process(workdir, tmp_path) -> None:
    told = run_python(
        *(ROOT / "reconstruct.py", workdir / "bad", "--model", workdir / "model"),
        *("--output", tmp_path, "--lpips", "none"),
        folder=tmp_path,
    ).refused()
    assert "text.mp4: " in told
