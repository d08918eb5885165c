"""The commands of the documentation, as a test finds them in a page."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import NamedTuple

from script_runs import ROOT

DOCS = ROOT / "docs"
BLOCKS = re.compile(r"^```(?:bash|sh)?\n(.*?)^```$|((?:^(?: {4}.*)?\n)+)", re.DOTALL | re.MULTILINE)
# What a command may begin with; the rest of a line is the command's.
COMMAND = re.compile(
    r"(?:.*&& +)?(?:[A-Z_]+=\S+ )?(?:\S*/)?"
    r"((?:python \S+\.py|vidtwin|accelerate launch|torchrun) .*|vidtwin studio)"
)


class Command(NamedTuple):
    """A script and its words, by whatever it is started."""

    script: str
    words: tuple[str, ...]


def lines_of(page: str) -> list[str]:
    """The command lines of a page, without comments, those over several lines put together."""
    text = re.sub(r"^```python\n.*?^```$", "", page, flags=re.DOTALL | re.MULTILINE)
    blocks = "\n".join(match[1] or match[2] for match in BLOCKS.finditer(text))
    lines = blocks.replace("\\\n", " ").splitlines()
    found = [COMMAND.fullmatch(line.strip()) for line in lines]
    return [match[1] for match in found if match]


def commands_of(page: Path) -> list[Command]:
    """The commands of a page."""
    return [parse(line) for line in lines_of(page.read_text(encoding="utf-8"))]


def parse(line: str) -> Command:
    """A command line by its script."""
    words = shlex.split(line, comments=True)
    if words[0] in ("accelerate", "torchrun"):
        place = next(i for i, word in enumerate(words) if word.endswith((".py", ".cli")))
        words = ["vidtwin" if words[place].endswith(".cli") else "python", *words[place:]]
        if words[0] == "vidtwin":
            del words[1]
    if words[0] == "vidtwin":
        return Command(words[1].replace("-", "_"), tuple(words[2:]))
    return Command(words[1].removesuffix(".py"), tuple(words[2:]))


def shell_words(command: str, folder: Path) -> list[str]:
    """The command's words as a shell makes them in that folder, with configs where they lie."""
    printed = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {command}"],
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
    )
    words = printed.stdout.splitlines()
    return [f"{ROOT}/{word}" if word.startswith("configs/") else word for word in words]
