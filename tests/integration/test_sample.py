"""sample.py from a saved pipeline to files, and what it says of bad input."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from script_runs import (
    Ended,
    assert_same_weights,
    contents,
    read_back,
    read_json,
    run,
    run_apart,
    run_until,
)

from diffusion import VidTwinPipeline
from diffusion.schedulers import build_scheduler
from vidtwin.media import write_video
from vidtwin.reconstruction.latent_files import load_windows
from vidtwin.tiling import decode_windows

FRAMES, HEIGHT, WIDTH = 8, 16, 24  # of the tiny pipeline
ENDINGS = ("mp4", "gif", "latents.safetensors")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, build_pipeline) -> Path:
    """A folder with two pipelines, a video of another size, a short one and a file of text."""
    folder = tmp_path_factory.mktemp("sample")
    build_pipeline().save_pretrained(folder / "text")
    build_pipeline(text=False, classes=True).save_pretrained(folder / "classes")
    rows, columns = np.mgrid[:30, :50]
    frames = [(rows * 3 + columns * 2 + 8 * t) % 256 for t in range(20)]
    video = np.stack([np.stack(frames)] * 3, axis=-1).astype(np.uint8)
    write_video(folder / "clip.mp4", video, 16)
    write_video(folder / "short.mp4", video[:4], 16)
    (folder / "no_video.mp4").write_text("I am not a video.")
    with_mark = "\ufeffa red circle\n\n  a blue square  \n"
    (folder / "prompts.txt").write_text(with_mark, encoding="utf-8")
    (folder / "cp1252.txt").write_bytes(b"a red circle\na dog\x92s ring\n")
    (folder / "utf16.txt").write_text("a red circle\n", encoding="utf-16")
    (folder / "blank.txt").write_text("\n \n")
    (folder / "file").write_text("not a folder")
    Image.fromarray(video[0]).save(folder / "frame.png")
    return folder


@pytest.fixture(scope="module")
def sample(workdir) -> Callable[..., Ended]:
    """Runs the script in the folder."""

    def call(
        *arguments: object, pipeline: str = "text", runner: Callable = run, **options
    ) -> Ended:
        given = [] if not pipeline else ["--pipeline", pipeline, "--device", "cpu"]
        steps = [] if "--steps" in arguments else ["--steps", 2]
        return runner("sample", *arguments, *given, *steps, folder=workdir, **options)

    return call


def latents_of(folder: Path, index: int) -> dict[str, torch.Tensor]:
    window = load_windows(folder / f"sample_{index:04d}.latents.safetensors")[0][0]
    return dict(zip(("s", "x", "y"), window.latents.tensors(), strict=True))


def assert_same_latents(one: Path, other: Path, indices: range) -> None:
    for index in indices:
        first, second = latents_of(one, index), latents_of(other, index)
        assert all(torch.equal(first[name], second[name]) for name in first), index


def test_prompts_to_files(sample, workdir, tmp_path) -> None:
    out = tmp_path / "deep" / "out"
    printed = sample(
        *("--prompt", "a green star", "--prompts-file", "prompts.txt", "--num-videos", 2),
        *("--seed", 3, "--output", out, "--guidance-scale", 2, "--scheduler", "unipc"),
    ).done()
    names = {f"sample_{index:04d}.{ending}" for index in range(6) for ending in ENDINGS}
    assert {path.name for path in out.iterdir()} == names | {"sheet.png", "sample.json"}
    assert str(out / "sample_0000.mp4") in printed
    frames, fps = read_back(out / "sample_0005.mp4")
    assert (frames.shape, fps) == ((FRAMES, HEIGHT, WIDTH, 3), 8)
    with Image.open(out / "sample_0005.gif") as gif:
        assert gif.n_frames == FRAMES
    with Image.open(out / "sheet.png") as sheet:
        assert sheet.height > 6 * 128
    report = read_json(out / "sample.json")
    prompts = [sample["prompt"] for sample in report["samples"]]
    assert prompts == ["a green star"] * 2 + ["a red circle"] * 2 + ["a blue square"] * 2
    assert [sample["seed"] for sample in report["samples"]] == list(range(3, 9))
    made_by = report["made_by"]
    assert made_by["scheduler"]["class"] == "UniPCMultistepScheduler"
    assert (made_by["num_inference_steps"], made_by["guidance_scale"]) == (2, 2.0)
    for part in ("autoencoder", "transformer", "text_encoder", "latent_stats"):
        assert len(made_by[f"{part}_sha256"]) == 16
    check_against_the_pipeline(workdir, out)


def check_against_the_pipeline(workdir: Path, out: Path) -> None:
    """The report says enough to make a sample again, and the latents are those of the video."""
    report = read_json(out / "sample.json")
    made_by, sample = report["made_by"], report["samples"][5]
    pipeline = VidTwinPipeline.from_pretrained(workdir / made_by["pipeline"])
    pipeline.scheduler = build_scheduler("unipc", pipeline.scheduler)
    again = pipeline(
        sample["prompt"],
        seed=sample["seed"],
        num_inference_steps=made_by["num_inference_steps"],
        guidance_scale=made_by["guidance_scale"],
    )
    saved = latents_of(out, 5)
    assert torch.equal(saved["s"], again.latents.structure)
    windows, metadata = load_windows(out / "sample_0005.latents.safetensors")
    assert metadata["seed"] == str(sample["seed"])
    decoded = decode_windows(pipeline.autoencoder, windows)[0]
    # Random colours lose their chroma in the file, not their brightness.
    shown = read_back(out / "sample_0005.mp4")[0].mean(-1).ravel()
    assert np.corrcoef(decoded.clamp(-1, 1).mean(0).numpy().ravel(), shown)[0, 1] > 0.6


def test_classes_by_name_and_number(sample, tmp_path) -> None:
    out = tmp_path / "out"
    printed = sample(
        *("--class-label", "wave", "--class-label", 0, "--num-samples", 3, "--output", out),
        pipeline="classes",
    ).done()
    samples = read_json(out / "sample.json")["samples"]
    assert [sample["class_label"] for sample in samples] == [2, 0, 2]
    assert "wave" in printed


def test_a_given_clip_that_the_autoencoder_can_not_keep_is_told(sample, tmp_path, caplog):
    """These weights are random: nothing passes through them."""
    out = tmp_path / "out"
    sample("--structure-from", "clip.mp4", "--prompt", "a red circle", "--output", out).done()
    kept = read_json(out / "sample.json")["made_by"]["structure_from_psnr"]
    assert kept < 21
    told = f"the clip of --structure-from passes through the pipeline's autoencoder at {kept:.1f}"
    assert told in caplog.text
    with Image.open(out / "sheet.png") as sheet:
        assert 2 * 128 < sheet.height < 3.5 * 128  # the given clip above the sample


def test_long_video_at_another_rate(sample, workdir, tmp_path) -> None:
    out = tmp_path / "out"
    sample("--num-frames", 19, "--fps", 60, "--motion-scale", 1.5, "--output", out).done()
    frames, fps = read_back(out / "sample_0000.mp4")
    assert (len(frames), fps) == (19, 60)
    windows, _ = load_windows(out / "sample_0000.latents.safetensors")
    assert [window.start[0] for window in windows] == [0, 6, 11]
    model = VidTwinPipeline.from_pretrained(workdir / "text").autoencoder
    assert decode_windows(model, windows).shape == (1, 3, 19, HEIGHT, WIDTH)


@pytest.mark.parametrize("half", ["structure", "dynamics"])
def test_half_of_another_video(sample, workdir, tmp_path, half) -> None:
    out = tmp_path / "out"
    sample(f"--{half}-from", "clip.mp4", "--num-videos", 2, "--output", out).done()
    first, second = latents_of(out, 0), latents_of(out, 1)
    same = {name for name in first if torch.equal(first[name], second[name])}
    assert same == ({"s"} if half == "structure" else {"x", "y"})
    assert read_json(out / "sample.json")["made_by"][f"{half}_from"] == "clip.mp4"


def test_a_sample_is_the_same_in_any_company(sample, tmp_path) -> None:
    """By itself, among others, and on two processes; in batches of one and of two."""
    prompts = ("--prompt", "a red circle", "--prompt", "a blue square turns")
    wanted = (*prompts, "--num-samples", 5)
    for name, options in {
        "five": wanted,
        "three": (*prompts, "--num-samples", 3),
        "alone": ("--prompt", "a blue square turns", "--seed", 1),
        "pairs": (*wanted, "--batch-size", 2),
    }.items():
        sample(*options, "--output", tmp_path / name).done()
    assert_same_latents(tmp_path / "five", tmp_path / "three", range(3))
    for name, alone in latents_of(tmp_path / "alone", 0).items():
        assert torch.equal(latents_of(tmp_path / "five", 1)[name], alone)
        pair = latents_of(tmp_path / "pairs", 1)[name]
        torch.testing.assert_close(pair, alone, rtol=1e-4, atol=1e-4)

    for name, options in {"five": wanted, "pairs": (*wanted, "--batch-size", 2)}.items():
        out = tmp_path / f"{name} on two"
        sample(*options, "--output", out, runner=run_apart, processes=2).done()
        assert_same_latents(tmp_path / name, out, range(5))
        report = read_json(out / "sample.json")
        assert report["made_by"]["processes"] == 2
        assert [sample["index"] for sample in report["samples"]] == list(range(5))


BAD_INPUT: dict[str, tuple[tuple[object, ...], str]] = {
    "empty prompt": (("--prompt", ""), "says something"),
    "empty prompts file": (("--prompts-file", "blank.txt"), "holds no prompt"),
    "no prompts file": (("--prompts-file", "nothing.txt"), "nothing.txt"),
    "unknown class": (
        ("--class-label", "wive"),
        "--class-label: there is no class 'wive'; the nearest names are wave",
    ),
    "class out of range": (
        ("--class-label", "7"),
        "--class-label: there is no class '7'; they",
    ),
    "class to a text-only model": (("--class-label", "0"), "classes: leave out --class-label; ask"),
    "prompt to a class-only model": (
        ("--prompt", "a star"),
        "not trained with text: leave out --prompt; ask by --class-label",
    ),
    "negative prompt to a class-only model": (("--negative-prompt", "a star"), "--negative-prompt"),
    "no guidance": (
        ("--prompt", "a star", "--negative-prompt", "red", "--guidance-scale", "1"),
        "raise --guidance-scale",
    ),
    "guider": (("--guider", "agp"), "--guider must be one of cfg, apg"),
    "option of a guider": (("--guider", "apg", "et=1"), "--guider apg: no option 'et'"),
    "guider and scales": (
        ("--guider", "apg", "--class-guidance-scale", "2"),
        "--class-guidance-scale",
    ),
    "lead": (("--structure-lead", "2"), "--structure-lead must lie in [-1, 1]"),
    "small lead": (("--structure-lead", "0.01"), "--structure-lead=0.01 is less than half"),
    "lead of a given half": (
        ("--structure-from", "clip.mp4", "--structure-lead", "0.5"),
        "--structure-lead is 0.5, and one of the latents",
    ),
    "no given frames": (
        ("--first-frame", "frame.png"),
        "leave out --first-frame, --last-frame and --continue, or train one with given.prefix=0.2",
    ),
    "continues": (("--continue", "clip.mp4"), "leave out --first-frame, --last-frame and --cont"),
    "more frames than the model's": (
        ("--continue", "clip.mp4", "--continue-frames", "8"),
        "--continue-frames must be 1 to this model's 7",
    ),
    "no image": (("--first-frame", "no_video.mp4"), "--first-frame no_video.mp4"),
    "short to continue": (("--continue", "short.mp4"), "--continue short.mp4"),
    "no actions": (("--actions", "prompts.txt"), "--actions prompts.txt: this pipeline was not"),
    "adapters": (("--lora", "text"), "--lora text: expected a folder with pytorch_lora"),
    "adapters' scale": (("--lora", "text/transformer:x"), "its scale must be a number, got 'x'"),
    "adapters' NaN": (("--lora", "text/transformer:nan"), "its scale must be a number, got 'nan'"),
    "guider's number": (("--guider", "apg", "eta=nan"), "eta must be a number, got 'nan'"),
    "guider's start": (("--guider", "cfg", "start=abc"), "start must be a number, got 'abc'"),
    "precision": (("--dtype", "float8"), "--dtype"),
    "no steps": (("--steps", "0"), "--steps must be at least 1"),
    "no videos": (("--num-videos", "0"), "--num-videos must be at least 1"),
    "both counts": (("--num-videos", "2", "--num-samples", "2"), "give one"),
    "guidance below 1": (("--guidance-scale", "0.9"), "--guidance-scale"),
    "guidance NaN": (("--guidance-scale", "nan"), "--guidance-scale"),
    "latent's guidance": (("--structure-guidance-scale", "0"), "--structure-guidance-scale"),
    "held guidance": (("--given-guidance-scale", "nan"), "--given-guidance-scale"),
    "motion scale": (("--motion-scale", "inf"), "--motion-scale"),
    "negative seed": (("--seed", "-3"), "seed"),
    "last seed": (("--seed", str(2**63 - 1), "--num-videos", "2"), "--seed"),
    "class guidance of no class": (("--class-guidance-scale", "2"), "no class labels"),
    "frame rate": (("--fps", "0"), "fps"),
    "few frames": (("--num-frames", "3"), "at least 8"),
    "scheduler": (("--scheduler", "ddim"), "euler, heun"),
    "negative prompt alone": (("--negative-prompt", "a star"), "needs a --prompt"),
    "no pipeline": (("--pipeline", "nothing/there/at/all"), "does not exist"),
    "typo of a pipeline": (("--pipeline", "outputs/no-such-run"), "does not exist"),
    "prompts of Windows": (("--prompts-file", "cp1252.txt"), "cp1252.txt is not UTF-8 text: byte"),
    "prompts in UTF-16": (("--prompts-file", "utf16.txt"), "utf16.txt is UTF-16 text"),
    "no video": (("--structure-from", "nothing.mp4"), "is not a file"),
    "unreadable video": (("--structure-from", "no_video.mp4"), "--structure-from no_video.mp4: "),
    "short video": (("--dynamics-from", "short.mp4"), "--dynamics-from short.mp4: too short"),
    "both halves": (
        ("--structure-from", "clip.mp4", "--dynamics-from", "clip.mp4"),
        "nothing to sample",
    ),
    "long with dynamics": (
        ("--dynamics-from", "clip.mp4", "--num-frames", "20"),
        "--dynamics-from hold 8 frames of motion, got --num-frames of 20",
    ),
    "output is a file": (("--output", "file"), "can't write"),
    "output below a file": (("--output", "file/below"), "can't write"),
    "device": (("--device", "abacus"), "abacus"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_takes_one_line_and_leaves_nothing(sample, tmp_path, case) -> None:
    arguments, reason = BAD_INPUT[case]
    out = tmp_path / "out"
    where = () if "--output" in arguments else ("--output", out)
    of_classes = "class-only" in case or case in ("unknown class", "class out of range")
    if "--pipeline" in arguments or "--device" in arguments:
        given = () if "--pipeline" in arguments else ("--pipeline", "text")
        ended = sample(*arguments, *given, *where, pipeline="")
    else:
        ended = sample(*arguments, *where, pipeline="classes" if of_classes else "text")
    assert reason in ended.refused()
    assert ended.out == ""
    assert not out.exists()


@pytest.mark.parametrize("part", ["model_index.json", "transformer", "latent_stats", "tokenizer"])
def test_a_pipeline_with_a_part_missing(sample, workdir, tmp_path, part) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(workdir / "text", broken)
    lost = broken / part
    shutil.rmtree(lost) if lost.is_dir() else lost.unlink()
    out = tmp_path / "out"
    assert part in sample("--prompt", "a star", "--output", out, pipeline=str(broken)).refused()
    assert not out.exists()


def test_a_run_folder_is_taken_and_says_what_it_has_reached(
    sample, workdir, tmp_path, caplog
) -> None:
    run_folder, out = tmp_path / "run", tmp_path / "out"
    shutil.copytree(workdir / "text", run_folder / "pipeline")
    (run_folder / "config.yaml").write_text("steps: 60\nsave_every: 20\nlora: {rank: 0}\n")
    options = ("--prompt", "a star", "--output", out, "--overwrite")
    with caplog.at_level("INFO", "vidtwin_lab"):
        sample(*options, pipeline=str(run_folder)).done()
        assert "has saved none of its 60 steps yet" in caplog.text
        assert "is as it began (save_every=20)" in caplog.text
        for step in (20, 60):
            caplog.clear()
            folder = run_folder / "checkpoints" / f"step_{step:09d}"
            folder.mkdir(parents=True)
            (folder / "progress.json").write_text("{}")
            sample(*options, pipeline=str(run_folder)).done()
            told = f"{run_folder} has done 20 of its 60 steps: {run_folder / 'pipeline'} is of then"
            assert (told in caplog.text) == (step == 20)
    assert read_json(out / "sample.json")["made_by"]["pipeline"] == str(run_folder / "pipeline")
    (run_folder / "config.yaml").write_text("steps: 60\nlora: {rank: 2}\n")
    sample(*options, pipeline=str(run_folder)).done()
    assert f"without them; add --lora {run_folder / 'lora'}" in caplog.text


def test_a_run_without_a_pipeline_is_told_from_other_folders(sample, tmp_path) -> None:
    (tmp_path / "config.yaml").write_text("steps: 60\n")
    ended = sample("--prompt", "a star", "--output", tmp_path / "out", pipeline=str(tmp_path))
    assert f"the run {tmp_path} has no pipeline/: a run of train_diff" in ended.refused()


def test_a_long_prompt_is_cut_with_a_warning(sample, caplog, tmp_path) -> None:
    prompt = "a red circle moves left " * 5 + "stars"
    sample("--prompt", prompt, "--output", tmp_path / "out").done()
    assert "stars" in caplog.text


def test_older_samples_are_refused_or_removed(sample, workdir, tmp_path):
    folder = tmp_path / "out"
    sample("--output", folder, "--prompt", "a", "--num-videos", 3).done()
    before = contents(folder)
    line = sample("--output", folder, "--prompt", "a", "--num-videos", 2).refused()
    assert "holds older samples (sample.json and 10 more files)" in line
    assert "--overwrite" in line
    assert contents(folder) == before
    (folder / "mine.txt").touch()
    sample("--output", folder, "--prompt", "a", "--num-videos", 2, "--overwrite").done()
    names = [f"sample_{index:04d}.{ending}" for index in range(2) for ending in ENDINGS]
    assert {path.name for path in folder.iterdir()} == {
        *names, "mine.txt", "sample.json", "sheet.png",
    }  # fmt: skip


def test_interrupted_sampling_goes_on(sample, workdir, tmp_path):
    def arguments(folder):
        return "--output", folder, "--prompt", "a", "--num-videos", 6, "--seed", 4

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    sample(*arguments(whole)).done()
    first = cut / ".sampling" / "1.json"
    run_until(
        first.exists, "sample", *arguments(cut), "--pipeline", "text", "--device", "cpu",
        "--steps", 2, folder=workdir,
    )  # fmt: skip
    assert not (cut / "sample.json").exists()
    line = sample(*arguments(cut)[:-1], 5).refused()
    assert "interrupted sampling with another seed, requests" in line
    kept = cut / "sample_0000.mp4"
    written = kept.stat().st_mtime_ns
    sample(*arguments(cut)).done()
    assert kept.stat().st_mtime_ns == written
    one, other = contents(whole), contents(cut)
    assert one.keys() == other.keys()
    for name in one.keys() - {"sample.json"}:
        if name.endswith(".safetensors"):  # the order of its header's texts is not fixed
            assert_same_weights(whole / name, cut / name)
        else:
            assert one[name] == other[name], name
    one, other = (read_json(folder / "sample.json")["samples"] for folder in (whole, cut))
    assert [{**row, "files": 0} for row in one] == [{**row, "files": 0} for row in other]


def test_without_a_folder_each_command_gets_a_new_one(tmp_path):
    for name in ("samples", "samples_2"):
        out = run("sample", "--steps", 1, folder=tmp_path).done()
        assert f"outputs/{name}/sheet.png" in out
        assert (tmp_path / "outputs" / name / "sample.json").is_file()
