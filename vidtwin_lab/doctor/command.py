"""Looks at the machine, and at what a config will do on it, before hours are spent.

    vidtwin doctor                                      software, devices, decoders, disk, memory
    vidtwin doctor --config ae/clips_64.yaml data.path=FOLDER    and a few of its files and steps

Takes the configs of train-ae, train-diffusion, train-language and encode, with key=value as they
do. Some files of the data are read, and three steps are made in a folder that is removed again;
the run's own folder is left as it is. What is wrong is marked with "!", and followed by its cure.

Exit status: 0 if nothing is wrong, 1 if something is, 2 for a wrong command line.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vidtwin_lab import runtime
from vidtwin_lab.doctor.environment import check_environment
from vidtwin_lab.doctor.page import Page
from vidtwin_lab.doctor.rehearsal import SCRIPTS, find_config, rehearse

FILES, TIMEOUT = 16, 900.0


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The command line of `vidtwin doctor`."""
    parser = runtime.ArgumentParser(__doc__ or "")
    parser.prog = "vidtwin doctor"
    add = parser.add_argument
    add("--config", metavar="FILE", help="the config of a run (default: look at the machine only)")
    add("overrides", nargs="*", metavar="key=value", help="changes a key of the config")
    add("--script", choices=SCRIPTS, help="that the config is for, where it does not tell itself")
    add("--files", type="count", default=FILES, metavar="K", help="read so many (%(default)s)")
    add("--timeout", type=float, default=TIMEOUT, metavar="SECONDS", help="for the steps")
    add("--no-steps", action="store_true", help="make no steps")
    add("--json", type=Path, metavar="FILE", help="write what was found, for a program to read")
    arguments = parser.read(argv)
    if arguments.overrides and arguments.config is None:
        parser.error(f"{arguments.overrides[0]!r} changes a config: name it with --config")
    if not arguments.timeout > 0:
        parser.error(f"--timeout must be above 0, got {arguments.timeout}")
    return arguments


def main(argv: Sequence[str]) -> int:
    """Prints the page; returns the exit code."""
    arguments = parse_arguments(argv)
    page, script, config = Page(), None, None
    if arguments.config is not None:
        page.begin("Config")
        try:
            script, config = find_config(arguments.config, arguments.overrides, arguments.script)
            if hasattr(config, "optimizer"):
                config.optimizer.warmup(config.steps)
        except ValueError as error:
            page.fault(
                "config",
                str(error),
                "change the key that is named; --help-config of the script lists all",
            )
        else:
            page.tell("config", f"{arguments.config}, for {script}.py", script=script)
    check_environment(page, Path(getattr(config, "output", "outputs")))
    if script is not None:
        check_run(page, arguments, script, config)
    return page.end(arguments.json)


def check_run(page: Page, arguments: argparse.Namespace, script: str, config: Any) -> None:
    """The inputs of a run, some of its clips, and a few of its steps."""
    page.begin("Inputs")
    try:
        if hasattr(config, "check_files"):
            config.check_files()
        else:
            from vidtwin.model_paths import find_autoencoder

            find_autoencoder(config.autoencoder)
            config.data.check_files()
    except ValueError as error:
        page.fault("inputs", str(error), "put it there, or change the key")
        return
    page.tell("inputs", "all are there")
    if hasattr(config, "data") and getattr(config, "cache", None) is None:
        read_some(
            page, config.resolved() if hasattr(config, "resolved") else config, arguments.files
        )
    if not arguments.no_steps:
        rehearse(page, script, arguments.config, arguments.overrides, config, arguments.timeout)


def read_some(page: Page, config: Any, count: int) -> None:
    """Reads some clips, and tells how long they took and which can't be read."""
    import json

    from vidtwin.data import UnusableVideo, build_dataset
    from vidtwin.model_paths import find_autoencoder

    data = config.data
    if hasattr(config, "autoencoder"):
        file = find_autoencoder(config.autoencoder) / "config.json"
        if file.is_file():
            sizes = json.loads(file.read_text(encoding="utf-8"))
            data = data.sized(*(sizes[name] for name in ("num_frames", "height", "width")))
    try:
        began = time.perf_counter()
        dataset = build_dataset(dataclasses.replace(data, part="all"))  # of validation, too
    except (ValueError, OSError) as error:
        page.fault("data", str(error), "see docs/data.md")
        return
    listed = time.perf_counter() - began
    page.tell("data", f"{len(dataset):,} clips, listed in {listed:.1f} s", clips=len(dataset))
    count = min(count, len(dataset))
    chosen = [index * len(dataset) // count for index in range(count)]
    bad, began = [], time.perf_counter()
    for index in chosen:
        try:
            dataset.get(index)
        except UnusableVideo as error:
            bad.append(f"{error.path}: {error.reason}")
    each = (time.perf_counter() - began) / max(len(chosen), 1)
    told = f"{len(chosen) - len(bad)} of {len(chosen)} read, {each * 1000:.0f} ms each"
    if bad:
        page.fault(
            "clips",
            f"{told}; {bad[0]}" + (f" and {len(bad) - 1} more" if bad[1:] else ""),
            "mend or remove what can't be read; data.short=repeat_last takes short videos, "
            "data.max_bad_fraction says how many may be skipped",
        )
    else:
        page.tell("clips", told, seconds=each)
