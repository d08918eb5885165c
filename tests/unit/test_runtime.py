"""runtime: strict configs, resumed equals uninterrupted, schedules, EMA, guard, trackers."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import pickle
import random
import re
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy
import pytest
import torch
import tqdm
from accelerate import Accelerator
from diffusers.optimization import SchedulerType
from torch import nn

from vidtwin_lab import runtime
from vidtwin_lab.runtime import (
    CheckpointFolder,
    ConfigError,
    EMAConfig,
    NonFiniteError,
    NonFiniteGuard,
    OptimizerConfig,
    RunFolder,
    build_ema,
    build_optimizer,
    build_trackers,
    checkpoints,
    clip_gradients,
    config_to_dict,
    configure_logging,
    ema_weights,
    learning_rate_schedule,
    load_config,
    parse_arguments,
    read_config,
    run_main,
    save_config,
    seed_step,
    set_learning_rate,
)
from vidtwin_lab.runtime.run_config import SCHEDULES
from vidtwin_lab.runtime.training import PIECE, move_towards

ROOT = Path(__file__).parents[2]
LOSS_CASE = ROOT.parent / "shared" / "parity" / "loss_case.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class InnerConfig:
    width: int = 8
    rate: float = 0.5

    RENAMED_KEYS: ClassVar[dict[str, str]] = {"sizes.width": "width"}

    def __post_init__(self) -> None:
        if self.width % 4:
            raise ValueError(f"`width` must be a multiple of 4, got {self.width}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OuterConfig:
    steps: int
    name: str = "run"
    learning_rate: float = 1e-4
    limit: float | None = None
    flag: bool = False
    kind: Literal["l1", "l2"] = "l1"
    start: Literal["random", "first"] | int = "random"
    patch: tuple[int, int, int] = (1, 4, 4)
    betas: tuple[float, float] | None = None
    names: tuple[str, ...] = ()
    inner: InnerConfig = InnerConfig(width=16)
    second: InnerConfig | None = None

    RENAMED_KEYS: ClassVar[dict[str, str]] = {"rate": "learning_rate", "size": "inner.width"}


def write(path: Path, text: str) -> Path:
    path.write_text(textwrap.dedent(text))
    return path


# Configuration


def test_config_reads_every_kind_of_field(tmp_path):
    file = write(
        tmp_path / "a.yaml",
        """
        steps: 3
        learning_rate: 1e-4
        limit: 2
        patch: [1, 2, 3]
        betas: [0, 9e-1]
        names: [a, b]
        inner: {rate: 1}
        second: {width: 12}
        """,
    )
    config = load_config(OuterConfig, file, ["flag=true", "kind=l2", "start=4", "names=[c]"])
    assert config == OuterConfig(
        steps=3,
        learning_rate=1e-4,
        limit=2.0,
        flag=True,
        kind="l2",
        start=4,
        patch=(1, 2, 3),
        betas=(0.0, 0.9),
        names=("c",),
        inner=InnerConfig(width=16, rate=1.0),  # width from the field's default
        second=InnerConfig(width=12),
    )
    assert type(config.limit) is float
    assert type(config.inner.rate) is float


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("name=007", "name", "007"),  # as typed, not as YAML's octal 7
        ("name=on", "name", "on"),
        ("name=1:30", "name", "1:30"),
        ("name='007'", "name", "007"),
        ("name=''", "name", ""),
        ("learning_rate=3e-5", "learning_rate", 3e-5),
        ("limit=1E-3", "limit", 1e-3),
        ("limit=null", "limit", None),
        ("second={width: 4}", "second", InnerConfig(width=4)),
        ("second.width=4", "second", InnerConfig(width=4)),
        ("second=null", "second", None),
        ("start=first", "start", "first"),
        ("betas=[0.5, 1e-1]", "betas", (0.5, 0.1)),
    ],
)
def test_config_override(override, key, value):
    config = load_config(OuterConfig, None, ["steps=1", override])
    assert getattr(config, key) == value


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stepps=3", "unknown key `stepps`; the nearest known key is `steps`"),
        ("inner.widht=4", "unknown key `inner.widht`; the nearest known key is `inner.width`"),
        ("width=4", "unknown key `width`; the nearest known key is `inner.width`"),
        ("zzz=4", "unknown key `zzz`; the nearest known key is `"),
        ("second.widht=4", "the nearest known key is `second.width`"),
        ("steps=2.5", "`steps` expects int, got float 2.5"),
        ("steps=true", "`steps` expects int, got bool True"),
        ("steps=1e5", "`steps` expects int, got float 100000.0; write a whole number without"),
        ("steps=1_000", "`steps` expects int, got str '1_000'; write 1000"),
        ("learning_rate=1_000", "`learning_rate` expects float, got str '1_000'; write 1000"),
        ("flag=on", "`flag` expects bool, got str 'on'; write true or false"),
        ("learning_rate=fast", "`learning_rate` expects float, got str 'fast'"),
        ("learning_rate=.nan", "`learning_rate` expects float, got float nan"),
        ("learning_rate=true", "`learning_rate` expects float, got bool True"),
        ("limit=fast", "`limit` expects float or null, got str 'fast'"),
        ("flag=1", "`flag` expects bool, got int 1"),
        ("name=null", "`name` expects str, got null"),
        ("kind=l3", "`kind` expects one of 'l1', 'l2', got str 'l3'"),
        ("start=last", "`start` expects one of 'random', 'first' or int, got str 'last'"),
        ("patch=[1, 2]", "`patch` expects 3 values ([int, int, int]), got 2: [1, 2]"),
        ("patch=[1, 2, x]", "`patch[2]` expects int, got str 'x'"),
        ("patch=1,2,3", "`patch` expects [int, int, int], got str '1,2,3'; write a list: [1,2,3]"),
        ("betas=[0, x]", "`betas[1]` expects float, got str 'x'"),
        ("names=a", "`names` expects [str, ...], got str 'a'; write a list: [a]"),
        ("inner=4", "`inner` expects a mapping, got int 4"),
        ("inner=null", "`inner` expects a mapping, got null"),
        ("second=4", "`second` expects a mapping or null, got int 4"),
        ("inner.width=5", "inner: `width` must be a multiple of 4, got 5"),
        ("steps", "override `steps` must read key=value"),
        ("=3", "override `=3` must read key=value"),
        ("inner..width=3", "must read key=value"),
        ("name=", "override `name=` has no value; write name=null or name=''"),
        ("name=[a", "override `name=[a` is not valid YAML"),
        ("size=4", "config: `size` is now `inner.width`"),
        ("rate=4", "config: `rate` is now `learning_rate`"),
        ("inner.sizes.width=4", "`inner.sizes.width` is now `inner.width`"),
        ("second={sizes: {width: 4}}", "`second.sizes.width` is now `second.width`"),
        ("inner.sizes=4", "unknown key `inner.sizes`"),
        ("inner={width: 4, width: 8}", "key `width` is given twice"),
    ],
)
def test_config_override_error(override, message):
    with pytest.raises(ConfigError) as caught:
        load_config(OuterConfig, None, ["steps=1", override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: run", "key `steps` (int) is required"),
        ("steps: 1\nname: 7", '`name` expects str, got int 7; put it in quotes: "7"'),
        ("steps: 1\ninner:\n  width: 4\n  width: 8", "key `width` is given twice, again in line 4"),
        ("steps: [", "is not a valid YAML"),
        ("- steps", "must hold a mapping of keys, got list ['steps']"),
        ("steps: 1\n3: 4", "unknown key `3`"),
        ("steps: 1\nbase: none.yaml", "none.yaml does not exist"),
        ("steps: 1\nbase: [a]", "`base` expects the path of a YAML file, got list ['a']"),
        ("steps: 1\nbase: a.yaml", "`base` goes in a circle"),
    ],
)
def test_config_file_error_names_the_file(tmp_path, text, message):
    file = tmp_path / "a.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(OuterConfig, file, [])
    assert message in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_config_file_missing_or_folder(tmp_path):
    with pytest.raises(ConfigError, match=r"no\.yaml does not exist"):
        load_config(OuterConfig, tmp_path / "no.yaml")
    with pytest.raises(ConfigError, match="is a folder"):
        load_config(OuterConfig, tmp_path)


def test_config_base_is_relative_to_its_file_and_merged_by_key(tmp_path):
    (tmp_path / "sub").mkdir()
    write(tmp_path / "root.yaml", "steps: 1\nname: root\ninner: {width: 4, rate: 0.1}\n")
    write(tmp_path / "sub" / "middle.yaml", "base: ../root.yaml\nname: middle\n")
    leaf = write(tmp_path / "leaf.yaml", "base: sub/middle.yaml\ninner: {rate: 0.2}\n")
    config = load_config(OuterConfig, leaf, ["steps=9"])
    assert config == OuterConfig(steps=9, name="middle", inner=InnerConfig(width=4, rate=0.2))


def test_saved_config_loads_equal(tmp_path):
    config = OuterConfig(
        steps=1,
        name="null",
        learning_rate=1.0000000000000002e-05,
        limit=math.inf,
        betas=(0.1, 1e-300),
        names=("on", "1", "é: #"),
        second=InnerConfig(rate=1 / 3),
    )
    save_config(config, tmp_path / "a.yaml")
    assert load_config(OuterConfig, tmp_path / "a.yaml") == config
    assert config_to_dict(config)["patch"] == [1, 4, 4]
    assert [file.name for file in tmp_path.iterdir()] == ["a.yaml"]


# Command line


def test_arguments_in_any_order():
    arguments = parse_arguments("train", ["a=1", "--config", "c.yaml", "b.c=-2", "--dry-run"])
    assert vars(arguments) == {
        "config": "c.yaml",
        "overrides": ["a=1", "b.c=-2"],
        "help_config": False,
        "dry_run": True,
        "overfit": None,
        "resume": None,
    }
    arguments = parse_arguments("train", ["--overfit", "4", "--resume", "runs/a"])
    assert (arguments.overfit, arguments.resume, arguments.overrides) == (4, "runs/a", [])


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["steps"], "expected key=value, got 'steps'"),
        (["--overfit", "0"], "--overfit must be at least 1, got 0"),
        (["--overfit", "x"], "--overfit expected a whole number, got 'x'"),
        (["--overfit", "9" * 30], "--overfit expected a number below 2**64"),
        (["--overfit"], "--overfit expected one argument"),
        (["--dryrun", "a=1"], "there is no flag --dryrun; the nearest is --dry-run"),
    ],
    ids=lambda value: " ".join(value)[:20],
)
def test_a_wrong_command_line_is_refused_in_one_line(argv, said, capsys):
    with pytest.raises(ValueError, match=f"^{re.escape(said)}[^\n]*$"):
        parse_arguments("train", argv)
    assert capsys.readouterr() == ("", "")


def test_keys_are_listed_with_the_values_of_the_config(tmp_path, capsys):
    (tmp_path / "a.yaml").write_text("steps: 7\ninner: {width: 12}\n")
    words = ["--help-config", "--config", str(tmp_path / "a.yaml"), "inner.rate=0.25"]
    with pytest.raises(SystemExit) as end:
        read_config(OuterConfig, parse_arguments("train", words))
    assert not end.value.code
    told = capsys.readouterr().out.splitlines()
    assert {"steps=7  (int)", "inner.width=12  (int)", "inner.rate=0.25  (float)"} <= {*told}


def test_a_mistake_is_told_where_it_stands(tmp_path):
    file = tmp_path / "a.yaml"
    for text, override, place in (
        ("steps: 1", "stepps=3", f"key=value on top of {file}"),
        ("stepps: 1", "steps=3", str(file)),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match=f"^{re.escape(place)}: unknown key `stepps`"):
            load_config(OuterConfig, file, [override])


def test_a_warning_about_data_is_told_once(monkeypatch, capsys):
    """Though each part of a data set is listed anew; other warnings come as often as they are."""
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    configure_logging()
    for name in ("vidtwin.data.labels", "vidtwin_lab.runtime"):
        for label in (1, 1, 2):
            logging.getLogger(name).warning("label %d", label)
    told = capsys.readouterr().err.splitlines()
    assert told == [
        "WARNING vidtwin.data.labels: label 1", "WARNING vidtwin.data.labels: label 2",
        "WARNING vidtwin_lab.runtime: label 1", "WARNING vidtwin_lab.runtime: label 1",
        "WARNING vidtwin_lab.runtime: label 2",
    ]  # fmt: skip


def test_messages_stand_on_lines_of_their_own(monkeypatch, capsys):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    configure_logging()

    def main() -> None:
        for _ in tqdm.tqdm(range(4), desc="bar"):
            logging.getLogger("vidtwin.data").warning("skipped")
            raise ValueError("no")

    with pytest.raises(SystemExit):
        run_main(main)
    lines = [line.strip() for line in re.split("[\r\n]", capsys.readouterr().err)]
    told = [line for line in lines if line]
    assert "WARNING vidtwin.data: skipped" in told
    assert told[-1] == "error: no"


def test_a_script_that_needs_a_config_names_some():
    starters = ("configs/ae/shapes_debug.yaml",)
    with pytest.raises(ValueError, match="--config FILE, with one of your own or configs/ae/sha"):
        parse_arguments("train", ["steps=1"], starters=starters)
    assert parse_arguments("train", ["--config", "c.yaml"], starters=starters).config == "c.yaml"
    assert parse_arguments("train", ["--help-config"], starters=starters).help_config


class ExpectedError(RuntimeError):
    pass


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (None, 0, ""),
        (ConfigError("unknown key\n  `a`"), 2, "error: unknown key `a`\n"),
        (
            FileNotFoundError(2, "No such file", "a.mp4"),
            2,
            "error: [Errno 2] No such file: 'a.mp4'\n",
        ),
        (NonFiniteError("nan"), 2, "error: nan\n"),
        (ExpectedError("too many"), 2, "error: too many\n"),
        (ValueError(), 2, "error: ValueError\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_run_main_exit_code_and_line(error, code, message, capsys, monkeypatch):
    monkeypatch.delenv("VIDTWIN_TRACEBACK", raising=False)
    monkeypatch.delenv("RANK", raising=False)

    def main() -> None:
        if error is not None:
            raise error

    with pytest.raises(SystemExit) as caught:
        run_main(main, ExpectedError)
    assert caught.value.code == code
    assert capsys.readouterr().err == message


def test_run_main_keeps_the_traceback_of_bugs_and_on_request(capsys, monkeypatch):
    def bug() -> None:
        raise KeyError("bug")

    def mistake() -> None:
        raise ValueError("mistake")

    with pytest.raises(KeyError):
        run_main(bug)
    monkeypatch.setenv("VIDTWIN_TRACEBACK", "1")
    with pytest.raises(SystemExit):
        run_main(mistake)
    assert "Traceback" in capsys.readouterr().err


def test_run_main_refuses_one_process_where_accelerate_was_asked_for_several(capsys, monkeypatch):
    for name in ("WORLD_SIZE", "LOCAL_RANK", "PMI_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    with pytest.raises(SystemExit) as caught:
        run_main(lambda: 0)
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "error: accelerate launch was asked for several processes and started one" in line
    assert "torchrun --nproc_per_node N" in line


# Seeds, optimizer, schedule


def draw() -> tuple[float, float, float]:
    return random.random(), float(numpy.random.rand()), float(torch.rand(()))


def test_seed_step_depends_on_all_three_numbers_and_nothing_else():
    seed_step(1, 2, 3)
    first = draw()
    draw()
    seed_step(1, 2, 3)
    assert draw() == first
    for other in ((0, 2, 3), (1, 0, 3), (1, 2, 0), (3, 2, 1)):
        seed_step(*other)
        assert not set(draw()) & set(first)
    with pytest.raises(ValueError, match="must be >= 0, got -1, 0, 0"):
        seed_step(-1, 0, 0)


def rates(config: OptimizerConfig, total_steps: int, count: int) -> list[float]:
    schedule = learning_rate_schedule(config, total_steps)
    return [schedule(step) for step in range(count)]


def test_warmup_cosine_laws():
    config = OptimizerConfig(learning_rate=2.0, warmup_steps=4, warmup_start=1.0)
    values = rates(config, 12, 20)
    assert values[:5] == pytest.approx([1.0, 1.25, 1.5, 1.75, 2.0], rel=1e-12)
    assert values[8] == pytest.approx(1.0, rel=1e-12)  # half way down
    assert values[4:13] == sorted(values[4:13], reverse=True)
    assert values[12:] == [0.0] * 8
    no_warmup = rates(OptimizerConfig(learning_rate=2.0, warmup_steps=0), 4, 5)
    assert no_warmup == pytest.approx([2.0, 1 + 0.5**0.5, 1.0, 1 - 0.5**0.5, 0.0], rel=1e-12)


@pytest.mark.parametrize(
    "schedule",
    ["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"],
)
def test_diffusers_schedules_stay_where_they_end(schedule):
    config = OptimizerConfig(learning_rate=1e-2, schedule=schedule, warmup_steps=2)
    values = rates(config, 8, 20)
    assert values[8:] == [values[8]] * 12
    assert max(values) == pytest.approx(1e-2)
    assert values[0] == (1e-2 if schedule == "constant" else 0.0)


@pytest.mark.skipif(not LOSS_CASE.exists(), reason="the shared parity fixtures are not here")
@pytest.mark.parametrize(
    ("name", "peak", "start"), [("generator", 3e-5, 0.0), ("discriminator", 1.5e-5, 1e-5)]
)
def test_warmup_cosine_equals_the_released_schedule(name, peak, start):
    case = json.loads(LOSS_CASE.read_text())
    total = case["lr_schedule_total_steps"]
    config = OptimizerConfig(learning_rate=peak, warmup_steps=5000, warmup_start=start)
    schedule = learning_rate_schedule(config, total)
    for step, expected in case["lr_schedule"][name].items():
        assert schedule(int(step)) == pytest.approx(expected, rel=1e-12, abs=0.0), step


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"learning_rate": 0.0}, "`learning_rate` must be > 0, got 0.0"),
        ({"betas": (0.9, 1.0)}, "`betas` must be in [0, 1), got (0.9, 1.0)"),
        ({"weight_decay": -1.0}, "`weight_decay` must be >= 0, got -1.0"),
        ({"epsilon": 0.0}, "`epsilon` must be > 0"),
        ({"warmup_steps": -1}, "`warmup_steps` must be >= 0, got -1"),
        ({"max_grad_norm": 0.0}, "`max_grad_norm` must be > 0 or null (no clipping), got 0.0"),
        ({"name": "adam"}, "`name` must be one of adamw, muon, adamw_8bit; got 'adam'"),
        ({"name": "adamw_8bit", "fused": True}, "`fused` is not for name=adamw_8bit"),
        ({"schedule": "cosin"}, "`schedule` must be one of warmup_cosine, linear, cosine"),
        ({"schedule": "piecewise_constant"}, "`schedule` must be one of"),
        ({"schedule": "linear", "warmup_start": 1e-5}, "set warmup_start=0"),
    ],
)
def test_optimizer_config_error(wrong, message):
    with pytest.raises(ValueError, match=r"`") as caught:
        OptimizerConfig(**wrong)
    assert message in str(caught.value)


def test_schedules_are_ours_and_those_of_diffusers_that_need_no_table():
    theirs = {kind.value for kind in SchedulerType} - {"piecewise_constant"}
    assert set(SCHEDULES) == {"warmup_cosine"} | theirs


def test_a_warmup_that_is_not_set_is_a_twentieth_of_the_run():
    config, same = (OptimizerConfig(learning_rate=2.0, warmup_steps=each) for each in (None, 3))
    assert rates(config, 60, 60) == rates(same, 60, 60)
    assert rates(config, 4, 4)[0] == 2.0  # too short for one


def test_warmup_longer_than_the_run_is_an_error():
    config = OptimizerConfig(warmup_steps=10)
    with pytest.raises(
        ValueError, match=r"`optimizer\.warmup_steps` .* the run's 10 steps, got 10;"
    ):
        learning_rate_schedule(config, 10)
    with pytest.raises(ValueError, match=r"set other\.warmup_steps=0, or null"):
        learning_rate_schedule(config, 10, "other")
    with pytest.raises(ValueError, match="`total_steps` must be >= 1, got 0"):
        learning_rate_schedule(config, 0)
    with pytest.raises(ValueError, match="no parameter to train"):
        build_optimizer(nn.Linear(1, 1).requires_grad_(False), config)


# EMA and guard


@pytest.mark.parametrize("share", [0.5, 0.002, 1e-4])
def test_an_average_by_pieces_is_that_of_whole_tensors_to_the_bit(share):
    generator = torch.Generator().manual_seed(0)
    shapes = [(3,), (), (PIECE + 5,), (300, 500), (0,)]
    averages = [torch.randn(shape, generator=generator) for shape in shapes]
    weights = [torch.randn(shape, generator=generator) for shape in shapes]
    averages.append(torch.randn(40, 30, generator=generator).t())  # not contiguous
    weights.append(torch.randn(30, 40, generator=generator))
    steps = torch._foreach_mul(torch._foreach_sub(averages, weights), share)
    expected = torch._foreach_sub(averages, steps)
    kept = [weight.clone() for weight in weights]
    move_towards(averages, weights, share)
    assert all(map(torch.equal, averages, expected)) and all(map(torch.equal, weights, kept))


def test_ema_follows_its_recurrence_and_weights_come_back():
    model = nn.Linear(2, 2)
    ema = build_ema(model, EMAConfig(decay=0.5))
    assert ema is not None
    expected = model.weight.detach().clone()
    for step in range(1, 5):
        with torch.no_grad():
            model.weight.add_(step)
        ema.step(model.parameters())
        decay = 0.0 if step == 1 else min(0.5, step / (9 + step))
        expected = decay * expected + (1 - decay) * model.weight.detach()
    own = model.weight.detach().clone()
    with ema_weights(ema, model):
        torch.testing.assert_close(model.weight.detach(), expected)
    assert torch.equal(model.weight, own)
    with pytest.raises(KeyError), ema_weights(ema, model):
        raise KeyError
    assert torch.equal(model.weight, own)


def test_ema_disabled_and_wrong():
    model = nn.Linear(2, 2)
    assert build_ema(model, EMAConfig(enabled=False)) is None
    with ema_weights(None, model):
        pass
    with pytest.raises(ValueError, match=r"`decay` must be in \[0, 1\], got 1\.5"):
        EMAConfig(decay=1.5)
    other = build_ema(nn.Linear(3, 3), EMAConfig())
    ema = build_ema(model, EMAConfig())
    assert ema is not None
    assert other is not None
    with pytest.raises(ValueError, match="EMA weights of another model"):
        ema.load_state_dict(other.state_dict())


def test_guard_counts_and_stops():
    accelerator = Accelerator(cpu=True)
    guard = NonFiniteGuard(max_consecutive=3)
    nan = torch.tensor([0.0, math.nan])
    assert guard.ok(accelerator, torch.zeros(2), 1.0)
    assert not guard.ok(accelerator, torch.zeros(2), nan)
    assert not guard.ok(accelerator, math.inf)
    assert guard.ok(accelerator, torch.zeros(()))
    assert (guard.total, guard.consecutive) == (2, 0)
    guard.ok(accelerator, nan)
    copy = NonFiniteGuard(max_consecutive=3)
    copy.load_state_dict(guard.state_dict())
    copy.ok(accelerator, nan)
    with pytest.raises(NonFiniteError, match=r"3 steps in a row .* \(5 in all\); lower the"):
        copy.ok(accelerator, nan)


def test_guard_stops_a_run_that_skips_now_and_then():
    accelerator = Accelerator(cpu=True)
    whole, guard = (NonFiniteGuard(max_share=0.1) for _ in range(2))
    for step in range(1000):  # one in twenty
        for each in (whole, guard):
            each.ok(accelerator, math.nan if step % 20 == 0 else 1.0)
        state, guard = guard.state_dict(), NonFiniteGuard(max_share=0.1)  # killed at every step
        guard.load_state_dict(state)
    whole.check_whole_run(1000)
    with pytest.raises(NonFiniteError, match=r"^50 of the run's 400 steps .*; its weights are"):
        whole.check_whole_run(400)

    def go_on(guard: NonFiniteGuard) -> None:
        for step in range(100):  # one in two
            guard.ok(accelerator, math.nan if step % 2 else 1.0)

    for each in (whole, guard):
        with pytest.raises(NonFiniteError, match=r"^11 of the last 100 steps .* \(\d+ in all\)"):
            go_on(each)
    assert whole.total == guard.total


def test_guard_without_skips_is_saved_as_before():
    guard = NonFiniteGuard()
    guard.ok(Accelerator(cpu=True), 1.0)
    assert guard.state_dict() == {"total": 0, "consecutive": 0}


# Checkpoints


class Run:
    """A tiny training run whose whole state is in a checkpoint."""

    config = OptimizerConfig(learning_rate=1e-2, warmup_steps=3)

    def __init__(self, init: int) -> None:
        torch.manual_seed(init)
        self.accelerator = Accelerator(cpu=True)
        model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        optimizer = build_optimizer(model, self.config)
        self.schedule = learning_rate_schedule(self.config, 20)
        ema = build_ema(model, EMAConfig(decay=0.9))
        assert ema is not None
        self.ema = ema
        self.guard = NonFiniteGuard()
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.accelerator.register_for_checkpointing(self.ema, self.guard)

    def train(self, first: int, last: int, reseed: bool = True) -> None:
        for step in range(first, last):
            if reseed:
                seed_step(0, 0, step)
            set_learning_rate(self.optimizer, self.schedule(step))
            loss = self.model(torch.randn(5, 4)).square().mean()
            if step == 4:
                loss = loss * math.nan
            self.accelerator.backward(loss)
            norm = clip_gradients(self.model.parameters(), 1.0)
            if self.guard.ok(self.accelerator, loss, norm):
                self.optimizer.step()
                self.ema.step(self.model.parameters())
            self.optimizer.zero_grad()

    def state(self) -> list[Any]:
        moments = self.optimizer.state_dict()["state"].values()
        return [
            *self.model.state_dict().values(),
            *(value for state in moments for value in state.values()),
            *self.ema.shadow_params,
            torch.tensor(self.ema.optimization_step),
            torch.tensor(self.optimizer.param_groups[0]["lr"], dtype=torch.float64),
            torch.tensor(self.guard.total),
            torch.get_rng_state(),
            torch.from_numpy(numpy.random.get_state(legacy=False)["state"]["key"].copy()),
            torch.tensor(random.getstate()[1]),
        ]


@pytest.mark.parametrize("reseed", [True, False])
def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(tmp_path, reseed):
    folder = CheckpointFolder(tmp_path)
    whole = Run(init=0)
    whole.train(0, 6, reseed)
    folder.save(whole.accelerator, 6)
    whole.train(6, 12, reseed)
    expected = whole.state()

    resumed = Run(init=1)
    resumed.train(0, 2)  # what the load replaces
    assert folder.load(resumed.accelerator, tmp_path) == 6
    resumed.train(6, 12, reseed)
    for mine, theirs in zip(resumed.state(), expected, strict=True):
        assert torch.equal(mine, theirs)


def test_rotation_latest_and_saving_over_a_step(tmp_path):
    run = Run(init=0)
    folder = CheckpointFolder(tmp_path / "checkpoints", keep=2)
    assert folder.latest() is None
    for step in (1, 2, 10):
        assert folder.save(run.accelerator, step) == folder.latest()
    assert [path.name for path in folder.all()] == ["step_000000002", "step_000000010"]
    weights = folder.path / "step_000000010" / "model.safetensors"
    before = weights.read_bytes()
    with torch.no_grad():
        next(run.model.parameters()).add_(1)
    folder.save(run.accelerator, 10)
    assert weights.read_bytes() != before
    assert folder.load(run.accelerator, tmp_path) == 10
    assert sorted(os.listdir(folder.path)) == ["step_000000002", "step_000000010"]
    with pytest.raises(ValueError, match="`keep` must be >= 1, or null"):
        CheckpointFolder(tmp_path, keep=0)


def test_what_killed_saves_leave_is_ignored_and_cleaned(tmp_path, monkeypatch):
    run = Run(init=0)
    folder = CheckpointFolder(tmp_path)
    first = folder.save(run.accelerator, 1)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "publish_folder", killed)
    with pytest.raises(KeyboardInterrupt):
        folder.save(run.accelerator, 2)
    assert folder.latest() == first
    half = tmp_path / "step_000000009"  # not ours: a copy that was cut short
    half.mkdir()
    assert folder.latest() == first
    # Killed between the two renames of a save over step 1.
    first.rename(tmp_path / f".{first.name}.old")
    assert folder.load(run.accelerator, tmp_path) == 1
    folder.clean()
    assert sorted(os.listdir(tmp_path)) == ["step_000000001", "step_000000009"]


def test_load_names_what_is_wrong(tmp_path):
    run = Run(init=0)
    folder = CheckpointFolder(tmp_path / "checkpoints")
    with pytest.raises(ValueError, match="nothing does not exist"):
        folder.load(run.accelerator, tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"neither a checkpoint \(no progress.json\) nor a folder"):
        folder.load(run.accelerator, tmp_path)
    path = folder.save(run.accelerator, 1)
    other = Accelerator(cpu=True)
    other.prepare(nn.Linear(3, 3))
    with pytest.raises(ValueError, match=r"does not fit this run: .*Missing key"):
        folder.load(other, path)
    fewer = Accelerator(cpu=True)
    fewer.prepare(run.model)
    with pytest.raises(ValueError, match="does not match the number of registered objects"):
        folder.load(fewer, path)
    assert folder.latest() == path


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["MALICIOUS_FOLDER"],)


@pytest.mark.parametrize(
    "file", ["custom_checkpoint_0.pkl", "optimizer.bin", "random_states_0.pkl"]
)
def test_loading_runs_no_code_of_a_checkpoint(tmp_path, monkeypatch, file):
    target = tmp_path / "made"
    monkeypatch.setenv("MALICIOUS_FOLDER", str(target))
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    run = Run(init=0)
    folder = CheckpointFolder(tmp_path / "checkpoints")
    path = folder.save(run.accelerator, 1)
    torch.save({"state": Malicious()}, path / file)
    # Whoever writes a program into a checkpoint can leave the sums out.
    (path / "progress.json").write_text('{"step": 1, "num_processes": 1}')
    with pytest.raises((ValueError, pickle.UnpicklingError)):
        folder.load(run.accelerator, path)
    assert not target.exists()
    assert os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1"
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


# Run folder


def test_run_folder_keeps_one_config(tmp_path):
    folder = RunFolder(tmp_path / "runs" / "a")
    config = OuterConfig(steps=1)
    folder.claim(config)
    run = Run(init=0)
    saved = folder.checkpoints.save(run.accelerator, 1)
    assert load_config(OuterConfig, folder.config_path) == config
    assert load_config(OuterConfig, saved / "config.yaml") == config
    RunFolder(folder.path).claim(config)
    # A key that is newer than the run leaves it what it was at its default, and only there.
    older = "".join(
        line for line in folder.config_path.read_text().splitlines(True) if "flag" not in line
    )
    folder.config_path.write_text(older)
    RunFolder(folder.path).claim(config)
    folder.config_path.write_text(older)
    with pytest.raises(ConfigError, match="flag was False, now True"):
        RunFolder(folder.path).claim(dataclasses.replace(config, flag=True))
    changed = dataclasses.replace(config, steps=2, second=InnerConfig())
    with pytest.raises(ConfigError) as caught:
        RunFolder(folder.path).claim(changed)
    message = str(caught.value)
    assert "steps was 1, now 2" in message
    assert "second was None, now absent; second.rate was absent, now 0.5" in message
    with pytest.raises(ConfigError, match="another config: steps was 1, now 2; take"):
        RunFolder(folder.path).claim(changed, changeable=["second*"])
    RunFolder(folder.path).claim(changed, changeable=["second*", "steps"])
    assert load_config(OuterConfig, folder.config_path) == changed


def test_run_folder_that_cannot_be_written(tmp_path):
    file = tmp_path / "file"
    file.touch()
    for path in (file, file / "below"):
        with pytest.raises(ValueError, match=r"run folder .*file.* can't be written \("):
            RunFolder(path)


# Trackers


def video() -> numpy.ndarray:
    return numpy.random.default_rng(0).integers(0, 256, (5, 9, 7, 3), dtype=numpy.uint8)


def test_metrics_are_always_logged_and_trimmed_on_resume(tmp_path):
    accelerator = Accelerator(cpu=True)
    folder = RunFolder(tmp_path)
    config = OuterConfig(steps=1)
    trackers = build_trackers(accelerator, "none", "test", folder, config)
    for step in (1, 2, 3):
        trackers.log({"loss": torch.tensor(0.5), "norm": math.nan, "note": "x"}, step)
    trackers.finish()
    with folder.log.open("a") as file:
        file.write('{"step": 4, "lo')
    trackers = build_trackers(accelerator, "none", "test", folder, config, start_step=2)
    trackers.log({"loss": 1.0}, 3)
    trackers.finish()
    lines = [json.loads(line) for line in folder.log.read_text().splitlines()]
    first = {"loss": 0.5, "norm": "nan", "note": "x"}
    assert lines == [{"step": 1, **first}, {"step": 2, **first}, {"step": 3, "loss": 1.0}]


def test_log_video_writes_a_file_and_never_crashes(tmp_path, monkeypatch, caplog):
    accelerator = Accelerator(cpu=True)
    folder = RunFolder(tmp_path)
    trackers = build_trackers(accelerator, "none", "test", folder, OuterConfig(steps=1))
    path = trackers.log_video("validation/first one", video(), 7, 8.0)
    assert path is not None
    assert path == tmp_path / "videos" / "validation" / "first_one_000000007.gif"
    assert path.read_bytes()[:3] == b"GIF"
    with pytest.raises(ValueError, match=r"must be \(T, H, W, 3\) uint8, got \(5, 9, 7\)"):
        trackers.log_video("x", video()[..., 0], 7, 8.0)

    def broken(*_: object) -> None:
        raise ImportError("no such encoder")

    monkeypatch.setattr(trackers, "_show", broken)
    assert trackers.log_video("x", video(), 7, 8.0) is not None
    assert "can't show" in caplog.text
    assert "no such encoder" in caplog.text
    trackers.finish()

    def write_video(path: Path, frames: numpy.ndarray, fps: float) -> None:
        path.write_text(f"{frames.shape} {fps}")

    trackers = build_trackers(
        accelerator, "none", "test", folder, OuterConfig(steps=1), video_writer=write_video
    )
    path = trackers.log_video("x", video(), 8, 8.0)
    assert path is not None
    assert (path.name, path.read_text()) == ("x_000000008.mp4", "(5, 9, 7, 3) 8.0")
    trackers.finish()


def test_tensorboard_gets_scalars_frames_and_config(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is an extra")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accelerator = Accelerator(cpu=True)
    config = OuterConfig(steps=1)
    trackers = build_trackers(accelerator, "tensorboard", "ae", RunFolder(tmp_path), config)
    trackers.log({"train/loss": torch.tensor(0.25)}, 3)
    trackers.log_video("first", video(), 3, 8.0)
    trackers.finish()
    events = EventAccumulator(str(tmp_path / "tensorboard" / "ae"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(3, 0.25)]
    assert (events.Images("first")[0].width, events.Images("first")[0].height) == (35, 9)
    assert "config/text_summary" in events.Tags()["tensors"]


def test_tracker_errors_say_how_to_go_on(tmp_path, monkeypatch):
    accelerator = Accelerator(cpu=True)
    folder = RunFolder(tmp_path)
    config = OuterConfig(steps=1)
    with pytest.raises(ValueError, match="must be one of none, tensorboard, wandb; got 'wandbb'"):
        build_trackers(accelerator, "wandbb", "test", folder, config)
    wandb = pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(wandb, "login", lambda **_: False)
    with pytest.raises(ValueError, match=r"has no login here: .*WANDB_MODE=offline"):
        build_trackers(accelerator, "wandb", "test", folder, config)
    monkeypatch.setenv("WANDB_MODE", "disabled")

    def unreachable(**_: object) -> None:
        raise TimeoutError("timed out")

    monkeypatch.setattr(wandb, "init", unreachable)
    with pytest.raises(ValueError, match=r"did not start \(timed out\); set WANDB_MODE=offline"):
        build_trackers(accelerator, "wandb", "test", folder, config)


# Timing


def test_step_timer_and_progress_bar():
    timer = runtime.StepTimer()
    with timer.data():
        pass
    timer.step(6)
    report = timer.report()
    assert set(report) == {"samples_per_second", "data_wait", "memory_gib"}
    assert report["samples_per_second"] > 0
    assert 0 <= report["data_wait"] <= 1
    assert report["memory_gib"] > 0
    assert timer.report()["samples_per_second"] == 0
    bar = runtime.progress_bar(10, initial=4, disable=True)
    bar.update()
    bar.close()


# Two processes

_WORKER = """
    import os
    import sys
    import torch
    from accelerate import Accelerator
    from vidtwin_lab.runtime import *

    # The second process is a fork, made before torch has any thread: the imports take longest.
    child = os.fork()
    os.environ["RANK"] = os.environ["LOCAL_RANK"] = "0" if child else "1"
    accelerator = Accelerator(cpu=True)
    rank = accelerator.process_index
    assert accelerator.num_processes == 2
    config = OptimizerConfig(warmup_steps=2)
    model = torch.nn.Linear(3, 2)
    optimizer = build_optimizer(model, config)
    guard = NonFiniteGuard()
    model, optimizer = accelerator.prepare(model, optimizer)
    accelerator.register_for_checkpointing(guard)
    folder = RunFolder(sys.argv[1])
    folder.claim(config)
    seed_step(0, rank, 0)
    accelerator.backward(model(torch.randn(4, 3)).square().mean())
    assert guard.ok(accelerator, 0.0)
    assert not guard.ok(accelerator, float("nan") if rank == 1 else 0.0)
    optimizer.step()
    folder.checkpoints.save(accelerator, 1)
    expected = torch.rand(3)
    torch.nn.init.zeros_(model.module.weight)
    assert folder.checkpoints.load(accelerator, folder.path) == 1
    assert torch.equal(torch.rand(3), expected)
    assert model.module.weight.abs().sum() > 0
    trackers = build_trackers(accelerator, "none", "test", folder, config)
    trackers.log({"loss": 1.0}, 1)
    trackers.finish()
    if child:
        assert os.waitpid(child, 0)[1] == 0
"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_two_processes_save_one_checkpoint_that_one_process_loads(tmp_path, caplog):
    script = write(tmp_path / "worker.py", _WORKER)
    run_folder = tmp_path / "run"
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": "2",
    }
    finished = subprocess.run(
        [sys.executable, str(script), str(run_folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stderr
    assert len((run_folder / "metrics.jsonl").read_text().splitlines()) == 1
    accelerator = Accelerator(cpu=True)
    config = OptimizerConfig(warmup_steps=2)
    model = nn.Linear(3, 2)
    optimizer = build_optimizer(model, config)
    model, optimizer = accelerator.prepare(model, optimizer)
    accelerator.register_for_checkpointing(guard := NonFiniteGuard())
    assert RunFolder(run_folder).checkpoints.load(accelerator, run_folder) == 1
    assert guard.total == 1
    assert "was written by 2 processes and is loaded by 1" in caplog.text
