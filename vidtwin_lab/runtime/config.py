"""Strict configuration: frozen dataclasses from YAML files and `key=value` overrides."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from vidtwin.files import shipped_path, written_whole
from vidtwin.yaml_files import (
    YamlError,
    dump_yaml,
    load_yaml,
    merge,
    read_config_file,
    read_yaml_file,
)

ConfigType = TypeVar("ConfigType")

_ABSENT = object()

# A number in quotes is one where a float is expected.
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")

# Patterns of the last part of a key -> the largest value that can be meant; the first that fits
# counts. A size beyond it is a slip of the pen, and would take all memory before it is noticed.
LARGEST = {
    "num_workers": 2**12,
    "*batch_size": 2**20,
    "num_frames": 2**16,
    "height": 2**15,
    "width": 2**15,
    "*hidden_size": 2**17,
    "*intermediate_size": 2**19,
    "*embedding_size": 2**17,
    "*channels": 2**17,
    "*depth": 2**12,
    "*layers": 2**12,
    "*heads": 2**12,
    "num_queries": 2**16,
    "*": 2**63 - 1,
}
# Booleans of YAML 1.1.
_OLD_BOOLEANS = ("on", "off", "yes", "no", "y", "n")


class ConfigError(ValueError):
    """The user's configuration is wrong; the message says what was expected and what came."""


@dataclasses.dataclass(frozen=True)
class _Typed:
    """A value typed on the command line: a str field takes the text, not what YAML made of it."""

    text: str
    value: Any


def load_config(
    config_class: type[ConfigType],
    path: str | Path | None,
    overrides: Sequence[str] = (),
) -> ConfigType:
    """The configuration of a YAML file with overrides on top of it.

    Args:
        config_class: a frozen dataclass; its fields are int, float, bool, str, Literal, tuples,
            other such dataclasses, and unions of them with None. Its `RENAMED_KEYS`, if it has
            any, give the new name of each old key: {"shapes_size": "shapes.size"}.
        path: YAML file, or None for the defaults alone. Its key `base` names another file,
            relative to this one, whose values hold where this file gives none.
        overrides: `key=value` or `outer.inner=value`, the value in YAML; later ones win.
    Returns:
        ConfigType: an instance of `config_class`.
    Raises:
        ConfigError: unknown, missing, duplicated or ill-typed key, or a value the class refuses.
    """
    try:
        values = {} if path is None else read_config_file(shipped_path(path))
    except ValueError as error:
        raise ConfigError(str(error)) from None
    for override in overrides:
        merge(values, _parse_override(override, _known_keys(config_class)))
    try:
        return _build(config_class, values, "", None, _known_keys(config_class))
    except ConfigError as error:
        raise ConfigError(f"{_blamed(config_class, path, overrides)}: {error}") from None


def _blamed(config_class: type, path: str | Path | None, overrides: Sequence[str]) -> str:
    """Where a mistake in a config stands: in its file, or in what was typed on top of it."""
    if path is None or not overrides:
        return "config" if path is None else str(path)
    try:
        load_config(config_class, path)
    except ConfigError:
        return str(path)
    return f"key=value on top of {path}"


def config_to_dict(config: Any) -> dict[str, Any]:
    """The configuration as nested dicts of plain YAML values; tuples become lists."""
    if _sections(type(config)):
        return config.to_dict()
    return {
        field.name: _plain(getattr(config, field.name))
        for field in dataclasses.fields(config)
        if field.init
    }


def format_config(config: Any) -> str:
    """The configuration as YAML text, in the order of its fields."""
    return dump_yaml(config_to_dict(config))


def save_config(config: Any, path: str | Path) -> None:
    """Write the configuration as YAML; `load_config` gives an equal one back."""
    with written_whole(path) as partial:
        partial.write_text(format_config(config), encoding="utf-8")


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in one YAML file, without following its `base`.

    Raises:
        ConfigError: not YAML, not a mapping, or a key given twice.
    """
    try:
        return read_yaml_file(Path(path))
    except ValueError as error:
        raise ConfigError(str(error)) from None


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one dict with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return config_to_dict(value)
    if isinstance(value, tuple):
        return [_plain(element) for element in value]
    return value


def _parse_override(override: str, known: Sequence[str]) -> dict[str, Any]:
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key or not all(key.split(".")):
        raise ConfigError(f"override `{override}` must read key=value, such as {known[0]}=...")
    if not text.strip():
        raise ConfigError(f"override `{key}=` has no value; write {key}=null or {key}=''")
    try:
        value = load_yaml(text)
    except YamlError as error:
        raise ConfigError(f"override `{override[:80]}` is not valid YAML: {error}") from None
    nested: Any = value if isinstance(value, dict) else _Typed(text.strip(), value)
    for part in reversed(key.split(".")):
        nested = {part: nested}
    return nested


def _sections(config_class: type) -> Mapping[str, type]:
    """Key -> config class of what such a class holds in its field `sections`.

    A class whose sections are registered elsewhere has a static method `section_types`, and
    `to_dict` to write itself; `DataConfig` of vidtwin.data is one.
    """
    types: Mapping[str, type] = getattr(config_class, "section_types", dict)()
    return types


def _fields(config_class: type) -> list[dataclasses.Field[Any]]:
    """The fields that are keys of a YAML file."""
    hidden = {"sections"} if _sections(config_class) else set()
    fields = dataclasses.fields(config_class)
    return [field for field in fields if field.init and field.name not in hidden]


def _known_keys(config_class: type) -> list[str]:
    return list(_walk_keys(config_class, ""))


def _walk_keys(config_class: type, prefix: str) -> Iterator[str]:
    hints = typing.get_type_hints(config_class)
    for field in _fields(config_class):
        yield f"{prefix}{field.name}"
        for member in (hints[field.name], *typing.get_args(hints[field.name])):
            if dataclasses.is_dataclass(member) and isinstance(member, type):
                yield from _walk_keys(member, f"{prefix}{field.name}.")
    for name, section in _sections(config_class).items():
        yield f"{prefix}{name}"
        yield from _walk_keys(section, f"{prefix}{name}.")


def _nearest(key: str, prefix: str, known: Sequence[str]) -> str:
    leaf = key.rpartition(".")[2]
    siblings = [name for name in known if name.rpartition(".")[0] == prefix.rstrip(".")]
    close = difflib.get_close_matches(f"{prefix}{key}", siblings, n=1, cutoff=0.75)
    if close:
        return close[0]
    for name in known:  # the right name in the wrong place
        if name.rpartition(".")[2] == leaf:
            return name
    return difflib.get_close_matches(f"{prefix}{key}", known, n=1, cutoff=0.0)[0]


def _build(
    config_class: type[ConfigType],
    values: Mapping[Any, Any],
    prefix: str,
    default: Any,
    known: Sequence[str],
) -> ConfigType:
    """One dataclass from its mapping; keys left out come from the field that holds it."""
    assert dataclasses.is_dataclass(config_class), config_class
    _refuse_renamed(config_class, values, prefix)
    hints = typing.get_type_hints(config_class)
    fields = {field.name: field for field in _fields(config_class)}
    sections = _sections(config_class)
    for key in values:
        if key not in fields and key not in sections:
            nearest = _nearest(str(key), prefix, known)
            raise ConfigError(f"unknown key `{prefix}{key}`; the nearest known key is `{nearest}`")
    arguments: dict[str, Any] = {}
    for name, field in fields.items():
        if default is not None:
            inherited = getattr(default, name)
        elif field.default is not dataclasses.MISSING:
            inherited = field.default
        elif field.default_factory is not dataclasses.MISSING:
            inherited = field.default_factory()
        else:
            inherited = dataclasses.MISSING
        if name in values:
            _refuse_from_file(config_class, name, values[name], prefix)
            arguments[name] = _convert(
                hints[name], values[name], f"{prefix}{name}", inherited, known
            )
        elif inherited is not dataclasses.MISSING:
            arguments[name] = inherited
        else:
            raise ConfigError(f"key `{prefix}{name}` ({_type_name(hints[name])}) is required")
    if sections:
        arguments["sections"] = dict(getattr(default, "sections", {}))
    for name in sections.keys() & values.keys():
        inherited = arguments["sections"].get(name)
        arguments["sections"][name] = _convert(
            sections[name], values[name], f"{prefix}{name}", inherited, known
        )
    try:
        return config_class(**arguments)
    except ValueError as error:
        where = f"{prefix[:-1]}: " if prefix else ""
        raise ConfigError(f"{where}{error}") from error


def _refuse_renamed(config_class: type, values: Mapping[Any, Any], prefix: str) -> None:
    """Raises for a key of `RENAMED_KEYS`, {"old.key": "new.key"}, of the class or its bases."""
    for base in config_class.__mro__:
        for old, new in vars(base).get("RENAMED_KEYS", {}).items():
            found: Any = values
            for part in old.split("."):
                found = found.get(part, _ABSENT) if isinstance(found, Mapping) else _ABSENT
            if found is not _ABSENT:
                raise ConfigError(f"`{prefix}{old}` is now `{prefix}{new}`")


def _refuse_from_file(config_class: type, name: str, value: Any, prefix: str) -> None:
    """Raises for a value that may only be typed: `FILE_VALUES` of the class says which a file may
    give, {"key": (value, ...)}. Whoever shares a config must not choose what code runs."""
    allowed = getattr(config_class, "FILE_VALUES", {}).get(name)
    if allowed is not None and not isinstance(value, _Typed) and value not in allowed:
        raise ConfigError(
            f"`{prefix}{name}` of a config file may be {', '.join(map(str, allowed))}, got "
            f"{_describe(value)}: what runs a program is taken from the command line alone, "
            f"{prefix}{name}=..."
        )


def _convert(kind: Any, value: Any, key: str, default: Any, known: Sequence[str]) -> Any:
    """The value as the type says, or a ConfigError naming the key."""
    origin = typing.get_origin(kind)
    if origin in (Union, types.UnionType):
        return _convert_union(kind, value, key, default, known)
    plain = value.value if isinstance(value, _Typed) else value
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if isinstance(plain, Mapping):
            inherited = default if isinstance(default, kind) else None
            return _build(kind, plain, f"{key}.", inherited, known)
    elif origin is Literal:
        for choice in typing.get_args(kind):
            for candidate in _readings(value):
                if type(candidate) is type(choice) and candidate == choice:
                    return choice
    elif origin is tuple:
        if isinstance(plain, (list, tuple)):
            return _convert_tuple(kind, plain, key, known)
    elif kind is float:
        number = _as_float(plain)
        if number is not None:
            return number
    elif kind is str:
        for candidate in _readings(value):
            if isinstance(candidate, str):
                return candidate
    elif kind in (int, bool, types.NoneType):
        if type(plain) is kind:
            _check_size(key, plain)
            return plain
    else:
        raise TypeError(f"config field `{key}` has a type that configs do not support: {kind}")
    raise _type_error(kind, value, key)


def _check_size(key: str, value: Any) -> None:
    if type(value) is int:
        leaf = key.rpartition(".")[2].partition("[")[0]
        most = next(most for name, most in LARGEST.items() if fnmatch.fnmatchcase(leaf, name))
        if abs(value) > most:
            raise ConfigError(f"`{key}` must be at most {most:,}, got {value:,}")


def _convert_union(kind: Any, value: Any, key: str, default: Any, known: Sequence[str]) -> Any:
    members = typing.get_args(kind)
    plain = value.value if isinstance(value, _Typed) else value
    for member in members:  # exactly this type first, so that int | float keeps an int
        if type(plain) is member:
            _check_size(key, plain)
            return plain
    concrete = [member for member in members if member is not types.NoneType]
    nested = [member for member in concrete if dataclasses.is_dataclass(member)]
    if nested and isinstance(plain, Mapping):
        return _convert(nested[0], value, key, default, known)
    for member in concrete:
        if dataclasses.is_dataclass(member):
            continue
        try:
            return _convert(member, value, key, default, known)
        except ConfigError:
            if len(concrete) == 1 and isinstance(plain, (list, tuple)):
                raise  # says which element is wrong
    raise _type_error(kind, value, key)


def _convert_tuple(kind: Any, values: Sequence[Any], key: str, known: Sequence[str]) -> Any:
    elements = typing.get_args(kind)
    if len(elements) == 2 and elements[1] is Ellipsis:
        elements = (elements[0],) * len(values)
    if len(elements) != len(values):
        raise ConfigError(
            f"`{key}` expects {len(elements)} values ({_type_name(kind)}), "
            f"got {len(values)}: {list(values)!r}"
        )
    return tuple(
        _convert(element, value, f"{key}[{index}]", None, known)
        for index, (element, value) in enumerate(zip(elements, values, strict=True))
    )


def _readings(value: Any) -> tuple[Any, ...]:
    """What the value may mean: from the command line also the text as it was typed."""
    if not isinstance(value, _Typed):
        return (value,)
    return (value.value, value.text) if value.value is not None else (None,)


def _as_float(value: Any) -> float | None:
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        return float(value)
    if type(value) in (int, float) and not math.isnan(value):
        return float(value)
    return None


def _type_name(kind: Any) -> str:
    origin = typing.get_origin(kind)
    arguments = typing.get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(_type_name(member) for member in arguments)
    if origin is Literal:
        return "one of " + ", ".join(repr(choice) for choice in arguments)
    if origin is tuple:
        names = ("..." if element is Ellipsis else _type_name(element) for element in arguments)
        return f"[{', '.join(names)}]"
    if kind is types.NoneType:
        return "null"
    if dataclasses.is_dataclass(kind):
        return "a mapping"
    return getattr(kind, "__name__", str(kind))


def _type_error(kind: Any, value: Any, key: str) -> ConfigError:
    plain = value.value if isinstance(value, _Typed) else value
    hint = ""
    members = typing.get_args(kind) or (kind,)
    if str in members and type(plain) in (int, float, bool):
        hint = f'; put it in quotes: "{plain}"'
    elif int in members and type(plain) is float and plain.is_integer():
        hint = "; write a whole number without an exponent"
    elif (
        {int, float} & {*members}
        and isinstance(plain, str)
        and _NUMBER.fullmatch(plain.replace("_", ""))
    ):
        hint = f"; write {plain.replace('_', '')}"
    elif bool in members and isinstance(plain, str) and plain.lower() in _OLD_BOOLEANS:
        hint = "; write true or false"
    elif typing.get_origin(kind) is tuple and isinstance(plain, str):
        hint = f"; write a list: [{plain}]"
    return ConfigError(f"`{key}` expects {_type_name(kind)}, got {_describe(plain)}{hint}")


def _describe(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, Mapping):
        return f"a mapping with keys {', '.join(map(str, value))}"
    return f"{type(value).__name__} {value!r}"
