"""PSNR, SSIM and LPIPS against their formulas, and on inputs that break naive ones."""

from __future__ import annotations

import math
import urllib.error
from functools import partial

import lpips
import numpy as np
import pytest
import torch
import torchvision.models._api
from torch import Tensor

from vidtwin.metrics import Lpips, psnr, ssim


def clips(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def ssim_by_hand(first: np.ndarray, second: np.ndarray) -> float:
    """Wang et al. 2004 with one weighted sum for each window; two (H, W) images in [0, 1]."""
    axis = np.exp(-((np.arange(11) - 5.0) ** 2) / (2 * 1.5**2))
    window = np.outer(axis, axis) / np.outer(axis, axis).sum()
    values = []
    for top in range(first.shape[0] - 10):
        for left in range(first.shape[1] - 10):
            a = first[top : top + 11, left : left + 11]
            b = second[top : top + 11, left : left + 11]
            mean_a, mean_b = (window * a).sum(), (window * b).sum()
            var_a = (window * (a - mean_a) ** 2).sum()
            var_b = (window * (b - mean_b) ** 2).sum()
            covariance = (window * (a - mean_a) * (b - mean_b)).sum()
            luminance = (2 * mean_a * mean_b + 1e-4) / (mean_a**2 + mean_b**2 + 1e-4)
            values.append(luminance * (2 * covariance + 9e-4) / (var_a + var_b + 9e-4))
    return float(np.mean(values))


def test_psnr_is_the_mean_of_the_frames_formula() -> None:
    video, copy = clips(2, 3, 3, 8, 10), clips(2, 3, 3, 8, 10, seed=1)
    original, other = (video.double().numpy() + 1) / 2, (copy.double().numpy() + 1) / 2
    frames = -10 * np.log10(((original - other) ** 2).mean(axis=(1, 3, 4)))
    assert np.allclose(psnr(video, copy).numpy(), frames.mean(1), rtol=1e-12)
    pooled = -10 * np.log10(((original - other) ** 2).mean(axis=(1, 2, 3, 4)))
    assert np.allclose(psnr(video, copy, pooled=True).numpy(), pooled, rtol=1e-12)
    assert psnr(video, copy).dtype == torch.float64


def test_pooled_psnr_is_never_higher() -> None:
    video = clips(1, 3, 2, 12, 12) * 0.5
    copy = video.clone()
    copy[:, :, 1] += 0.25
    assert psnr(video, copy, pooled=True) < psnr(video, copy)


@pytest.mark.parametrize("level", [-1.0, 0.3, 1.0])
def test_identical_flat_clips_are_finite(level: float) -> None:
    video = torch.full((2, 3, 2, 12, 12), level)
    assert torch.equal(psnr(video, video), torch.full((2,), 100.0, dtype=torch.float64))
    assert torch.allclose(ssim(video, video), torch.ones(2, dtype=torch.float64))


def test_one_perfect_frame_leaves_the_mean_finite() -> None:
    video = torch.zeros(1, 3, 2, 12, 12)
    copy = video.clone()
    copy[:, :, 1] = 0.2  # 0.1 in [0, 1]: 20 dB
    assert psnr(video, copy).item() == pytest.approx(60.0, abs=1e-6)


def test_overshoot_is_clipped_and_nan_is_not_hidden() -> None:
    video = torch.ones(1, 3, 2, 12, 12)
    assert psnr(video, video * 3).item() == 100
    copy = video.clone()
    copy[0, 0, 0, 0, 0] = math.nan
    assert psnr(video, copy).isnan().all()


def test_ssim_equals_the_formula() -> None:
    video = clips(1, 3, 2, 13, 14)
    copy = (video + 0.4 * clips(1, 3, 2, 13, 14, seed=1)).clamp(-1, 1)
    images = [(one.double().numpy()[0] + 1) / 2 for one in (video, copy)]
    expected = np.mean(
        [ssim_by_hand(images[0][c, t], images[1][c, t]) for c in range(3) for t in range(2)]
    )
    assert ssim(video, copy).item() == pytest.approx(expected, rel=1e-9)


def test_ssim_agrees_with_scikit_image() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    video = clips(1, 3, 1, 24, 20)
    copy = (video + 0.4 * clips(1, 3, 1, 24, 20, seed=1)).clamp(-1, 1)
    images = [(one.double().numpy()[0, :, 0] + 1) / 2 for one in (video, copy)]
    expected = metrics.structural_similarity(
        *images,
        channel_axis=0,
        data_range=1.0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    assert ssim(video, copy).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("metric", [psnr, partial(psnr, pooled=True), ssim])
def test_values_are_per_video(metric) -> None:
    video, copy = clips(3, 3, 2, 12, 16), clips(3, 3, 2, 12, 16, seed=1)
    together = metric(video, copy)
    alone = torch.cat([metric(video[i : i + 1], copy[i : i + 1]) for i in range(3)])
    assert together.shape == (3,)
    assert torch.allclose(together, alone, rtol=1e-12)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_wrong_shapes_are_refused(metric) -> None:
    with pytest.raises(ValueError, match="one shape"):
        metric(torch.zeros(1, 3, 2, 12, 12), torch.zeros(1, 3, 1, 12, 12))
    with pytest.raises(ValueError, match=r"\(B, C, T, H, W\)"):
        metric(torch.zeros(3, 2, 12, 12), torch.zeros(3, 2, 12, 12))


def test_ssim_of_tiny_frames_says_what_it_needs() -> None:
    with pytest.raises(ValueError, match="at least 11x11 pixels, got 8x16"):
        ssim(torch.zeros(1, 3, 2, 8, 16), torch.zeros(1, 3, 2, 8, 16))


@pytest.fixture
def random_trunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """LPIPS with its own linear layers on a random trunk: nothing to download."""
    monkeypatch.setattr(lpips, "LPIPS", partial(lpips.LPIPS, pnet_rand=True))


@pytest.mark.usefixtures("random_trunk")
def test_lpips_is_frozen_quiet_and_outside_the_state_dict(capfd) -> None:
    metric = Lpips("squeeze").train()
    assert not list(metric.parameters())
    assert not metric.state_dict()
    assert not any(module.training for module in metric.modules())
    assert {buffer.dtype for buffer in metric.double().buffers()} == {torch.float64}
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err == ""


@pytest.mark.usefixtures("random_trunk")
def test_lpips_measures_frames_and_averages_them() -> None:
    metric = Lpips("squeeze")
    video, copy = clips(2, 3, 2, 20, 24), clips(2, 3, 2, 20, 24, seed=1).requires_grad_()
    frames = metric.frames(video, copy)
    assert frames.shape == (2, 2)
    frames.sum().backward()
    assert copy.grad is not None
    assert copy.grad.isfinite().all()
    values = metric(video, copy)
    assert not values.requires_grad
    assert torch.allclose(values, frames.detach().double().mean(1), rtol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(metric.frames(video, copy), frames)
    reference = metric.net(video[1, :, :1].movedim(1, 0), copy[1, :, :1].movedim(1, 0))
    assert torch.allclose(frames[1, 0], reference.squeeze(), rtol=1e-5)
    assert torch.equal(metric(video, video), torch.zeros(2, dtype=torch.float64))


@pytest.mark.usefixtures("random_trunk")
def test_lpips_of_tiny_frames_says_what_it_needs() -> None:
    with pytest.raises(ValueError, match="at least 17 pixels, got 16x32"):
        Lpips("squeeze")(torch.zeros(1, 3, 1, 16, 32), torch.zeros(1, 3, 1, 16, 32))


def test_lpips_without_its_weights_says_what_to_put_where(
    monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", offline)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(ValueError, match=r"squeezenet1_1-b8a52dc0\.pth") as caught:
        Lpips("squeeze")
    message = str(caught.value)
    assert "Name or service not known" in message
    assert str(tmp_path / "checkpoints") in message
    assert "loss.perceptual_weight=0" in message
    assert "\n" not in message


def test_unknown_lpips_net_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'vgg', 'alex', 'squeeze'.*got 'resnet'"):
        Lpips("resnet")
