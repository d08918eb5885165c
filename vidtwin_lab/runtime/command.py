"""How a script begins, and how it ends."""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TextIO

from vidtwin.files import release_locks
from vidtwin_lab.runtime.arguments import parse_arguments, read_config
from vidtwin_lab.runtime.checkpoints import find_checkpoint
from vidtwin_lab.runtime.run_config import NonFiniteError, RunConfigType
from vidtwin_lab.runtime.signals import terminated_as_interrupted

if TYPE_CHECKING:
    _StreamHandler = logging.StreamHandler[TextIO]
else:  # Python 3.10 has no name for what it writes to
    _StreamHandler = logging.StreamHandler

# Characters of an error's message: it may quote a file.
LONGEST_LINE = 2000


def read_training_config(
    description: str, config_class: type[RunConfigType], starters: Sequence[str]
) -> tuple[RunConfigType, argparse.Namespace]:
    """Config and arguments of a training script, from its command line.

    Args:
        description, starters: of `parse_arguments`.
        config_class: of the script.
    """
    configure_logging()
    arguments = parse_arguments(description, starters=starters)
    if arguments.overfit:
        arguments.overrides.append(f"overfit={arguments.overfit}")
    config = read_config(config_class, arguments)
    config.optimizer.warmup(config.steps)
    config.check_files(arguments.dry_run)
    if arguments.resume:
        find_checkpoint(arguments.resume)
    return config.resolved(), arguments


def configure_logging() -> None:
    """Warnings of every process, and what our own packages tell on the main one, to stderr."""
    handler = _BesideBars()
    handler.addFilter(_FirstTime())
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", handlers=[handler])
    # The oldest diffusers we support does not know the new name of this argument.
    warnings.filterwarnings("ignore", message=".*`torch_dtype` is deprecated")
    # Until `init_sync_buffers` is there, as the warning itself says.
    warnings.filterwarnings("ignore", message=".*`broadcast_buffers` is deprecated")
    if os.environ.get("RANK", "0") == "0":
        for package in ("vidtwin", "diffusion", "vidtwin_lab"):
            logging.getLogger(package).setLevel(logging.INFO)


class _BesideBars(_StreamHandler):
    """Writes to stderr on lines of its own: progress bars are drawn again below."""

    def emit(self, record: logging.LogRecord) -> None:
        if (bars := sys.modules.get("tqdm")) is None:
            super().emit(record)
            return
        with bars.tqdm.external_write_mode(file=self.stream):
            super().emit(record)


class _FirstTime(logging.Filter):
    """Drops a warning about data that was told before: each part of a data set is listed anew."""

    def __init__(self) -> None:
        super().__init__()
        self.told: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.name.startswith("vidtwin.data."):
            return True
        message = record.getMessage()
        again = message in self.told
        self.told.add(message)
        return not again


def run_main(
    main: Callable[[], int | None],
    *expected: type[Exception],
    flags: Mapping[str, str] | None = None,
) -> NoReturn:
    """Run a script's main and end the process; an error of the user's input takes one line.

    Where a script has flags instead of keys, an error that names `a_keyword` names --a-keyword,
    or what `flags` say of it.

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
        _refuse(error, flags)
        sys.exit(2)
    finally:
        release_locks()
    sys.exit(code or 0)


def _refuse(error: Exception, flags: Mapping[str, str] | None) -> None:
    """Says in one line why nothing is done, and tells the launcher of several processes.

    Before the processes of a run have met, all of them find the same: one of each machine says it.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    message = " ".join(lines) or type(error).__name__
    if flags is not None:
        message = re.sub(
            r"`(\w+)`", lambda m: flags.get(m[1]) or f"--{m[1].replace('_', '-')}", message
        )
    message = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in message)
    if len(message) > LONGEST_LINE:
        half = LONGEST_LINE // 2
        message = f"{message[:half]} [...] {message[-half:]}"
    rank = os.environ.get("RANK", "0")
    distributed = sys.modules.get("torch.distributed")
    met = distributed is not None and distributed.is_initialized()
    if met or os.environ.get("LOCAL_RANK", "0") == "0":
        where = "" if rank == "0" else f"[rank {rank}] "
        bars = getattr(sys.modules.get("tqdm"), "tqdm", None)
        for bar in list(getattr(bars, "_instances", ())):
            bar.close()  # the error stands on the last line, not behind a bar
        print(f"{where}error: {message}", file=sys.stderr)
    # torchrun, which accelerate launch uses too, ends with what it finds in this file.
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        told = {"message": f"error: {message}", "extraInfo": {"timestamp": str(int(time.time()))}}
        Path(file).write_text(json.dumps({"message": told}), encoding="utf-8")


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
