"""Videos from prompts, classes, or half of another video.

    python sample.py --prompt "a red circle moves left"
    python sample.py --prompts-file prompts.txt --num-videos 4 --seed 7 --output out
    python sample.py --structure-from clip.mp4 --prompt "..."    animate this: dynamics are sampled
    python sample.py --dynamics-from clip.mp4 --prompt "..."     re-skin this: structure is sampled
    accelerate launch sample.py --class-label 3 --num-samples 2048 --batch-size 32

Writes sample_0000.mp4, .gif and .latents.safetensors for each video, sheet.png of the first ones,
and sample.json with everything that made them. Sample i has seed --seed + i and is the same video
for any number of processes; with the default --batch-size of 1, also for any number of samples.

Exit status: 0, or 2 if an argument was bad; then nothing was written.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from diffusion import VidTwinPipeline
from diffusion.conditioning import GuidanceScales
from diffusion.inputs import check_seed, common_length, prompt_list
from diffusion.long_video import latent_windows, window_starts
from diffusion.pipeline import GIVEN_GUIDANCE_SCALE, GUIDANCE_SCALE, NUM_INFERENCE_STEPS
from diffusion.schedulers import SCHEDULERS, build_scheduler
from vidtwin.data.file_dataset import read_first_window
from vidtwin.files import check_folder, shipped_path, write_json
from vidtwin.media import contact_sheet, frame_rate, thumbnail, to_uint8
from vidtwin.reconstruction import software_versions, weights_digest
from vidtwin.results import write_clip
from vidtwin_lab.runtime import RenamedOption, configure_logging, gather_rows, run_main

SHIPPED_PIPELINE = shipped_path("checkpoints/shapes")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DEFAULT_FPS = 8.0
SHEET_ROWS = 16


@dataclass(frozen=True)
class Request:
    """One video that is asked for."""

    index: int
    seed: int
    prompt: str | None
    class_label: int | None


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    about, _, details = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=about, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--prompt", action="append", metavar="TEXT", help="what to show (repeatable)")
    add("--prompts-file", type=Path, metavar="FILE", help="a prompt in each line")
    add("--negative-prompt", metavar="TEXT", help="what not to show")
    add("--class-label", action="append", metavar="NAME_OR_ID", help="a class (repeatable)")
    add("--structure-from", type=Path, metavar="VIDEO", help="hold its structure")
    add("--dynamics-from", type=Path, metavar="VIDEO", help="hold its dynamics")
    add("--pipeline", metavar="PATH", help="folder or hub id (default: the moving shapes)")
    add("--output", type=Path, default=Path("outputs/samples"), metavar="FOLDER")
    add("--seed", type=int, default=0, help="of the first sample; the next ones count on")
    add("--num-videos", type=int, metavar="N", help="of each prompt or class (default: 1)")
    add("--num-samples", type=int, metavar="N", help="in all, the prompts or classes in turn")
    add("--steps", type=int, default=NUM_INFERENCE_STEPS, help="of the solver (%(default)s)")
    add("--scheduler", metavar="NAME", help=f"{', '.join(SCHEDULERS)} (default: the pipeline's)")
    add("--guidance-scale", type=float, default=GUIDANCE_SCALE, help="1 is off (%(default)s)")
    add("--class-guidance-scale", type=float, metavar="SCALE", help="of the class alone")
    add("--structure-guidance-scale", type=float, metavar="SCALE", help="for structure alone")
    add("--dynamics-guidance-scale", type=float, metavar="SCALE", help="for dynamics alone")
    add("--given-guidance-scale", type=float, default=GIVEN_GUIDANCE_SCALE, help="of what is held")
    add("--held-guidance-scale", action=RenamedOption, now="--given-guidance-scale")
    add("--motion-scale", type=float, default=1.0, help="of the dynamics' changes (%(default)s)")
    add("--num-frames", type=int, metavar="N", help="beyond what the model makes at once")
    add("--fps", type=float, help="of the files (default: of the pipeline's training clips)")
    add("--batch-size", type=int, default=1, metavar="N", help="videos at once (%(default)s)")
    add("--device", help="cpu, cuda, ... (default: the accelerator, if there is one)")
    add("--dtype", choices=DTYPES, default="float32")
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
    if arguments.fps is not None:
        frame_rate(arguments.fps)
    guidance_of(arguments)
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    configure_logging()
    prompts = read_prompts(arguments)
    check_folder(arguments.output)
    accelerator = Accelerator(cpu=arguments.device == "cpu")
    pipeline = load_pipeline(arguments, accelerator)
    requests = plan(arguments, pipeline, prompts)
    options = sampling_options(arguments, pipeline)
    fps = arguments.fps or pipeline.config["fps"] or DEFAULT_FPS
    # Whole batches are shared out, so a sample's batch does not depend on the processes either.
    batches = [
        requests[start : start + arguments.batch_size]
        for start in range(0, len(requests), arguments.batch_size)
    ]
    rows, began = [], time.perf_counter()
    for batch in batches[accelerator.process_index :: accelerator.num_processes]:
        rows += sample_batch(pipeline, batch, options, arguments.output, fps)
    seconds = time.perf_counter() - began
    rows = sorted(gather_rows(accelerator, rows), key=lambda row: int(row["index"]))
    if accelerator.is_main_process:
        shown = {f"{row['index']}  {row['asked']}": row.pop("frames") for row in rows[:SHEET_ROWS]}
        sheet = contact_sheet(shown, arguments.output / "sheet.png")
        made_by = describe(arguments, pipeline, options, fps)
        made_by |= {"seconds": round(seconds, 3), "processes": accelerator.num_processes}
        write_json(arguments.output / "sample.json", {"made_by": made_by, "samples": rows})
        for row in rows[:SHEET_ROWS]:
            print(f"{row['files'][0]}  {row['asked']}")
        print(f"{len(rows)} videos in {seconds:.1f} s; all of them side by side: {sheet}")
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return 0


def guidance_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The guidance scales as keywords of the pipeline, checked."""
    kinds = ("", "class_", "structure_", "dynamics_", "given_")
    scales = {
        f"{kind}guidance_scale": getattr(arguments, f"{kind}guidance_scale") for kind in kinds
    }
    text, by_class, *others = scales.values()
    GuidanceScales(text, text if by_class is None else by_class, *others)
    return scales


def read_prompts(arguments: argparse.Namespace) -> list[str] | None:
    """The prompts of the command line, then those of the file."""
    prompts = list(arguments.prompt or [])
    if arguments.prompts_file:
        lines = arguments.prompts_file.read_text(encoding="utf-8").splitlines()
        found = [line.strip() for line in lines if line.strip()]
        if not found:
            raise ValueError(f"--prompts-file {arguments.prompts_file} holds no prompt")
        prompts += found
    return prompt_list(prompts or None)


def load_pipeline(arguments: argparse.Namespace, accelerator: Accelerator) -> VidTwinPipeline:
    """The pipeline with the scheduler that is asked for, on its device."""
    path = str(shipped_path(arguments.pipeline or SHIPPED_PIPELINE))
    pipeline = VidTwinPipeline.from_pretrained(path, torch_dtype=DTYPES[arguments.dtype])
    if arguments.scheduler:
        pipeline.scheduler = build_scheduler(arguments.scheduler, pipeline.scheduler)
    # None: a bar on a terminal, none in a file.
    pipeline.set_progress_bar_config(disable=None if accelerator.is_main_process else True)
    try:
        return pipeline.to(arguments.device or accelerator.device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"--device {arguments.device} can't be used: {reason}") from error


def plan(
    arguments: argparse.Namespace, pipeline: VidTwinPipeline, prompts: list[str] | None
) -> list[Request]:
    """Every video that is asked for, by its index."""
    labels = pipeline.class_indices(arguments.class_label)
    count = common_length(prompt=prompts, class_label=labels)
    each = arguments.num_videos or 1
    number = arguments.num_samples or count * each
    check_seed("--seed", arguments.seed, number)

    def request(index: int) -> Request:
        place = index % count if arguments.num_samples else index // each
        return Request(
            index=index,
            seed=arguments.seed + index,
            prompt=prompts[place % len(prompts)] if prompts else None,
            class_label=labels[place % len(labels)] if labels else None,
        )

    return [request(index) for index in range(number)]


def sampling_options(arguments: argparse.Namespace, pipeline: VidTwinPipeline) -> dict[str, Any]:
    """Keywords of the pipeline that all videos share."""
    options: dict[str, Any] = guidance_of(arguments) | {
        "num_inference_steps": arguments.steps,
        "motion_scale": arguments.motion_scale,
        "num_frames": arguments.num_frames,
        "negative_prompt": arguments.negative_prompt,
    }
    for name in ("structure", "dynamics"):
        path = getattr(arguments, f"{name}_from")
        if path is not None:
            sizes, fps = pipeline.autoencoder.sizes, pipeline.config["fps"]
            size = (sizes.num_frames, sizes.height, sizes.width)
            options[name] = read_first_window(path, *size, fps)
    return options


def sample_batch(
    pipeline: VidTwinPipeline,
    batch: list[Request],
    options: dict[str, Any],
    folder: Path,
    fps: float,
) -> list[dict[str, Any]]:
    """Samples some videos and writes their files; returns what is told of each."""
    # All of them have a prompt or none has, and the same of classes.
    given: dict[str, Any] = {}
    if batch[0].prompt is not None:
        given["prompt"] = [request.prompt for request in batch]
    if batch[0].class_label is not None:
        given["class_labels"] = [request.class_label for request in batch]
    if not given:
        given["num_videos_per_prompt"] = len(batch)
    out = pipeline(**given, **options, seed=[request.seed for request in batch])
    sizes = pipeline.autoencoder.sizes
    window = (sizes.num_frames, sizes.height, sizes.width)
    rows = []
    for request, video, latents in zip(batch, out.videos, out.latents, strict=True):
        frames = to_uint8(2 * video - 1)
        starts = window_starts(len(frames), sizes.num_frames)
        files = write_clip(
            folder / f"sample_{request.index:04d}",
            frames,
            fps,
            latent_windows(latents, starts, window),
            {"fps": repr(fps), "seed": str(request.seed)},
        )
        row = asdict(request) | {"files": [str(file) for file in files]}
        row["asked"] = describe_request(request, pipeline.config["class_names"])
        if request.index < SHEET_ROWS:
            row["frames"] = np.stack([thumbnail(frame) for frame in frames])
        rows.append(row)
    return rows


def describe_request(request: Request, class_names: Sequence[str] | None) -> str:
    """What was asked for, in a few words."""
    label = request.class_label
    class_name = f"class {label}" if label is not None else None
    if class_names and label is not None:
        class_name = class_names[label]
    return ", ".join(filter(None, [request.prompt, class_name])) or f"seed {request.seed}"


def describe(
    arguments: argparse.Namespace, pipeline: VidTwinPipeline, options: dict[str, Any], fps: float
) -> dict[str, Any]:
    """Everything that made the samples, but for what differs from one to the next."""
    digests = {
        f"{name}_sha256": weights_digest(part)
        for name, part in pipeline.components.items()
        if isinstance(part, torch.nn.Module)
    }
    scheduler = {"class": type(pipeline.scheduler).__name__, **pipeline.scheduler.config}
    plain = {name: value for name, value in options.items() if not torch.is_tensor(value)}
    paths = {
        name: str(getattr(arguments, name)) if getattr(arguments, name) else None
        for name in ("structure_from", "dynamics_from")
    }
    return {
        "pipeline": str(arguments.pipeline or SHIPPED_PIPELINE),
        **digests,
        "scheduler": scheduler,
        **plain,
        **paths,
        "fps": fps,
        "seed": arguments.seed,
        "batch_size": arguments.batch_size,
        "device": str(pipeline.device),
        "dtype": arguments.dtype,
        "command": sys.argv[1:],
        "versions": software_versions(),
    }


if __name__ == "__main__":
    run_main(main)
