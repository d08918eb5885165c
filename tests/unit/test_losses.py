"""The objective: each term against its formula, gating, the adaptive weight, state."""

from __future__ import annotations

import math
from functools import partial
from types import SimpleNamespace
from typing import Any

import lpips
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vidtwin.discriminator import DiscriminatorConfig, PatchDiscriminator
from vidtwin.losses import (
    AutoencoderLoss,
    LossConfig,
    adaptive_weight,
    hinge_loss,
    lecam_penalty,
    negative_log_likelihood,
    reconstruction_error,
)


def clips(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def posterior_of(structure: Tensor, x: Tensor, y: Tensor) -> Any:
    parts = {"structure": structure, "dynamics_x": x, "dynamics_y": y}
    return SimpleNamespace(
        **{name: SimpleNamespace(kl=lambda kl=kl: kl) for name, kl in parts.items()}
    )


KL = (torch.tensor([3.0, 5.0]), torch.tensor([1.0, 0.5]), torch.tensor([0.25, 0.75]))


def frame_mse(video: Tensor, reconstruction: Tensor) -> Tensor:
    return (video - reconstruction).square().mean((1, 3, 4))


class TinyDecoder(nn.Module):
    """A checkpointable block and, as in the autoencoder, a Linear over channels at the end."""

    def __init__(self, checkpointed: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.block, self.last = nn.Linear(3, 3), nn.Linear(3, 3)
        self.checkpointed, self.calls = checkpointed, 0

    def hidden(self, values: Tensor) -> Tensor:
        self.calls += 1
        return torch.tanh(self.block(values))

    def forward(self, video: Tensor) -> Tensor:
        values = video.movedim(1, -1)
        if self.checkpointed:
            hidden = checkpoint(self.hidden, values, use_reentrant=False)
        else:
            hidden = self.hidden(values)
        return self.last(hidden).movedim(-1, 1)


def tiny_discriminator(**keywords: Any) -> PatchDiscriminator:
    torch.manual_seed(1)
    return PatchDiscriminator(DiscriminatorConfig(channels=4, layers=1, **keywords))


def build(**keywords: Any) -> AutoencoderLoss:
    settings = {"discriminator_start": 0, "discriminator_weight": 0.05} | keywords
    return AutoencoderLoss(LossConfig(**settings), frame_distance=frame_mse)


def forbidden(*args: object) -> Tensor:
    raise AssertionError("must not be called")


class Forbidden(nn.Module):
    def forward(self, video: Tensor) -> Tensor:
        return forbidden(video)


@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_terms_equal_their_formulas(kind: str) -> None:
    loss = build(
        reconstruction=kind,
        initial_logvar=-0.7,
        perceptual_weight=0.3,
        kl_weight=0.01,
        kl_structure=2.0,
        kl_dynamics=0.5,
        discriminator_weight=0,
    )
    video, copy = clips(2, 3, 4, 6, 8), clips(2, 3, 4, 6, 8, seed=1)
    total, logs = loss.generator_loss(video, copy, posterior_of(*KL), step=7)
    nll = 0.0
    for b in range(2):
        for t in range(4):
            difference = (video[b, :, t] - copy[b, :, t]).double()
            pixels = difference.abs() if kind == "l1" else difference**2
            error = pixels + 0.3 * (difference**2).mean()
            nll += (error / math.exp(-0.7) - 0.7).sum().item() / 8
    kl = 2.0 * 4.0 + 0.5 * (0.75 + 0.5)
    assert logs["nll"].item() == pytest.approx(nll, rel=1e-6)
    assert total.item() == pytest.approx(nll + 0.01 * kl, rel=1e-6)
    assert logs["kl"].item() == 5.25
    assert logs["kl_structure"].item() == 4.0
    assert logs["kl_dynamics_x"].item() == 0.75
    assert logs["kl_dynamics_y"].item() == 0.5
    assert all(value.ndim == 0 and not value.requires_grad for value in logs.values())


def test_frames_weigh_the_same_in_any_batch() -> None:
    """nll is a mean over frames: it must not grow with the batch or the length."""
    error = clips(2, 3, 4, 5, 6).abs()
    logvar = torch.tensor(0.2)
    parts = [
        negative_log_likelihood(error[b : b + 1, :, t : t + 1], logvar)
        for b in range(2)
        for t in range(4)
    ]
    whole = negative_log_likelihood(error, logvar)
    assert whole.item() == pytest.approx(torch.stack(parts).mean().item(), rel=1e-6)


def test_logvar_gradient_is_the_derivative() -> None:
    loss = build(initial_logvar=0.4, discriminator_weight=0)
    video, copy = clips(2, 3, 2, 6, 8), clips(2, 3, 2, 6, 8, seed=1)
    total, logs = loss.generator_loss(video, copy, posterior_of(*KL), step=0)
    total.backward()
    assert loss.logvar.grad is not None
    # d/ds sum(e / exp(s) + s) / N = n - (sum(e) / N) / exp(s), with n values a frame.
    values, error = 3 * 6 * 8, logs["reconstruction"] + 0.05 * logs["perceptual"]
    expected = values * (1 - error.item() / math.exp(0.4))
    assert loss.logvar.grad.item() == pytest.approx(expected, rel=1e-5)


def test_fixed_logvar_is_kept_and_not_trained() -> None:
    loss = build(learn_logvar=False, initial_logvar=0.5)
    assert not [parameter for parameter in loss.parameters() if parameter.requires_grad]
    assert loss.state_dict()["logvar"].item() == 0.5
    assert [name for name, _ in build().named_parameters()] == ["logvar"]


def test_hinge_and_lecam_equal_their_formulas() -> None:
    real, fake = torch.tensor([-0.5, 0.5, 2.0]), torch.tensor([-3.0, -0.5, 1.0])
    assert hinge_loss(real, fake).item() == pytest.approx(0.5 * (2.0 / 3 + 2.5 / 3))
    average_real, average_fake = torch.tensor(0.25), torch.tensor(-0.25)
    expected = (0.75**2 + 2.25**2) / 3 + (3.25**2 + 0.75**2) / 3
    assert lecam_penalty(real, fake, average_real, average_fake).item() == pytest.approx(expected)


def test_gated_discriminator_is_never_called() -> None:
    video, copy = clips(2, 3, 2, 6, 8), clips(2, 3, 2, 6, 8, seed=1).requires_grad_()
    for loss, step in ((build(discriminator_start=5), 4), (build(discriminator_weight=0), 99)):
        assert not loss.discriminator_active(step)
        total, logs = loss.generator_loss(
            video, copy, posterior_of(*KL), step=step, discriminator=Forbidden()
        )
        assert "adversarial" not in logs
        assert total.item() == pytest.approx(logs["nll"].item() + 1e-3 * 5.25)
        zero, empty = loss.discriminator_loss(Forbidden(), video, copy, step)
        assert zero.item() == 0
        assert not zero.requires_grad
        assert empty == {}
    assert build(discriminator_start=5).discriminator_active(5)


def test_validation_without_gradients_leaves_the_adversarial_term_out() -> None:
    video, copy = clips(2, 3, 2, 6, 8), clips(2, 3, 2, 6, 8, seed=1)
    with torch.no_grad():
        total, logs = build().generator_loss(
            video, copy, posterior_of(*KL), step=9, discriminator=Forbidden()
        )
    assert "adversarial" not in logs
    assert total.isfinite()


@pytest.mark.parametrize("checkpointed", [False, True])
def test_generator_adds_the_weighted_adversarial_term(checkpointed: bool) -> None:
    video, decoder = clips(2, 3, 2, 12, 12), TinyDecoder(checkpointed)
    discriminator, loss = tiny_discriminator(norm="none"), build()
    output = decoder(video)
    total, logs = loss.generator_loss(
        video,
        output,
        posterior_of(*KL),
        step=0,
        discriminator=discriminator,
        last_weight=decoder.last.weight,
    )
    assert decoder.calls == 1  # the adaptive weight has no need of the checkpointed block
    assert decoder.last.weight.grad is None
    total.backward()
    assert decoder.calls == 1 + checkpointed
    assert all(parameter.grad is None for parameter in discriminator.parameters())
    assert all(parameter.requires_grad for parameter in discriminator.parameters())

    # The same by hand: whole gradients of each term alone.
    gradients: dict[str, list[Any]] = {}
    for name in ("nll", "adversarial"):
        decoder.zero_grad()
        copy = decoder(video)
        error = (video - copy).abs() + 0.05 * frame_mse(video, copy)[:, None, :, None, None]
        terms = {"nll": error.sum() / 4, "adversarial": -discriminator(copy).mean()}
        assert logs[name].item() == pytest.approx(terms[name].item(), rel=1e-5)
        terms[name].backward()
        gradients[name] = [parameter.grad for parameter in decoder.parameters()]
    norms = [gradients[name][2].norm().item() for name in ("nll", "adversarial")]
    weight = 0.05 * min(norms[0] / (norms[1] + 1e-4), 1e4)
    assert logs["adaptive_weight"].item() == pytest.approx(weight, rel=1e-5)
    decoder.zero_grad()
    total = loss.generator_loss(
        video,
        decoder(video),
        posterior_of(*KL),
        step=0,
        discriminator=discriminator,
        last_weight=decoder.last.weight,
    )[0]
    total.backward()
    for parameter, one, other in zip(
        decoder.parameters(), gradients["nll"], gradients["adversarial"], strict=True
    ):
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, one + weight * other, rtol=1e-4, atol=1e-5)


def test_adaptive_weight_is_clamped_and_survives_zero_gradients() -> None:
    weight = torch.ones(2, requires_grad=True)
    loud, silent = (weight * 1e9).sum(), (weight * 0).sum()
    assert adaptive_weight(loud, silent, weight, maximum=12.5).item() == 12.5
    assert adaptive_weight(silent, loud, weight).item() == 0
    assert adaptive_weight(silent, silent, weight).item() == 0
    assert not adaptive_weight(loud, loud, weight).requires_grad


def test_missing_parts_are_named() -> None:
    video = clips(2, 3, 2, 6, 8)
    with pytest.raises(ValueError, match=r"pass both, or set loss\.discriminator_weight=0"):
        build().generator_loss(video, video, posterior_of(*KL), step=0)
    with pytest.raises(ValueError, match=r"\(2, 3, 2, 6, 8\), got \(2, 3, 1, 6, 8\)"):
        reconstruction_error(video, video[:, :, :1])


def test_discriminator_loss_reaches_the_discriminator_alone() -> None:
    video, decoder = clips(2, 3, 2, 12, 12), TinyDecoder()
    discriminator = tiny_discriminator()
    total, logs = build().discriminator_loss(discriminator, video, decoder(video), 0)
    total.backward()
    assert all(parameter.grad is None for parameter in decoder.parameters())
    for name, parameter in discriminator.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert total.item() == logs["total"].item() == logs["hinge"].item()


class Constant(nn.Module):
    """Says a trainable number of every video: positive ones real, others fake."""

    def __init__(self, real: float, fake: float) -> None:
        super().__init__()
        self.real, self.fake = (nn.Parameter(torch.tensor(value)) for value in (real, fake))

    def forward(self, video: Tensor) -> Tensor:
        return torch.where(video.mean((1, 2, 3, 4)) > 0, self.real, self.fake)


def test_lecam_averages_follow_the_logits_without_bias() -> None:
    loss = build(lecam_weight=0.5, lecam_decay=0.9)
    real, fake = torch.ones(2, 3, 1, 2, 2), -torch.ones(2, 3, 1, 2, 2)
    seen = [(1.0, -1.0), (3.0, -2.0), (2.0, 0.5)]
    weights: list[float] = []
    for logits in seen:
        total, logs = loss.discriminator_loss(Constant(*logits), real, fake, 0)
        weights = [weight * 0.9 for weight in weights] + [0.1]
        for i, average in enumerate((loss.lecam_real, loss.lecam_fake)):
            values = [pair[i] for pair in seen[: len(weights)]]
            expected = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
            assert average.item() == pytest.approx(expected, rel=1e-5)
        penalty = lecam_penalty(
            torch.tensor(logits[0]), torch.tensor(logits[1]), loss.lecam_real, loss.lecam_fake
        )
        assert logs["lecam"].item() == pytest.approx(penalty.item())
        assert total.item() == pytest.approx((logs["hinge"] + 0.5 * penalty).item())
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    bad = loss.discriminator_loss(Constant(math.nan, 1.0), real, fake, 0)[0]
    assert bad.isnan()
    with torch.no_grad():
        loss.discriminator_loss(Constant(9.0, 1.0), real, fake, 0)
    loss.eval().discriminator_loss(Constant(9.0, 1.0), real, fake, 0)
    assert all(torch.equal(value, before[name]) for name, value in loss.state_dict().items())


def test_lecam_pulls_the_logits_towards_the_other_side() -> None:
    loss = build(lecam_weight=1.0)
    real, fake = torch.ones(2, 3, 1, 2, 2), -torch.ones(2, 3, 1, 2, 2)
    discriminator = Constant(2.0, -2.0)  # beyond the margin: the hinge has no gradient there
    loss.discriminator_loss(discriminator, real, fake, 0)[0].backward()
    assert discriminator.real.grad is not None
    assert discriminator.fake.grad is not None
    assert discriminator.real.grad > 0
    assert discriminator.fake.grad < 0


def test_state_is_three_small_things_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lpips, "LPIPS", partial(lpips.LPIPS, pnet_rand=True))
    config = LossConfig(perceptual_net="squeeze", lecam_weight=0.1, discriminator_start=0)
    loss, other = AutoencoderLoss(config), AutoencoderLoss(config)
    names = {"logvar", "lecam_real", "lecam_fake", "lecam_updates"}
    assert set(loss.state_dict()) == names
    assert [name for name, _ in loss.named_parameters()] == ["logvar"]
    video, copy = clips(1, 3, 2, 20, 20), clips(1, 3, 2, 20, 20, seed=1).requires_grad_()
    loss.discriminator_loss(tiny_discriminator(), video, copy, 0)
    with torch.no_grad():
        loss.logvar.add_(0.25)
    other.load_state_dict(loss.state_dict(), strict=True)
    assert all(torch.equal(v, loss.state_dict()[k]) for k, v in other.state_dict().items())
    total, logs = loss.generator_loss(video, copy, posterior_of(*(kl[:1] for kl in KL)), step=-1)
    total.backward()
    assert logs["perceptual"] > 0
    assert copy.grad is not None
    assert copy.grad.isfinite().all()


def test_lpips_is_never_built_when_it_weighs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lpips, "LPIPS", forbidden)
    loss = AutoencoderLoss(LossConfig(perceptual_weight=0))
    video = clips(2, 3, 1, 4, 4)
    assert "perceptual" not in loss.generator_loss(video, video, posterior_of(*KL), step=0)[1]


@pytest.mark.parametrize("level", [0.0, -1.0])
def test_black_clips_and_perfect_copies_give_finite_gradients(level: float) -> None:
    video = torch.full((2, 3, 2, 12, 12), level)
    decoder = TinyDecoder()
    nn.init.zeros_(decoder.last.weight)
    nn.init.constant_(decoder.last.bias, level)
    loss = build()
    discriminator = tiny_discriminator()
    output = decoder(video)
    assert torch.equal(output, video)
    total, logs = loss.generator_loss(
        video,
        output,
        posterior_of(*KL),
        step=0,
        discriminator=discriminator,
        last_weight=decoder.last.weight,
    )
    total.backward()
    assert all(value.isfinite() for value in logs.values())
    for parameter in [*decoder.parameters(), *loss.parameters()]:
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
    judged = loss.discriminator_loss(discriminator, video, output, 0)[0]
    judged.backward()
    for parameter in discriminator.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()


def test_under_bfloat16_the_loss_itself_is_float32() -> None:
    video, decoder, loss = clips(2, 3, 2, 24, 24), TinyDecoder(), build()
    discriminator = tiny_discriminator()

    def run() -> tuple[Tensor, dict[str, Tensor], Tensor]:
        output = decoder(video)
        total, logs = loss.generator_loss(
            video,
            output,
            posterior_of(*KL),
            step=0,
            discriminator=discriminator,
            last_weight=decoder.last.weight,
        )
        return output, logs, total

    _, exact, _ = run()
    with torch.autocast("cpu", torch.bfloat16):
        output, logs, total = run()
        judged, judged_logs = loss.discriminator_loss(discriminator, video, output, 0)
    assert output.dtype == torch.bfloat16
    tensors = [total, judged, *logs.values(), *judged_logs.values()]
    assert {value.dtype for value in tensors} == {torch.float32}
    # Equal to the formula on the bf16 reconstruction: nothing is lost after it.
    error = (video - output.float()).abs()
    error = error + 0.05 * frame_mse(video, output.float())[:, None, :, None, None]
    assert logs["nll"].item() == pytest.approx(error.sum().item() / 4, rel=1e-6)
    assert logs["nll"].item() == pytest.approx(exact["nll"].item(), rel=1e-2)
    assert logs["adaptive_weight"].item() == pytest.approx(exact["adaptive_weight"].item(), rel=0.1)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"reconstruction": "huber"}, "must be one of .*got 'huber'"),
        ({"perceptual_net": "resnet"}, "must be one of .*got 'resnet'"),
        ({"kl_weight": -1.0}, "kl_weight must be finite and not negative, got -1"),
        ({"perceptual_weight": math.nan}, "perceptual_weight must be finite"),
        ({"lecam_decay": 1.0}, r"lecam_decay must be in \[0, 1\), got 1.0"),
        ({"initial_logvar": math.inf}, "initial_logvar must be finite"),
    ],
)
def test_bad_config_is_refused(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LossConfig(**keywords)
