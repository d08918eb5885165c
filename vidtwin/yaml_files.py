"""YAML as configs use it: plain values of YAML 1.2, of bounded size, each key once.

PyYAML reads YAML 1.1, in which `on` and `no` are booleans, `1_000`, `017` and `1:30` are numbers of
other values than they look, and `1e-4` is a string. Here the core schema of YAML 1.2.2 (section
10.3.2) decides: those four are strings, but `017` is 17, and `1e-4` a number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

__all__ = [
    "YamlError",
    "dump_yaml",
    "load_yaml",
    "merge",
    "read_config_file",
    "read_yaml_file",
]

MAX_CHARACTERS = 1_000_000
MAX_DEPTH = 32
# Values of a file once every alias (`*name`) is replaced by what it stands for.
MAX_VALUES = 100_000

# Tag -> pattern, and with what a value may begin.
CORE_SCHEMA: dict[str, tuple[str, str]] = {
    "null": (r"~|null|Null|NULL|", "~nN\0"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
}


class YamlError(ValueError):
    """A text is not the YAML that is read here; the message says where, in one line."""


class _Loader(yaml.SafeLoader):
    """The safe loader, which makes plain values alone, with bounds and the core schema."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = self.values = 0
        self.sizes: dict[int, int] = {}  # values below each node, by its identity

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        line, before = event.start_mark.line + 1, self.values
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise YamlError(f"line {line} is nested deeper than {MAX_DEPTH} levels")
        node = super().compose_node(parent, index)
        self.depth -= 1
        if isinstance(event, yaml.AliasEvent):
            if id(node) not in self.sizes:
                raise YamlError(f"line {line}: the alias *{event.anchor} stands for itself")
            self.values += self.sizes[id(node)]
        else:
            self.values += 1
            self.sizes[id(node)] = self.values - before
        if self.values > MAX_VALUES:
            raise YamlError(f"more than {MAX_VALUES:,} values, from line {line} on")
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = key_node.value
            if isinstance(key, str):
                if key in seen:
                    line = key_node.start_mark.line + 1
                    raise YamlError(f"key `{key}` is given twice, again in line {line}")
                seen.add(key)
        return super().construct_mapping(node, deep)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Nothing: `<<` is a key like any other."""

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        text = self.construct_scalar(node)
        try:
            return int(text[2:], 8) if text.startswith("0o") else int(text, _base(text))
        except ValueError as error:  # Python reads at most some thousand digits
            raise YamlError(f"line {node.start_mark.line + 1}: no such number: {error}") from error

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        return float(re.sub(r"\.(?=[inIN])", "", self.construct_scalar(node)))


def _base(text: str) -> int:
    return 16 if text.startswith("0x") else 10


class _Dumper(yaml.SafeDumper):
    """Quotes the strings that a reader of YAML 1.1 or 1.2 would take for something else."""


# Set here, as the stubs of PyYAML take them for attributes of instances.
_Loader.yaml_implicit_resolvers = {}
_Loader.yaml_constructors = {
    tag: constructor
    for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.rpartition(":")[2] in ("null", "bool", "str", "seq", "map")
}
for _tag, (_pattern, _first) in CORE_SCHEMA.items():
    for _kind in (_Loader, _Dumper):
        _kind.add_implicit_resolver(
            f"tag:yaml.org,2002:{_tag}",
            re.compile(rf"^(?:{_pattern})$"),
            ["" if character == "\0" else character for character in _first],
        )
_constructors: dict[str, Callable[[Any, Any], Any]] = {
    "int": _Loader.construct_yaml_int,
    "float": _Loader.construct_yaml_float,
}
for _tag, _constructor in _constructors.items():
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _constructor)


def load_yaml(text: str) -> Any:
    """The value that a YAML text stands for: None, bool, int, float, str, list or dict.

    Raises:
        YamlError: it is not YAML, gives a key twice, is too large, or asks for anything else, as by
            a tag such as `!!python/object`.
    """
    if len(text) > MAX_CHARACTERS:
        raise YamlError(f"{len(text):,} characters, expected at most {MAX_CHARACTERS:,}")
    loader = None
    try:
        loader = _Loader(text)
        return loader.get_single_data()
    except yaml.YAMLError as error:
        raise YamlError(" ".join(str(error).split())) from error
    except YamlError:
        raise
    except (RecursionError, TypeError, ValueError, KeyError) as error:  # such as !!bool maybe
        raise YamlError(f"not plain values: {error}") from error
    finally:
        if loader is not None:
            loader.dispose()  # type: ignore[no-untyped-call]


def read_yaml_file(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; empty for an empty file.

    Raises:
        ValueError: naming the file and what is wrong with it.
    """
    if path.is_dir():
        raise ValueError(f"config file expected, {path} is a folder")
    if not path.is_file():  # a pipe or device never ends
        raise ValueError(f"config file {path} does not exist")
    try:
        if path.stat().st_size > 4 * MAX_CHARACTERS:
            raise YamlError(f"{path.stat().st_size:,} bytes, expected at most {MAX_CHARACTERS:,}")
        content = load_yaml(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from None
    except YamlError as error:
        raise ValueError(f"{path} is not a valid YAML config: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        came = f"{type(content).__name__} {content!r}"[:80]
        raise ValueError(f"{path} must hold a mapping of keys, got {came}")
    return content


def read_config_file(path: Path, below: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The mapping in a YAML file, on top of that in the file that its key `base` names, if any.

    Args:
        below: the files whose base this is.
    Raises:
        ValueError: naming the file and what is wrong with it.
    """
    resolved = path.resolve()
    if resolved in below:
        chain = " -> ".join(str(file) for file in (*below, resolved))
        raise ValueError(f"`base` goes in a circle: {chain}")
    values = read_yaml_file(path)
    base = values.pop("base", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise ValueError(
            f"{path}: `base` expects the path of a YAML file, got {type(base).__name__} {base!r}"
        )
    return merge(read_config_file(path.parent / base, (*below, resolved)), values)


def merge(into: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Puts values into nested dicts; returns them."""
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = value
    return into


def dump_yaml(values: Any) -> str:
    """Plain values as YAML text, which `load_yaml` gives back."""
    return str(yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True))
