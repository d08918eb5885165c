"""The studio's page: one tab for each thing that one can do with a pipeline.

A tab hands what is on the page to the `Workbench` and shows what comes back; nothing else is here.
"""

from __future__ import annotations

import functools
import logging
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from vidtwin_lab.studio.curves import draw_curves, find_runs, labelled, sample_files
from vidtwin_lab.studio.workbench import CancelledError, Made, Preview, Request, Workbench

__all__ = ["CSS", "build_page", "theme"]

logger = logging.getLogger(__name__)

EXAMPLES = (
    "a red circle moving left",
    "a yellow star growing on a gray background",
    "a blue ring bouncing up and down",
    "a green square turning",
)
# One job at a time: the models are shared, and two jobs would each take twice as long.
ONE_JOB: Any = {"concurrency_limit": 1, "concurrency_id": "job", "api_visibility": "private"}
AT_ONCE: Any = {"queue": False, "api_visibility": "private"}
HEIGHT = 300  # of a video on the page, pixels
LIVE_SECONDS = 5
MAX_PROMPTS = 6
CSS = """
video, .pixels img { image-rendering: pixelated; }
.pixels img { width: 100%; object-fit: contain; }
.progress-line { min-height: 1.6em; }
"""
WELCOME = """# VidTwin Studio
Videos from a sentence, from half of another video, and what the autoencoder keeps of a clip."""


def theme() -> Any:
    """A plain theme with the fonts of the machine: nothing is fetched from anywhere."""
    fonts: Any = ["system-ui", "sans-serif"]
    mono: Any = ["ui-monospace", "monospace"]
    return gr.themes.Default(font=fonts, font_mono=mono, primary_hue="blue")


def build_page(workbench: Workbench, runs: Path) -> gr.Blocks:
    """All tabs.

    Args:
        workbench: does the work.
        runs: folder whose run folders the last tab may show.
    """
    labels = list(workbench.pipelines)
    with gr.Blocks(
        title="VidTwin Studio", analytics_enabled=False, delete_cache=(3600, 86400)
    ) as page:
        gr.Markdown(WELCOME)
        pipeline = gr.Dropdown(
            labels, value=labels[0], label="Pipeline", elem_id="pipeline", visible=len(labels) > 1
        )
        with gr.Tabs(elem_id="tabs") as tabs:
            with gr.Tab("Prompt", id="prompt"):
                made = prompt_tab(workbench, pipeline)
            with gr.Tab("Animate / Re-skin", id="given"):
                upload = given_tab(workbench, pipeline)
            with gr.Tab("Swap", id="swap"):
                swap_tab(workbench, pipeline)
            with gr.Tab("Inside", id="inside"):
                inside_tab(workbench, pipeline)
            with gr.Tab("Compare", id="compare"):
                compare_tab(workbench)
            with gr.Tab("Runs", id="runs"):
                runs_tab(runs)
        onward = made["onward"]
        onward.click(lambda video: video, made["video"], upload, **AT_ONCE)
        onward.click(lambda: gr.Tabs(selected="given"), None, tabs, **AT_ONCE)
    return page


def told(function: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """A job whose errors are messages on the page; ours are in the terminal too."""

    @functools.wraps(function)
    def job(*arguments: Any) -> Iterator[Any]:
        try:
            yield from function(*arguments)
        except CancelledError as error:
            gr.Info(str(error))
        except (ValueError, OSError) as error:
            raise gr.Error(str(error), duration=None, print_exception=False) from error
        except Exception as error:
            logger.error("a job failed: %s", traceback.format_exc())
            message = f"{type(error).__name__}: {error}; the terminal has the details"
            raise gr.Error(message, duration=None, print_exception=False) from error

    return job


def prompt_tab(workbench: Workbench, pipeline: gr.Dropdown) -> dict[str, Any]:
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            prompt = gr.Textbox(EXAMPLES[0], label="Prompt", elem_id="prompt-text")
            gr.Examples([[text] for text in EXAMPLES], prompt, label="Try")
            named = gr.Dropdown([], label="Class", visible=False, elem_id="class")
            options = sampling_options(workbench, pipeline)
        with gr.Column(scale=3, min_width=300):
            shown = result_view("prompt")
    with shown["below"]:
        again = gr.Button("Again with this seed", size="sm", elem_id="again")
        onward = gr.Button("Animate / re-skin this", size="sm")
    pipeline.change(class_choices(workbench), pipeline, [prompt, named], **AT_ONCE)
    pipeline.change(own_options(workbench), pipeline, options["defaults"], **AT_ONCE)

    @told
    def make(label: str, text: str, name: str | None, *values: Any) -> Iterator[list[Any]]:
        request = request_of(values, prompt=text or None, class_label=name or None)
        yield from shown_steps(workbench.sample(label, request))

    job = gr.on(
        [options["button"].click, prompt.submit],
        make,
        [pipeline, prompt, named, *options["values"]],
        shown["outputs"],
        **ONE_JOB,
    )
    job.then(next_seed, [options["keep"], options["seed"]], options["seed"], **AT_ONCE)
    again.click(lambda: True, None, options["keep"], **AT_ONCE).then(
        lambda used: used, options["used"], options["seed"], **AT_ONCE
    )
    options["cancel"].click(workbench.cancel, None, None, **AT_ONCE)
    return {"onward": onward, "video": shown["video"]}


def given_tab(workbench: Workbench, pipeline: gr.Dropdown) -> gr.Video:
    kinds = [("Animate: keep what it shows, make new motion", "structure_from")]
    kinds += [("Re-skin: keep how it moves, make a new look", "dynamics_from")]
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            upload = uploaded_video("A clip", "given-clip")
            kind = gr.Radio(kinds, value="structure_from", label="What to keep", elem_id="keep")
            text = gr.Textbox(label="Prompt (may be empty)", elem_id="given-prompt")
            options = sampling_options(workbench, pipeline)
        with gr.Column(scale=3, min_width=300):
            shown = result_view("given")

    @told
    def make(label: str, clip: str | None, kept: str, prompt: str, *values: Any) -> Any:
        request = request_of(values, prompt=prompt or None, **{kept: uploaded(clip)})
        yield from shown_steps(workbench.sample(label, request))

    inputs = [pipeline, upload, kind, text, *options["values"]]
    options["button"].click(make, inputs, shown["outputs"], **ONE_JOB)
    options["cancel"].click(workbench.cancel, None, None, **AT_ONCE)
    return upload


def swap_tab(workbench: Workbench, pipeline: gr.Dropdown) -> None:
    gr.Markdown("The structure of each clip with the dynamics of each.")
    with gr.Row():
        first = uploaded_video("Clip A", "swap-a")
        second = uploaded_video("Clip B", "swap-b")
    button = gr.Button("Swap", variant="primary", elem_id="swap-button")
    views = []
    for structure in "AB":
        with gr.Row():
            for dynamics in "AB":
                name = f"structure of {structure}, dynamics of {dynamics}"
                key = f"swap-{structure}{dynamics}".lower()
                views.append(made_video(name, elem_id=key, height=HEIGHT))

    @told
    def swap(label: str, a: str | None, b: str | None) -> Iterator[Any]:
        videos = workbench.swap(label, Path(uploaded(a, "clip A")), Path(uploaded(b, "clip B")))
        yield [str(path) for path in videos.values()]

    button.click(swap, [pipeline, first, second], views, **ONE_JOB)


def inside_tab(workbench: Workbench, pipeline: gr.Dropdown) -> None:
    gr.Markdown("What the autoencoder keeps of a clip, and in which of its latents.")
    with gr.Row():
        upload = uploaded_video("A clip", "inside-clip")
        with gr.Column():
            button = gr.Button("Look inside", variant="primary", elem_id="inside-button")
            numbers = gr.Markdown(elem_id="inside-numbers")
    names = ("the clip", "reconstruction", "structure alone", "dynamics alone")
    with gr.Row():
        videos = [made_video(name, min_width=200, height=HEIGHT) for name in names]
    gr.Markdown("Where the latents act")
    heat = gr.Image(show_label=False, elem_id="inside-heat", interactive=False)

    @told
    def look(label: str, clip: str | None) -> Iterator[Any]:
        found = workbench.inside(label, Path(uploaded(clip)))
        table = "| | |\n|-|-|\n" + "".join(f"| {name} | {v} |\n" for name, v in found.numbers)
        yield [table, *(str(path) for path in found.videos.values()), str(found.heat_maps)]

    button.click(look, [pipeline, upload], [numbers, *videos, heat], **ONE_JOB)


def compare_tab(workbench: Workbench) -> None:
    labels = list(workbench.pipelines)
    gr.Markdown("The same prompts and seeds through several pipelines (`--pipeline` adds some).")
    with gr.Row():
        chosen = gr.CheckboxGroup(labels, value=labels[:2], label="Pipelines")
        seed = gr.Number(0, label="Seed", precision=0, minimum=0)
        steps = gr.Slider(0, 100, value=0, step=1, label="Steps (0: each pipeline's own)")
    prompts = gr.Textbox("\n".join(EXAMPLES[:2]), label="Prompts, one a line", lines=4)
    with gr.Row():
        button = gr.Button("Compare", variant="primary", elem_id="compare-button")
        cancel = gr.Button("Cancel", elem_id="compare-cancel")
    line = gr.Markdown(elem_classes="progress-line")
    sheet = gr.Image(label="Sheet", interactive=False, elem_id="compare-sheet")
    files = gr.Files(label="Files", interactive=False)

    @told
    def compare(names: list[str], text: str, number: float, count: float) -> Iterator[Any]:
        asked = [each.strip() for each in text.splitlines() if each.strip()]
        if not asked or not names:
            raise ValueError("give at least one prompt, and choose at least one pipeline")
        if len(asked) > MAX_PROMPTS:
            raise ValueError(f"at most {MAX_PROMPTS} prompts at once, got {len(asked)}")
        request = Request(seed=int(number), num_inference_steps=int(count) or None)
        for update in workbench.compare(names, asked, request):
            if isinstance(update, Preview):
                yield [step_line(update), gr.skip(), gr.skip()]
            else:
                paths = [str(path) for path in update.files]
                yield [update.told, str(update.sheet), paths]

    inputs = [chosen, prompts, seed, steps]
    button.click(compare, inputs, [line, sheet, files], **ONE_JOB)
    cancel.click(workbench.cancel, None, None, **AT_ONCE)


def runs_tab(folder: Path) -> None:
    gr.Markdown(f"Runs below `{folder}`, drawn anew every {LIVE_SECONDS} seconds while chosen.")
    with gr.Row():
        chosen = gr.Dropdown([], multiselect=True, label="Runs", elem_id="runs", scale=4)
        refresh = gr.Button("Find runs", elem_id="runs-refresh", scale=1)
        live = gr.Checkbox(True, label="Live", scale=1)
    curves = gr.Plot(label="Curves", elem_id="runs-curves")
    videos = gr.Gallery(
        label="Newest samples", elem_id="runs-samples", columns=4,
        object_fit="contain", height=HEIGHT, preview=False,
    )  # fmt: skip
    timer = gr.Timer(LIVE_SECONDS)

    def known() -> dict[str, Path]:
        return labelled(find_runs(folder))

    @told
    def find() -> Iterator[Any]:
        yield gr.Dropdown(choices=list(known()))

    @told
    def draw(names: list[str] | None) -> Iterator[Any]:
        found = known() if names else {}
        runs = {name: found[name] for name in names or [] if name in found}
        if not runs:
            yield [None, None]
            return
        newest = [
            (str(files[-1][1]), f"{name}: {kind}, step {files[-1][0]}")
            for name, run in runs.items()
            for kind, files in sample_files(run).items()
        ]
        yield [draw_curves(runs), newest]

    refresh.click(find, None, chosen, **AT_ONCE)
    chosen.change(draw, chosen, [curves, videos], **AT_ONCE)
    timer.tick(draw, chosen, [curves, videos], show_progress="hidden", **AT_ONCE)
    live.change(lambda on: gr.Timer(active=on), live, timer, **AT_ONCE)


def sampling_options(workbench: Workbench, pipeline: gr.Dropdown) -> dict[str, Any]:
    """Seed, steps, guidance, motion, frames, and the buttons."""
    steps, guidance = own_options(workbench)(str(pipeline.value))
    with gr.Row():
        button = gr.Button("Make the video", variant="primary", elem_classes="make")
        cancel = gr.Button("Cancel", elem_classes="cancel")
    with gr.Row():
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, elem_classes="seed")
        keep = gr.Checkbox(True, label="Keep the seed")
    with gr.Accordion("More", open=False, elem_classes="more"):
        count = gr.Slider(1, 100, value=steps, step=1, label="Steps", elem_classes="steps")
        scale = gr.Slider(1, 15, value=guidance, step=0.5, label="Guidance")
        motion = gr.Slider(0, 2, value=1, step=0.1, label="Motion")
        frames = gr.Number(0, label="Frames (0: one window)", precision=0, minimum=0)
        negative = gr.Textbox(label="Negative prompt")
    used = gr.State(0)
    button.click(lambda value: value, seed, used, **AT_ONCE)
    return {
        "values": [seed, count, scale, motion, frames, negative],
        "defaults": [count, scale],
        **{"button": button, "cancel": cancel, "seed": seed, "keep": keep, "used": used},
    }


def request_of(values: tuple[Any, ...], **more: Any) -> Request:
    """What `sampling_options` holds, and what the tab adds, as a request."""
    seed, steps, guidance, motion, frames, negative = values
    return Request(
        seed=int(seed or 0),
        num_inference_steps=int(steps),
        guidance_scale=float(guidance),
        motion_scale=float(motion),
        num_frames=int(frames) if frames else None,
        negative_prompt=negative or None,
        **more,
    )


def result_view(name: str) -> dict[str, Any]:
    """Progress, preview, video, sheet and files of a tab."""
    line = gr.Markdown(elem_classes="progress-line", elem_id=f"{name}-line")
    with gr.Row():
        video = made_video("Video", elem_id=f"{name}-video", height=HEIGHT)
        preview = gr.Image(
            label="While it is made", interactive=False, elem_id=f"{name}-preview",
            elem_classes="pixels", buttons=[], height=HEIGHT,
        )  # fmt: skip
    below = gr.Row()
    sheet = gr.Image(label="Frames", interactive=False, elem_id=f"{name}-sheet")
    files = gr.Files(label="Download", elem_id=f"{name}-files", interactive=False)
    return {"outputs": [line, preview, video, sheet, files], "video": video, "below": below}


def uploaded_video(label: str, elem_id: str) -> gr.Video:
    return gr.Video(label=label, sources=["upload"], elem_id=elem_id, height=HEIGHT)


def made_video(label: str, **options: Any) -> gr.Video:
    """A video that plays by itself and can't be replaced by an upload."""
    return gr.Video(label=label, autoplay=True, loop=True, interactive=False, **options)


def shown_steps(job: Iterator[Preview | Made]) -> Iterator[list[Any]]:
    """Updates of `result_view` for a job."""
    yield ["loading", gr.skip(), gr.skip(), gr.skip(), gr.skip()]
    for update in job:
        if isinstance(update, Preview):
            picture = gr.skip() if update.picture is None else update.picture
            yield [step_line(update), picture, gr.skip(), gr.skip(), gr.skip()]
        else:
            files = [str(path) for path in update.files]
            yield [update.told or "done", gr.skip(), str(update.video), str(update.sheet), files]


def step_line(update: Preview) -> str:
    return f"step {update.step} of {update.total}"


def uploaded(path: str | None, name: str = "a clip") -> str:
    if not path:
        raise ValueError(f"upload {name} first")
    return path


def next_seed(keep: bool, seed: float) -> int:
    return int(seed or 0) + (0 if keep else 1)


def own_options(workbench: Workbench) -> Callable[[str], list[Any]]:
    """Steps and guidance that a pipeline was saved with."""

    def own(label: str) -> list[Any]:
        config = workbench.pipeline(label).config
        return [config["num_inference_steps"], config["guidance_scale"]]

    return own


def class_choices(workbench: Workbench) -> Callable[[str], list[Any]]:
    """Shows what a pipeline can be asked by: a prompt, a class, or neither."""

    def choices(label: str) -> list[Any]:
        pipeline = workbench.pipeline(label)
        sizes = pipeline.transformer.sizes
        names = pipeline.config["class_names"] or range(sizes.num_classes or 0)
        by_text, by_class = sizes.text_hidden_size is not None, bool(sizes.num_classes)
        return [
            gr.Textbox(visible=by_text, value=EXAMPLES[0] if by_text else ""),
            gr.Dropdown(choices=[str(name) for name in names], value=None, visible=by_class),
        ]

    return choices
