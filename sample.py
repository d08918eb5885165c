"""Videos from prompts, classes, or half of another video.

    python sample.py --prompt "a red circle moves left"
    python sample.py --prompts-file prompts.txt --num-videos 4 --seed 7 --output out
    python sample.py --structure-from clip.mp4 --prompt "..."    animate this: dynamics are sampled
    python sample.py --dynamics-from clip.mp4 --prompt "..."     re-skin this: structure is sampled
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
from pathlib import Path
from typing import TYPE_CHECKING, Any

# What is heavy is imported where it is used: a wrong flag is answered at once.
from diffusion import config
from diffusion.inputs import check_seed, common_length, prompt_list
from diffusion.pipeline_files import find_pipeline
from vidtwin.files import check_folder, shipped_path
from vidtwin.text_files import read_lines
from vidtwin_lab import runtime

if TYPE_CHECKING:
    from diffusion import VidTwinPipeline

SHIPPED_PIPELINE = shipped_path("checkpoints/shapes")
DEFAULT_FPS, SHEET_ROWS = 8.0, 16


@dataclass(frozen=True)
class Request:
    """One video that is asked for."""

    index: int
    seed: int
    prompt: str | None
    class_label: int | None


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    about, _, details = (__doc__ or "").partition("\n")
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(None, None, about, details, formatter_class=as_written)
    add = parser.add_argument
    add("--prompt", action="append", metavar="TEXT", help="what to show (repeatable)")
    add("--prompts-file", type=Path, metavar="FILE", help="a prompt in each line")
    add("--negative-prompt", metavar="TEXT", help="what not to show")
    add("--class-label", action="append", metavar="NAME_OR_ID", help="a class (repeatable)")
    add("--structure-from", type=Path, metavar="VIDEO", help="keep its structure")
    add("--dynamics-from", type=Path, metavar="VIDEO", help="keep its dynamics")
    add("--pipeline", metavar="PATH", help="folder or hub id (default: the moving shapes)")
    add("--output", type=Path, metavar="FOLDER", help="(default: a new outputs/samples...)")
    add("--overwrite", action="store_true", help="remove older samples from the folder")
    add("--seed", type=int, default=0, help="of the first sample; the next ones count on")
    add("--num-videos", type=int, metavar="N", help="of each prompt or class (default: 1)")
    add("--num-samples", type=int, metavar="N", help="in all, the prompts or classes in turn")
    add("--steps", type=int, help="of the solver (default: the pipeline's)")
    names = ", ".join(config.SCHEDULER_NAMES)
    add("--scheduler", metavar="NAME", help=f"{names} (default: the pipeline's)")
    add("--guidance-scale", type=float, help="1 is off (default: the pipeline's)")
    add("--class-guidance-scale", type=float, metavar="SCALE", help="of the class alone")
    add("--structure-guidance-scale", type=float, metavar="SCALE", help="for structure alone")
    add("--dynamics-guidance-scale", type=float, metavar="SCALE", help="for dynamics alone")
    add("--given-guidance-scale", type=float, help="of what is given (default: the pipeline's)")
    add("--held-guidance-scale", action=runtime.RenamedOption, now="--given-guidance-scale")
    add("--motion-scale", type=float, default=1.0, help="of the dynamics' changes (%(default)s)")
    add("--num-frames", type=int, metavar="N", help="beyond what the model makes at once")
    add("--fps", type=float, help="of the files (default: of the pipeline's training clips)")
    add("--batch-size", type=int, default=1, metavar="N", help="videos at once (%(default)s)")
    add("--device", help="cpu, cuda, ... (default: the accelerator, if there is one)")
    add("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    arguments = parser.parse_args(argv)
    for flag in ("num_videos", "num_samples", "steps", "num_frames", "batch_size"):
        value = getattr(arguments, flag)
        if value is not None and value < 1:
            raise ValueError(f"--{flag.replace('_', '-')} must be at least 1, got {value}")
    if arguments.num_videos and arguments.num_samples:
        raise ValueError("--num-videos counts for each prompt, --num-samples in all; give one")
    if arguments.structure_from and arguments.dynamics_from:
        raise ValueError(
            "--structure-from and --dynamics-from together leave nothing to sample; "
            "reconstruct.py --swap puts two videos together"
        )
    if arguments.fps is not None and not 1 / 1001 <= arguments.fps < float("inf"):
        raise ValueError(f"--fps must be a positive number, got {arguments.fps}")
    guidance_of(arguments)
    arguments.output = arguments.output or runtime.new_sample_folder(Path("outputs/samples"))
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    runtime.configure_logging()
    prompts = read_prompts(arguments)
    check_folder(arguments.output)
    find_pipeline(shipped_path(arguments.pipeline or SHIPPED_PIPELINE))
    for name in ("structure_from", "dynamics_from"):
        if (path := getattr(arguments, name)) is not None and not path.is_file():
            raise ValueError(f"--{name.replace('_', '-')} {path} is not a file")

    from diffusion.given_clips import given_clips
    from vidtwin.media import contact_sheet

    accelerator = runtime.start_accelerator(cpu=arguments.device == "cpu")
    folder = runtime.SampleFolder(arguments.output, arguments.overwrite)
    pipeline = load_pipeline(arguments, accelerator)
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


def guidance_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The guidance scales as keywords of the pipeline, checked."""
    names = config.GuidanceScales.KEYWORDS.values()
    given = {name: scale for name in names if (scale := getattr(arguments, name)) is not None}
    config.GuidanceScales.from_keywords(**{"guidance_scale": config.GUIDANCE_SCALE} | given)
    return {name: given.get(name) for name in names}


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

    path = str(shipped_path(arguments.pipeline or SHIPPED_PIPELINE))
    pipeline = VidTwinPipeline.from_pretrained(path, torch_dtype=getattr(torch, arguments.dtype))
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
    count = common_length(prompt=prompts, class_label=labels)
    number = arguments.num_samples or count * (arguments.num_videos or 1)
    check_seed("--seed", arguments.seed, number)

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
    shared = ("motion_scale", "num_frames", "negative_prompt")
    options: dict[str, Any] = guidance_of(arguments) | {"num_inference_steps": arguments.steps}
    for name in ("guidance_scale", "given_guidance_scale", "num_inference_steps"):
        if options[name] is None:
            options[name] = pipeline.config[name]
    options |= {name: getattr(arguments, name) for name in shared}
    for name in ("structure", "dynamics"):
        path = getattr(arguments, f"{name}_from")
        if path is not None:
            from vidtwin.data.file_dataset import read_first_window

            _, frames, height, width = pipeline.autoencoder.sizes.video_shape
            options[name] = read_first_window(path, frames, height, width, pipeline.config["fps"])
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
        windows = latent_windows(latents, starts, window)
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

    sources = {name: getattr(arguments, name) for name in ("structure_from", "dynamics_from")}
    return {
        "pipeline": str(arguments.pipeline or SHIPPED_PIPELINE),
        **{f"{name}_sha256": digest for name, digest in parts_digests(pipeline.components).items()},
        "scheduler": {"class": type(pipeline.scheduler).__name__, **pipeline.scheduler.config},
        **{name: value for name, value in options.items() if name not in ("structure", "dynamics")},
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
    runtime.run_main(main)
