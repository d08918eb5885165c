"""YAML means what version 1.2 says, whatever is written is read again, and bounds hold."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from vidtwin.yaml_files import YamlError, dump_yaml, load_yaml, read_config_file
from vidtwin_lab.evaluation.config import OWN_FEATURES, FeaturesConfig
from vidtwin_lab.runtime import ConfigError, load_config


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4), ("1E5", 1e5), (".5", 0.5), ("5.", 5.0), ("-1.5e+3", -1500.0),
        ("-.inf", -math.inf), ("+.Inf", math.inf), ("17", 17), ("017", 17), ("+1", 1),
        ("0o17", 15), ("0x1F", 31), ("true", True), ("False", False), ("~", None), ("", None),
        ("Null", None),
        # Numbers, booleans, dates and times of YAML 1.1.
        *((text, text) for text in (
            "on", "off", "yes", "no", "y", "On", "1_000", "0b11", "1:30", "190:20:30.15",
            "2024-01-01", "0o8", "0xg", "1e", "tRue", "=",
        )),
    ],
)  # fmt: skip
def test_core_schema(text: str, value: Any) -> None:
    found = load_yaml(text)
    assert found == value
    assert type(found) is type(value)


def test_not_a_number_and_merge_keys() -> None:
    assert math.isnan(load_yaml(".NaN"))
    assert load_yaml("<<: {a: 1}\nb: &x [2]\nc: *x") == {"<<": {"a": 1}, "b": [2], "c": [2]}


# PyYAML itself folds U+0085, a line break of old.
texts = st.text(st.characters(codec="utf-8", exclude_characters="\x85"), max_size=8)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts
    | st.sampled_from(["1e-4", "on", "017", "0o17", "1_000", "~", ".inf", "1:30", "2024-01-01"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(plain)
def test_what_is_written_is_read_by_this_and_by_yaml_1_1(value: Any) -> None:
    assert load_yaml(dump_yaml(value)) == value
    if isinstance(value, str):
        assert yaml.safe_load(dump_yaml(value)) == value


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused_in_a_line(text: str) -> None:
    refusal = ""
    try:
        load_yaml(text)
    except YamlError as error:
        refusal = str(error)
    assert "\n" not in refusal


def test_a_base_lies_below(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("base: b.yaml\nmodel: {width: 8}\n")
    (tmp_path / "b.yaml").write_text("model: {width: 4, height: 2}\nseed: 1\n")
    assert read_config_file(tmp_path / "a.yaml") == {"model": {"width": 8, "height": 2}, "seed": 1}


def test_what_runs_a_program_is_typed(tmp_path: Path) -> None:
    """In a file our own function alone; on the command line anything."""
    file = tmp_path / "a.yaml"
    file.write_text(f"name: {OWN_FEATURES}\n")
    assert load_config(FeaturesConfig, file).name == OWN_FEATURES
    typed = load_config(FeaturesConfig, file, ["name=mine:features", "run_program=true"])
    assert (typed.name, typed.run_program) == ("mine:features", True)
    file.write_text("name: mine:features\n")
    with pytest.raises(ConfigError, match=r"`name` of a config file may be i3d.*command line"):
        load_config(FeaturesConfig, file)
    file.write_text("run_program: true\n")
    with pytest.raises(ConfigError, match="`run_program` of a config file may be False"):
        load_config(FeaturesConfig, file)
