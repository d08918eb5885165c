"""The scripts' answers to a command line, given in this process and without doing the work."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from unittest import mock

from vidtwin_lab.doctor import command as doctor
from vidtwin_lab.runtime.command import run_main

ROOT = Path(__file__).resolve().parents[2]


class Reached(Exception):  # noqa: N818
    """A script accepted its arguments and begins to work."""


class Script(NamedTuple):
    """A script with a config or without.

    Args:
        words: its name, and what stands before its flags.
        works: attributes of its module that do the work, or load what does.
        config: module:class of its config, the module below vidtwin_lab, or in the script itself.
        shipped: a config that is fine.
    """

    words: tuple[str, ...]
    works: tuple[str, ...]
    config: str | None = None
    shipped: str | None = None


_MEASURES = "evaluation.measurement_configs"
_TASKS = "language.tasks.config"
SCRIPTS = {
    "train_ae": Script(("train_ae",), ("train",), "TrainConfig", "ae/shapes_debug.yaml"),
    "train_diffusion": Script(
        ("train_diffusion",), ("train", "describe"), "TrainConfig", "diffusion/shapes_debug.yaml"
    ),
    "train_language": Script(
        ("train_language",), ("train", "describe"), "TrainConfig", "language/shapes_bert_debug.yaml"
    ),
    "encode": Script(("encode",), ("encode_all",), "EncodeConfig", "encode/shapes_debug.yaml"),
    "shards": Script(("shards",), ("pack",), "ShardsConfig"),
    "evaluate reconstruction": Script(
        ("evaluate", "reconstruction"), ("measure",), f"{_MEASURES}:ReconstructionConfig",
        "evaluation/reconstruction_debug.yaml"),
    "evaluate generation": Script(
        ("evaluate", "generation"), ("measure",), f"{_MEASURES}:GenerationConfig",
        "evaluation/generation_debug.yaml"),
    "evaluate disentanglement": Script(
        ("evaluate", "disentanglement"), ("measure",),
        "evaluation.disentanglement.config:DisentanglementConfig",
        "evaluation/disentanglement_debug.yaml"),
    "evaluate adherence": Script(
        ("evaluate", "adherence"), ("measure",), f"{_MEASURES}:AdherenceConfig",
        "evaluation/adherence_debug.yaml"),
    "evaluate classifier": Script(
        ("evaluate", "classifier"), ("measure",), f"{_MEASURES}:ClassifierConfig"),
    "evaluate accuracy": Script(
        ("evaluate", "accuracy"), ("measure",), f"{_MEASURES}:AccuracyConfig"),
    "evaluate_language glue": Script(
        ("evaluate_language", "glue"), ("measure",), f"{_TASKS}:GlueConfig"),
    "evaluate_language squad": Script(
        ("evaluate_language", "squad"), ("measure",), f"{_TASKS}:SquadConfig"),
    "evaluate_language probe": Script(
        ("evaluate_language", "probe"), ("measure",), f"{_TASKS}:CaptionProbesConfig"),
    "sample": Script(("sample",), ("runtime.start_accelerator",)),
    "reconstruct": Script(("reconstruct",), ("build_reconstructor", "prepare_demo")),
    "doctor": Script(("doctor",), ("check_environment",)),
}  # fmt: skip
CONFIGURED = [name for name, script in SCRIPTS.items() if script.config]


class Answer(NamedTuple):
    """What a command line led to: an exit code, or None where the work would begin."""

    code: int | None
    out: str
    err: str


@cache
def module_of(name: str) -> ModuleType:
    """A script as a module, not run."""
    if name == "doctor":
        return doctor
    module_name = f"vidtwin_script_{name}"
    spec = importlib.util.spec_from_file_location(module_name, ROOT / f"{name}.py")
    assert spec is not None and spec.loader is not None
    sys.modules[module_name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def config_class(script: Script) -> type[Any]:
    """The config class of a script."""
    assert script.config is not None
    home, _, name = script.config.rpartition(":")
    module = importlib.import_module(f"vidtwin_lab.{home}") if home else module_of(script.words[0])
    found: type[Any] = getattr(module, name)
    return found


@cache
def flags_of(name: str) -> list[str]:
    """The flags that a script's --help lists."""
    return sorted({*re.findall(r"--[a-z][a-z-]+", answer(name, ["--help"]).out)} - {"--help"})


def answer(name: str, arguments: list[str]) -> Answer:
    """What a script says to these arguments; anything but an answer is raised."""
    return answer_of(SCRIPTS[name], arguments)


def answer_of(script: Script, arguments: list[str]) -> Answer:
    """The same of a script by its description."""
    name = script.words[0]
    module, words = module_of(name), [*script.words[1:], *arguments]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.ExitStack() as stack:
        for work in (*script.works, "runtime.configure_logging"):
            *path, last = work.split(".")
            owner = module
            for part in path:
                owner = getattr(owner, part)
            effect = None if last == "configure_logging" else Reached
            stack.enter_context(mock.patch.object(owner, last, side_effect=effect, create=True))
        stack.enter_context(mock.patch.object(sys, "argv", [f"{script.words[0]}.py", *words]))
        stack.enter_context(mock.patch("vidtwin.data.shards.scan.make_index", side_effect=Reached))
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        try:
            run_main((lambda: doctor.main(words)) if name == "doctor" else module.main)
        except SystemExit as end:
            return Answer(int(end.code or 0), out.getvalue(), err.getvalue())
        except Reached:
            return Answer(None, out.getvalue(), err.getvalue())
