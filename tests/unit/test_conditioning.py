"""Conditions of a batch, leaving them out, and guidance against its own formula."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from diffusion.conditioning import Conditions, GuidanceScales, guided_prediction

CLASSES = 4
LATENTS = ("structure", "dynamics_x", "dynamics_y")


def text_conditions(batch: int = 2, length: int = 3, seed: int = 0, **changes: Any) -> Conditions:
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(batch, length, 5, generator=generator)
    mask = torch.arange(length) < torch.arange(batch)[:, None] % length + 1
    return Conditions(**{"encoder_hidden_states": states, "encoder_attention_mask": mask} | changes)


class Model:
    """Answers with numbers that tell what each row was asked for, and counts."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def __call__(
        self, conditions: Conditions, knows: Sequence[bool] = (True,)
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows = 2 * len(knows)
        assert all(len(value) == rows for value in conditions.arguments().values())
        self.calls.append((rows, len(knows)))
        value = answer(conditions, rows)
        value = value + 7 * torch.tensor(knows).repeat_interleave(2)
        return value[:, None], value[:, None] ** 2, torch.cos(value)[:, None]


def answer(conditions: Conditions, rows: int) -> Tensor:
    """(B,) one number of a row's conditions, not additive in them."""
    value = torch.ones(rows, dtype=torch.float64)
    if conditions.encoder_hidden_states is not None:
        mask = conditions.encoder_attention_mask.double()[..., None]
        value = value + (conditions.encoder_hidden_states.double() * mask).sum((1, 2))
    if conditions.class_labels is not None:
        value = value * (1 + conditions.class_labels.double())
    return value


def by_hand(
    conditions: Conditions,
    scales: GuidanceScales,
    negative: Conditions | None = None,
    holds: bool = False,
) -> list[Tensor]:
    """The formula of the module's docstring, term by term."""
    model = Model()
    null_text = conditions.without_text()
    if negative is not None:
        null_text = Conditions(
            conditions.class_labels,
            negative.encoder_hidden_states,
            negative.encoder_attention_mask,
        )
    null = model(conditions.without_text().without_class(CLASSES), [not holds])
    held = model(null_text.without_class(CLASSES))
    text = model(conditions.without_class(CLASSES))
    both = model(conditions)
    if conditions.class_labels is None:
        text = both
    if conditions.encoder_hidden_states is None:
        held = text
    given_scale = scales.held if holds else 1.0
    start = [n + given_scale * (h - n) for n, h in zip(null, held, strict=True)] if holds else held
    return [
        s + text_scale * (t - h) + class_scale * (b - t)
        for s, h, t, b, (text_scale, class_scale) in zip(
            start, held, text, both, scales.pairs(), strict=True
        )
    ]


LABELS = torch.tensor([1, 3])
KINDS = {
    "text": text_conditions(),
    "class": Conditions(class_labels=LABELS),
    "both": text_conditions(class_labels=LABELS),
    "none": Conditions(),
}


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
        found = guided_prediction(Model(), conditions, scales, CLASSES)
        for name, came, expected in zip(LATENTS, found, by_hand(conditions, scales), strict=True):
            assert_close(came, expected, msg=name)

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
        guided_prediction(model, KINDS[kind], scales, CLASSES)
        assert model.calls == [(2 * variants, variants)]

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize(
        "scales",
        [
            GuidanceScales(),
            GuidanceScales(held=2.0),
            GuidanceScales(text=3.0, class_=2.0),
            GuidanceScales(text=3.0, class_=2.0, held=4.0),
            GuidanceScales(text=3.0, class_=1.0, structure=1.5, held=3.0),
            GuidanceScales(text=2.0, class_=2.0, held=2.0),
        ],
        ids=str,
    )
    def test_the_formula_where_a_latent_is_held(self, kind, scales) -> None:
        conditions = KINDS[kind]
        negative = text_conditions(length=6, seed=9) if kind in ("text", "both") else None
        found = guided_prediction(Model(), conditions, scales, CLASSES, negative, holds=True)
        expected = by_hand(conditions, scales, negative, holds=True)
        for name, came, wanted in zip(LATENTS, found, expected, strict=True):
            assert_close(came, wanted, msg=name)

    @pytest.mark.parametrize(
        ("kind", "scales", "variants"),
        [
            ("none", GuidanceScales(text=3.0), 1),
            ("none", GuidanceScales(text=3.0, held=2.0), 2),
            ("text", GuidanceScales(text=3.0), 2),
            ("text", GuidanceScales(text=3.0, held=2.0), 3),
            ("text", GuidanceScales(text=2.0, held=2.0), 2),
            ("both", GuidanceScales(text=3.0, class_=4.0, held=2.0), 4),
        ],
        ids=str,
    )
    def test_variants_where_a_latent_is_held(self, kind, scales, variants) -> None:
        model = Model()
        guided_prediction(model, KINDS[kind], scales, CLASSES, holds=True)
        assert model.calls == [(2 * variants, variants)]

    def test_the_scale_of_what_is_held_is_for_held_latents(self) -> None:
        model = Model()
        guided_prediction(model, KINDS["text"], GuidanceScales(held=5.0), CLASSES)
        assert model.calls == [(2, 1)]

    def test_without_guidance_it_is_the_prediction_itself(self) -> None:
        conditions = KINDS["both"]
        found = guided_prediction(Model(), conditions, GuidanceScales(), CLASSES)
        for came, expected in zip(found, Model()(conditions), strict=True):
            assert torch.equal(came, expected)

    def test_nothing_to_guide_by(self) -> None:
        model = Model()
        found = guided_prediction(model, Conditions(), GuidanceScales(text=5.0, class_=5.0), None)
        assert model.calls == [(2, 1)]
        assert torch.equal(found[0], Model()(Conditions())[0])

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("field", ["text", "class_", "structure", "dynamics", "held"])
    def test_the_strengths_have_no_jumps(self, kind, field) -> None:
        others = {"text": 3.0, "class_": 2.0}
        at_one = guided_prediction(
            Model(), KINDS[kind], GuidanceScales(**others | {field: 1.0}), CLASSES, holds=True
        )
        near = guided_prediction(
            Model(),
            KINDS[kind],
            GuidanceScales(**others | {field: 1.0 + 1e-9}),
            CLASSES,
            holds=True,
        )
        for a, b in zip(at_one, near, strict=True):
            assert_close(a, b, rtol=1e-6, atol=1e-6)

    def test_a_negative_prompt_takes_the_place_of_the_null_text(self) -> None:
        for kind in ("text", "both"):
            conditions = KINDS[kind]
            negative = text_conditions(length=6, seed=9)
            scales = GuidanceScales(text=3.0, class_=2.0)
            found = guided_prediction(Model(), conditions, scales, CLASSES, negative)
            expected = by_hand(conditions, scales, negative)
            for came, wanted in zip(found, expected, strict=True):
                assert_close(came, wanted)
            plain = guided_prediction(Model(), conditions, scales, CLASSES)
            assert not torch.allclose(found[0], plain[0])

    @pytest.mark.parametrize("kind", ["", "class_", "structure_", "dynamics_", "given_"])
    @pytest.mark.parametrize("value", [0.9, -3.0, math.nan, math.inf])
    def test_bad_strengths(self, kind, value) -> None:
        field = {"": "text", "class_": "class_"}.get(kind, kind.strip("_"))
        with pytest.raises(ValueError, match=f"`{kind}guidance_scale` must be at least 1.0"):
            GuidanceScales(**{field: value})


class TestDropping:
    def test_shares(self) -> None:
        batch = 20_000
        conditions = text_conditions(batch, class_labels=torch.arange(batch) % CLASSES)
        uniforms = torch.rand(batch, 2, generator=torch.Generator().manual_seed(0))
        dropped = conditions.drop(uniforms, 0.1, 0.3, CLASSES)
        without_class = dropped.class_labels == CLASSES
        without_text = ~dropped.encoder_attention_mask.any(1)
        assert float(without_class.float().mean()) == pytest.approx(0.1, abs=0.01)
        assert float(without_text.float().mean()) == pytest.approx(0.3, abs=0.01)
        # Each by itself: both are left out as often as chance has it.
        without_both = (without_class & without_text).float()
        assert float(without_both.mean()) == pytest.approx(0.03, abs=0.005)
        kept = ~without_class
        assert torch.equal(dropped.class_labels[kept], conditions.class_labels[kept])
        kept = ~without_text
        mask = conditions.encoder_attention_mask
        assert torch.equal(dropped.encoder_attention_mask[kept], mask[kept])
        assert dropped.encoder_hidden_states is conditions.encoder_hidden_states

    def test_a_sample_follows_its_own_numbers(self) -> None:
        conditions = text_conditions(8, class_labels=torch.arange(8) % CLASSES)
        uniforms = torch.rand(8, 2, generator=torch.Generator().manual_seed(0))
        together = conditions.drop(uniforms, 0.5, 0.5, CLASSES)
        apart = [
            conditions[i : i + 1].drop(uniforms[i : i + 1], 0.5, 0.5, CLASSES) for i in range(8)
        ]
        joined = Conditions.cat(apart)
        assert torch.equal(joined.class_labels, together.class_labels)
        assert torch.equal(joined.encoder_attention_mask, together.encoder_attention_mask)

    @pytest.mark.parametrize(("share", "kept"), [(0.0, True), (1.0, False)])
    def test_never_and_always(self, share, kept) -> None:
        conditions = text_conditions(2, class_labels=LABELS)
        uniforms = torch.tensor([[0.0, 0.0], [1 - 1e-9, 1 - 1e-9]], dtype=torch.float64)
        dropped = conditions.drop(uniforms, share, share, CLASSES)
        assert torch.equal(dropped.class_labels == CLASSES, torch.tensor([not kept] * 2))
        assert torch.equal(dropped.encoder_attention_mask.any(1), torch.tensor([kept] * 2))

    def test_what_is_not_there_is_not_dropped(self) -> None:
        uniforms = torch.zeros(2, 2)
        assert Conditions().drop(uniforms, 1.0, 1.0, None) == Conditions()
        only_class = Conditions(class_labels=LABELS).drop(uniforms, 0.5, 0.5, CLASSES)
        assert set(only_class.arguments()) == {"class_labels"}


class TestBatches:
    def test_joining_pads_and_slicing_undoes_it(self) -> None:
        first = text_conditions(2, 3, class_labels=LABELS)
        second = text_conditions(1, 5, seed=1, class_labels=torch.tensor([0]))
        joined = Conditions.cat([first, second])
        assert joined.encoder_hidden_states.shape == (3, 5, 5)
        assert joined.class_labels.tolist() == [1, 3, 0]
        assert not joined.encoder_attention_mask[:2, 3:].any()
        back = joined[:2]
        assert torch.equal(back.encoder_hidden_states[:, :3], first.encoder_hidden_states)
        assert torch.equal(back.encoder_attention_mask[:, :3], first.encoder_attention_mask)
        assert torch.equal(joined[2:].encoder_hidden_states, second.encoder_hidden_states)

    def test_only_alike_ones_can_be_joined(self) -> None:
        with pytest.raises(ValueError, match="the same kinds of conditions"):
            Conditions.cat([text_conditions(), Conditions(class_labels=LABELS)])

    def test_text_and_mask_go_together(self) -> None:
        with pytest.raises(ValueError, match="states and their mask go together"):
            Conditions(encoder_hidden_states=torch.zeros(1, 2, 3))
