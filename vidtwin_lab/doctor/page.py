"""What the doctor found: printed as it comes, and kept for a program to read."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from vidtwin.files import write_json

_WIDTH = 100


class Page:
    """Findings by part: each has a name and says how it is, or what is wrong and the cure."""

    def __init__(self) -> None:
        self.found: dict[str, list[dict[str, Any]]] = {}
        self._part = ""

    @property
    def wrong(self) -> list[dict[str, Any]]:
        """The findings that need a cure."""
        return [each for part in self.found.values() for each in part if not each["fine"]]

    def begin(self, part: str) -> None:
        """Starts a part."""
        self._part = part
        self.found[part] = []
        print(f"\n{part}")

    def tell(self, name: str, text: str, **values: Any) -> None:
        """Something that is as it should be.

        Args:
            values: the same for a program, in its JSON.
        """
        self._add(name, text, {"fine": True, **values})

    def fault(self, name: str, text: str, cure: str) -> None:
        """Something that will go wrong, and what to do about it."""
        self._add(name, text, {"fine": False, "cure": cure})

    def _add(self, name: str, text: str, values: dict[str, Any]) -> None:
        self.found[self._part].append({"name": name, "told": text, **values})
        mark = " " if values["fine"] else "!"
        print(_wrapped(f"{mark} {name:<13} ", text))
        if not values["fine"]:
            print(_wrapped(f"  {'':<13} ", f"-> {values['cure']}"), flush=True)

    def end(self, file: Path | None) -> int:
        """Prints the verdict, writes the JSON, and returns the exit code."""
        count = len(self.wrong)
        if count:
            names = ", ".join(each["name"] for each in self.wrong)
            print(f"\n{count} thing{'s' * (count > 1)} wrong: {names}")
        else:
            print("\nnothing wrong was found")
        if file is not None:
            write_json(file, {"fine": not count, "parts": self.found})
        return 1 if count else 0


def _wrapped(start: str, text: str) -> str:
    indent = " " * len(start)
    return textwrap.fill(
        text, _WIDTH, initial_indent=start, subsequent_indent=indent, break_on_hyphens=False
    )
