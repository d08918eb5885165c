"""What mends the seams between patches after unpatchify: overlapping patches, and convolutions.

Neither is in the released model. Both start at zero, so that weights without them go on unchanged.

Axes: B batch, C channels, T frames, H W pixels, D width; n cells of `stride` pixels along the side
of a patch, F features of a cell.
"""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional

from vidtwin.config import AutoencoderConfig
from vidtwin.transformer import LAYER_NORM_EPSILON


class PatchOverlap(nn.Module):
    """Adds what every token draws in a window of twice its patch, in which it overlaps others'.

    Each pixel is then drawn by up to four tokens, linearly, which costs next to nothing.

    Args:
        config: of the autoencoder.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.frame, self.patch = (config.height, config.width), config.patch_size[1:]
        self.linear = nn.Linear(config.hidden_size, config.in_channels * 4 * math.prod(self.patch))
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, video: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """(B, C, T, H, W) to the same, from (B, T, S, D) tokens."""
        tokens = functional.layer_norm(tokens, tokens.shape[-1:], eps=LAYER_NORM_EPSILON)
        windows = rearrange(self.linear(tokens), "b t s k -> (b t) k s")
        drawn = functional.fold(
            windows,
            self.frame,
            kernel_size=(2 * self.patch[0], 2 * self.patch[1]),
            stride=self.patch,
            padding=(self.patch[0] // 2, self.patch[1] // 2),
        )
        return video + rearrange(drawn, "(b t) c h w -> b c t h w", b=len(video))


class Refinement(nn.Module):
    """Adds to every frame what 3 x 3 convolutions make of it and of the tokens it was drawn from.

    A patch is drawn by a linear map that knows nothing of its neighbours; convolutions see across
    its border. Each frame is refined by itself, so that a causal decoder stays causal. The last
    layer starts at zero: a new refinement changes nothing.

    Args:
        config: of the autoencoder, with `refinement_channels`.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        assert config.refinement_channels is not None
        channels, self.stride = config.refinement_channels, config.refinement_stride
        self.grid = config.grid
        self.cells = tuple(side // self.stride for side in config.patch_size[1:])
        colors = config.in_channels * self.stride**2
        features = max(1, channels // 2)
        self.features = nn.Linear(config.hidden_size, self.cells[0] * self.cells[1] * features)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(channels if index else colors + features, channels, 3, padding=1)
            for index in range(config.refinement_layers - 1)
        )
        self.to_colors = nn.Conv2d(channels, colors, 3, padding=1)
        nn.init.zeros_(self.to_colors.weight)
        assert self.to_colors.bias is not None
        nn.init.zeros_(self.to_colors.bias)

    def forward(self, video: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """(B, C, T, H, W) to the same.

        Args:
            video: (B, C, T, H, W), patches side by side.
            tokens: (B, T, S, D), those that the patches were drawn from.
        """
        tokens = functional.layer_norm(tokens, tokens.shape[-1:], eps=LAYER_NORM_EPSILON)
        features = rearrange(
            self.features(tokens),
            "b t (h w) (nh nw f) -> (b t) f (h nh) (w nw)",
            h=self.grid[0],
            nh=self.cells[0],
            nw=self.cells[1],
        )
        frames = rearrange(video, "b c t h w -> (b t) c h w")
        hidden = torch.cat([functional.pixel_unshuffle(frames, self.stride), features], dim=1)
        # Several times faster on a CPU.
        hidden = hidden.contiguous(memory_format=torch.channels_last)
        for index, convolution in enumerate(self.convolutions):
            update = functional.gelu(convolution(hidden), approximate="tanh")
            hidden = hidden + update if index else update
        change = functional.pixel_shuffle(self.to_colors(hidden), self.stride)
        return video + rearrange(change, "(b t) c h w -> b c t h w", b=len(video))
