"""The measures of the Sprites literature as laws, and what each kind of video is to show."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vidtwin import VidTwinAutoencoder, load_autoencoder
from vidtwin.data import DataConfig, build_dataset, factor_labels
from vidtwin_lab.evaluation.accuracy import describe, joint_class, joint_probabilities, measure
from vidtwin_lab.evaluation.accuracy_measures import (
    balanced_places,
    inter_entropy,
    intra_entropy,
    sprites_measures,
)
from vidtwin_lab.evaluation.accuracy_videos import ModelVideos, asked_labels, given_labels
from vidtwin_lab.evaluation.classifier import build_classifier
from vidtwin_lab.evaluation.generated_videos import build_real
from vidtwin_lab.evaluation.judges.classifier_judge import load_classifier
from vidtwin_lab.evaluation.measurement_configs import AccuracyConfig, ClassifierConfig
from vidtwin_lab.evaluation.report import Processes, rounded, write_report
from vidtwin_lab.evaluation.videos import Video


def random_table(rows: int = 40, classes: int = 9) -> np.ndarray:
    return np.random.default_rng(0).dirichlet(np.full(classes, 0.3), rows)


def test_certain_and_varied_is_best():
    best = sprites_measures(np.eye(9)[np.arange(45) % 9], (np.arange(45) % 9).tolist())
    assert best["accuracy"] == 1
    assert best["inter_entropy"] == pytest.approx(math.log(9))
    assert best["intra_entropy"] == 0
    assert best["inception_score"] == pytest.approx(9)
    assert best["inter_entropy"] == pytest.approx(best["largest_inter_entropy"])
    assert best["inception_score"] == pytest.approx(best["largest_inception_score"])


def test_knowing_nothing_is_varied_but_uncertain():
    found = sprites_measures(np.full((20, 4), 0.25), [0, 1, 2, 3] * 5)
    assert found["inter_entropy"] == pytest.approx(math.log(4))
    assert found["intra_entropy"] == pytest.approx(math.log(4))
    assert found["inception_score"] == pytest.approx(1)


def test_always_the_same_is_certain_but_not_varied():
    found = sprites_measures(np.eye(4)[np.zeros(20, int)], [0, 1, 2, 3] * 5)
    assert (found["inter_entropy"], found["intra_entropy"]) == (0, 0)
    assert found["inception_score"] == pytest.approx(1)
    assert found["accuracy"] == 0.25


def test_the_score_is_the_mean_divergence_from_the_mean():
    table = random_table()
    mean = table.mean(0)
    divergences = [
        sum(p * (math.log(p) - math.log(q)) for p, q in zip(one, mean, strict=True))
        for one in table.tolist()
    ]
    found = sprites_measures(table, [-1] * len(table))
    assert found["accuracy"] is None
    assert found["n"] == len(table)
    assert found["inception_score"] == pytest.approx(math.exp(np.mean(divergences)))
    assert math.log(found["inception_score"]) == pytest.approx(
        found["inter_entropy"] - found["intra_entropy"]
    )


def test_entropies_do_not_depend_on_order_or_names():
    table = random_table()
    shuffled = table[::-1][:, ::-1]
    assert inter_entropy(table) == pytest.approx(inter_entropy(shuffled))
    assert intra_entropy(table) == pytest.approx(intra_entropy(shuffled))
    # A mean is never less varied than what it is the mean of.
    assert inter_entropy(table) > intra_entropy(table)
    assert inter_entropy(table[:1]) == pytest.approx(intra_entropy(table[:1]))


def test_classes_count_equally():
    labels = [2, 0, 0, -1, 2, 0, 2, 2]
    assert balanced_places(labels) == [0, 1, 2, 4, 5, 6]
    assert balanced_places([-1, -1]) == []
    # However many videos of one class there are, they weigh as much as those of another.
    table = np.eye(2)[[0] * 90 + [1] * 10]
    assert sprites_measures(table, [0] * 90 + [1] * 10)["inter_entropy"] == pytest.approx(
        math.log(2)
    )


def test_motions_are_combinations():
    row = {"action": [0.5, 0.25, 0.25], "direction": [0.9, 0.1]}
    joint = joint_probabilities(row, ("action", "direction"))
    assert joint.tolist() == pytest.approx([0.45, 0.05, 0.225, 0.025, 0.225, 0.025])
    names, classes = ("action", "direction"), {"action": "abc", "direction": "lr"}
    for action, p in enumerate(row["action"]):
        for direction, q in enumerate(row["direction"]):
            place = joint_class({"action": action, "direction": direction}, names, classes)
            assert joint[place] == pytest.approx(p * q)
    assert joint_class({"action": -1, "direction": 0}, names, classes) == -1
    # Entropies of independent choices add up.
    assert intra_entropy(joint[None]) == pytest.approx(
        intra_entropy(np.array([row["action"]])) + intra_entropy(np.array([row["direction"]]))
    )


@pytest.fixture(scope="module")
def data(sheets) -> DataConfig:
    return DataConfig(
        source="sprites", path=str(sheets), num_frames=8, height=16, width=16, part="test"
    ).centered()


@pytest.fixture(scope="module")
def judge(data, tmp_path_factory) -> Path:
    """A classifier that has learned nothing: what it says is all the same here."""
    folder = tmp_path_factory.mktemp("judge")
    config = ClassifierConfig(data=data, test_part="test", channels=(8,), hidden_size=8)
    build_classifier(config, factor_labels(build_dataset(data))).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def autoencoder(tiny_sizes, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("autoencoder")
    sizes = {"num_frames": 8, "height": 16, "width": 16, "patch_size": (1, 4, 4)}
    torch.manual_seed(0)
    VidTwinAutoencoder(**tiny_sizes | sizes).save_pretrained(folder)
    return folder


def test_a_swap_shows_the_motion_of_one_and_the_content_of_the_other(data, autoencoder):
    real = build_real(data, seed=3)
    source = ModelVideos(real, "swap", str(autoencoder), {}, torch.device("cpu"))
    factors = factor_labels(real.dataset)
    videos = source.load(range(4))
    labels_of = given_labels(real, source, factors)
    for video in videos:
        assert isinstance(video, Video)
        own = real.dataset.factors(int(real.order[video.index]))
        other = real.dataset.factors(int(real.order[source.partner(video.index)]))
        expected = {name: own[name] for name in factors.motion}
        expected |= {name: other[name] for name in factors.content}
        assert labels_of(video) == expected
        # The video is made of just these latents.
        clips = [real.dataset.get(int(real.order[place]))["video"]
                 for place in (video.index, source.partner(video.index))]  # fmt: skip
        own_latents, others = (source.autoencoder.encode(clip[None]).mode() for clip in clips)
        made = source.autoencoder.decode(replace(own_latents, structure=others.structure))
        assert torch.allclose(made[0], video.frames, atol=1e-5)


def test_every_clip_gives_its_structure_once(data, autoencoder):
    real = build_real(data, seed=3)
    source = ModelVideos(real, "swap", str(autoencoder), {}, torch.device("cpu"))
    partners = [source.partner(index) for index in range(len(source))]
    assert sorted(partners) == list(range(len(source)))
    assert all(index != partner for index, partner in enumerate(partners))


@pytest.mark.parametrize(("videos", "groups"), [("real", 2), ("reconstruction", 2)])
def test_clips_show_what_they_showed(data, autoencoder, videos, groups):
    real = build_real(data, seed=0)
    source: Any = real
    if videos != "real":
        source = ModelVideos(real, videos, str(autoencoder), {}, torch.device("cpu"))
    labels_of = given_labels(real, source, factor_labels(real.dataset))
    for video in source.load([5, 6]):
        assert labels_of(video) == real.dataset.factors(int(real.order[video.index]))


def test_a_prompt_asks_for_all_and_a_class_for_its_own(data):
    dataset = build_dataset(data)
    factors = factor_labels(dataset)
    labels_of = asked_labels(dataset, factors)
    video = Video(index=0, name="", frames=torch.zeros(3, 8, 16, 16), fps=8.0)
    nothing = dict.fromkeys(factors.all, -1)
    assert labels_of(video) == nothing
    assert labels_of(replace(video, label=4, asked="class spellcast left")) == nothing | {
        "action": 1, "direction": 1
    }  # fmt: skip
    for index in (0, 20):
        caption = dataset.captions(index, 1)[0]
        assert labels_of(replace(video, asked=caption)) == dataset.factors(index)
        both = replace(video, asked=f"{caption}, walk front", label=dataset[index]["label"])
        assert labels_of(both) == dataset.factors(index)


def test_a_caption_that_leaves_something_open_asks_not_for_it():
    data = build_dataset(
        DataConfig(num_frames=4, height=16, width=16).with_options(size=3, max_objects=1)
    )
    data.captions = lambda index, count: ["the same"] * count  # type: ignore[method-assign]
    factors = factor_labels(data)
    labels = asked_labels(data, factors)(
        Video(index=0, name="", frames=torch.zeros(1), fps=8.0, asked="the same")
    )
    own = [data.factors(index) for index in range(3)]
    for name in factors.all:
        same = len({one[name] for one in own}) == 1
        assert labels[name] == (own[0][name] if same else -1)


def in_two_processes(work: Callable[[Processes], Any]) -> list[Any]:
    """What two processes find, as threads that exchange their rows."""
    barrier = threading.Barrier(2)
    rows: list[list[Any]] = [[], []]
    found: list[Any] = [None, None]

    def gather_of(rank: int) -> Callable[[list[Any]], list[Any]]:
        def gather(own: list[Any]) -> list[Any]:
            rows[rank] = own
            barrier.wait(timeout=60)
            both = [*rows[0], *rows[1]]
            barrier.wait(timeout=60)
            return both

        return gather

    def run(rank: int) -> None:
        found[rank] = work(Processes(rank=rank, count=2, gather=gather_of(rank)))

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    return found


@pytest.mark.parametrize("videos", ["real", "swap"])
def test_one_and_two_processes_find_the_same(
    data, judge, autoencoder, videos, tmp_path, monkeypatch
):
    # Loaded once and before: loading changes torch for a moment, which two threads must not do.
    models = load_classifier(str(judge), key="classifier"), load_autoencoder(autoencoder)
    monkeypatch.setattr(
        "vidtwin_lab.evaluation.accuracy.load_classifier", lambda path, key: models[0]
    )
    monkeypatch.setattr(
        "vidtwin_lab.evaluation.accuracy_videos.load_autoencoder", lambda path: models[1]
    )
    config = AccuracyConfig(
        output=str(tmp_path),
        classifier=str(judge),
        data=data,
        videos=videos,
        model=None if videos == "real" else str(autoencoder),
        number=22,
        batch_size=4,
    )
    alone = measure(config, Processes())
    assert len(alone.rows) == 22
    assert alone.found["measures"]["all motion"]["largest_inception_score"] == 9
    for report in in_two_processes(lambda processes: measure(config, processes)):
        assert rounded(report.found) == rounded(alone.found)
        assert rounded(report.rows) == rounded(alone.rows)
        assert rounded(report.protocol) == rounded(alone.protocol)
    files = {path.name for path in write_report(alone, tmp_path)}
    assert files == {f"accuracy.{ending}" for ending in ("json", "csv", "md", "png")}
    assert describe(config)["number"] == 22


def refusals(autoencoder: str) -> Sequence[tuple[dict[str, Any], str]]:
    return [
        ({"videos": "swap"}, "`model` must name an autoencoder"),
        ({"videos": "dynamics"}, "`model` must name a pipeline"),
        ({"videos": "real", "model": autoencoder}, "leave it null"),
        ({"videos": "swaps"}, "`videos` must be one of"),
        ({"number": 0}, "`number` must be"),
        ({"classifier": "/nowhere"}, "holds no classifier"),
        ({"number": 10_000}, "lower it to"),
        ({"videos": "swap", "model": "checkpoints/none"}, "does not exist"),
    ]


def test_settings_that_can_t_be(data, judge, autoencoder):
    def judged(**options: Any) -> None:
        given = {"classifier": str(judge), "data": data} | options
        measure(AccuracyConfig(**given), Processes())

    for options, expected in refusals(str(autoencoder)):
        with pytest.raises(ValueError, match=expected):
            judged(**options)


def test_another_judge_is_refused(judge, data):
    fewer = data.with_options(directions=("front", "left"))
    with pytest.raises(ValueError, match="other classes than the data have, of direction"):
        measure(AccuracyConfig(classifier=str(judge), data=fewer), Processes())
    sized = replace(data, height=32)
    with pytest.raises(ValueError, match=r"data.height=32 differs"):
        measure(AccuracyConfig(classifier=str(judge), data=sized), Processes())
