"""The judge: it learns what can be seen, says the same twice, and can be saved."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vidtwin.data import DataConfig, Factors, build_dataset
from vidtwin_lab.evaluation.classifier import (
    build_classifier,
    describe,
    judge_dataset,
    known_cross_entropy,
    measure,
    noisy,
    train_classifier,
)
from vidtwin_lab.evaluation.judges.classifier_judge import VideoClassifier, accuracies, confusion
from vidtwin_lab.evaluation.measurement_configs import ClassifierConfig
from vidtwin_lab.evaluation.report import Processes, write_report

# Neither in the order of the alphabet nor with names that a module may have.
FACTORS = Factors(
    content={"b.c d": ("x", "y"), "a": ("p", "q", "r", "s")},
    motion={"turn": ("left", "right", "none")},
)
CPU = torch.device("cpu")


@pytest.fixture
def config(sheets) -> ClassifierConfig:
    """Learns what is plain to see on the drawn sheets, in seconds."""
    data = DataConfig(source="sprites", path=str(sheets), num_frames=8, height=16, width=16)
    return ClassifierConfig(
        data=data,
        test_part="test",
        channels=(8, 16),
        hidden_size=32,
        steps=40,
        batch_size=16,
        learning_rate=1e-2,
    )


def tiny() -> VideoClassifier:
    data = DataConfig(num_frames=4, height=32, width=24)
    config = ClassifierConfig(data=data, channels=(8, 16), hidden_size=8)
    return build_classifier(config, FACTORS).eval()


def test_it_sees_what_characters_wear_that_it_never_saw(config):
    dataset, test = build_dataset(config.data), build_dataset(config.test_data)
    model = train_classifier(config, dataset, CPU)
    rows, skipped = judge_dataset(model, test, 16, Processes())
    found = accuracies(rows, model.factors)
    assert [row["index"] for row in rows] == list(range(len(test)))
    assert skipped == []
    for name in ("bottomwear", "topwear", "hair"):
        assert found[name]["value"] > 0.95, (name, found)
        assert found[name]["n"] == len(test)
    assert found["all"]["value"] <= min(share["value"] for share in found.values())


def test_two_trainings_are_one(config):
    short = replace(config, steps=3)
    dataset = build_dataset(short.data)
    torch.manual_seed(7)
    one = train_classifier(short, dataset, CPU).state_dict()
    state = torch.random.get_rng_state()
    torch.manual_seed(8)
    other = train_classifier(short, dataset, CPU).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    another = train_classifier(replace(short, seed=1), dataset, CPU).state_dict()
    assert any(not torch.equal(one[name], another[name]) for name in one)
    # What else is drawn in the process goes on as it would have.
    torch.manual_seed(7)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_saved_classifier_says_the_same(tmp_path):
    model = tiny()
    model.save_pretrained(tmp_path)
    loaded = VideoClassifier.from_pretrained(tmp_path)
    assert loaded.factors == FACTORS
    assert list(loaded.factors.all) == ["b.c d", "a", "turn"]
    video = torch.rand(2, 3, 4, 32, 24) * 2 - 1
    before, after = model.predict(video), loaded.predict(video)
    assert all(torch.equal(before[name], after[name]) for name in FACTORS.all)
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(OSError, match="safetensors"):
        VideoClassifier.from_pretrained(tmp_path)


def test_probabilities_of_a_video_do_not_depend_on_the_others():
    model = tiny().train()
    video = torch.rand(3, 3, 4, 32, 24) * 3 - 1.5
    together = model.predict(video)
    assert model.training, "the mode is given back"
    for name, names in FACTORS.all.items():
        assert together[name].shape == (3, len(names))
        assert torch.allclose(together[name].sum(1), torch.ones(3))
        alone = torch.cat([model.predict(one[None])[name] for one in video])
        assert torch.allclose(together[name], alone, atol=1e-6)
    clamped = model.predict(video.clamp(-1, 1))
    assert all(torch.equal(together[name], clamped[name]) for name in clamped)


def test_every_parameter_learns():
    model = tiny()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    logits = model(torch.rand(2, 3, 4, 32, 24))
    torch.stack([each.square().mean() for each in logits.values()]).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().max() > 0, name


def test_videos_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"trained on videos of \(3, T, H, W\) \(3, 4, 32, 24\)"):
        tiny().predict(torch.zeros(1, 3, 8, 32, 24))


def test_unknown_classes_teach_nothing():
    logits = torch.randn(4, 3, requires_grad=True)
    labels = torch.tensor([0, -1, 2, -1])
    alone = torch.nn.functional.cross_entropy(logits[[0, 2]], labels[[0, 2]])
    assert torch.allclose(known_cross_entropy(logits, labels), alone)
    known_cross_entropy(logits, torch.full((4,), -1)).backward()
    assert logits.grad is not None
    assert not logits.grad.any()


def test_the_noise_of_a_clip_is_its_own():
    video = torch.zeros(3, 3, 2, 8, 8)
    batch = noisy(video, [5, 6, 7], 0.5)
    assert torch.equal(batch[1:2], noisy(video[:1], [6], 0.5))
    strengths = batch.flatten(1).std(1)
    assert (strengths < 0.55).all()
    assert strengths.unique().numel() == 3
    assert noisy(video, [5, 6, 7], 0.0) is video


SHAPE_AND_TURN = Factors(content={"shape": ("x", "y")}, motion=FACTORS.motion)


def row(index: int, shape: int, turn: int, seen: tuple[int, int]) -> dict[str, Any]:
    probabilities = {
        name: np.eye(len(names))[place].tolist()
        for (name, names), place in zip(SHAPE_AND_TURN.all.items(), seen, strict=True)
    }
    labels = {"shape": shape, "turn": turn}
    return {"index": index, "path": "p", "labels": labels, "probabilities": probabilities}


def test_accuracy_counts_what_is_known():
    given = [(0, 0, (0, 0)), (1, 2, (0, 2)), (-1, 1, (0, 1)), (1, -1, (1, 0))]
    rows = [row(index, *each) for index, each in enumerate(given)]
    found = accuracies(rows, SHAPE_AND_TURN)
    assert {name: (share["value"], share["n"]) for name, share in found.items()} == {
        "shape": (pytest.approx(2 / 3), 3),
        "turn": (1.0, 3),
        "all": (0.5, 2),
    }
    assert confusion(rows, "shape", ("x", "y")).tolist() == [[1, 0], [1, 1]]


def test_what_a_training_would_be(config):
    plan = describe(config)
    assert plan["training_clips"] + plan["test_clips"] == 36 * 9
    assert plan["content"] == {"skin": 3, "bottomwear": 2, "topwear": 2, "hair": 3}
    assert plan["epochs"] == pytest.approx(40 * 16 / plan["training_clips"])


def test_the_report_has_what_it_depends_on(config, tmp_path):
    short = replace(config, steps=2, test_clips=18, output=str(tmp_path))
    report = measure(short, Processes())
    assert report.protocol["test"]["n"] == len(report.rows) == 18
    assert report.protocol["training"]["n"] + len(build_dataset(config.test_data)) == 36 * 9
    files = {path.name for path in write_report(report, tmp_path)}
    assert files == {f"classifier.{ending}" for ending in ("json", "csv", "md", "png")}
    loaded = VideoClassifier.from_pretrained(Path(tmp_path) / "classifier")
    assert list(loaded.factors.motion) == ["action", "direction"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"steps": 0}, "`steps` must be at least 1"),
        ({"noise": -1.0}, "`noise` must not be negative"),
        ({"learning_rate": 0.0}, "`learning_rate` must be above 0"),
        ({"dropout": 1.0}, "`dropout` must be in"),
        ({"test_part": "tests"}, "data.part must be one of"),
        ({"test_clips": 0}, "`test_clips` must be"),
    ],
)
def test_settings_that_can_t_be(options, expected):
    with pytest.raises(ValueError, match=expected):
        ClassifierConfig(**options)


def test_sizes_that_can_t_be():
    with pytest.raises(ValueError, match="multiples of 8"):
        VideoClassifier([("a", "xy")], [], 4, 32, 32, channels=[12])
    with pytest.raises(ValueError, match="at least one factor"):
        VideoClassifier([], [], 4, 32, 32)
    with pytest.raises(ValueError, match="16 x 16"):
        VideoClassifier([("a", "xy")], [], 4, 8, 32)
