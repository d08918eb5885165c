"""Whatever is typed, or stands in a config: a script begins its work, or says in one line why not.

Each example calls a script's `main` in this process; what would load or compute is replaced.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from scripts_in_process import CONFIGURED, ROOT, SCRIPTS, answer, config_class, flags_of

from vidtwin_lab.runtime.config_help import describe_keys, walk_keys

AWKWARD = (
    *("", " ", "-1", "0", "-0.0", "1", "2", "3.5", "nan", ".nan", "inf", "-.inf", "1e400"),
    *("1e-400", "9" * 40, "-" + "9" * 400, "9" * 5000, "9223372036854775808", "1_000", "0x10"),
    *("0o7", "1:30", "٣", "１６", "²", "null", "~", "true", "no", "[]", "[1", "{}", "{a: 1}"),
    *("{1: 2}", "[[[1]]]", "'", '"', "\n", "a\nb", "a: b: c", "&a [*a]", "*a", "? [1]"),
    *("!!python/name:os.system", "!x y", "\udc80", "\x00", "\x1b[31m", "é", "\u202e", "\u2028"),
    *("a" * 50_000, "[" * 5000, "{a: " * 5000, "none", "auto", "all", "train", "README.md"),
    *("nowhere", "a/b", "%", "{}s", "\\", "--", "=", "#"),
)


def safe(text: str) -> bool:
    """Whether a path of this text lies in the folder of the test."""
    return not text.lstrip("'\"[{ ").startswith(("/", "~")) and ".." not in text


TEXTS = st.text(max_size=12).filter(safe)
NUMBERS = st.one_of(st.integers(), st.floats()).map(str)
VALUES = st.one_of(st.sampled_from(AWKWARD), TEXTS, NUMBERS)


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "VIDTWIN_TRACEBACK", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)


def check(name: str, arguments: list[str]) -> None:
    """That it is an answer: the work begins, or one line and exit code 2."""
    code, _, err = answer(name, arguments)
    if code == 2:
        assert err.startswith("error: "), err
        assert err.endswith("\n")
        lines = err.splitlines()
        # reconstruct.py has a line for each video that can't be read.
        assert len(lines) == 1 or (name == "reconstruct" and len(lines) <= len(arguments)), err
        assert all(len(line) < 3000 and line.isprintable() for line in lines), err
    else:
        assert code in (None, 0), err
        assert not err


def keys_of(name: str) -> list[str]:
    return [key for key, *_ in walk_keys(config_class(SCRIPTS[name]))]


@pytest.mark.parametrize("name", SCRIPTS)
@given(data=st.data())
def test_flags(name: str, data: st.DataObject) -> None:
    flag = st.sampled_from([*flags_of(name), "--", "-", "-x", "--no-such", "--é"])
    glued = st.tuples(flag, VALUES).map("=".join)
    words = st.one_of(flag, VALUES, glued, st.tuples(flag, VALUES).map(list))
    drawn = data.draw(st.lists(words, max_size=5))
    arguments = [w for word in drawn for w in (word if isinstance(word, list) else [word])]
    check(name, arguments)


@pytest.mark.parametrize("name", CONFIGURED)
@given(data=st.data())
def test_overrides(name: str, data: st.DataObject) -> None:
    key = st.one_of(st.sampled_from(keys_of(name)), st.sampled_from(AWKWARD), TEXTS)
    overrides = data.draw(st.lists(st.tuples(key, VALUES).map("=".join), min_size=1, max_size=3))
    shipped = SCRIPTS[name].shipped
    check(name, [*(["--config", shipped] if shipped else []), "--", *overrides])


@pytest.mark.parametrize("name", CONFIGURED)
@given(data=st.data())
def test_values_in_a_config(name: str, data: st.DataObject, tmp_path: Path) -> None:
    leaf: Any = st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), TEXTS, st.sampled_from(AWKWARD),
        st.dates(), st.binary(max_size=3),
    )  # fmt: skip
    some = st.recursive(leaf, lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.one_of(TEXTS, st.integers()), inner,
                                                     max_size=2)), max_leaves=4)  # fmt: skip
    config: dict[str, Any] = {}
    for key in data.draw(st.lists(st.sampled_from([*keys_of(name), "base", "é"]), max_size=4)):
        section = config
        *parents, last = key.split(".")
        for parent in parents:
            section = section.setdefault(parent, {})
            if not isinstance(section, dict):
                break
        else:
            section[last] = data.draw(some)
    text = yaml.safe_dump(config, allow_unicode=True).encode(errors="surrogatepass")
    (tmp_path / "c.yaml").write_bytes(text)
    check(name, ["--config", "c.yaml"])


@pytest.mark.parametrize("name", [name for name in CONFIGURED if SCRIPTS[name].shipped])
@given(data=st.data())
def test_damaged_configs(name: str, data: st.DataObject, tmp_path: Path) -> None:
    content = (ROOT / "configs" / str(SCRIPTS[name].shipped)).read_bytes()
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content)))
        end = data.draw(st.integers(start, min(len(content), start + 20)))
        other = st.one_of(st.binary(max_size=4), st.sampled_from([b"", b"\n", b": ", b"  ", b"- "]))
        content = content[:start] + data.draw(other) + content[end:]
    if b"/" in content and (b": /" in content or b"~" in content or b".." in content):
        return  # might name a folder outside
    (tmp_path / "c.yaml").write_bytes(content)
    check(name, ["--config", "c.yaml"])


@given(content=st.one_of(st.binary(max_size=40), st.text(max_size=20).map(str.encode)))
def test_prompts_of_a_file(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_bytes(content)
    check("sample", ["--prompts-file", "prompts.txt"])


@pytest.mark.parametrize("name", CONFIGURED)
def test_every_key_says_what_it_is(name: str) -> None:
    told = describe_keys(config_class(SCRIPTS[name]))
    assert told == answer(name, ["--help-config"]).out
    assert not [key for key, _, _, about in walk_keys(config_class(SCRIPTS[name])) if not about]
