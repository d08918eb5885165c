"""Command lines: a wrong one is answered in one line that names the flag. Imports no torch."""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from vidtwin.files import nearest_name
from vidtwin.text_files import number_in
from vidtwin_lab.runtime.config import ConfigType, load_config
from vidtwin_lab.runtime.config_help import describe_keys


class ArgumentParser(argparse.ArgumentParser):
    """argparse's, whose refusals are a ValueError of one line instead of the whole usage.

    An unknown flag is named with the nearest one, a number with what was expected, and flags may
    stand before, between and after what has no flag. type="count" is a whole number above 0,
    type="text" one that is not empty, as a Path has to be.

    Args:
        about: the script's docstring; its first line is the description, the rest the epilog.
    """

    def __init__(self, about: str) -> None:
        first, _, details = about.partition("\n")
        super().__init__(
            description=first, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        self.register("type", int, _whole_number)
        self.register("type", float, _number)
        self.register("type", "count", _count)
        self.register("type", "text", _text)
        self.register("type", Path, lambda text: Path(_text(text)))

    def error(self, message: str) -> NoReturn:
        """Raises ValueError; argparse calls it."""
        message = re.sub("^argument (.*?):", r"\1", message)
        raise ValueError(f"{message}; see {self.prog} --help")

    def read(self, argv: Sequence[str] | None = None) -> argparse.Namespace:
        """The arguments of the list, or of the process.

        Raises:
            ValueError: for one that can't be used.
        """
        arguments, unknown = self.parse_known_intermixed_args(argv)
        if unknown:
            self.error(self._unknown(unknown[0]))
        return arguments

    def _unknown(self, word: str) -> str:
        if not word.startswith("-"):
            return f"unexpected argument {word!r}"
        shown = [action for action in self._actions if action.help is not argparse.SUPPRESS]
        flags = [flag for action in shown for flag in action.option_strings]
        flag = word.partition("=")[0]
        return f"there is no flag {flag}; the nearest is {nearest_name(flag, flags)}"


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
    extend: Callable[[ArgumentParser], None] | None = None,
    training: bool = True,
    starters: Sequence[str] = (),
) -> argparse.Namespace:
    """The arguments of a script with a config: config, overrides, dry_run, overfit, resume.

    Args:
        description: what the script does, for `--help`: its docstring.
        argv: arguments without the program's name; None takes those of the process.
        extend: adds the script's own options to the parser.
        training: False for a script that trains nothing, and has no overfit and resume.
        starters: configs to begin with, for a script that does nothing without one.
    Raises:
        ValueError: for a command line that can't be used.
    """
    parser = ArgumentParser(description)
    needed = "" if starters else "; without it, the defaults"
    parser.add_argument(
        "--config", metavar="FILE", help=f"YAML file, such as those below configs/{needed}"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="changes a key, such as batch_size=8"
    )
    parser.add_argument(
        "--help-config", action="store_true", help="list all keys and what they mean, then exit"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the whole config and all sizes, then exit"
    )
    if training:
        parser.add_argument(
            "--overfit", type="count", metavar="N", help="learn the first N samples by heart"
        )
        parser.add_argument(
            "--resume",
            metavar="PATH",
            help="go on from this checkpoint, or from the newest one of this run folder",
        )
    if extend is not None:
        extend(parser)
    arguments = parser.read(argv)
    for override in arguments.overrides:
        if "=" not in override:
            parser.error(f"expected key=value, got {override!r}")
    if starters and arguments.config is None and not arguments.help_config:
        named = ", ".join(starters)
        raise ValueError(f"say which config: --config FILE, with one of your own or {named}")
    return arguments


def read_config(config_class: type[ConfigType], arguments: argparse.Namespace) -> ConfigType:
    """The config that `parse_arguments` was told of; `--help-config` lists its keys and exits.

    With a config, its values stand beside the keys; without one, the defaults.

    Raises:
        ConfigError: as `load_config`.
    """
    if arguments.help_config and not (arguments.config or arguments.overrides):
        print(describe_keys(config_class), end="")  # some configs have keys without a default
        sys.exit(0)
    config = load_config(config_class, arguments.config, arguments.overrides)
    if arguments.help_config:
        print(describe_keys(config_class, config), end="")
        sys.exit(0)
    return config


def _whole_number(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number, got {text!r}") from None
    if abs(number) >= 2**64:  # no counter, size or seed is
        raise argparse.ArgumentTypeError(f"expected a number below 2**64, got {text}")
    return number


def _count(text: str) -> int:
    number = _whole_number(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def _text(text: str) -> str:
    if not text.strip() or "\0" in text:
        raise argparse.ArgumentTypeError(f"expected a text, got {text!r}")
    return text


def _number(text: str) -> float:
    number = number_in(text)
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"expected a number, got {text!r}")
    return number
