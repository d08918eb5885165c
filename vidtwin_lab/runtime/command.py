"""The command line that the training scripts share, and how they end."""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import NoReturn

import psutil
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

from vidtwin_lab.runtime.training import NonFiniteError

# The word of a command line after which the options of `accelerate launch` stand.
_LAUNCH = re.compile(r"(^|accelerate-|accelerate[./]commands[./])launch(\.py)?$")


def parse_arguments(
    description: str,
    argv: Sequence[str] | None = None,
    extend: Callable[[argparse.ArgumentParser], None] | None = None,
    training: bool = True,
) -> argparse.Namespace:
    """The arguments of a script with a config: config, overrides, dry_run, overfit, resume.

    Args:
        description: what the script does, for `--help`.
        argv: arguments without the program's name; None takes those of the process.
        extend: adds the script's own options to the parser.
        training: False for a script that trains nothing, and has no overfit and resume.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config", metavar="FILE", help="YAML file; without it, the defaults")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="override of the config, outer.inner=..."
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the resolved config and sizes, then exit"
    )
    if training:
        parser.add_argument(
            "--overfit",
            type=_positive,
            metavar="N",
            help="train and validate on the first N samples",
        )
        parser.add_argument(
            "--resume", metavar="PATH", help="checkpoint, or run folder whose latest is taken"
        )
    if extend is not None:
        extend(parser)
    # Intermixed, so that overrides may stand before, between and after the options.
    arguments = parser.parse_intermixed_args(argv)
    for override in arguments.overrides:
        if "=" not in override:
            parser.error(f"expected key=value, got {override!r}")
    return arguments


def configure_logging() -> None:
    """Warnings of every process, and what our own packages tell on the main one, to stderr."""
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    # The oldest diffusers we support does not know the new name of this argument.
    warnings.filterwarnings("ignore", message=".*`torch_dtype` is deprecated")
    if os.environ.get("RANK", "0") == "0":
        for package in ("vidtwin", "diffusion", "vidtwin_lab"):
            logging.getLogger(package).setLevel(logging.INFO)


def run_main(main: Callable[[], int | None], *expected: type[Exception]) -> NoReturn:
    """Run a script's main and end the process; what the user can mend takes one line.

    ValueError, OSError, NonFiniteError and the `expected` errors print `error: ...` and exit
    with 2; VIDTWIN_TRACEBACK=1 shows where they came from. An interrupt exits with 130. Any
    other error is ours, and keeps its traceback.
    """
    mendable: tuple[type[Exception], ...] = (ValueError, OSError, NonFiniteError, *expected)
    _start_missing_processes()
    _join_over_cpus()
    try:
        code = main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except mendable as error:
        if os.environ.get("VIDTWIN_TRACEBACK", "0") not in ("", "0"):
            traceback.print_exc()
        rank = os.environ.get("RANK", "0")
        where = "" if rank == "0" else f"[rank {rank}] "
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        message = " ".join(lines) or type(error).__name__
        print(f"{where}error: {message}", file=sys.stderr)
        sys.exit(2)
    sys.exit(code or 0)


def _start_missing_processes() -> None:
    """Start the processes that `accelerate launch --cpu --num_processes N` was asked for.

    Without MPI accelerate starts one of them and says nothing: the address of a main process is
    set, and nothing that tells which process this is. This process then becomes a launcher.
    """
    environment = os.environ
    asked = "MASTER_ADDR" in environment and "ACCELERATE_MIXED_PRECISION" in environment
    sizes = ("WORLD_SIZE", "LOCAL_RANK", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
    if not asked or any(name in environment for name in sizes):
        return
    number = _processes_asked_for()
    if number is None:
        print(
            "warning: accelerate launch was asked for several processes and started one; on CPUs "
            "use ACCELERATE_USE_CPU=true torchrun --nproc_per_node N",
            file=sys.stderr,
        )
        return
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        del environment[name]  # standalone finds a free port of its own
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    sys.stderr.flush()
    os.execv(sys.executable, [*launcher, "--nproc_per_node", str(number), *sys.argv])


def _join_over_cpus() -> None:
    """Let several processes without a GPU be one run, over gloo.

    accelerate, started by torchrun without ACCELERATE_USE_CPU, takes each of them for a run of
    its own, and all would write into one folder.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return
    import torch  # only here: a wrong command line is told without it

    found = torch.accelerator.current_accelerator(check_available=True)
    if found is None or found.type == "mps":  # which has no collectives
        os.environ["ACCELERATE_USE_CPU"] = "true"


def _processes_asked_for() -> int | None:
    """The number of processes on the command line or in the config of `accelerate launch`."""
    parent = psutil.Process().parent()
    words = [] if parent is None else parent.cmdline()
    launchers = [i for i, word in enumerate(words) if _LAUNCH.search(word)]
    if not launchers:
        return None
    parser = launch_command_parser()
    try:
        arguments, *_ = _validate_launch_command(parser.parse_args(words[launchers[0] + 1 :]))
    except (SystemExit, ValueError):
        return None
    same_machine = (arguments.num_machines or 1) == 1
    return arguments.num_processes if same_machine else None


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a number of samples >= 1, got {number}")
    return number
