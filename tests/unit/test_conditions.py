"""Conditions of a batch, leaving them out, and guidance against its own formula."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from diffusion.conditions import ClassCondition, Conditions, TextCondition
from diffusion.config import GuidanceScales
from diffusion.guidance import guidance_terms, guided_prediction
from vidtwin import VidTwinLatents

CLASSES = 4


def text_condition(batch: int = 2, length: int = 3, seed: int = 0) -> TextCondition:
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(batch, length, 5, generator=generator)
    mask = torch.arange(length) < torch.arange(batch)[:, None] % length + 1
    return TextCondition(states, mask)


def both_conditions(labels: Tensor, **options: Any) -> Conditions:
    text = text_condition(len(labels), **options)
    return Conditions([text, ClassCondition(labels, CLASSES)])


def guide(
    model: Model,
    conditions: Conditions,
    scales: GuidanceScales,
    negative: Conditions | None = None,
    has_given: bool = False,
) -> VidTwinLatents:
    terms = guidance_terms(conditions, scales, has_given)
    return guided_prediction(model, conditions, terms, negative)


class Model:
    """Answers with numbers that tell what each row was asked for, and counts."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def __call__(self, conditions: Conditions, knows: Sequence[bool] = (True,)) -> VidTwinLatents:
        rows = 2 * len(knows)
        assert all(len(value) == rows for value in conditions.arguments().values())
        self.calls.append((rows, len(knows)))
        value = answer(conditions, rows)
        value = value + 7 * torch.tensor(knows).repeat_interleave(2)
        return VidTwinLatents(value[:, None], value[:, None] ** 2, torch.cos(value)[:, None])


def answer(conditions: Conditions, rows: int) -> Tensor:
    """(B,) one number of a row's conditions, not additive in them."""
    value = torch.ones(rows, dtype=torch.float64)
    asked = conditions.arguments()
    if "encoder_hidden_states" in asked:
        mask = asked["encoder_attention_mask"].double()[..., None]
        value = value + (asked["encoder_hidden_states"].double() * mask).sum((1, 2))
    if "class_labels" in asked:
        value = value * (1 + asked["class_labels"].double())
    return value


def by_hand(
    conditions: Conditions,
    scales: GuidanceScales,
    negative: Conditions | None = None,
    has_given: bool = False,
) -> VidTwinLatents:
    """The formula of the module's docstring, term by term."""
    model = Model()
    null = model(conditions.keep([]), [not has_given])
    given = model(conditions.keep([], negative))
    text = model(conditions.keep(["text"]))
    both = model(conditions)
    if "class_" not in conditions.names:
        text = both
    if "text" not in conditions.names:
        given = text
    given_scale = scales.given if has_given else 1.0
    found = []
    for place, name in enumerate(VidTwinLatents.names):
        text_scale, class_scale = scales.of("text")[place], scales.of("class_")[place]
        n, g, t, b = (getattr(each, name) for each in (null, given, text, both))
        start = n + given_scale * (g - n) if has_given else g
        found.append(start + text_scale * (t - g) + class_scale * (b - t))
    return VidTwinLatents(*found)


LABELS = torch.tensor([1, 3])
KINDS = {
    "text": Conditions([text_condition()]),
    "class": Conditions([ClassCondition(LABELS, CLASSES)]),
    "both": both_conditions(LABELS),
    "none": Conditions(),
}
NEGATIVE = Conditions([text_condition(length=6, seed=9)])


def assert_latents_close(one: VidTwinLatents, other: VidTwinLatents, **options: Any) -> None:
    for name, tensor in one.items():
        assert_close(tensor, getattr(other, name), msg=name, **options)


class TestGuidance:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize(
        "scales",
        [
            GuidanceScales(text=3.0),
            GuidanceScales(class_=2.5),
            GuidanceScales(text=3.0, class_=3.0),
            GuidanceScales(text=2.0, class_=5.0),
            GuidanceScales(text=5.0, class_=2.0),
            GuidanceScales(text=3.0, class_=3.0, structure=1.0),
            GuidanceScales(structure=4.0),
            GuidanceScales(text=2.0, class_=3.0, structure=4.0, dynamics=1.5),
        ],
        ids=str,
    )
    def test_the_formula(self, kind, scales) -> None:
        conditions = KINDS[kind]
        found = guide(Model(), conditions, scales)
        assert_latents_close(found, by_hand(conditions, scales))

    @pytest.mark.parametrize(
        ("kind", "scales", "variants"),
        [
            ("text", GuidanceScales(), 1),
            ("both", GuidanceScales(), 1),
            ("text", GuidanceScales(class_=3.0), 1),
            ("class", GuidanceScales(text=3.0), 1),
            ("text", GuidanceScales(text=3.0), 2),
            ("class", GuidanceScales(class_=3.0), 2),
            ("text", GuidanceScales(dynamics=3.0), 2),
            ("both", GuidanceScales(text=3.0, class_=3.0), 2),
            ("both", GuidanceScales(class_=3.0), 2),
            ("both", GuidanceScales(structure=2.0), 2),
            ("both", GuidanceScales(text=3.0), 3),
            ("both", GuidanceScales(text=3.0, class_=2.0), 3),
        ],
        ids=str,
    )
    def test_one_call_with_no_more_variants_than_count(self, kind, scales, variants) -> None:
        model = Model()
        guide(model, KINDS[kind], scales)
        assert model.calls == [(2 * variants, variants)]

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize(
        "scales",
        [
            GuidanceScales(),
            GuidanceScales(given=2.0),
            GuidanceScales(text=3.0, class_=2.0),
            GuidanceScales(text=3.0, class_=2.0, given=4.0),
            GuidanceScales(text=3.0, class_=1.0, structure=1.5, given=3.0),
            GuidanceScales(text=2.0, class_=2.0, given=2.0),
        ],
        ids=str,
    )
    def test_the_formula_where_a_latent_is_given(self, kind, scales) -> None:
        conditions = KINDS[kind]
        negative = NEGATIVE if kind in ("text", "both") else None
        found = guide(Model(), conditions, scales, negative, has_given=True)
        assert_latents_close(found, by_hand(conditions, scales, negative, has_given=True))

    @pytest.mark.parametrize(
        ("kind", "scales", "variants"),
        [
            ("none", GuidanceScales(text=3.0), 1),
            ("none", GuidanceScales(text=3.0, given=2.0), 2),
            ("text", GuidanceScales(text=3.0), 2),
            ("text", GuidanceScales(text=3.0, given=2.0), 3),
            ("text", GuidanceScales(text=2.0, given=2.0), 2),
            ("both", GuidanceScales(text=3.0, class_=4.0, given=2.0), 4),
        ],
        ids=str,
    )
    def test_variants_where_a_latent_is_given(self, kind, scales, variants) -> None:
        model = Model()
        guide(model, KINDS[kind], scales, has_given=True)
        assert model.calls == [(2 * variants, variants)]

    def test_the_scale_of_given_latents_needs_some(self) -> None:
        model = Model()
        guide(model, KINDS["text"], GuidanceScales(given=5.0))
        assert model.calls == [(2, 1)]

    def test_without_guidance_it_is_the_prediction_itself(self) -> None:
        conditions = KINDS["both"]
        found = guide(Model(), conditions, GuidanceScales())
        for came, expected in zip(found.tensors(), Model()(conditions).tensors(), strict=True):
            assert torch.equal(came, expected)

    def test_nothing_to_guide_by(self) -> None:
        model = Model()
        found = guide(model, Conditions(), GuidanceScales(text=5.0, class_=5.0))
        assert model.calls == [(2, 1)]
        assert torch.equal(found.structure, Model()(Conditions()).structure)

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("field", ["text", "class_", "structure", "dynamics", "given"])
    def test_the_strengths_have_no_jumps(self, kind, field) -> None:
        others = {"text": 3.0, "class_": 2.0}
        at_one, near = (
            guide(Model(), KINDS[kind], GuidanceScales(**others | {field: value}), has_given=True)
            for value in (1.0, 1.0 + 1e-9)
        )
        assert_latents_close(at_one, near, rtol=1e-6, atol=1e-6)

    def test_a_negative_prompt_takes_the_place_of_the_null_text(self) -> None:
        for kind in ("text", "both"):
            conditions = KINDS[kind]
            scales = GuidanceScales(text=3.0, class_=2.0)
            found = guide(Model(), conditions, scales, NEGATIVE)
            assert_latents_close(found, by_hand(conditions, scales, NEGATIVE))
            without = guide(Model(), conditions, scales)
            assert not torch.allclose(found.structure, without.structure)

    @pytest.mark.parametrize("kind", ["", "class_", "structure_", "dynamics_", "given_"])
    @pytest.mark.parametrize("value", [0.9, -3.0, math.nan, math.inf])
    def test_bad_strengths(self, kind, value) -> None:
        field = {"": "text", "class_": "class_"}.get(kind, kind.strip("_"))
        with pytest.raises(ValueError, match=f"`{kind}guidance_scale` must be at least 1.0"):
            GuidanceScales(**{field: value})


class TestDropping:
    def test_shares(self) -> None:
        batch = 20_000
        conditions = both_conditions(torch.arange(batch) % CLASSES)
        uniforms = torch.rand(batch, 2, generator=torch.Generator().manual_seed(0))
        dropped = conditions.drop(uniforms, {"class_": 0.1, "text": 0.3}).arguments()
        asked = conditions.arguments()
        without_class = dropped["class_labels"] == CLASSES
        without_text = ~dropped["encoder_attention_mask"].any(1)
        assert float(without_class.float().mean()) == pytest.approx(0.1, abs=0.01)
        assert float(without_text.float().mean()) == pytest.approx(0.3, abs=0.01)
        # Each by itself: both are left out as often as chance has it.
        without_both = (without_class & without_text).float()
        assert float(without_both.mean()) == pytest.approx(0.03, abs=0.005)
        kept = ~without_class
        assert torch.equal(dropped["class_labels"][kept], asked["class_labels"][kept])
        kept = ~without_text
        mask = asked["encoder_attention_mask"]
        assert torch.equal(dropped["encoder_attention_mask"][kept], mask[kept])
        assert dropped["encoder_hidden_states"] is asked["encoder_hidden_states"]

    def test_a_sample_follows_its_own_numbers(self) -> None:
        conditions = both_conditions(torch.arange(8) % CLASSES)
        uniforms = torch.rand(8, 2, generator=torch.Generator().manual_seed(0))
        shares = {"class_": 0.5, "text": 0.5}
        together = conditions.drop(uniforms, shares).arguments()
        apart = [conditions[i : i + 1].drop(uniforms[i : i + 1], shares) for i in range(8)]
        joined = Conditions.cat(apart).arguments()
        for name in ("class_labels", "encoder_attention_mask"):
            assert torch.equal(joined[name], together[name])

    @pytest.mark.parametrize(("share", "kept"), [(0.0, True), (1.0, False)])
    def test_never_and_always(self, share, kept) -> None:
        uniforms = torch.tensor([[0.0, 0.0], [1 - 1e-9, 1 - 1e-9]], dtype=torch.float64)
        shares = {"class_": share, "text": share}
        dropped = KINDS["both"].drop(uniforms, shares).arguments()
        assert torch.equal(dropped["class_labels"] == CLASSES, torch.tensor([not kept] * 2))
        assert torch.equal(dropped["encoder_attention_mask"].any(1), torch.tensor([kept] * 2))

    def test_what_is_not_there_is_not_dropped(self) -> None:
        uniforms = torch.zeros(2, 2)
        assert Conditions().drop(uniforms, {"class_": 1.0, "text": 1.0}).names == []
        only_class = KINDS["class"].drop(uniforms, {"class_": 0.5, "text": 0.5})
        assert set(only_class.arguments()) == {"class_labels"}


class TestBatches:
    def test_joining_pads_and_slicing_undoes_it(self) -> None:
        first = both_conditions(LABELS, length=3)
        second = both_conditions(torch.tensor([0]), length=5, seed=1)
        whole = Conditions.cat([first, second])
        joined, one, other = (each.arguments() for each in (whole, first, second))
        assert joined["encoder_hidden_states"].shape == (3, 5, 5)
        assert joined["class_labels"].tolist() == [1, 3, 0]
        assert not joined["encoder_attention_mask"][:2, 3:].any()
        for name in ("encoder_hidden_states", "encoder_attention_mask"):
            assert torch.equal(whole[:2].arguments()[name][:, :3], one[name])
        states = whole[2:].arguments()["encoder_hidden_states"]
        assert torch.equal(states, other["encoder_hidden_states"])

    @pytest.mark.parametrize(("length", "columns"), [(3, 1), (5, 5)])
    def test_texts_without_padding_stay_so_among_those_of_their_length(
        self, length, columns
    ) -> None:
        padded = text_condition()
        assert padded.without_padding() is padded
        first, second = (
            replace(one, encoder_attention_mask=torch.ones_like(one.encoder_attention_mask))
            for one in (text_condition(length=3), text_condition(length=length, seed=1))
        )
        parts = [first.without_padding(), second.without_padding(), first.without_padding().null()]
        joined = TextCondition.cat(parts).encoder_attention_mask
        assert joined.shape == (6, columns)
        assert joined.any(1).tolist() == [True] * 4 + [False] * 2
        expected = TextCondition.cat([first, second, first.null()]).encoder_attention_mask
        assert torch.equal(joined.expand(expected.shape), expected)

    def test_only_alike_ones_can_be_joined(self) -> None:
        with pytest.raises(ValueError, match="the same kinds of conditions"):
            Conditions.cat([KINDS["text"], KINDS["class"]])

    def test_text_and_mask_go_together(self) -> None:
        with pytest.raises(TypeError, match="encoder_attention_mask"):
            TextCondition(encoder_hidden_states=torch.zeros(1, 2, 3))
