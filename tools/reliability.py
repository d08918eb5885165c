"""Measures what the project promises about lost runs, damaged files and foreign input.

    python tools/reliability.py --quick            # for continuous integration: 3 minutes
    nice python tools/reliability.py               # the long form, over an hour on two cores
    python tools/reliability.py --only kills_encode disks

The long form writes docs/results/reliability.json, check by check, and the table in
docs/reliability.md. The exit code is 1 if a promise was broken.

A further check is one line in CHECKS and a function `measure(options)` in a module of
tools/reliability_checks/, which gets `reliability_checks.options.Options` and returns a dict:

    figure: what was measured, in a line for the table: "1,200 files, 0 crashes".
    passed: whether the promise was kept in every case.
    anything else: goes into the JSON; of what failed, say enough there to repeat it.

What it needs beside the standard library it imports itself. If it can't measure here (no root, no
ffmpeg) it returns `figure` with the reason, and passed=None: the row says so, and an older figure
stays. `--page` puts the row of a new check into the page before it is measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from reliability_checks.options import Options  # noqa: E402

from vidtwin.files import software_versions, write_json, written_whole  # noqa: E402

RESULTS = ROOT / "docs" / "results" / "reliability.json"
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"


@dataclasses.dataclass(frozen=True)
class Check:
    """A promise and how it is measured.

    Args:
        promise: what holds, in a sentence.
        tests: files of tests that hold it in the suite, below tests/.
        measure: module of reliability_checks and function.
        arguments: of the function, after the options.
    """

    promise: str
    tests: str
    measure: str
    arguments: tuple[Any, ...] = ()


KILLED = (
    "A killed {} ends, run again, as if it had not been killed, bit for bit, and leaves no litter"
)
KILL_TESTS = "integration/test_reliability.py"
CHECKS: dict[str, Check] = {
    "kills_train_ae": Check(
        KILLED.format("training of the autoencoder"), KILL_TESTS, "kills:measure", ("train_ae",)
    ),
    "kills_train_diffusion": Check(
        KILLED.format("training of diffusion, with the pipeline that it exports,"),
        *(KILL_TESTS, "kills:measure", ("train_diffusion",)),
    ),
    "kills_train_language": Check(
        KILLED.format("training of a language model"),
        *(KILL_TESTS, "kills:measure", ("train_language",)),
    ),
    "kills_encode": Check(KILLED.format("encoding"), KILL_TESTS, "kills:measure", ("encode",)),
    "signals": Check(
        "A training that gets SIGTERM or Ctrl-C saves within 20 s, says where, exits with 143 or "
        "130, and goes on bit for bit; encoding ends as fast",
        *("integration/test_run_folders.py", "signals:measure"),
    ),
    "disks": Check(
        "A disk that fills, is read-only or goes away ends a run with one line that names it; the "
        "last checkpoint stays whole, and with space the same command ends bit for bit",
        *("integration/test_reliability.py", "disks:measure"),
    ),
    "attacks": Check(
        "Foreign files run nothing, reach nothing else and take no memory",
        *("unit/test_attacks.py", "attacks:measure"),
    ),
    "mutations": Check(
        "A damaged file is read or refused in one line; nothing crashes and nothing hangs",
        *("unit/test_readers.py", "damage:mutations"),
    ),
    "opens": Check(
        "Files are opened and closed for days: memory, descriptors and threads stay flat",
        *("unit/test_readers.py", "damage:opens"),
    ),
    "command_lines": Check(
        "Whatever stands in a command line or a config, a script runs or refuses it in one line",
        *("property/test_command_lines.py", "damage:command_lines"),
    ),
}


def main() -> int:
    """Runs the checks that are asked for; 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a sample of each; writes no results")
    parser.add_argument("--only", nargs="+", choices=CHECKS, default=list(CHECKS), metavar="NAME")
    parser.add_argument("--page", action="store_true", help="only write the page's table anew")
    parser.add_argument("--jobs", type=int, default=2, help="processes at the same time")
    parser.add_argument("--share", type=float, default=1.0, help="of the long form's cases")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn at random")
    parser.add_argument("--folder", type=Path, help="where files are written meanwhile")
    arguments = parser.parse_args()
    if arguments.page:
        write_page(read_results()["checks"])
        return 0
    if len(arguments.only) == 1:
        return measured(arguments.only[0], arguments)
    # Each in a process of its own: runs are forked from it, and must not inherit another's state.
    words, only = sys.argv[1:], arguments.only
    if "--only" in words:
        first = words.index("--only")
        words = words[:first] + [word for word in words[first + 1 :] if word not in only]
    commands = {name: [sys.executable, __file__, *words, "--only", name] for name in only}
    failed = [name for name, command in commands.items() if subprocess.call(command)]
    print(f"broken: {', '.join(failed)}" if failed else "all promises were kept")
    return bool(failed)


def measured(name: str, arguments: argparse.Namespace) -> int:
    """Measures a check, and writes its figure unless that is quick; 1 if it failed."""
    check, results = CHECKS[name], read_results()
    module, _, function = check.measure.partition(":")
    measure = getattr(importlib.import_module(f"reliability_checks.{module}"), function)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        options = Options(
            quick=arguments.quick,
            folder=Path(folder),
            jobs=arguments.jobs,
            share=arguments.share,
            seed=arguments.seed,
        )
        found = measure(options, *check.arguments)
    seconds = round(time.monotonic() - began)
    print(f"{name}: {found['figure']} ({seconds} s)", flush=True)
    if found["passed"] is False:
        print(json.dumps(found, indent=1, default=str))
    if not arguments.quick and (found["passed"] is not None or name not in results["checks"]):
        asked = {"seconds": seconds, "seed": arguments.seed, "share": arguments.share}
        results["checks"][name] = {**found, **asked, **protocol()}
        write_json(RESULTS, results)
        write_page(results["checks"])
    return found["passed"] is False


def protocol() -> dict[str, Any]:
    """On what something was measured."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "system": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "versions": software_versions(),
    }


def read_results() -> dict[str, Any]:
    """The results of all checks so far, in the order of CHECKS."""
    found = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    checks = found.get("checks", {})
    return {"checks": {name: checks[name] for name in CHECKS if name in checks}}


def write_page(results: Mapping[str, Any]) -> None:
    """Puts the table into the page."""
    rows = ["| promise | test | figure |", "|-|-|-|"]
    for name, check in CHECKS.items():
        figure = results[name]["figure"] if name in results else "not measured yet"
        rows.append(f"| {check.promise} | `tests/{check.tests}` | {figure} |")
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    with written_whole(PAGE) as partial:
        partial.write_text("\n".join((before + BEGIN, *rows, END + after)), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
