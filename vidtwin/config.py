"""Configuration of the autoencoder, and the latent shapes that follow from it."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

__all__ = ["LPIPS_NETS", "AutoencoderConfig"]

LPIPS_NETS = ("vgg", "alex", "squeeze")


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """Sizes of a `VidTwinAutoencoder`; the defaults are the released 0.335 % model.

    Args:
        in_channels: colour channels of the video.
        num_frames: T, frames of one window.
        height: H in pixels, a multiple of `patch_size[1]`.
        width: W in pixels, a multiple of `patch_size[2]`.
        patch_size: (1, ph, pw) pixels a token covers; VidTwin never merges frames.
        hidden_size: D, width of both transformers; divisible by 4 and by the head counts.
        encoder_depth: blocks of the encoder.
        decoder_depth: blocks of the decoder.
        encoder_heads: attention heads of the encoder.
        decoder_heads: attention heads of the decoder.
        mlp_ratio: hidden width of each MLP over D.
        encoder_causal: whether temporal attention of the encoder sees only earlier frames.
        decoder_causal: the same for the decoder.
        num_queries: Q, learned queries of the Q-Former.
        query_hidden_size: q, width of the Q-Former.
        query_layers: layers of the Q-Former; cross-attention on every second one.
        query_heads: attention heads of the Q-Former.
        query_intermediate_size: feed-forward width of the Q-Former.
        query_dropout: dropout of the Q-Former while training.
        structure_base_channels: channels of the structure branch before downsampling.
        structure_channels: C_s, channels of the structure latent.
        structure_downsamples: halvings of the grid for the structure latent.
        dynamics_channels: C_d, channels of the dynamics latents.
        dynamics_downsamples: halvings of the grid for the dynamics latents
            (0 is the released option `downsample_motion: False`).
        structure_frame: the one frame of a window that the structure is read off, so that it
            can't tell the movement; None reads all frames, as the paper does. For an autoencoder
            that was trained with stills, see `vidtwin.frame_shuffle`.

    Raises:
        ValueError: if sizes do not fit together; the message names the keyword.
    Source: VidTwin (arXiv 2412.17726), Sec. 3 and the released configuration.
    """

    in_channels: int = 3
    num_frames: int = 16
    height: int = 224
    width: int = 224
    patch_size: tuple[int, int, int] = (1, 16, 16)
    hidden_size: int = 768
    encoder_depth: int = 16
    decoder_depth: int = 16
    encoder_heads: int = 12
    decoder_heads: int = 12
    mlp_ratio: float = 4.0
    encoder_causal: bool = True
    decoder_causal: bool = True
    num_queries: int = 16
    query_hidden_size: int = 64
    query_layers: int = 6
    query_heads: int = 8
    query_intermediate_size: int = 768
    query_dropout: float = 0.1
    structure_base_channels: int = 128
    structure_channels: int = 8
    structure_downsamples: int = 1
    dynamics_channels: int = 8
    dynamics_downsamples: int = 1
    structure_frame: int | None = None

    def __post_init__(self) -> None:
        # YAML and JSON give lists; one canonical type keeps saved configs equal.
        if isinstance(self.patch_size, list):
            object.__setattr__(self, "patch_size", tuple(self.patch_size))
        self._check_numbers()
        self._check_patches()
        self._check_divisibility()
        if not 0.0 <= self.query_dropout < 1.0:
            raise ValueError(f"`query_dropout` must be in [0, 1), got {self.query_dropout}")
        frame = self.structure_frame
        if frame is not None and (type(frame) is not int or not 0 <= frame < self.num_frames):
            raise ValueError(
                f"`structure_frame` must be null or a frame of the window, 0 to "
                f"{self.num_frames - 1}, got {frame!r}"
            )

    def _check_numbers(self) -> None:
        may_be_zero = {"structure_downsamples", "dynamics_downsamples", "query_dropout"}
        for field in fields(self):
            name, kind = field.name, type(field.default)
            value: Any = getattr(self, name)
            if kind is tuple or field.default is None:
                continue
            # isinstance would take True for a count.
            if type(value) not in ((float, int) if kind is float else (kind,)):
                raise ValueError(f"`{name}` must be of type {kind.__name__}, got {value!r}")
            if kind is bool:
                continue
            if not (value > 0 or (value == 0 and name in may_be_zero)) or math.isinf(value):
                raise ValueError(f"`{name}` must be positive, got {value}")

    def _check_patches(self) -> None:
        given: Any = self.patch_size
        if not isinstance(given, tuple) or [type(n) for n in given] != [int] * 3 or min(given) < 1:
            raise ValueError(f"`patch_size` must be three counts (1, ph, pw), got {given!r}")
        if self.patch_size[0] != 1:
            raise ValueError(
                f"`patch_size[0]` must be 1, got {self.patch_size[0]}: "
                "VidTwin keeps every frame (its latents have a frame axis of num_frames)"
            )
        for name, size, patch in (
            ("height", self.height, self.patch_size[1]),
            ("width", self.width, self.patch_size[2]),
        ):
            if size % patch:
                raise ValueError(
                    f"`{name}` must be a multiple of the patch size {patch}, got {size}; "
                    f"set {name}={max(1, round(size / patch)) * patch}"
                )

    def _check_divisibility(self) -> None:
        if self.hidden_size % 4:
            raise ValueError(
                f"`hidden_size` must be a multiple of 4 (position tables), got {self.hidden_size}"
            )
        for name, size, heads in (
            ("encoder_heads", self.hidden_size, self.encoder_heads),
            ("decoder_heads", self.hidden_size, self.decoder_heads),
            ("query_heads", self.query_hidden_size, self.query_heads),
        ):
            if size % heads:
                raise ValueError(f"`{name}`={heads} must divide the width {size}")
        if self.mlp_size < 1:
            raise ValueError(
                f"`mlp_ratio`={self.mlp_ratio} of `hidden_size`={self.hidden_size} leaves no width"
            )

    @property
    def mlp_size(self) -> int:
        """Width between the two layers of the transformers' MLPs."""
        # Truncated as in the released code; a ratio that was found from weights, width / D, may
        # fall short of the whole width by rounding.
        return int(self.hidden_size * self.mlp_ratio * (1 + 1e-12))

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w): patches along height and width."""
        return self.height // self.patch_size[1], self.width // self.patch_size[2]

    @property
    def structure_grid(self) -> tuple[int, int]:
        """(h', w') of the structure latent."""
        h, w = self.grid
        return halved(h, self.structure_downsamples), halved(w, self.structure_downsamples)

    @property
    def dynamics_grid(self) -> tuple[int, int]:
        """(h', w') of the dynamics latents."""
        h, w = self.grid
        return halved(h, self.dynamics_downsamples), halved(w, self.dynamics_downsamples)

    @property
    def structure_shape(self) -> tuple[int, int, int, int]:
        """(C_s, Q, h', w') of one clip's structure latent."""
        return (self.structure_channels, self.num_queries, *self.structure_grid)

    @property
    def dynamics_x_shape(self) -> tuple[int, int, int]:
        """(C_d, T, w'): the dynamics latent averaged over rows."""
        return self.dynamics_channels, self.num_frames, self.dynamics_grid[1]

    @property
    def dynamics_y_shape(self) -> tuple[int, int, int]:
        """(C_d, T, h'): the dynamics latent averaged over columns."""
        return self.dynamics_channels, self.num_frames, self.dynamics_grid[0]

    @property
    def video_shape(self) -> tuple[int, int, int, int]:
        """(in_channels, T, H, W) of one clip."""
        return self.in_channels, self.num_frames, self.height, self.width

    @property
    def numel_per_clip(self) -> int:
        """Latent values of one clip, all three latents together."""
        shapes = (self.structure_shape, self.dynamics_x_shape, self.dynamics_y_shape)
        return sum(math.prod(shape) for shape in shapes)

    @property
    def compression_rate(self) -> float:
        """Latent values over pixel values; 0.00335 for the released model."""
        return self.numel_per_clip / math.prod(self.video_shape)


def halved(size: int, times: int) -> int:
    """Size of an axis after `times` convolutions of kernel 3, stride 2, padding 1."""
    for _ in range(times):
        size = (size + 1) // 2
    return size
