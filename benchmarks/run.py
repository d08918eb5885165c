"""Measures how fast everything is, side by side in one process.

    python benchmarks/run.py --output docs/results/speed               # all parts, hours on a core
    python benchmarks/run.py reading startup --output out
    python benchmarks/run.py --small --rounds 1 --output out           # tiny, to see that it works

Each part writes NAME.json, NAME.md and, where a plot says something, NAME.png. Calls that are
compared take turns (A B A B), and what counts is the CPU time of the process, so that other work on
the machine disturbs little; a ratio is the median of the ratios of the rounds.

A further part is a line in PARTS and a module of speed_parts/ of its name, with a function
`measure(setting)` that takes `speed_parts.measuring.Setting` and returns its `Found`.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from speed_parts.measuring import Found, Setting, as_text

from vidtwin.files import software_versions
from vidtwin_lab import runtime
from vidtwin_lab.evaluation.report import Report, markdown_table, write_report

PARTS = {
    "autoencoders": "encode, decode, training step and memory beside the VAEs of diffusers",
    "official": "encode, decode, training step and memory beside the official code",
    "transformers": "a training step beside Latte",
    "generation": "prompt to video, in a batch and one by one",
    "reading": "clips a second from video files",
    "caching": "cached latents against clips that are encoded at every step",
    "updates": "optimizer and running average",
    "shares": "share of the machine's matrix peak",
    "scaling": "cost over length and size",
    "startup": "CPU seconds of a command and its imports",
    "processes": "two processes against one",
    "tiles": "memory of a reconstruction over the length of a video",
}


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    model = platform.processor()
    listed = Path("/proc/cpuinfo")
    if listed.is_file():
        lines = listed.read_text(encoding="utf-8").splitlines()
        named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        model = named[0] if named else model
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "system": platform.system(),
        "load_average": os.getloadavg(),
    }


def measure(name: str, setting: Setting, output: Path) -> None:
    """Measures a part and writes its files."""
    start, cpu = time.perf_counter(), time.process_time()
    found: Found = importlib.import_module(f"speed_parts.{name}").measure(setting)
    report = Report(
        name=name,
        protocol={
            "rounds": setting.rounds,
            "counted_rounds": max(1, setting.rounds - 1),
            "time": "CPU seconds of the process, medians",
            "threads": torch.get_num_threads(),
            "device": "cpu",
            "software": software_versions(),
            "machine": machine(),
            "wall_seconds": time.perf_counter() - start,
            "cpu_seconds": time.process_time() - cpu,
            **found.protocol,
        },
        found={"rows": found.rows},
        rows=[],
        draw=found.draw,
    )
    write_report(report, output)
    table = markdown_table([[(key, as_text(row[key])) for key in row] for row in found.rows])
    (output / f"{name}.md").write_text(table, encoding="utf-8")
    print(f"{name}: {PARTS[name]}\n\n{table}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        epilog="parts: " + "; ".join(f"{name}: {what}" for name, what in PARTS.items()),
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="parts; all by default, official with --official"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument(
        "--rounds",
        type=int,
        default=4,
        help="turns of each call; of several, the first is left out",
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--size", type=int, default=224, help="pixels of the autoencoders' clips")
    parser.add_argument("--preset", default="B", help="of the transformers: S, B, L or XL")
    parser.add_argument(
        "--official", type=Path, metavar="FOLDER", help="checkout of microsoft/VidTok"
    )
    parser.add_argument("--small", action="store_true", help="tiny models, to see that it works")
    arguments = parser.parse_args()
    for name in arguments.names:
        if name not in PARTS:
            raise ValueError(f"NAME must be one of {', '.join(PARTS)}; got {name!r}")
    for flag in ("rounds", "threads"):
        if getattr(arguments, flag) < 1:
            raise ValueError(f"--{flag} must be at least 1, got {getattr(arguments, flag)}")
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as scratch:
        setting = Setting(
            rounds=arguments.rounds,
            small=arguments.small,
            size=arguments.size,
            preset=arguments.preset,
            scratch=Path(scratch),
            official=arguments.official,
        )
        # Only who has the official code can be measured beside it.
        usual = [name for name in PARTS if name != "official" or arguments.official]
        for name in arguments.names or usual:
            measure(name, setting, arguments.output)


if __name__ == "__main__":
    runtime.run_main(main)
