"""The command line that the training scripts share, and how they end."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from vidtwin.files import release_locks
from vidtwin_lab.runtime.checkpoints import find_checkpoint
from vidtwin_lab.runtime.config import load_config
from vidtwin_lab.runtime.run_config import NonFiniteError, RunConfigType
from vidtwin_lab.runtime.signals import terminated_as_interrupted


class RenamedOption(argparse.Action):
    """An option that has another name now; whoever uses the old one is told."""

    def __init__(self, option_strings: Sequence[str], dest: str, now: str) -> None:
        super().__init__(option_strings, dest, nargs="?", help=argparse.SUPPRESS)
        self.now = now

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        parser.error(f"{self.option_strings[0]} is now {self.now}")


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


def read_training_config(
    description: str, config_class: type[RunConfigType]
) -> tuple[RunConfigType, argparse.Namespace]:
    """Config and arguments of a training script, from its command line."""
    configure_logging()
    arguments = parse_arguments(description)
    given = [f"overfit={arguments.overfit}"] if arguments.overfit else []
    config = load_config(config_class, arguments.config, [*arguments.overrides, *given])
    config.optimizer.check_steps(config.steps)
    config.check_files(arguments.dry_run)
    if arguments.resume:
        find_checkpoint(arguments.resume)
    return config.resolved(), arguments


def configure_logging() -> None:
    """Warnings of every process, and what our own packages tell on the main one, to stderr."""
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    # The oldest diffusers we support does not know the new name of this argument.
    warnings.filterwarnings("ignore", message=".*`torch_dtype` is deprecated")
    if os.environ.get("RANK", "0") == "0":
        for package in ("vidtwin", "diffusion", "vidtwin_lab"):
            logging.getLogger(package).setLevel(logging.INFO)


def run_main(main: Callable[[], int | None], *expected: type[Exception]) -> NoReturn:
    """Run a script's main and end the process; an error of the user's input takes one line.

    ValueError, OSError, NonFiniteError and the `expected` errors print `error: ...` and exit
    with 2; VIDTWIN_TRACEBACK=1 shows where they came from. Ctrl-C exits with 130, SIGTERM with
    143. Any other error is ours, and keeps its traceback.
    """
    refusals: tuple[type[Exception], ...] = (ValueError, OSError, NonFiniteError, *expected)
    try:
        _refuse_lost_processes()
        _join_over_cpus()
        with terminated_as_interrupted():
            code = main()
    except KeyboardInterrupt as error:
        if os.environ.get("RANK", "0") == "0":
            print(str(error) or "interrupted", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 130))
    except refusals as error:
        if os.environ.get("VIDTWIN_TRACEBACK", "0") not in ("", "0"):
            traceback.print_exc()
        rank = os.environ.get("RANK", "0")
        where = "" if rank == "0" else f"[rank {rank}] "
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        message = " ".join(lines) or type(error).__name__
        print(f"{where}error: {message}", file=sys.stderr)
        sys.exit(2)
    finally:
        release_locks()
    sys.exit(code or 0)


def refuse_several_processes(script: str) -> None:
    """Raises ValueError where torchrun or accelerate has started several of a script for one."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count > 1:
        raise ValueError(f"{script} is one process, {count} were started: python {script} ...")


def _refuse_lost_processes() -> None:
    """Raises ValueError where `accelerate launch --cpu --num_processes N` has started one process.

    Without MPI it starts one and says nothing: the address of a main process is set, and nothing
    that tells which process this is.
    """
    sizes = ("WORLD_SIZE", "LOCAL_RANK", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
    asked = "MASTER_ADDR" in os.environ and "ACCELERATE_MIXED_PRECISION" in os.environ
    if asked and not any(name in os.environ for name in sizes):
        raise ValueError(
            "accelerate launch was asked for several processes and started one; on CPUs use "
            "ACCELERATE_USE_CPU=true torchrun --nproc_per_node N SCRIPT ..."
        )


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


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a number of samples >= 1, got {number}")
    return number
