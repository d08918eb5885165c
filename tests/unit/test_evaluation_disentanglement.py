"""The scorecard's parts on cases whose answer is known."""

from __future__ import annotations

import importlib.util
import itertools
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from vidtwin import AutoencoderConfig, VidTwinLatents
from vidtwin.data import DataConfig, Factors, VideoDataset, build_dataset
from vidtwin_lab.evaluation.disentanglement.clips import (
    choose_clips,
    choose_factors,
    draw_pairs,
    encode_clips,
    flatten_latents,
    restore_latents,
)
from vidtwin_lab.evaluation.disentanglement.config import (
    DisentanglementConfig,
    ProbeConfig,
    SamplingConfig,
)
from vidtwin_lab.evaluation.disentanglement.figure import Line, draw_scorecard, mosaic
from vidtwin_lab.evaluation.disentanglement.probes import (
    fit,
    mean_probe,
    mean_retrieval,
    prepare,
    random_average_precision,
    retrieve,
    run_probe,
    similarities,
)
from vidtwin_lab.evaluation.disentanglement.sampling import sample_videos, sampling_found
from vidtwin_lab.evaluation.disentanglement.scorecard import _gap, scorecard
from vidtwin_lab.evaluation.disentanglement.swaps import (
    consistency,
    swap_accuracy,
    swap_pairs,
    swap_rows,
)
from vidtwin_lab.evaluation.judges.choice import ShapesJudge, build_judge
from vidtwin_lab.evaluation.report import Processes

SIZES = AutoencoderConfig(
    num_frames=2, height=4, width=4, patch_size=(1, 2, 2), hidden_size=4, encoder_heads=1,
    decoder_heads=1, num_queries=2, query_hidden_size=2, query_heads=1, structure_channels=2,
    structure_downsamples=0, dynamics_channels=2, dynamics_downsamples=0,
)  # fmt: skip
# Even numbers: a class in the middle would be the mean, whose deviation has no direction.
LOOKS, MOVES = 6, 4
FACTORS = Factors(
    content={"look": tuple(f"look {i}" for i in range(LOOKS))},
    motion={"move": tuple(f"move {i}" for i in range(MOVES))},
)


class FlatClips(VideoDataset):
    """Red says a clip's content, green its motion; nothing else is there."""

    def __init__(self, size: int) -> None:
        super().__init__(DataConfig(num_frames=2, height=4, width=4), size)

    def load(self, index: int, draws: Any) -> dict[str, Any]:
        classes = self.factors(index)
        video = torch.zeros(3, 2, 4, 4)
        video[0], video[1] = classes["look"] / 10 - 0.3, classes["move"] / 10 - 0.3
        return {"video": video, "label": 0, "path": f"clip {index}", "caption": ""}

    def captions(self, index: int, count: int) -> list[str]:
        return [""]

    def factor_classes(self) -> Factors:
        return FACTORS

    def factors(self, index: int) -> dict[str, int]:
        return {"look": index % LOOKS, "move": (index // LOOKS) % MOVES}


class ColorJudge:
    factors = ("look", "move")

    def __call__(self, videos: torch.Tensor) -> list[dict[str, int]]:
        levels = ((videos.mean((2, 3, 4)) + 0.3) * 10).round().long()
        return [{"look": int(one[0]), "move": int(one[1])} for one in levels]

    def protocol(self) -> dict[str, Any]:
        return {"judge": "colours"}


class FakeAutoencoder:
    """Which latent each of the two colours is read from when decoding.

    Args:
        content_from, motion_from: "structure" or "dynamics".
    """

    sizes = SIZES

    def __init__(self, content_from: str, motion_from: str) -> None:
        self.sources = (content_from, motion_from)

    def encode(self, video: torch.Tensor) -> Any:
        colors = video.mean((2, 3, 4))[:, :2]  # (B, 2): both latents get to know both
        batch = len(video)
        parts = [
            colors.reshape(batch, 2, *([1] * (len(shape) - 1))).expand(batch, *shape)
            for shape in (SIZES.structure_shape, SIZES.dynamics_x_shape, SIZES.dynamics_y_shape)
        ]
        if self.sources == ("structure", "dynamics"):
            parts[0] = parts[0] * torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1, 1)
            parts[1:] = [part * torch.tensor([0.0, 1.0]).reshape(1, 2, 1, 1) for part in parts[1:]]
        return SimpleNamespace(mode=lambda: VidTwinLatents(*parts))

    def decode(self, latents: VidTwinLatents) -> torch.Tensor:
        means = {
            "structure": latents.structure.mean((2, 3, 4)),
            "dynamics": latents.dynamics_x.mean((2, 3)),
        }
        video = torch.zeros(latents.batch_size, *SIZES.video_shape)
        for channel, source in enumerate(self.sources):
            video[:, channel] = means[source][:, channel].reshape(-1, 1, 1, 1)
        return video


def measured(model: Any, number: int = 48) -> tuple[Any, list[Any], dict[str, Any], dict[str, Any]]:
    judge = ColorJudge()
    clips, skipped = encode_clips(
        model, FlatClips(number), range(number), judge, Processes(), batch_size=7
    )
    assert not skipped
    codes = np.stack([clips.labels[name] for name in FACTORS.all], 1)
    pairs = draw_pairs(codes, 30, 0).places
    swaps = swap_pairs(model, clips, pairs, judge, Processes(), batch_size=8, examples=2)
    return clips, swaps, swap_accuracy(clips, swaps, FACTORS), consistency(clips, swaps)


def test_a_perfect_split_follows_the_right_clip_and_encodes_to_what_it_was_made_of():
    clips, swaps, accuracy, kept = measured(FakeAutoencoder("structure", "dynamics"))
    for group, name in (("content", "look"), ("motion", "move")):
        for key in (name, "all"):
            found = accuracy[group][key]
            assert found["swap"]["value"] == 1 and found["other"]["value"] == 0
            assert found["neither"]["value"] == 0
            assert found["real"]["value"] == found["reconstruction"]["value"] == 1
    assert accuracy["content"]["look"]["chance"] == pytest.approx(1 / LOOKS)
    for latent in ("structure", "dynamics"):
        assert kept[latent]["kept"]["value"] == pytest.approx(1, abs=1e-5)
        assert kept[latent]["error"]["value"] == pytest.approx(0, abs=1e-5)
        assert kept[latent]["nearer"]["value"] == 1
        assert kept[latent]["reconstruction"]["kept"]["value"] == pytest.approx(1, abs=1e-5)
        assert kept[latent]["unrelated"]["kept"]["value"] < 0.5
    rows = swap_rows(clips, swaps, FACTORS.all)
    assert all(row["look_seen"] == row["look_of_structure"] for row in rows)
    assert all(row["move_seen"] == row["move_of_dynamics"] for row in rows)
    assert [swap["video"] is not None for swap in swaps[:3]] == [True, True, False]


def test_a_structure_that_knows_everything_leaves_the_motion_of_the_other_clip():
    _, _, accuracy, kept = measured(FakeAutoencoder("structure", "structure"))
    assert accuracy["content"]["all"]["swap"]["value"] == 1
    assert accuracy["motion"]["all"]["swap"]["value"] == 0
    assert accuracy["motion"]["all"]["other"]["value"] == 1
    assert accuracy["motion"]["all"]["reconstruction"]["value"] == 1
    assert kept["dynamics"]["nearer"]["value"] == 0
    assert kept["dynamics"]["other"]["value"] == pytest.approx(1, abs=1e-5)


def test_swapped_roles_swap_nothing_right():
    _, _, accuracy, _ = measured(FakeAutoencoder("dynamics", "structure"))
    for group in ("content", "motion"):
        assert accuracy[group]["all"]["swap"]["value"] == 0
        assert accuracy[group]["all"]["other"]["value"] == 1


def test_processes_share_clips_and_pairs_without_a_difference():
    model, judge, dataset = FakeAutoencoder("structure", "dynamics"), ColorJudge(), FlatClips(48)
    whole, swaps, _, _ = measured(model)
    pairs = [swap["pair"] for swap in swaps]
    parts: list[Any] = []
    for rank in (0, 1):
        processes = Processes(rank=rank, count=2)
        clips, _ = encode_clips(model, dataset, range(48), judge, processes, batch_size=7)
        parts += clips.index
        own = swap_pairs(model, whole, pairs, judge, processes, batch_size=8)
        for row in own:
            assert row | {"video": None} == swaps[row["index"]] | {"video": None}
    assert sorted(parts) == list(range(48))


def test_latents_survive_being_flattened():
    latents = VidTwinLatents(
        torch.randn(3, *SIZES.structure_shape),
        torch.randn(3, *SIZES.dynamics_x_shape),
        torch.randn(3, *SIZES.dynamics_y_shape),
    )
    again = restore_latents(**flatten_latents(latents), sizes=SIZES)
    for one, other in zip(latents.tensors(), again.tensors(), strict=True):
        assert torch.equal(one, other)


def test_pairs_differ_in_every_factor_and_never_repeat():
    codes = np.random.default_rng(0).integers(0, 3, (60, 3))
    pairs = draw_pairs(codes, 200, 4)
    assert len(pairs.places) == 200 == len(set(pairs.places))
    assert all((codes[one] != codes[other]).all() for one, other in pairs.places)
    first = {one for one, _ in pairs.places[: 60 - len(pairs.without_partner)]}
    assert len(first) == 60 - len(pairs.without_partner)  # every clip once before any twice
    assert pairs == draw_pairs(codes, 200, 4)
    assert pairs != draw_pairs(codes, 200, 5)


def test_pairs_name_clips_without_a_partner_and_give_what_there_is():
    codes = np.array([[0, 0], [1, 1], [0, 1]])
    pairs = draw_pairs(codes, 10, 0)
    assert sorted(pairs.places) == [(0, 1), (1, 0)]
    assert pairs.without_partner == [2]
    with pytest.raises(ValueError, match="no two of the 2 clips differ in every factor"):
        draw_pairs(np.array([[0, 0], [0, 1]]), 1, 0)


CONFIG = ProbeConfig(permutations=8, max_iterations=60)


def test_a_probe_finds_what_is_linear_and_nothing_in_noise():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 300)
    noise = rng.normal(size=(300, 40))
    told = noise + 4 * np.eye(3)[labels] @ rng.normal(size=(3, 40))
    clear = run_probe(prepare(told, CONFIG, 0), labels, CONFIG, 0)
    assert clear.found["accuracy"]["value"] > 0.97
    assert clear.found["bits"] > 0.9 * clear.found["bits_of_labels"]
    assert clear.found["p_value"] == pytest.approx(1 / 9)
    assert clear.found["clips"] == {"train": 180, "validation": 60, "test": 60}
    blind = run_probe(prepare(noise, CONFIG, 0), labels, CONFIG, 0)
    assert blind.found["accuracy"]["low"] < 1 / 3 < blind.found["accuracy"]["high"]
    assert blind.found["bits"] < 0.1
    assert blind.found["p_value"] > 0.1
    assert abs(blind.found["permuted"]["value"] - 1 / 3) < 0.1
    assert _gap(clear.found, blind.found) > 0.8 > 0.2 > abs(_gap(clear.found, clear.found))
    mean = mean_probe([clear, blind])
    assert mean["accuracy"]["value"] == pytest.approx(
        (clear.found["accuracy"]["value"] + blind.found["accuracy"]["value"]) / 2
    )


def test_a_probe_of_unbalanced_classes_says_so():
    labels = (np.arange(200) % 10 == 0).astype(np.int64)
    result = run_probe(prepare(np.random.default_rng(1).normal(size=(200, 3)), CONFIG, 0), labels,
                       CONFIG, 0)  # fmt: skip
    assert result.found["majority"] > 0.8
    assert result.found["balanced_accuracy"] == pytest.approx(0.5, abs=0.1)


def test_a_fit_stands_where_its_gradient_vanishes():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(80, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 4, (80,), generator=generator)
    weights = fit(features, labels, 4, 0.05, 300)
    inputs = torch.cat([features, torch.ones(80, 1, dtype=torch.float64)], 1)
    errors = (inputs @ weights).softmax(1) - torch.nn.functional.one_hot(labels, 4)
    gradient = inputs.T @ errors / 80
    gradient[:-1] += 0.05 * weights[:-1]
    assert float(gradient.abs().max()) < 1e-5


def test_more_values_than_clips_are_turned_into_fewer_without_a_change():
    rng = np.random.default_rng(2)
    values = rng.normal(size=(50, 200))
    values[:, 3] = 7.0  # never changes, so it says nothing
    labels = torch.from_numpy(rng.integers(0, 2, 50))
    features = prepare(values, CONFIG, 0)
    assert features.train.shape[1] <= 30
    train, _, test = (torch.from_numpy(part) for part in features.parts)
    plain = torch.from_numpy(np.delete(values, 3, 1))
    mean, spread = plain[train].mean(0), plain[train].std(0, correction=0)
    plain = (plain - mean) / spread
    turned = fit(features.train, labels[train], 2, 0.1, 300)
    straight = fit(plain[train], labels[train], 2, 0.1, 300)
    scores = features.test @ turned[:-1] + turned[-1]
    assert torch.allclose(scores, plain[test] @ straight[:-1] + straight[-1], atol=1e-3)


def test_a_latent_that_never_changes_tells_nothing():
    labels = np.arange(60) % 3
    result = run_probe(prepare(np.ones((60, 4)), CONFIG, 0), labels, CONFIG, 0)
    assert result.found["accuracy"]["value"] == result.found["majority"]


def test_too_few_clips_for_a_probe_are_named():
    with pytest.raises(ValueError, match="at least 20 clips"):
        prepare(np.ones((10, 4)), CONFIG, 0)


def test_planted_neighbours_are_found_and_noise_is_at_chance():
    rng = np.random.default_rng(3)
    labels = np.repeat(np.arange(10), 8)
    planted = rng.normal(size=(10, 30))[labels] + 0.1 * rng.normal(size=(80, 30))
    found = retrieve(similarities(planted), labels).found()
    assert found["precision_at_1"]["value"] == found["precision_at_5"]["value"] == 1
    assert found["mean_average_precision"]["value"] == pytest.approx(1)
    assert found["precision_by_chance"] == pytest.approx(7 / 79)
    noise = retrieve(similarities(rng.normal(size=(80, 30))), labels).found()
    assert noise["precision_at_1"]["low"] < 7 / 79 < noise["precision_at_1"]["high"] + 0.05
    assert noise["mean_average_precision"]["value"] == pytest.approx(
        noise["mean_average_precision_by_chance"], abs=0.05
    )


def test_a_clip_alone_in_its_class_asks_for_nothing():
    labels = np.array([0, 0, 1, 2, 2])
    result = retrieve(similarities(np.eye(5)), labels)
    assert result.found()["precision_at_1"]["n"] == 4
    assert result.found()["clips_without_a_match"] == 1
    other = retrieve(similarities(np.eye(5)), np.array([0, 1, 1, 2, 2]))
    assert mean_retrieval([result, other])["precision_at_1"]["n"] == 3
    alone = retrieve(similarities(np.eye(5)), np.arange(5))
    assert alone.found()["n"] == 0 and mean_retrieval([result, alone])["n"] == 0


def test_the_average_precision_of_a_random_order_is_that_of_all_orders():
    for number, relevant in ((5, 2), (6, 3), (4, 4), (5, 1)):
        items = [1] * relevant + [0] * (number - relevant)
        values = []
        for order in set(itertools.permutations(items)):
            hits = np.cumsum(order) / np.arange(1, number + 1)
            values.append(float((hits * np.array(order)).sum() / relevant))
        expected = random_average_precision(np.array([relevant]), number)[0]
        assert expected == pytest.approx(np.mean(values))


class FakePipeline:
    """Keeps what is held; the rest is always class 0, or drawn from the seed."""

    scheduler = None

    def __init__(self, varies: bool) -> None:
        self.varies = varies

    def __call__(self, seed: list[int], **held: Any) -> Any:
        (name, latents), *_ = ((k, v) for k, v in held.items() if isinstance(v, VidTwinLatents))
        kept = {"structure": latents.structure, "dynamics": latents.dynamics_x}[name]
        channel = 0 if name == "structure" else 1
        classes = (LOOKS, MOVES)[1 - channel]
        videos = torch.zeros(len(seed), *SIZES.video_shape)
        videos[:, channel] = kept[:, channel].flatten(1).mean(1).reshape(-1, 1, 1, 1)
        for row, one in enumerate(seed):
            drawn = np.random.default_rng(one).integers(classes) if self.varies else 0
            videos[row, 1 - channel] = drawn / 10 - 0.3
        return SimpleNamespace(videos=(videos + 1) / 2)


@pytest.mark.parametrize("varies", [True, False])
def test_sampling_tells_what_stays_from_what_varies(varies):
    clips, *_ = measured(FakeAutoencoder("structure", "dynamics"))
    config = SamplingConfig(clips=48, videos_per_clip=6, steps=1)
    pipe: Any = FakePipeline(varies)
    rows = sample_videos(pipe, clips, ColorJudge(), Processes(), config, 0)
    assert len(rows) == 2 * 48 * 6 == len({row["index"] for row in rows})
    found = sampling_found(clips, rows, FACTORS, 0)
    for held, own, other, classes in (("structure", "look", "move", MOVES),
                                      ("dynamics", "move", "look", LOOKS)):  # fmt: skip
        assert found[held]["kept"][own]["kept"]["value"] == 1
        varied = found[held]["varied"][other]
        assert varied["bits_of_data"] == pytest.approx(math.log2(classes))
        if varies:
            assert varied["bits_within_clip"]["value"] == pytest.approx(
                varied["bits_within_clip_of_draws"], abs=0.35
            )
            assert varied["total_variation"] < 0.25
        else:
            assert varied["bits_within_clip"]["value"] == varied["bits_over_all"] == 0
            assert varied["total_variation"] == pytest.approx(1 - 1 / classes)
            assert varied["same_as_clip"]["value"] == pytest.approx(
                varied["same_by_chance"], abs=0.2
            )
        assert varied["unknown"]["value"] == 0


def shapes_data(**changes: Any) -> DataConfig:
    small: dict[str, Any] = {"num_frames": 8, "height": 32, "width": 32}
    config = DataConfig(**({"part": "validation"} | small | changes))
    return config.with_options(max_objects=1, size=30)


def test_the_pixel_judge_reads_every_real_clip_right():
    dataset = build_dataset(shapes_data(num_frames=16, height=64, width=64))
    factors = choose_factors(dataset, ())
    judge = build_judge("shapes", factors, "shapes", torch.device("cpu"))
    seen = judge(torch.stack([dataset.get(index)["video"] for index in range(6)]))
    assert seen == [dataset.factors(index) for index in range(6)]
    blank = ShapesJudge(factors.all)(torch.zeros(1, 3, 16, 64, 64))
    assert blank[0]["shape"] == -1


def test_factors_are_chosen_by_name_and_a_wrong_name_is_mended():
    dataset = build_dataset(shapes_data())
    chosen = choose_factors(dataset, ("shape", "motion"))
    assert list(chosen.content) == ["shape"] and list(chosen.motion) == ["motion"]
    with pytest.raises(ValueError, match="did you mean 'color'"):
        choose_factors(dataset, ("colour",))
    with pytest.raises(ValueError, match=r"shapes\.max_objects=1"):
        choose_factors(build_dataset(shapes_data().with_options(max_objects=2)), ())


def test_clips_are_drawn_by_the_seed_and_too_few_are_an_error():
    dataset, factors = FlatClips(30), FACTORS
    config = DisentanglementConfig(samples=10)
    chosen, _ = choose_clips(dataset, factors, config)
    assert len(chosen) == 10 and chosen == sorted(set(chosen)) and chosen != list(range(10))
    assert chosen == choose_clips(dataset, factors, config)[0]
    assert choose_clips(dataset, factors, DisentanglementConfig(samples=None))[0] == list(range(30))
    with pytest.raises(ValueError, match="samples=31 clips were asked for, the data have 30"):
        choose_clips(dataset, factors, DisentanglementConfig(samples=31))
    dataset.factors = lambda index: {"look": -1 if index < 5 else 0, "move": 0}  # type: ignore
    chosen, unlabelled = choose_clips(dataset, factors, DisentanglementConfig(samples=None))
    assert chosen == list(range(5, 30))
    assert sorted(unlabelled)[0] == ("clip 0", "unknown: look")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"pairs": 0}, "pairs"),
        ({"samples": 1}, "samples"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_configs_refuse_what_can_t_be(changes, match):
    with pytest.raises(ValueError, match=match):
        DisentanglementConfig(**changes)
    with pytest.raises(ValueError, match="sum to less than 1"):
        ProbeConfig(train_fraction=0.8, validation_fraction=0.2)
    with pytest.raises(ValueError, match="penalties"):
        ProbeConfig(penalties=(0.0,))
    with pytest.raises(ValueError, match=r"sampling\.steps"):
        SamplingConfig(steps=0)


def test_a_judge_that_does_not_know_the_data_is_refused(tmp_path):
    with pytest.raises(ValueError, match="judge=shapes knows"):
        build_judge("shapes", FACTORS, "sprites", torch.device("cpu"))
    with pytest.raises(ValueError, match="holds no classifier"):
        build_judge(str(tmp_path), FACTORS, "sprites", torch.device("cpu"))


def test_the_scorecard_leaves_out_what_the_data_have_no_labels_of():
    clips, swaps, _, kept = measured(FakeAutoencoder("structure", "dynamics"))
    only = Factors(motion=FACTORS.motion)
    found = {
        "swap": swap_accuracy(clips, swaps, only),
        "consistency": kept,
        "probes": {},
        "retrieval": {},
        "generation": {"reason": "none"},
    }
    assert "reason" in found["swap"]["content"]
    lines = scorecard(found)
    assert [line.name for line in lines][:2] == ["swap: motion of B", "swap: motion of A instead"]
    assert lines[0].wanted and not lines[1].wanted
    assert lines[0].as_text() == "100.0 (chance 25.0, at most 100.0)"


def test_the_figure_is_drawn(tmp_path):
    value = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 10}
    lines = [
        Line("good", value, 0.1, 0.9, True),
        Line("leak", dict.fromkeys(value), None, None, False),
    ]
    assert lines[1].as_text() == "-"
    video = torch.zeros(3, 5, 8, 8)
    frames = np.zeros((5, 8, 8, 3), np.uint8)
    for examples in ([], [frames]):
        path = tmp_path / f"{len(examples)}.png"
        draw_scorecard(lines, [(video, video)] * len(examples), examples, path)
        assert path.stat().st_size > 1000
    image, centers = mosaic([[frames, frames, frames]] * 2)
    assert image.shape == (2 * 8 + 4, 3 * (4 * 8 + 3 * 4) + 2 * 16, 3)
    assert centers == sorted(centers) and len(centers) == 3


def card(value: float, **protocol: Any) -> dict[str, Any]:
    number = {"value": value, "low": 0.1, "high": 0.3, "n": 9, "chance": 0.05, "ceiling": None,
              "better": "higher"}  # fmt: skip
    common = {"checkpoint": str(value), "seed": 0, "judge": "shapes"}
    return {"found": {"scorecard": {"swap": number}}, "protocol": common | protocol}


def test_scorecards_of_one_protocol_stand_beside_one_another():
    path = Path(__file__).parents[2] / "tools" / "compare_scorecards.py"
    spec = importlib.util.spec_from_file_location("compare_scorecards", path)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    cards = {"one": card(0.2), "other": card(0.25)}
    script.check_comparable(cards)
    assert script.table(cards).splitlines()[2] == (
        "| swap | higher | 20.0 (10.0 to 30.0), chance 5.0 | 25.0 (10.0 to 30.0), chance 5.0 |"
    )
    with pytest.raises(ValueError, match="one and other differ in seed"):
        script.check_comparable({"one": card(0.2), "other": card(0.2, seed=1)})
    with pytest.raises(ValueError, match="is no scorecard"):
        script.read("name=/nowhere")
