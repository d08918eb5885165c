"""reconstruct.py from files to files, with a tiny random model; and what it says of bad input."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from vidtwin import VidTwinAutoencoder
from vidtwin.media import write_video
from vidtwin.reconstruction.latent_files import load_windows
from vidtwin.tiling import decode_windows

SCRIPT = Path(__file__).resolve().parents[2] / "reconstruct.py"
FRAMES, HEIGHT, WIDTH = 13, 33, 50


def make_frames(num_frames: int, height: int, width: int) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    frames = [(rows * 3 + columns * 2 + 8 * t) % 256 for t in range(num_frames)]
    return np.stack([np.stack(frames)] * 3, axis=-1).astype(np.uint8)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> Path:
    """A folder with a model of 4 x 16 x 24, two videos of other sizes and a file of text."""
    folder = tmp_path_factory.mktemp("reconstruct")
    torch.manual_seed(0)
    model = VidTwinAutoencoder(
        num_frames=4,
        height=16,
        width=24,
        patch_size=(1, 8, 8),
        hidden_size=16,
        encoder_depth=1,
        decoder_depth=1,
        encoder_heads=2,
        decoder_heads=2,
        num_queries=2,
        query_hidden_size=8,
        query_layers=1,
        query_heads=2,
        query_intermediate_size=16,
        structure_base_channels=4,
        structure_channels=2,
        dynamics_channels=2,
    )
    model.save_pretrained(folder / "model")
    model.save_pretrained(folder / "run" / "autoencoder_ema")
    videos = folder / "videos"
    write_video(videos / "odd.mp4", make_frames(FRAMES, HEIGHT, WIDTH), 30000 / 1001)
    write_video(videos / "deep" / "small.mp4", make_frames(3, 16, 16), 8)
    bad = folder / "bad"
    bad.mkdir()
    (bad / "text.mp4").write_text("I am not a video.")
    return folder


@pytest.fixture
def call(monkeypatch, capsys, workdir):
    """Runs the script in this process; returns exit status, stdout and stderr."""

    def run(*arguments: object, model: object = "model") -> tuple[int, str, str]:
        monkeypatch.chdir(workdir)
        argv = [str(argument) for argument in arguments]
        if model is not None:
            argv += ["--model", str(model)]
        if "--lpips" not in argv:
            argv += ["--lpips", "none"]  # its weights are a download
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *argv])
        with pytest.raises(SystemExit) as exit_info:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return int(exit_info.value.code or 0), captured.out, captured.err

    return run


def read_back(path: Path) -> tuple[np.ndarray, float]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        rate = float(stream.average_rate or 0)
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    return np.stack(frames), rate


def test_a_folder(call, workdir, tmp_path) -> None:
    out = tmp_path / "out"
    status, printed, _ = call("videos", "--output", out, "--save-latents", "--tile-batch-size", 3)
    assert status == 0
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
    check_report(json.loads((out / "reconstruct.json").read_text()))
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


def test_results_lie_beside_the_original_and_are_not_taken_for_videos(call, tmp_path) -> None:
    write_video(tmp_path / "clip.mp4", make_frames(5, 16, 24), 8)
    for _ in range(2):
        status, printed, _ = call(tmp_path)
        assert status == 0
        assert "1 done, 0 failed" in printed
    names = ("dynamics", "reconstruction", "structure")
    expected = {f"clip.{name}.mp4" for name in names} | {"clip.sheet.png", "reconstruct.json"}
    assert {path.name for path in tmp_path.iterdir()} == expected | {"clip.mp4"}


@pytest.mark.parametrize("part", ["structure", "dynamics", "both"])
def test_one_part(call, tmp_path, part) -> None:
    status, _, _ = call("videos/odd.mp4", "--output", tmp_path, "--part", part)
    assert status == 0
    name = "reconstruction" if part == "both" else part
    assert [path.name for path in tmp_path.glob("*.mp4")] == [f"odd.{name}.mp4"]
    report = json.loads((tmp_path / "reconstruct.json").read_text())
    assert report["videos"][0]["measured"] == name


def test_resize_max_frames_and_fps(call, tmp_path) -> None:
    status, _, _ = call(
        "videos/odd.mp4", "--output", tmp_path, "--resize", "--fps", 10, "--max-frames", 4
    )
    assert status == 0
    frames, fps = read_back(tmp_path / "odd.reconstruction.mp4")
    assert frames.shape == (4, 16, 24, 3)
    assert fps == 10
    record = json.loads((tmp_path / "reconstruct.json").read_text())["videos"][0]
    assert record["stride"] == pytest.approx(2.997, abs=1e-3)


def test_patterns_and_equal_names(call, tmp_path) -> None:
    for name in ("a/x.mp4", "b/x.mp4"):
        write_video(tmp_path / name, make_frames(2, 16, 24), 8)
    status, _, _ = call(tmp_path / "*" / "x.mp4", "--output", tmp_path / "out", "--part", "both")
    assert status == 0
    videos = sorted(path.name for path in (tmp_path / "out").glob("*.mp4"))
    assert videos == ["x.mp4.reconstruction.mp4", "x.reconstruction.mp4"]


def test_swap_goes_both_ways(call, tmp_path) -> None:
    status, _, _ = call("videos/odd.mp4", "--swap", "videos/deep/small.mp4", "--output", tmp_path)
    assert status == 0
    one, fps = read_back(tmp_path / "odd.dynamics_of_small.mp4")
    other, _ = read_back(tmp_path / "odd.structure_of_small.mp4")
    assert one.shape == other.shape == (3, HEIGHT, WIDTH, 3), "as long as the shorter one"
    assert fps == pytest.approx(30000 / 1001)
    assert not np.array_equal(one, other)
    assert (tmp_path / "odd.swap_with_small.sheet.png").exists()
    record = json.loads((tmp_path / "reconstruct.json").read_text())["videos"][0]
    assert record["psnr"] is None
    assert "no original" in record["reasons"]["psnr"]


def test_swap_with_itself_is_the_reconstruction(call, tmp_path) -> None:
    video = "videos/odd.mp4"
    assert call(video, "--output", tmp_path)[0] == 0
    assert call(video, "--swap", video, "--output", tmp_path)[0] == 0
    reconstruction, _ = read_back(tmp_path / "odd.reconstruction.mp4")
    for name in ("dynamics_of_odd", "structure_of_odd"):
        assert np.array_equal(read_back(tmp_path / f"odd.{name}.mp4")[0], reconstruction)


def test_run_folder_and_precision(call, tmp_path) -> None:
    arguments = ("videos/deep/small.mp4", "--output", tmp_path, "--dtype", "bfloat16")
    assert call(*arguments, model="run")[0] == 0
    report = json.loads((tmp_path / "reconstruct.json").read_text())
    assert report["protocol"]["model"] == str(Path("run") / "autoencoder_ema")
    assert report["protocol"]["dtype"] == "bfloat16"


def test_dry_run_writes_nothing(call, tmp_path) -> None:
    out = tmp_path / "out"
    status, printed, _ = call("videos", "--output", out, "--dry-run")
    assert status == 0
    assert not out.exists()
    assert "parameters" in printed
    assert "structure (2, 2, 1, 2)" in printed
    assert "13 x 33 x 50 at 29.97 fps, 4 x 3 x 3 windows" in printed


def test_a_bad_file_does_not_stop_the_others(call, tmp_path) -> None:
    status, printed, errors = call("bad", "videos", "--output", tmp_path)
    assert status == 2
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert lines[0].startswith("error: bad/text.mp4: ")
    assert "2 done, 1 failed" in printed
    assert (tmp_path / "odd.reconstruction.mp4").exists()
    assert not list(tmp_path.glob("text.*"))
    (failed,) = json.loads((tmp_path / "reconstruct.json").read_text())["failed"]
    assert failed["video"] == "bad/text.mp4"


@pytest.mark.parametrize(
    ("arguments", "model", "message"),
    [
        (["nothing.mp4"], "model", "error: nothing.mp4: no such file"),
        (["none/*.mp4"], "model", "error: none/*.mp4: no such file"),
        (["model"], "model", "error: model: no videos in this folder"),
        (["bad/text.mp4"], "model", "error: bad/text.mp4: "),
        ([], "model", "name a video, a folder or a pattern, or try --demo"),
        (["videos", "--part", "sound"], "model", "argument --part: invalid choice: 'sound'"),
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
def test_bad_input_takes_one_clear_line(call, tmp_path, arguments, model, message) -> None:
    if "--output" not in arguments:
        arguments = [*arguments, "--output", tmp_path]
    status, _, errors = call(*arguments, model=model)
    assert status == 2
    assert message in errors


def test_weights_that_do_not_fit_are_refused(call, workdir, tmp_path) -> None:
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    VidTwinAutoencoder.from_pretrained(workdir / "model").save_pretrained(broken)
    (file,) = broken.glob("*.safetensors")
    weights = load_file(file)
    name = sorted(weights)[0]
    del weights[name]
    save_file(weights, file, metadata={"format": "pt"})
    status, _, errors = call("videos", "--output", tmp_path / "out", model=broken)
    assert status == 2
    assert name in errors
    file.unlink()
    status, _, errors = call("videos", "--output", tmp_path / "out", model=broken)
    assert status == 2
    assert "can't be loaded" in errors


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_output(call, tmp_path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    status, _, errors = call("videos", "--output", folder)
    assert status == 2
    assert "can't write to the folder" in errors


def test_demo_says_what_it_would_run(call, tmp_path) -> None:
    status, printed, _ = call("--demo", "--dry-run", "--output", tmp_path / "demo", model=None)
    assert status == 0
    assert "train_ae.py" in printed
    assert "shapes_demo.yaml" in printed
    assert not (tmp_path / "demo").exists()


def test_from_any_folder_as_a_process(workdir, tmp_path) -> None:
    command = [sys.executable, str(SCRIPT), str(workdir / "bad"), "--model"]
    command += [str(workdir / "model"), "--output", str(tmp_path), "--lpips", "none"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "text.mp4: " in done.stderr
