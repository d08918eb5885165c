"""The keys of a config with what they mean, read from the docstrings of its dataclasses."""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
import typing
from collections.abc import Iterator
from typing import Any

import yaml

from vidtwin_lab.runtime.config import _fields, _plain, _sections, _type_name

_WIDTH = 96
_ENTRY = re.compile(r"    (?P<names>\w+(, \w+)*): (?P<told>.*)")


def describe_keys(config_class: type, config: Any = None) -> str:
    """Every key with its type, default and meaning, as text.

    Args:
        config: an instance, whose values are shown instead of the defaults.
    """
    lines: list[str] = []
    for key, kind, default, told in walk_keys(config_class, default=config):
        told = re.sub(r"\bNone\b", "null", " ".join(told.split()))  # as YAML writes it
        lines.append(f"{key}  ({kind})" if default is None else f"{key}={default}  ({kind})")
        lines += textwrap.wrap(told, _WIDTH, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines) + "\n"


def walk_keys(
    config_class: type, prefix: str = "", default: Any = None
) -> Iterator[tuple[str, str, str | None, str]]:
    """(key, type, default as typed or None, meaning) of every key; a section before its keys.

    Args:
        prefix: of the keys.
        default: an instance to take the defaults from, instead of the class's own.
    """
    hints, told = typing.get_type_hints(config_class), meanings(config_class)
    for field in _fields(config_class):
        value = getattr(default, field.name, field.default)
        if value is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
        kind, key = hints[field.name], f"{prefix}{field.name}"
        members = (kind, *typing.get_args(kind))
        inner = next(
            (m for m in members if isinstance(m, type) and dataclasses.is_dataclass(m)), None
        )
        own = told.get(field.name, "")
        if inner is None:
            yield key, _type_name(kind), _typed(value), own
        else:
            yield key, "a section", None if value is not None else "null", own or _about(inner)
            yield from walk_keys(inner, f"{key}.", value if isinstance(value, inner) else None)
    for name, section in _sections(config_class).items():
        if dataclasses.fields(section):
            yield f"{prefix}{name}", "a section", None, _about(section)
            given = getattr(default, "sections", {}).get(name)
            yield from walk_keys(section, f"{prefix}{name}.", given)


def meanings(config_class: type) -> dict[str, str]:
    """Field -> what the `Args:` of its class, or of a base of it, say."""
    found: dict[str, str] = {}
    for base in reversed(config_class.__mro__):
        lines = inspect.cleandoc(vars(base).get("__doc__") or "").splitlines()
        names: list[str] = []
        for line in lines[lines.index("Args:") + 1 :] if "Args:" in lines else []:
            if entry := _ENTRY.fullmatch(line):
                names = entry["names"].split(", ")
                found |= dict.fromkeys(names, entry["told"])
            elif line.startswith("        "):
                found |= {name: f"{found[name]} {line.strip()}" for name in names}
            else:
                break
    return found


def _about(config_class: type) -> str:
    """The first paragraph of a class's docstring."""
    return inspect.cleandoc(config_class.__doc__ or "").partition("\n\n")[0]


def _typed(value: Any) -> str | None:
    """The value as one types it; None if the key has to be given."""
    if value is dataclasses.MISSING:
        return None
    text: str = yaml.safe_dump(_plain(value), default_flow_style=True, width=10**6)
    return text.strip().removesuffix("...").strip()
