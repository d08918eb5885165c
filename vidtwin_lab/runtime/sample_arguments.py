"""The arguments of sample.py; imports no torch, so that a wrong one is answered at once."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffusion.config import GUIDANCE_SCALE, NUM_INFERENCE_STEPS, GuidanceScales
from diffusion.guiders import GUIDER_NAMES, parse_guider, refuse_scales
from diffusion.inputs import check_lead
from diffusion.scheduler_names import SCHEDULER_NAMES
from vidtwin.text_files import number_in
from vidtwin_lab.runtime.arguments import ArgumentParser, RenamedOption
from vidtwin_lab.runtime.sample_folder import new_sample_folder

__all__ = ["SAMPLE_FILES", "adapters_of", "flag_told", "guidance_of", "parse_sample_arguments"]

# Arguments that name a file which must be there.
SAMPLE_FILES = (
    *("structure_from", "dynamics_from", "first_frame", "last_frame"),
    *("continue_from", "actions"),
)


def parse_sample_arguments(doc: str, argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments of sample.py, checked as far as they can be before anything is loaded.

    Args:
        doc: the script's, for `--help`.
    Raises:
        ValueError: naming the flag.
    """
    parser = ArgumentParser(doc)
    add_what(parser.add_argument)
    add_how(parser.add_argument)
    arguments = parser.read(argv)
    check(arguments)
    arguments.output = arguments.output or new_sample_folder(Path("outputs/samples"))
    return arguments


def add_what(add: Callable[..., Any]) -> None:
    """What is made, and where."""
    add("--prompt", action="append", metavar="TEXT", help="what to show (repeatable)")
    add("--prompts-file", type=Path, metavar="FILE", help="a prompt in each line")
    add("--negative-prompt", metavar="TEXT", help="what not to show")
    add("--class-label", action="append", metavar="NAME_OR_ID", help="a class (repeatable)")
    add("--structure-from", type=Path, metavar="VIDEO", help="keep this video's structure")
    add("--dynamics-from", type=Path, metavar="VIDEO", help="keep this video's dynamics")
    add("--first-frame", type=Path, metavar="IMAGE", help="that the video starts with")
    add("--last-frame", type=Path, metavar="IMAGE", help="that it ends with")
    add("--continue", dest="continue_from", type=Path, metavar="VIDEO", help="whose last frames")
    add("--continue-frames", type="count", default=4, metavar="N", help="start it (%(default)s)")
    add("--actions", type=Path, metavar="TABLE", help="what acts in each frame, .csv with names")
    told = "run folder, pipeline or hub id (default: the moving shapes)"
    add("--pipeline", metavar="PATH", help=told)
    add("--output", type=Path, metavar="FOLDER", help="(default: a new outputs/samples...)")
    add("--overwrite", action="store_true", help="remove older samples from the folder")
    add("--seed", type=int, default=0, help="of the first sample; the others count up from it")
    add("--num-videos", type="count", metavar="N", help="of each prompt or class (default: 1)")
    add("--num-samples", type="count", metavar="N", help="in all, the prompts or classes in turn")


def add_how(add: Callable[..., Any]) -> None:
    """How it is sampled."""
    add("--steps", type="count", metavar="N", help="solver steps (default: the pipeline's)")
    names = ", ".join(SCHEDULER_NAMES)
    add("--scheduler", metavar="NAME", help=f"{names} (default: the pipeline's)")
    add("--guidance-scale", type=float, metavar="X", help="1 is off (default: the pipeline's)")
    for name in ("class", "structure", "dynamics"):
        add(f"--{name}-guidance-scale", type=float, metavar="X", help=f"of the {name} alone")
    add("--given-guidance-scale", type=float, metavar="X", help="of --structure-from and the like")
    add("--held-guidance-scale", action=RenamedOption, now="--given-guidance-scale")
    add("--guider", nargs="+", metavar=("NAME", "KEY=VALUE"), help=f"{', '.join(GUIDER_NAMES)}")
    add(
        "--lora",
        action="append",
        metavar="FOLDER[:SCALE]",
        help="adapters of train_diffusion.py lora.rank=N; several are added up",
    )
    add("--structure-lead", type=float, metavar="X", help="share of the steps that structure leads")
    add("--motion-scale", type=float, default=1.0, metavar="X", help="more motion above 1")
    add("--num-frames", type="count", metavar="N", help="of the video (default: the model's)")
    add("--fps", type=float, help="of the files (default: of the pipeline's training clips)")
    add("--batch-size", type="count", default=1, metavar="N", help="videos at once (%(default)s)")
    add("--device", help="cpu, cuda, ... (default: the accelerator, if there is one)")
    dtypes = ("float32", "bfloat16", "float16")
    add("--dtype", choices=dtypes, default=dtypes[0], help="of the models (%(default)s)")


def check(arguments: argparse.Namespace) -> None:
    """Raises ValueError for values that no pipeline takes."""
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
    if arguments.structure_lead is not None:
        check_lead(arguments.structure_lead, arguments.steps or NUM_INFERENCE_STEPS)
    if arguments.continue_from and arguments.first_frame:
        raise ValueError("--first-frame is the first of --continue; give one of them")
    for name in SAMPLE_FILES:
        if (path := getattr(arguments, name)) is not None and not path.is_file():
            with flag_told(name):
                raise ValueError(f"{path} is not a file")


@contextmanager
def flag_told(name: str) -> Iterator[None]:
    """Puts the flag of an argument before what is said of the file that it names."""
    try:
        yield
    except ValueError as error:
        flag = "continue" if name == "continue_from" else name.replace("_", "-")
        raise ValueError(f"--{flag} {error}") from error


def guidance_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The guidance scales as keywords of the pipeline, checked."""
    names = GuidanceScales.KEYWORDS.values()
    given = {name: scale for name in names if (scale := getattr(arguments, name)) is not None}
    GuidanceScales.from_keywords(**{"guidance_scale": GUIDANCE_SCALE} | given)
    if arguments.guider is not None:
        parse_guider(" ".join(arguments.guider))
        # The scale of the prompt becomes the guider's.
        own = ("guidance_scale", "given_guidance_scale")
        refuse_scales(**{name: scale for name, scale in given.items() if name not in own})
    return {name: given.get(name) for name in names}


def adapters_of(arguments: argparse.Namespace) -> list[tuple[Path, float]]:
    """The folder and the scale of each --lora.

    Raises:
        ValueError: for one that holds no adapters.
    """
    found = []
    for text in arguments.lora or []:
        folder, colon, scale = text.rpartition(":")
        whole = not colon or _holds_adapters(Path(text))
        path, strength = (Path(text), 1.0) if whole else (Path(folder), number_in(scale))
        if not _holds_adapters(path):
            raise ValueError(
                f"--lora {text}: expected a folder with pytorch_lora_weights.safetensors, such as "
                "RUN/lora, and perhaps :SCALE, such as RUN/lora:0.8"
            )
        if not math.isfinite(strength):
            raise ValueError(f"--lora {text}: its scale must be a number, got {scale!r}")
        found.append((path, strength))
    return found


def _holds_adapters(folder: Path) -> bool:
    return bool(list(folder.glob("*.safetensors")))
