"""The studio in a real browser: what a person types, presses, uploads and sees.

Needs gradio, playwright and Chromium (Debian's package); says so and skips where one is missing.
VIDTWIN_SCREENSHOTS=FOLDER keeps the pictures that docs/studio.md shows.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from script_runs import ENVIRONMENT, ROOT
from torch.distributed.elastic.utils.distributed import get_free_port

from vidtwin.data.readers import iter_frames
from vidtwin.data.synthetic.shapes import MovingShapes, ShapesConfig
from vidtwin.media import write_video

pytest.importorskip("gradio", reason="the studio needs gradio")
playwright = pytest.importorskip("playwright.sync_api", reason="the tests need playwright")
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed")

MAX_MEGABYTES = 1
PLAYS = "video => video.readyState >= 3 && !video.error && video.videoWidth > 0"
SECOND = 1000  # playwright counts milliseconds
PATIENCE = 60 * SECOND


@pytest.fixture(scope="module")
def clips(tmp_path_factory: Any) -> list[Path]:
    """Two clips of the world that the shipped pipeline knows."""
    folder = tmp_path_factory.mktemp("clips")
    shapes = MovingShapes(ShapesConfig(num_frames=16, height=64, width=64, seed=3))
    return [write_video(folder / f"clip_{index}.mp4", shapes[index].video, 8) for index in range(2)]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: Any, clips: list[Path]) -> Path:
    """A folder with a run that is going on: its log's last line is half written."""
    run = tmp_path_factory.mktemp("runs") / "my_run"
    (run / "videos" / "validation").mkdir(parents=True)
    lines = [{"step": step, "loss/total": 2 / step, "validation/psnr": step} for step in (1, 2, 3)]
    log = "".join(json.dumps(line) + "\n" for line in lines)
    (run / "metrics.jsonl").write_text(log + '{"step": 4, "loss')
    shutil.copy(clips[0], run / "videos" / "validation" / "first_000000003.mp4")
    return run.parent


@pytest.fixture(scope="module")
def address(tmp_path_factory: Any, run_folder: Path) -> Iterator[str]:
    """A studio with the shipped pipeline under two names."""
    folder, port = tmp_path_factory.mktemp("studio"), get_free_port()
    other = folder / "other"
    other.symlink_to(ROOT / "checkpoints" / "shapes")
    command = [sys.executable, "-m", "vidtwin_lab.cli", "studio", "--no-browser"]
    command += ["--port", str(port), "--runs", str(run_folder), "--output", str(folder / "out")]
    command += ["--pipeline", "checkpoints/shapes", "--pipeline", str(other)]
    command += ["--max-upload", str(MAX_MEGABYTES), "--device", "cpu"]
    variables = {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, cwd=ROOT, env=variables, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    for _ in range(600):
        try:
            urllib.request.urlopen(url, timeout=5)
            break
        except OSError:
            assert server.poll() is None, (folder / "log").read_text()
            time.sleep(0.2)
    yield url
    server.terminate()
    server.wait(30)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """A new page; at its end, nothing was asked of any other host and no script failed."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    opened, foreign, failed = context.new_page(), [], []
    opened.set_default_timeout(PATIENCE)
    local = (address, "data:", "blob:")
    opened.on("request", lambda each: each.url.startswith(local) or foreign.append(each.url))
    opened.on("pageerror", lambda error: failed.append(str(error)))
    opened.goto(address)
    opened.wait_for_selector("#prompt-text")
    yield opened
    context.close()
    assert not foreign
    assert not failed


def screenshot(page: Any, name: str) -> None:
    if folder := os.environ.get("VIDTWIN_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"studio_{name}.png", full_page=True)


def open_tab(page: Any, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def wait_until_it_plays(page: Any, selector: str) -> None:
    page.wait_for_selector(f"{selector} video", state="attached")
    video = page.locator(f"{selector} video").first
    page.wait_for_function(PLAYS, arg=video.element_handle())


def in_tab(page: Any, selector: str) -> Any:
    return page.locator(f"{selector}:visible").first


def set_steps(page: Any, steps: int) -> None:
    """Fewer steps than the pipeline's own, so that the tests are short."""
    in_tab(page, ".more button").click()
    field = in_tab(page, ".steps input[type=number]")
    field.fill(str(steps))
    field.press("Tab")


def test_a_prompt_becomes_a_video(page: Any, tmp_path: Path) -> None:
    page.locator("#prompt-text textarea, #prompt-text input").first.fill(
        "a blue square moving right"
    )
    in_tab(page, "button.make").click()
    wait_until_it_plays(page, "#prompt-video")
    assert page.locator("#prompt-line").inner_text().strip() == "done"
    assert page.locator("#prompt-sheet img").is_visible()
    assert page.locator("#prompt-preview img").is_visible()
    before = page.locator("#prompt-video video").evaluate("video => video.currentTime")
    page.wait_for_function(
        "before => document.querySelector('#prompt-video video').currentTime !== before", arg=before
    )
    with page.expect_download() as started:
        page.locator("#prompt-files a", has_text="KB").first.click()
    started.value.save_as(tmp_path / "sample.mp4")
    frames = list(iter_frames(tmp_path / "sample.mp4"))
    assert len(frames) == 16
    # A blue square, right of where it was.
    blue = [frame[..., 2].astype(int) - frame[..., 0] > 60 for frame in (frames[0], frames[-1])]
    assert blue[1].nonzero()[1].mean() > blue[0].nonzero()[1].mean() + 5
    screenshot(page, "prompt")


def test_a_job_is_cancelled_and_the_next_one_runs(page: Any) -> None:
    page.locator("#prompt-text textarea, #prompt-text input").first.fill("a red circle")
    in_tab(page, "button.make").click()
    page.get_by_text(re.compile(r"step \d+ of")).first.wait_for()
    in_tab(page, "button.cancel").click()
    page.get_by_text("cancelled; nothing was written").wait_for()
    set_steps(page, 2)
    in_tab(page, "button.make").click()
    wait_until_it_plays(page, "#prompt-video")


def test_a_clip_is_animated(page: Any, clips: list[Path]) -> None:
    open_tab(page, "Animate")
    set_steps(page, 4)
    in_tab(page, "button.make").click()
    page.get_by_text("upload a clip first").wait_for()
    page.locator("#given-clip input[type=file]").set_input_files(clips[0])
    wait_until_it_plays(page, "#given-clip")
    in_tab(page, "button.make").click()
    wait_until_it_plays(page, "#given-video")
    assert "passes through the autoencoder at" in page.locator("#given-line").inner_text()
    screenshot(page, "animate")


def test_four_combinations_of_two_clips(page: Any, clips: list[Path]) -> None:
    open_tab(page, "Swap")
    for key, clip in zip("ab", clips, strict=True):
        page.locator(f"#swap-{key} input[type=file]").set_input_files(clip)
        wait_until_it_plays(page, f"#swap-{key}")
    page.locator("#swap-button").click()
    for key in ("aa", "ab", "ba", "bb"):
        wait_until_it_plays(page, f"#swap-{key}")
    screenshot(page, "swap")


def test_inside_a_clip(page: Any, clips: list[Path]) -> None:
    open_tab(page, "Inside")
    page.locator("#inside-clip input[type=file]").set_input_files(clips[1])
    wait_until_it_plays(page, "#inside-clip")
    page.locator("#inside-button").click()
    page.wait_for_selector("#inside-heat img")
    numbers = page.locator("#inside-numbers").inner_text()
    assert "PSNR" in numbers
    assert "1,792 of 196,608 pixel values" in numbers
    screenshot(page, "inside")


def test_two_pipelines_are_compared(page: Any) -> None:
    open_tab(page, "Compare")
    page.get_by_label("Prompts, one a line").fill("a red circle\na blue ring")
    page.get_by_label("number input for Steps (0").fill("2")
    page.locator("#compare-button").click()
    page.wait_for_selector("#compare-sheet img")
    screenshot(page, "compare")


def test_a_run_is_watched(page: Any) -> None:
    open_tab(page, "Runs")
    page.locator("#runs-refresh").click()
    page.wait_for_timeout(0.5 * SECOND)
    page.locator("#runs input").first.click()
    page.get_by_role("option", name="my_run").click()
    page.wait_for_selector("#runs-curves img")
    page.wait_for_selector("#runs-samples video, #runs-samples img")
    screenshot(page, "runs")


@pytest.mark.parametrize("kind", ["not a video", "too large", "no suffix of a video"])
def test_a_bad_upload_is_a_message(page: Any, tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("notes.txt" if "suffix" in kind else "clip.mp4")
    path.write_bytes(b"not a video" * (200_000 if kind == "too large" else 10))
    open_tab(page, "Inside")
    page.locator("#inside-clip input[type=file]").set_input_files(path)
    message = page.get_by_test_id("toast-text").or_(page.locator(".toast-text"))
    if kind == "not a video":
        page.wait_for_timeout(2 * SECOND)
        page.locator("#inside-button").click()
    message.first.wait_for()
    said = {"not a video": "not playable", "too large": "size", "no suffix of a video": "video"}
    assert said[kind] in message.first.inner_text()
    screenshot(page, f"refused_{kind.split()[0]}")
    # The page still works.
    open_tab(page, "Prompt")
    set_steps(page, 1)
    in_tab(page, "button.make").click()
    wait_until_it_plays(page, "#prompt-video")


def test_on_a_phone_and_by_keyboard(browser: Any, address: str) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844})
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(address)
    page.wait_for_selector("#prompt-text")
    set_steps(page, 2)
    page.locator("#prompt-text textarea, #prompt-text input").first.focus()
    page.keyboard.type(" slowly")
    for _ in range(12):  # past the examples, to the button
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.innerText") == "Make the video":
            break
    page.keyboard.press("Enter")
    wait_until_it_plays(page, "#prompt-video")
    for name in ("Prompt", "Swap", "Inside"):
        if page.get_by_role("tab", name=name).first.is_visible():
            open_tab(page, name)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
    screenshot(page, "phone")
    context.close()


@pytest.mark.parametrize("path", ["/etc/passwd", str(ROOT / "README.md"), "../../etc/passwd"])
def test_no_file_outside_is_served(address: str, path: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{address}/gradio_api/file={path}", timeout=30)
    assert refused.value.code in (403, 404)


def test_torch_is_not_needed_to_refuse(tmp_path: Path) -> None:
    missing = [
        sys.executable,
        "-m",
        "vidtwin_lab.cli",
        "studio",
        "--pipeline",
        str(tmp_path / "no"),
    ]
    ended = subprocess.run(missing, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert "does not exist" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert torch.__version__  # the tests' own; the command answered without it
