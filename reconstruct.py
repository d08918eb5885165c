"""Reconstructs videos, decodes structure or dynamics alone, swaps them between two videos.

    python reconstruct.py --demo                             train a small model, see a clip
    python reconstruct.py clip.mp4 folder "more/*.webm" --model runs/ae --output out
    python reconstruct.py clip.mp4 --swap other.mp4          structure of one, dynamics of the other

Writes NAME.reconstruction.mp4, NAME.structure.mp4, NAME.dynamics.mp4 and NAME.sheet.png for each
video, beside it or in --output, and reconstruct.json with the numbers and how they were measured.
A video of another size or length than the model's is cut into overlapping windows and keeps its
size; --resize fits it to the model's instead.

Exit status: 0, or 2 if an argument or any video was bad (the other videos are still done).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

# What is heavy is imported where it is used: a wrong flag or path is answered at once.
from vidtwin.config import LPIPS_NETS, WEIGHT_DTYPES
from vidtwin.files import check_folder, root_folder, shipped_path, software_versions, write_json
from vidtwin.model_paths import find_autoencoder
from vidtwin.reconstruction import DECODED_PARTS, METRICS, InputVideo, find_videos
from vidtwin_lab import runtime

if TYPE_CHECKING:
    from vidtwin.reconstruction import Reconstructor

SHIPPED_MODEL = shipped_path("checkpoints/clips")
DEMO_CONFIG = shipped_path("configs/ae/shapes_demo.yaml")
DEMO_FOLDER = Path("outputs") / "demo"
CHOICES: dict[str, tuple[str, ...]] = {"all": tuple(DECODED_PARTS)}
CHOICES |= {part: (name,) for name, part in DECODED_PARTS.items()}


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = runtime.ArgumentParser(__doc__ or "")
    add, told = parser.add_argument, "a video, a folder of them, a quoted pattern"
    add("inputs", type="text", nargs="*", metavar="VIDEO", help=told)
    add("--model", metavar="PATH", help="run, model folder or released checkpoint (default: clips)")
    add("--output", type=Path, metavar="FOLDER", help="(default: beside each video)")
    add("--part", choices=CHOICES, default="all", help="what to decode (default: all three)")
    add("--swap", type=Path, metavar="OTHER", help="exchange structure and dynamics with OTHER")
    add("--save-latents", action="store_true", help="also write NAME.latents.safetensors")
    add("--fps", type=float, help="take frames at this lower rate (default: the video's own)")
    add("--max-frames", type="count", metavar="N", help="take the first N frames")
    add("--resize", action="store_true", help="short side to the model's size, crop the centre")
    axes = ("T", "H", "W")
    add("--tile-overlap", type=int, nargs=3, metavar=axes, help="what neighbouring windows share")
    add("--tile-batch-size", type="count", default=1, metavar="N", help="windows at once")
    add("--lpips", choices=(*LPIPS_NETS, "none"), default=None, help="default vgg; demo: none")
    add("--device", help="cpu, cuda, ... (default: cuda if there is one)")
    add("--dtype", choices=WEIGHT_DTYPES, default="float32", help="of the model (%(default)s)")
    add("--dry-run", action="store_true", help="print what would be done, then exit")
    add("--demo", action="store_true", help="first train a small model on the moving shapes")
    arguments = parser.read(argv)
    if arguments.fps is not None and not arguments.fps > 0:
        raise ValueError(f"--fps must be more than 0, got {arguments.fps}")
    if arguments.demo and arguments.model:
        raise ValueError("--demo trains its own model; leave out --demo or --model")
    if not arguments.inputs and not arguments.demo:
        raise ValueError("name a video, a folder or a pattern, or try --demo")
    arguments.lpips = arguments.lpips or ("none" if arguments.demo else "vgg")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    runtime.configure_logging()
    runtime.refuse_several_processes("reconstruct.py")
    if arguments.demo:
        prepare_demo(arguments)
        if arguments.dry_run:
            return 0
    videos, failed = find_videos(arguments.inputs, arguments.output)
    for name, reason in failed:
        complain(name, reason)
    if not videos:
        return 2
    if not arguments.model and not SHIPPED_MODEL.is_dir():
        raise ValueError("no model ships with this version: name one with --model, or try --demo")
    runtime.tell_progress(find_autoencoder(arguments.model or SHIPPED_MODEL))
    if arguments.swap and not arguments.swap.exists():
        raise ValueError(f"--swap {arguments.swap}: no such file")
    folders = [video.target.parent for video in videos]
    report = (arguments.output or folders[0]) / "reconstruct.json"
    if not arguments.dry_run:
        for folder in sorted({*folders, report.parent}):
            check_folder(folder, make=True)
    model_path, digest, reconstructor = build_reconstructor(arguments)
    if arguments.swap:
        reconstructor.open(arguments.swap)  # fails at once rather than once per video
    if arguments.dry_run:
        bad = show_plan(reconstructor, videos, model_path, digest)
        return 2 if failed or bad else 0

    records: list[dict[str, Any]] = []
    for video in videos:
        try:
            if arguments.swap:
                record = reconstructor.swap(video, arguments.swap)
            else:
                record = reconstructor.run(video, CHOICES[arguments.part])
        except (ValueError, OSError) as error:
            failed.append((str(video.source), reason_of(error)))
            complain(*failed[-1])
            continue
        records.append(record)
        show_record(record)
    protocol = describe_protocol(arguments, reconstructor, len(records))
    protocol |= {"model": str(model_path), "model_sha256": digest}
    write_report(report, protocol, reconstructor.model.compression_rate, records, failed)
    print(f"{len(records)} done, {len(failed)} failed; numbers and protocol in {report}")
    return 2 if failed else 0


def build_reconstructor(arguments: argparse.Namespace) -> tuple[Path, str, Reconstructor]:
    """Where the model was found, the digest of its weights, and the model with its options."""
    import torch

    from vidtwin import load_autoencoder, weights_digest
    from vidtwin.metrics import Lpips
    from vidtwin.reconstruction import Reconstructor
    from vidtwin.tiling import Layout

    best = "cuda" if torch.cuda.is_available() else "cpu"
    arguments.device = runtime.usable_device(arguments.device, best)
    model, found = load_autoencoder(arguments.model or SHIPPED_MODEL)
    layout = Layout.of_model(model, arguments.tile_overlap)
    digest = weights_digest(model)
    # Not diffusers' own, which tells of an empty list of modules to be kept in float32.
    model = torch.nn.Module.to(model, arguments.device, getattr(torch, arguments.dtype))
    lpips, reason = None, "off"
    if arguments.lpips != "none" and not arguments.swap and not arguments.dry_run:
        try:
            lpips = Lpips(arguments.lpips).to(arguments.device)
        except ValueError as error:
            reason = str(error)
            print(f"no LPIPS: {reason}", file=sys.stderr)
    reconstructor = Reconstructor(
        model=model,
        layout=layout,
        tile_batch_size=arguments.tile_batch_size,
        size=layout.window[1:] if arguments.resize else None,
        fps=arguments.fps,
        max_frames=arguments.max_frames,
        save_latents=arguments.save_latents,
        lpips=lpips,
        lpips_reason=reason,
        resize_hint="--resize",
    )
    return found, digest, reconstructor


def prepare_demo(arguments: argparse.Namespace) -> None:
    """Trains the demo's autoencoder with train_ae.py, and sets the arguments to use it."""
    arguments.output = arguments.output or DEMO_FOLDER
    run = arguments.output / "training"
    script, config = str(root_folder() / "train_ae.py"), str(DEMO_CONFIG)
    command = [sys.executable, script, "--config", config, f"output={run}"]
    print("training a small autoencoder on the moving shapes:", *command, flush=True)
    if arguments.dry_run:
        return
    check_folder(arguments.output, make=True)
    status = subprocess.run(command, check=False).returncode
    if status != 0:
        raise ValueError(f"the demo's training ended with status {status}; its message is above")
    arguments.model = str(run)
    if not arguments.inputs:
        from vidtwin import load_autoencoder
        from vidtwin.data.synthetic.shapes import unseen_clip
        from vidtwin.media import write_video

        sizes = load_autoencoder(run)[0].sizes
        clip = unseen_clip(sizes.num_frames, sizes.height, sizes.width)
        arguments.inputs = [str(write_video(arguments.output / "shapes.mp4", clip.video, fps=8))]
        print(f"the clip: {clip.caption}")


def show_plan(
    reconstructor: Reconstructor, videos: list[InputVideo], model_path: Path, digest: str
) -> int:
    """Prints what would be done, with which model; returns the number of bad videos."""
    sizes, layout = reconstructor.model.sizes, reconstructor.layout
    count = sum(parameter.numel() for parameter in reconstructor.model.parameters())
    print(f"model    {model_path}  {count:,} parameters  sha256 {digest}")
    print(f"window   {layout.window}  overlap {layout.overlap}")
    print(
        f"latents  structure {sizes.structure_shape}  dynamics_x {sizes.dynamics_x_shape}  "
        f"dynamics_y {sizes.dynamics_y_shape}  rate {sizes.compression_rate:.3%}"
    )
    bad = 0
    for video in videos:
        try:
            opened = reconstructor.open(video.source)
        except (ValueError, OSError) as error:
            complain(str(video.source), reason_of(error))
            bad += 1
            continue
        shape = (opened.total, *opened.size)
        windows = " x ".join(map(str, reconstructor.windows(opened)))
        size = " x ".join(map(str, shape))
        print(
            f"{video.source}: {size} at {opened.fps:.6g} fps, {windows} windows -> "
            f"{video.result('*')}"
        )
    return bad


def show_record(record: dict[str, Any]) -> None:
    """One line of numbers, then the files."""
    height, width = record["resolution"]
    values = [f"{name} {record[name]:.4g}" for name in METRICS if record[name] is not None]
    print(f"{record['video']}: {record['frames']} x {height} x {width}", *values, sep="  ")
    for path in record["results"]:
        print(f"    {path}")


def describe_protocol(
    arguments: argparse.Namespace, reconstructor: Reconstructor, num_videos: int
) -> dict[str, Any]:
    """How the metrics of the report were measured."""
    return {
        "split": "the videos named",
        "n": num_videos,
        "resolution": list(reconstructor.size) if reconstructor.size else "each video's own",
        "frames": reconstructor.max_frames or "all",
        "stride": "each video's, below",
        "fps": reconstructor.fps or "each video's own",
        "backend": "pyav",
        "seed": None,
        "posterior": "mode: nothing is random",
        "metrics": "on float frames before any encoding, mean over frames, then over videos",
        "lpips_net": arguments.lpips,
        "part": arguments.part,
        "window": list(reconstructor.layout.window),
        "tile_overlap": list(reconstructor.layout.overlap),
        "device": arguments.device,
        "dtype": arguments.dtype,
        "versions": software_versions(),
    }


def write_report(
    path: Path,
    protocol: dict[str, Any],
    compression_rate: float,
    records: list[dict[str, Any]],
    failed: list[tuple[str, str]],
) -> None:
    """Writes the metrics of the run and how they were measured as JSON."""
    mean = {}
    for name in METRICS:
        values = [record[name] for record in records if record[name] is not None]
        mean[name] = float(np.mean(values)) if values else None
    report = {
        "mean": mean,
        "compression_rate": compression_rate,
        "protocol": protocol,
        "videos": records,
        "failed": [{"video": name, "reason": reason} for name, reason in failed],
    }
    write_json(path, report)


def reason_of(error: Exception) -> str:
    """The error in one line; for an unusable video, the reason without its path."""
    return " ".join(str(getattr(error, "reason", error)).split()) or type(error).__name__


def complain(name: str, reason: str) -> None:
    """Prints one line on stderr for a video that failed; the others are still done."""
    print(f"error: {name}: {reason}", file=sys.stderr)


if __name__ == "__main__":
    runtime.run_main(main)
