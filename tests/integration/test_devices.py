"""Each script on a pretend device: no mix-up of devices, the CPU's numbers, and few waits."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from script_runs import NEVER_EQUAL, read_back, records, run

sys.path.insert(0, str(Path(__file__).parents[1]))
from pretend_device import PretendDevice, pretend_accelerator

BY_TEXT = (
    "train_diffusion", "--config", "configs/diffusion/clips_debug.yaml",
    "class_conditional=false", "sample_classes=[]", "text_encoder={models}/text",
)  # fmt: skip
CHECK = "vidtwin_lab/runtime/training.py:ok"  # one for each optimizer that steps
TRAININGS: dict[str, tuple[tuple[str, ...], dict[str, int]]] = {
    "autoencoder": (
        (
            "train_ae", "--config", "configs/ae/shapes_debug.yaml", "loss.discriminator_start=0",
            "loss.lecam_weight=0.1", "branch_dropout.structure=0.3",
        ),
        {CHECK: 2},
    ),
    "decoder alone, batches in two parts": (
        (
            "train_ae", "--config", "configs/ae/shapes_debug.yaml", "loss.discriminator_start=0",
            "freeze_encoder=true", "accumulation=2",
        ),
        {CHECK: 2},
    ),
    "diffusion": (
        ("train_diffusion", "--config", "configs/diffusion/clips_debug.yaml"),
        {CHECK: 1},
    ),
    "diffusion by text, batches in two parts": (
        (*BY_TEXT, "accumulation=2"),
        # Each part brings captions that are new and are read at once: transformers looks whether
        # any token is masked, and all states are copied.
        {
            CHECK: 1,
            "diffusion/text_encoder.py:_read": 2,
            "diffusion/cached_text_encoder.py:_read_together": 2,
        },
    ),
    "diffusion by text, from a cache": ((*BY_TEXT, "cache={models}/latents"), {CHECK: 1}),
    "language": (
        ("train_language", "--config", "configs/language/shapes_bert_debug.yaml"),
        {CHECK: 1, "vidtwin_lab/language/objectives/masked_tokens.py:terms": 1},
    ),
}  # fmt: skip


ENCODE = ("encode", "--config", "configs/encode/shapes_debug.yaml")


def on_device(*words: object) -> PretendDevice:
    """Runs a script on the device; it must succeed."""
    with pytest.MonkeyPatch.context() as patch, pretend_accelerator(patch) as device:
        run(*map(str, words)).done()
    return device


def train(words: tuple[str, ...], output: Path, steps: int) -> tuple[Any, ...]:
    """The words of a run that logs, saves and validates after its last step only."""
    rare = [f"{name}=100" for name in ("validate_every", "save_every")]
    return (*words, f"output={output}", f"steps={steps}", "log_every=100", *rare)


@pytest.fixture(scope="module")
def models(build_pipeline, tmp_path_factory) -> Path:
    """A folder with a text encoder, and with latents that the shipped autoencoder encoded."""
    folder, pipeline = tmp_path_factory.mktemp("models"), build_pipeline()
    pipeline.text_encoder.save_pretrained(folder / "text")
    pipeline.tokenizer.save_pretrained(folder / "text")
    run(*ENCODE, f"output={folder / 'latents'}").done()
    return folder


@pytest.mark.parametrize("name", TRAININGS)
def test_a_training(name: str, models: Path, tmp_path: Path) -> None:
    words, expected = TRAININGS[name]
    words = tuple(word.replace("{models}", str(models)) for word in words)
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


def test_encoding(models: Path, tmp_path: Path) -> None:
    device = on_device(*ENCODE, f"output={tmp_path}")
    for path in sorted((models / "latents").rglob("*.npy")):
        found = np.load(tmp_path / path.relative_to(models / "latents"))
        assert_allclose(found, np.load(path), rtol=2e-3, atol=2e-3)  # stored in float16
    # Means and log-variances of the three latents of a batch: 16 and 4 clips in batches of 4.
    waits = device.waits_by_function()
    assert sum(waits[name] for name in waits if "vidtwin/latents.py" in name) == 6 * 5, waits


@pytest.mark.parametrize("words", [(), ("--swap",)], ids=["reconstruction", "swap"])
def test_reconstruction(words: tuple[str, ...], write_clips, tmp_path: Path) -> None:
    clips = write_clips(tmp_path / "clips", [8, 8], size=(64, 64))
    files = sorted(map(str, clips.glob("*.mp4")))
    command: tuple[str, ...] = ("reconstruct", "--model", "checkpoints/shapes/autoencoder")
    command += ("--lpips", "none")
    command += (files[0], *words, files[1]) if words else (*files,)
    run(*command, "--output", str(tmp_path / "cpu")).done()
    on_device(*command, "--output", str(tmp_path / "gpu"), "--device", "gpu")
    videos = sorted((tmp_path / "cpu").rglob("*.mp4"))
    assert videos
    for path in videos:
        found, expected = (
            read_back(folder / path.relative_to(tmp_path / "cpu"))[0].astype(float)
            for folder in (tmp_path / "gpu", tmp_path / "cpu")
        )
        # Levels of 255, after a lossy codec.
        assert abs(found - expected).max() <= 24
        assert abs(found - expected).mean() < 0.5


EVALUATIONS = {
    "reconstruction": ("codec.crfs=[30,40]", "data.max_clips=4"),
    "adherence": ("samples=2",),
    "generation": ("num_videos=4", "num_real=6", "bootstrap=0", "reencode=null"),
    "disentanglement": (
        "autoencoder=checkpoints/shapes/autoencoder", "samples=24", "pairs=6",
        "data.shapes.size=32",
    ),
}  # fmt: skip


def numbers(content: Any, path: str = "") -> dict[str, float]:
    """Every number in a report, by its place, but for what differs from run to run."""
    if isinstance(content, dict):
        parts = [(key, value) for key, value in content.items() if key not in ("seconds",)]
    elif isinstance(content, list):
        parts = [(str(index), value) for index, value in enumerate(content)]
    else:
        known = isinstance(content, (int, float)) and not isinstance(content, bool)
        return {path: float(content)} if known else {}
    return {k: v for key, part in parts for k, v in numbers(part, f"{path}/{key}").items()}


@pytest.mark.parametrize("name", EVALUATIONS)
def test_an_evaluation(name: str, tmp_path: Path) -> None:
    config = f"configs/evaluation/{name}_debug.yaml"
    words = ("evaluate", name, "--config", config, *EVALUATIONS[name])
    run(*words, f"output={tmp_path / 'cpu'}").done()
    on_device(*words, f"output={tmp_path / 'gpu'}")
    found, expected = (
        numbers(json.loads((tmp_path / place / f"{name}.json").read_text())["found"])
        for place in ("gpu", "cpu")
    )
    assert expected
    assert found == pytest.approx(expected, rel=0.02, abs=0.02)
