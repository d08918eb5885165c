"""Quality of reconstructions: PSNR, SSIM and LPIPS of each video, and their means.

Axes: B batch, C channels, T frames, H W pixels, N frames of all videos together.

Protocol, the same for all three: videos come in [-1, 1], a reconstruction's overshoot is clipped
as any display would, values are not rounded to 8 bits, each frame is measured as an image, and a
video's value is the mean over its frames. PSNR and SSIM take [0, 1], data range 1, float64.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from vidtwin.config import LPIPS_NETS, METRICS
from vidtwin.media import to_uint8

if TYPE_CHECKING:
    from vidtwin.autoencoder import VidTwinAutoencoder

__all__ = [
    "LPIPS_NETS",
    "METRICS",
    "SSIM_WINDOW",
    "FrameMeans",
    "Lpips",
    "blockiness",
    "mean_measures",
    "measure_reconstructions",
    "psnr",
    "ssim",
    "sum_measures",
]

# PSNR is capped at 100 dB: an identical frame would give infinity, and make the mean of a whole
# data set infinite. 8-bit rounding alone is 59 dB.
MINIMUM_MSE = 1e-10
FLAT = 1e-5  # a difference of neighbouring pixels, of range 1, that nobody sees
SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2  # for values of range 1

# torchvision's file of each LPIPS net's backbone, and the smallest frame size in pixels.
_BACKBONES = {
    "vgg": ("vgg16-397923af.pth", 16),
    "alex": ("alexnet-owt-7be5be79.pth", 31),
    "squeeze": ("squeezenet1_1-b8a52dc0.pth", 17),
}
Metrics = dict[str, float]


def _check_pair(video: Tensor, reconstruction: Tensor) -> None:
    if video.ndim != 5 or video.shape != reconstruction.shape:
        raise ValueError(
            "expected a video and its reconstruction of one shape (B, C, T, H, W), "
            f"got {tuple(video.shape)} and {tuple(reconstruction.shape)}"
        )


def _unit_range(video: Tensor) -> Tensor:
    return ((video.detach().double() + 1) / 2).clamp(0, 1)


def psnr(video: Tensor, reconstruction: Tensor, *, pooled: bool = False) -> Tensor:
    """Peak signal-to-noise ratio of each video, in dB, at most 100.

    Args:
        video: (B, C, T, H, W), in [-1, 1].
        reconstruction: the same shape; clipped to [-1, 1].
        pooled: False, usual for video, averages the PSNR of the frames; True is the PSNR of the
            video's mean squared error (never higher).
    Returns:
        (B,), float64. Identical frames count 100 dB instead of infinity.
    Raises:
        ValueError: if the shapes differ or aren't 5-D.
    """
    _check_pair(video, reconstruction)
    error = (_unit_range(video) - _unit_range(reconstruction)).square()
    error = error.mean((1, 2, 3, 4)) if pooled else error.mean((1, 3, 4))  # (B,) or (B, T)
    decibels = -10 * error.clamp_min(MINIMUM_MSE).log10()
    return decibels if pooled else decibels.mean(1)


def blockiness(video: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """How much steeper each video is across the borders of patches than elsewhere.

    Args:
        video: (B, C, T, H, W), in [-1, 1]; clipped to it.
        patch_size: (rows, columns) of a patch.
    Returns:
        (B,), float64: mean absolute difference of neighbouring pixels on two sides of a border over
            that inside the patches; about 1 where there are no seams. 1 for a flat video.
    Raises:
        ValueError: if no border crosses the frames, or patches have no inside.
    """
    means: dict[bool, list[Tensor]] = {True: [], False: []}
    frames = _unit_range(video)
    for axis, patch in zip((-2, -1), patch_size, strict=True):
        steps = frames.diff(dim=axis).abs().movedim(axis, -1)
        across = torch.arange(1, frames.shape[axis], device=frames.device) % patch == 0
        if across.all() or not across.any():
            raise ValueError(
                f"blockiness needs patches of 2 pixels or more, two along a frame of "
                f"{tuple(frames.shape[-2:])}, got patches of {tuple(patch_size)}"
            )
        for kind, means_of in means.items():
            means_of.append(steps[..., across == kind].flatten(1).mean(1))
    border, inside = (torch.stack(means[kind]).mean(0) + FLAT for kind in (True, False))
    return border / inside


def ssim(video: Tensor, reconstruction: Tensor) -> Tensor:
    """Structural similarity of each video: 1 for a copy.

    Args:
        video: (B, C, T, H, W), in [-1, 1], frames of at least 11 x 11 pixels.
        reconstruction: the same shape; clipped to [-1, 1].
    Returns:
        (B,), float64: the mean over frames, channels and the window positions inside a frame.
    Raises:
        ValueError: if the shapes differ, aren't 5-D, or the frames are below 11 pixels.
    Source: Wang et al. 2004: Gaussian window 11 x 11, sigma 1.5, k1 0.01, k2 0.03.
    """
    _check_pair(video, reconstruction)
    if min(video.shape[-2:]) < SSIM_WINDOW:
        raise ValueError(
            f"ssim's window needs frames of at least {SSIM_WINDOW}x{SSIM_WINDOW} pixels, "
            f"got {video.shape[-2]}x{video.shape[-1]}; measure larger frames, or leave ssim out"
        )
    # A video at a time: the float64 windows of a whole batch would fill the memory.
    pairs = zip(_unit_range(video), _unit_range(reconstruction), strict=True)
    return torch.stack([_ssim_of_frames(one, other).mean() for one, other in pairs])


def _ssim_of_frames(first: Tensor, second: Tensor) -> Tensor:
    """(C, T, H - 10, W - 10): the similarity at every window inside the frames, (C, T, H, W).

    torchmetrics computes the same (a test compares them), but with a float64 convolution that is
    fifty times slower on a CPU: seconds for a clip of 16 x 64 x 64.
    """
    rows, columns = (_gaussian_windows(size, first.device) for size in first.shape[-2:])
    products = (first, second, first * first, second * second, first * second)
    # The window is separable, so its sums are two matrix products.
    mean_1, mean_2, square_1, square_2, cross = (rows @ image @ columns.mT for image in products)
    luminance = (2 * mean_1 * mean_2 + SSIM_C1) / (mean_1**2 + mean_2**2 + SSIM_C1)
    variances = square_1 - mean_1**2 + square_2 - mean_2**2
    return luminance * (2 * (cross - mean_1 * mean_2) + SSIM_C2) / (variances + SSIM_C2)


def _gaussian_windows(size: int, device: torch.device) -> Tensor:
    """(size - 10, size): in each row the weights of one position of the window on an axis."""
    distances = torch.arange(SSIM_WINDOW, dtype=torch.float64) - SSIM_WINDOW // 2
    weights = torch.exp(-0.5 * (distances / SSIM_SIGMA) ** 2)
    windows = torch.zeros(size - SSIM_WINDOW + 1, size, dtype=torch.float64)
    for position in range(len(windows)):
        windows[position, position : position + SSIM_WINDOW] = weights / weights.sum()
    return windows.to(device)


class Lpips(nn.Module):
    """The learned perceptual distance, frozen: no parameters, nothing in the state dict.

    Args:
        net: "vgg", "alex" or "squeeze".
    Raises:
        ValueError: for an unknown net, or if the backbone's weights can't be loaded.
    Source: Zhang et al. 2018 (arXiv 1801.03924), version 0.1, by the `lpips` package.
    """

    def __init__(self, net: str = "vgg") -> None:
        super().__init__()
        if net not in LPIPS_NETS:
            raise ValueError(f"the LPIPS net must be one of {LPIPS_NETS}, got {net!r}")
        self.net_name = net
        self.net = _build_lpips(net)
        # Weights become buffers outside the state dict: checkpoints stay small, no optimizer or
        # DDP finds a parameter, and `.to(device)` still moves them.
        for module in self.net.modules():
            tensors: list[tuple[str, Tensor]] = [
                *module.named_parameters(recurse=False),
                *module.named_buffers(recurse=False),
            ]
            for name, tensor in tensors:
                delattr(module, name)
                module.register_buffer(name, tensor.detach(), persistent=False)
        self.eval()

    def train(self, mode: bool = True) -> Lpips:
        """Stays in evaluation mode: dropout would make the distance noisy."""
        return super().train(False)

    def frames(self, video: Tensor, reconstruction: Tensor) -> Tensor:
        """Distance of each frame, differentiable.

        Args:
            video: (B, 3, T, H, W), in [-1, 1].
            reconstruction: the same shape; not clipped.
        Returns:
            (B, T), in the weights' type (float32).
        Raises:
            ValueError: if the shapes differ or the frames are too small for the net.
        """
        _check_pair(video, reconstruction)
        smallest = _BACKBONES[self.net_name][1]
        if min(video.shape[-2:]) < smallest:
            raise ValueError(
                f"LPIPS with {self.net_name!r} needs frames of at least {smallest} pixels, got "
                f"{video.shape[-2]}x{video.shape[-1]}; use larger frames or turn it off"
            )
        dtype = next(self.net.buffers()).dtype
        # Not in bf16: its 8 bits would blur the small differences being measured.
        with torch.autocast(video.device.type, enabled=False):
            distance = self.net(
                rearrange(video, "b c t h w -> (b t) c h w").to(dtype),
                rearrange(reconstruction, "b c t h w -> (b t) c h w").to(dtype),
            )  # (N, 1, 1, 1)
        return rearrange(distance, "(b t) 1 1 1 -> b t", t=video.shape[2])

    @torch.no_grad()
    def forward(self, video: Tensor, reconstruction: Tensor) -> Tensor:
        """Distance of each video, as a metric: 0 for a copy, no gradient.

        Args:
            video: (B, 3, T, H, W), in [-1, 1].
            reconstruction: the same shape; clipped to [-1, 1].
        Returns:
            (B,), float64: the mean over the frames.
        """
        # A video at a time: the backbone's activations of a batch of videos would fill the memory.
        pairs = zip(video.split(1), reconstruction.clamp(-1, 1).split(1), strict=True)
        return torch.cat([self.frames(one, other).double().mean(1) for one, other in pairs])


def _build_lpips(net: str) -> nn.Module:
    import lpips

    filename = _BACKBONES[net][0]
    folder = os.path.join(torch.hub.get_dir(), "checkpoints")
    try:
        with warnings.catch_warnings():
            # torchvision warns about an argument that lpips passes to it.
            warnings.filterwarnings("ignore", category=UserWarning, module="torchvision")
            return lpips.LPIPS(net=net, verbose=False)
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"LPIPS needs torchvision's weights {filename}, which could not be loaded "
            f"({str(error) or type(error).__name__}): put "
            f"https://download.pytorch.org/models/{filename} into {folder} "
            "(TORCH_HOME moves that folder), or do without it: loss.perceptual_weight=0 of a "
            "training, lpips=null of evaluate.py, --lpips none of reconstruct.py"
        ) from error


class FrameMeans:
    """Mean metrics over the frames of a video; one that can't be computed is None, with the reason.

    Args:
        lpips: the perceptual distance, or None.
        reason: why `lpips` is None.
        device: the device of `lpips`.
    """

    def __init__(
        self, lpips: Lpips | None, reason: str = "", device: torch.device | str = "cpu"
    ) -> None:
        self.num_frames = 0
        self.sums = dict.fromkeys(METRICS, 0.0)
        self.reasons = {} if lpips is not None else {"lpips": reason}
        self._lpips, self._device = lpips, device

    def add(self, video: Tensor, reconstruction: Tensor) -> None:
        """Adds frames, each measured as an image.

        Args:
            video: (1, 3, T, H, W) in [-1, 1].
            reconstruction: the same shape.
        """
        frames = video.shape[2]
        for name in METRICS:
            if name in self.reasons:
                continue
            try:
                value = self._measure(name, video, reconstruction)
            except ValueError as error:  # the frames are smaller than the metric's window
                self.reasons[name] = str(error)
            else:
                self.sums[name] += float(value) * frames
        self.num_frames += frames

    def result(self) -> dict[str, Any]:
        """psnr, ssim and lpips, and `reasons` for those that are None."""
        values: dict[str, Any] = {
            name: None if name in self.reasons else self.sums[name] / max(1, self.num_frames)
            for name in METRICS
        }
        return values | {"reasons": dict(self.reasons)}

    def _measure(self, name: str, video: Tensor, reconstruction: Tensor) -> Any:
        if name == "lpips":
            assert self._lpips is not None
            return self._lpips(video.to(self._device), reconstruction.to(self._device))
        return {"psnr": psnr, "ssim": ssim}[name](video, reconstruction)


@torch.no_grad()
def measure_reconstructions(
    model: VidTwinAutoencoder,
    batches: Iterable[dict[str, Any]],
    *,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    lpips: Lpips | None = None,
) -> tuple[list[tuple[int, Metrics]], np.ndarray | None]:
    """PSNR, SSIM and optionally LPIPS of each clip, with the posterior at its mode.

    Args:
        model: is put into evaluation mode, and back afterwards.
        batches: with "video" and "index", as `vidtwin.data.build_evaluation_loader` gives them.
        autocast: a context manager for the forward passes, such as `accelerator.autocast`.
        lpips: None to leave it out.
    Returns:
        (index of the clip in the data set, its metrics) for every clip, and the first batch as
        one (T, B H, 4 W, 3) uint8 video: input, reconstruction, structure alone, dynamics alone.
    """
    device = next(model.parameters()).device
    rows: list[tuple[int, Metrics]] = []
    sheet = None
    training = model.training
    model.eval()
    for batch in batches:
        video = batch["video"].to(device)
        with autocast():
            output = model(video)
            alone = [
                model.decode(output.latents, "structure"),
                model.decode(output.latents, "dynamics"),
            ]
        clips = [video, output.reconstruction.float(), *(clip.float() for clip in alone)]
        metrics = {"psnr": psnr(video, clips[1]), "ssim": ssim(video, clips[1])}
        if lpips is not None:
            metrics["lpips"] = lpips(video, clips[1])
        for place, index in enumerate(batch["index"].tolist()):
            rows.append((index, {name: float(value[place]) for name, value in metrics.items()}))
        if sheet is None and all(clip.isfinite().all() for clip in clips):
            panels = rearrange(torch.stack(clips), "panel b c t h w -> c t (b h) (panel w)")
            sheet = to_uint8(panels)
    model.train(training)
    return rows, sheet


def sum_measures(rows: Iterable[tuple[int, Metrics]]) -> tuple[Metrics, int]:
    """The sum of each metric over all (index, metrics), and how many these are.

    Sums in the order of the indices, so that the result doesn't depend on which process measured
    what.
    """
    ordered = [values for _, values in sorted(rows, key=lambda row: row[0])]
    names = ordered[0] if ordered else ()
    return {name: sum(values[name] for values in ordered) for name in names}, len(ordered)


def mean_measures(rows: Iterable[tuple[int, Metrics]]) -> Metrics:
    """The mean of each metric over all clips, and "clips", their number; see `sum_measures`.

    Raises:
        ValueError: if there is no clip.
    """
    sums, clips = sum_measures(rows)
    if not clips:
        raise ValueError("no validation clip could be used; the log says why each was skipped")
    return {**{name: value / clips for name, value in sums.items()}, "clips": float(clips)}
