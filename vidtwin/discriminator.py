"""PatchGAN discriminators: per frame (2-D) or over space and time (3-D).

Axes: B batch, C channels, T frames, H W pixels; t h w the discriminator's patches.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from einops import rearrange
from torch import Tensor, nn

from vidtwin.config import DiscriminatorConfig

__all__ = ["DiscriminatorConfig", "PatchDiscriminator", "SynchronizedBatchNorm"]


class SynchronizedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm whose training statistics cover the batches of all processes.

    With one process it is torch's BatchNorm, for 4-D and 5-D input. torch's SyncBatchNorm can't
    run on CPU, and BatchNorm makes training depend on how many processes share a batch. The
    statistics are computed here by hand, so that no running buffer is saved for backward: two
    forwards before one backward are safe under DDP.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 3:
            raise ValueError(f"expected (N, C, ...) input, got shape {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, ...) normalised per channel, then scaled and shifted; in the input's dtype.

        In training, all processes must call it the same number of times.
        """
        distributed = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        if not (self.training and distributed):
            return super().forward(input)
        # Imported here: builds of torch without distributed lack it.
        from torch.distributed.nn.functional import all_reduce

        # Statistics in float32: a bf16 sum over thousands of positions loses the variance.
        values = input if input.dtype == torch.float64 else input.float()
        axes = [0, *range(2, values.ndim)]
        count = values.new_tensor([values.numel() / values.shape[1]])
        sums = all_reduce(torch.cat([values.sum(axes), count]))
        total = sums[-1].detach()
        shape = (1, -1) + (1,) * (values.ndim - 2)
        centered = values - (sums[:-1] / total).reshape(shape)
        variance = all_reduce(centered.square().sum(axes)) / total
        self._update_running(sums[:-1].detach() / total, variance.detach(), total)
        scale = torch.rsqrt(variance + self.eps) * self.weight
        return (centered * scale.reshape(shape) + self.bias.reshape(shape)).to(input.dtype)

    @torch.no_grad()
    def _update_running(self, mean: Tensor, variance: Tensor, total: Tensor) -> None:
        assert self.momentum is not None
        assert self.num_batches_tracked is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        self.num_batches_tracked += 1
        unbiased = variance * total / (total - 1).clamp_min(1)
        for running, value in ((self.running_mean, mean), (self.running_var, unbiased)):
            # The training loop skips a batch that isn't finite; it must not change the statistics.
            value = torch.where(value.isfinite(), value.to(running.dtype), running)
            running.lerp_(value, self.momentum)


def _norm(name: str, channels: int) -> nn.Module:
    if name == "batch":
        return SynchronizedBatchNorm(channels)
    if name == "group":
        groups = next(g for g in (32, 16, 8, 4, 2, 1) if channels % g == 0 and channels // g >= 2)
        return nn.GroupNorm(groups, channels)
    return nn.Identity()


class PatchDiscriminator(nn.Module):
    """A PatchGAN: one logit for each patch of each frame (2-D) or of each window (3-D).

    Args:
        config: see `DiscriminatorConfig`.
    Source: pix2pix (arXiv 1611.07004) as in the released VidTwin, whose weights load into the
        default config (`vidtwin.convert.read_official_discriminator`). The 3-D kind uses
        kernel 3 along time, so any T >= 1 works.
    """

    def __init__(self, config: DiscriminatorConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or DiscriminatorConfig()
        # BatchNorm cancels a bias before it: the released convolutions have none there.
        bias = config.norm != "batch"
        widths = [config.channels * min(2**i, 8) for i in range(config.layers + 1)]
        # Without a norm an Identity takes its place, so that the names main.* are the same.
        modules: list[nn.Module] = [
            self._conv(config.in_channels, widths[0], stride=2),
            nn.LeakyReLU(0.2),
        ]
        for i in range(1, config.layers + 1):
            stride = 2 if i < config.layers else 1
            modules += [
                self._conv(widths[i - 1], widths[i], stride=stride, bias=bias),
                _norm(config.norm, widths[i]),
                nn.LeakyReLU(0.2),
            ]
        modules.append(self._conv(widths[-1], 1, stride=1))
        self.main = nn.Sequential(*modules)
        self.reset_parameters()

    def _conv(self, inputs: int, outputs: int, *, stride: int, bias: bool = True) -> nn.Module:
        if self.config.kind == "2d":
            return nn.Conv2d(inputs, outputs, 4, stride, 1, bias=bias)
        # Kernel 3 with padding 1 keeps at least one frame of a short clip; kernel 4 would not.
        strides, kernel = (stride, stride, stride), (3, 4, 4)
        return nn.Conv3d(inputs, outputs, kernel, strides, 1, bias=bias)

    def reset_parameters(self) -> None:
        """Draws convolutions from N(0, 0.02) and norm scales from N(1, 0.02), as released."""
        for module in self.main:
            if isinstance(module, (nn.Conv2d, nn.Conv3d)):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, (SynchronizedBatchNorm, nn.GroupNorm)):
                nn.init.normal_(module.weight, 1.0, 0.02)
                nn.init.zeros_(module.bias)

    @property
    def minimum_size(self) -> int:
        """The smallest height and width with at least one logit."""
        return 3 * 2**self.config.layers

    def check_frames(self, height: int, width: int) -> None:
        """Raises ValueError for frames too small for one logit."""
        if min(height, width) < self.minimum_size:
            raise ValueError(
                f"discriminator.layers={self.config.layers} needs frames of at least "
                f"{self.minimum_size} pixels, got {height}x{width}; "
                "set fewer discriminator.layers"
            )

    def forward(self, video: Tensor) -> Tensor:
        """Logits of every patch: high for real, low for reconstructed.

        Args:
            video: (B, C, T, H, W), in [-1, 1].
        Returns:
            (B, 1, T, h, w) for "2d", (B, 1, t, h, w) for "3d".
        Raises:
            ValueError: if the video isn't 5-D or its frames are too small for one logit.
        """
        if video.ndim != 5 or video.shape[1] != self.config.in_channels:
            raise ValueError(
                f"the discriminator expects (B, {self.config.in_channels}, T, H, W), "
                f"got {tuple(video.shape)}"
            )
        self.check_frames(*video.shape[-2:])
        if self.config.kind == "3d":
            return self.main(video)
        frames = video.shape[2]
        logits = self.main(rearrange(video, "b c t h w -> (b t) c h w"))
        return rearrange(logits, "(b t) c h w -> b c t h w", t=frames)
