"""Each script on a pretend device: no mix-up of devices, the CPU's numbers, and few waits."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from script_runs import NEVER_EQUAL, records, run

sys.path.insert(0, str(Path(__file__).parents[1]))
from pretend_device import PretendDevice, pretend_accelerator

CHECK = "vidtwin_lab/runtime/training.py:ok"  # one for each optimizer that steps
TRAININGS: dict[str, tuple[tuple[str, ...], dict[str, int]]] = {
    "autoencoder": (
        (
            "train_ae", "--config", "configs/ae/shapes_debug.yaml", "loss.discriminator_start=0",
            "loss.lecam_weight=0.1", "branch_dropout.structure=0.3",
        ),
        {CHECK: 2},
    ),
    "diffusion": (
        ("train_diffusion", "--config", "configs/diffusion/clips_debug.yaml"),
        {CHECK: 1},
    ),
    "language": (
        ("train_language", "--config", "configs/language/shapes_bert_debug.yaml"),
        {CHECK: 1, "vidtwin_lab/language/objectives/masked_tokens.py:terms": 1},
    ),
}  # fmt: skip


def on_device(*words: object) -> PretendDevice:
    """Runs a script on the device; it must succeed."""
    with pytest.MonkeyPatch.context() as patch, pretend_accelerator(patch) as device:
        run(*map(str, words)).done()
    return device


def train(words: tuple[str, ...], output: Path, steps: int) -> tuple[Any, ...]:
    """The words of a run that logs, saves and validates after its last step only."""
    rare = [f"{name}=100" for name in ("validate_every", "save_every")]
    return (*words, f"output={output}", f"steps={steps}", "log_every=100", *rare)


@pytest.mark.parametrize("name", TRAININGS)
def test_a_training(name: str, tmp_path: Path) -> None:
    words, expected = TRAININGS[name]
    run(*train(words, tmp_path / "cpu", 3)).done()
    shorter = on_device(*train(words, tmp_path / "gpu", 3))
    for mine, other in zip(records(tmp_path / "gpu"), records(tmp_path / "cpu"), strict=True):
        mine, other = (
            {key: value for key, value in row.items() if key not in NEVER_EQUAL}
            for row in (mine, other)
        )
        assert mine == pytest.approx(other, rel=1e-3, abs=1e-4)
    # Runs of both lengths do the same before the first step and after the last.
    longer = on_device(*train(words, tmp_path / "longer", 4))
    step = longer.waits_by_function() - shorter.waits_by_function()
    assert step == Counter(expected), longer.waits_by_line()
