"""Videos from prompts, classes, or half of another video.

    python sample.py --prompt "a red circle moves left"
    python sample.py --prompts-file prompts.txt --num-videos 4 --seed 7 --output out
    python sample.py --structure-from clip.mp4 --prompt "..."    animate this: dynamics are sampled
    python sample.py --dynamics-from clip.mp4 --prompt "..."     re-skin this: structure is sampled
    python sample.py --pipeline RUN --first-frame cat.png --prompt "..."
    python sample.py --lora RUN/lora:0.8 --prompt "..."
    accelerate launch sample.py --class-label 3 --num-samples 2048 --batch-size 32

Writes sample_0000.mp4, .gif and .latents.safetensors for each video, sheet.png of the first ones,
and sample.json with everything that made them. Sample i has seed --seed + i. Its noise is the same
bit for bit for any number of processes, any --batch-size and any device. So is its video for any
number of processes, and with the default --batch-size of 1 for any number of samples; another
batch size or device changes it by rounding.

Older samples are refused, or removed by --overwrite; run again, what was interrupted goes on.
Exit status: 0, or 2 if an argument was bad; then nothing was written.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

# What is heavy is imported where it is used: a wrong flag is answered at once.
from diffusion.inputs import check_seed, common_length, prompt_list
from diffusion.pipeline_files import check_asked, find_pipeline
from vidtwin.files import check_folder
from vidtwin.text_files import read_lines
from vidtwin_lab import runtime

if TYPE_CHECKING:
    from diffusion import VidTwinPipeline

# Keyword of the pipeline -> flag of another name.
FLAGS = {"class_labels": "--class-label", "num_inference_steps": "--steps", "prefix": "--continue"}
FLAGS |= {name: f"--{name}-from" for name in ("structure", "dynamics")}
SHIPPED_PIPELINE = "checkpoints/shapes"
DEFAULT_FPS, SHEET_ROWS = 8.0, 16


@dataclass(frozen=True)
class Request:
    """One video that is asked for."""

    index: int
    seed: int
    prompt: str | None
    class_label: int | None


def main(argv: Sequence[str] | None = None) -> int:
    arguments = runtime.parse_sample_arguments(__doc__ or "", argv)
    runtime.configure_logging()
    prompts = read_prompts(arguments)
    check_folder(arguments.output)
    found = find_pipeline(arguments.pipeline or SHIPPED_PIPELINE)
    if found is not None:
        arguments.pipeline = str(found)
        check_asked(found, arguments.scheduler, prompts, arguments.class_label)
    adapters = runtime.adapters_of(arguments)
    if not adapters:
        runtime.tell_progress(found)
    for adapter, _ in adapters:
        runtime.tell_progress(adapter)

    from diffusion.given_clips import given_clips
    from diffusion.lora import load_adapters
    from vidtwin.media import contact_sheet

    accelerator = runtime.start_accelerator(cpu=arguments.device == "cpu")
    folder = runtime.SampleFolder(arguments.output, arguments.overwrite)
    pipeline = load_pipeline(arguments, accelerator)
    if adapters:
        load_adapters(pipeline, adapters)
    requests = plan(arguments, pipeline, prompts)
    options = sampling_options(arguments, pipeline)
    clips, kept = given_clips(pipeline.autoencoder, options)
    fps = arguments.fps or pipeline.config["fps"] or DEFAULT_FPS
    # Whole batches are shared out, so a sample's batch does not depend on the processes either.
    size = arguments.batch_size
    planned = [requests[start : start + size] for start in range(0, len(requests), size)]
    made_by = describe(arguments, pipeline, options, fps) | kept
    rows, batches = folder.begin(accelerator, made_by, planned)
    began = time.perf_counter()
    try:
        for batch in batches[accelerator.process_index :: accelerator.num_processes]:
            rows += sample_batch(pipeline, batch, options, folder, fps)
    except ValueError:
        if accelerator.is_main_process:
            folder.leave_if_empty()
        raise
    seconds = time.perf_counter() - began
    rows = sorted(runtime.gather_rows(accelerator, rows), key=lambda row: int(row["index"]))
    if accelerator.is_main_process:
        first = rows[:SHEET_ROWS]
        shown = {} if arguments.num_frames else clips  # of other lengths
        shown |= {f"{r['index']}  {r['asked']}": folder.thumbnails(r["index"]) for r in first}
        sheet = contact_sheet(shown, folder.path / "sheet.png")
        made_by |= {"seconds": round(seconds, 3), "processes": accelerator.num_processes}
        folder.finish(made_by, rows)
        for row in first:
            print(f"{row['files'][0]}  {row['asked']}")
        print(f"{len(rows)} videos in {seconds:.1f} s; all of them side by side: {sheet}")
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return 0


def read_prompts(arguments: argparse.Namespace) -> list[str] | None:
    """The prompts of the command line, then those of the file."""
    prompts = list(arguments.prompt or [])
    if arguments.prompts_file:
        found = [line.strip() for line in read_lines(arguments.prompts_file) if line.strip()]
        if not found:
            raise ValueError(f"--prompts-file {arguments.prompts_file} holds no prompt")
        prompts += found
    return prompt_list(prompts or None)


def load_pipeline(arguments: argparse.Namespace, accelerator: Any) -> VidTwinPipeline:
    """The pipeline with the scheduler that is asked for, on its device."""
    import torch

    from diffusion import VidTwinPipeline
    from diffusion.schedulers import build_scheduler

    dtype = getattr(torch, arguments.dtype)
    pipeline = VidTwinPipeline.from_pretrained(arguments.pipeline, torch_dtype=dtype)
    if arguments.scheduler:
        pipeline.scheduler = build_scheduler(arguments.scheduler, pipeline.scheduler)
    # None: a bar on a terminal, none in a file.
    pipeline.set_progress_bar_config(disable=None if accelerator.is_main_process else True)
    return pipeline.to(runtime.usable_device(arguments.device, accelerator.device))


def plan(
    arguments: argparse.Namespace, pipeline: VidTwinPipeline, prompts: list[str] | None
) -> list[Request]:
    """Every video that is asked for, by its index."""
    labels = pipeline.class_indices(arguments.class_label)
    count = common_length(prompt=prompts, class_labels=labels)
    number = arguments.num_samples or count * (arguments.num_videos or 1)
    check_seed("seed", arguments.seed, number)

    def request(index: int) -> Request:
        place = index % count if arguments.num_samples else index // (number // count)
        return Request(
            index=index,
            seed=arguments.seed + index,
            prompt=prompts[place % len(prompts)] if prompts else None,
            class_label=labels[place % len(labels)] if labels else None,
        )

    return [request(index) for index in range(number)]


def sampling_options(arguments: argparse.Namespace, pipeline: VidTwinPipeline) -> dict[str, Any]:
    """Keywords of the pipeline that all videos share."""
    import torch

    from diffusion.action_files import read_actions
    from diffusion.guiders import build_guider
    from vidtwin.data.file_dataset import read_first_window
    from vidtwin.data.given_frames import read_image, read_last_frames

    shared = ("motion_scale", "num_frames", "negative_prompt")
    options: dict[str, Any] = runtime.guidance_of(arguments)
    options["num_inference_steps"] = arguments.steps
    for name in ("guidance_scale", "given_guidance_scale", "num_inference_steps"):
        if options[name] is None:
            options[name] = pipeline.config[name]
    options |= {name: getattr(arguments, name) for name in shared}
    if arguments.structure_lead is not None:
        options["structure_lead"] = arguments.structure_lead
    if arguments.guider is not None:
        text = " ".join(arguments.guider)
        options["guider"] = build_guider(text, options.pop("guidance_scale"))
    sizes, fps = pipeline.autoencoder.sizes, pipeline.config["fps"]
    for name in ("first_frame", "last_frame"):
        if (path := getattr(arguments, name)) is not None:
            with runtime.flag_told(name):
                options[name] = read_image(path, sizes.height, sizes.width)
    if (path := arguments.continue_from) is not None:
        count, most = arguments.continue_frames, sizes.num_frames - 1
        if count > most:
            raise ValueError(f"--continue-frames must be 1 to this model's {most}, got {count}")
        with runtime.flag_told("continue_from"):
            options["prefix"] = read_last_frames(path, count, sizes.height, sizes.width, fps)
    if (path := arguments.actions) is not None:
        names = pipeline.config["action_names"] or ()
        options["actions"] = torch.tensor(read_actions(path, names, sizes.num_frames))
    for name in ("structure", "dynamics"):
        path = getattr(arguments, f"{name}_from")
        if path is not None:
            with runtime.flag_told(f"{name}_from"):
                _, frames, height, width = sizes.video_shape
                options[name] = read_first_window(path, frames, height, width, fps)
    return options


def sample_batch(
    pipeline: VidTwinPipeline,
    batch: Sequence[Request],
    options: dict[str, Any],
    folder: runtime.SampleFolder,
    fps: float,
) -> list[dict[str, Any]]:
    """Samples some videos and writes their files; returns what is told of each."""
    import numpy as np

    from diffusion.long_video import latent_windows, window_starts
    from vidtwin.media import thumbnail, to_uint8, write_clip
    from vidtwin.reconstruction import save_windows

    # All of them have a prompt or none has, and the same of classes.
    prompts, labels = ([getattr(r, name) for r in batch] for name in ("prompt", "class_label"))
    asked = {"prompt": prompts, "class_labels": labels}
    given: dict[str, Any] = {name: each for name, each in asked.items() if each[0] is not None}
    given["num_videos_per_prompt"] = 1 if given else len(batch)
    out = pipeline(**given, **options, seed=[request.seed for request in batch])
    window = pipeline.autoencoder.sizes.video_shape[1:]
    rows = []
    for request, video, latents in zip(batch, out.videos, out.latents, strict=True):
        frames = to_uint8(2 * video - 1)
        starts = window_starts(len(frames), window[0])
        name = f"sample_{request.index:04d}"
        header = {"fps": repr(fps), "seed": str(request.seed)}
        windows = latent_windows(latents, starts, pipeline.autoencoder.sizes)
        latents_file = save_windows(folder.path / f"{name}.latents.safetensors", windows, header)
        files = [*write_clip(folder.path / name, frames, fps), latents_file]
        row = asdict(request) | {"files": [str(file) for file in files]}
        row["asked"] = describe_request(request, pipeline.config["class_names"])
        shown = frames if request.index < SHEET_ROWS else frames[:1]
        folder.note(row, np.stack([thumbnail(frame) for frame in shown]))
        rows.append(row)
    return rows


def describe_request(request: Request, class_names: Sequence[str] | None) -> str:
    """What was asked for, in a few words."""
    label, class_name = request.class_label, None
    if label is not None:
        class_name = class_names[label] if class_names else f"class {label}"
    return ", ".join(filter(None, [request.prompt, class_name])) or f"seed {request.seed}"


def describe(
    arguments: argparse.Namespace, pipeline: VidTwinPipeline, options: dict[str, Any], fps: float
) -> dict[str, Any]:
    """Everything that made the samples, but for what differs from one to the next."""
    from vidtwin.reconstruction import software_versions
    from vidtwin_lab.evaluation.pipelines import parts_digests

    digests = parts_digests(pipeline.components)
    scheduler = {"class": type(pipeline.scheduler).__name__, **pipeline.scheduler.config}
    # Older samples' files have the first two alone.
    sources = {
        name: path
        for name in runtime.SAMPLE_FILES
        if (path := getattr(arguments, name)) is not None or name in runtime.SAMPLE_FILES[:2]
    }
    shown = dict(options)
    if arguments.guider is not None:
        shown["guider"] = " ".join(arguments.guider)
    if (lead := pipeline.config["structure_lead"]) and not {"structure", "dynamics"} & {*options}:
        shown.setdefault("structure_lead", lead)
    if arguments.continue_from is not None:
        shown["continue_frames"] = arguments.continue_frames
    tensors = ("structure", "dynamics", "first_frame", "last_frame", "prefix", "actions")
    return {
        "pipeline": arguments.pipeline,
        **({"lora": arguments.lora} if arguments.lora else {}),
        **{f"{name}_sha256": digest for name, digest in digests.items()},
        "scheduler": scheduler,
        **{name: value for name, value in shown.items() if name not in tensors},
        **{name: str(path) if path else None for name, path in sources.items()},
        "fps": fps,
        "seed": arguments.seed,
        "batch_size": arguments.batch_size,
        "device": str(pipeline.device),
        "dtype": arguments.dtype,
        "command": sys.argv[1:],
        "versions": software_versions(),
    }


if __name__ == "__main__":
    runtime.run_main(main, flags=FLAGS)
