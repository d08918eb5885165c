"""The VidTwin autoencoder: video to structure and dynamics latents, and back.

Axes: B batch, T frames, H W pixels, h w grid, S = h * w, D width, Q structure queries, q their
width, C_s C_d channels of the latents; h' w' the grid after downsampling.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from os import PathLike

import torch

# From their own modules: type checkers can't see through the package's lazy imports.
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from einops import rearrange, reduce, repeat
from torch import nn
from torch.nn import functional

from vidtwin.config import AutoencoderConfig
from vidtwin.convert import load_official
from vidtwin.latents import DiagonalGaussian, Generators, Part, VidTwinLatents, VidTwinPosterior
from vidtwin.qformer import TemporalQFormer
from vidtwin.strict_loading import StrictLoading
from vidtwin.transformer import PatchEmbedding, PatchHead, SpaceTimeTransformer


class StructureEncoder(nn.Module):
    """Features (B, D, T, h, w) to moments (B, 2 C_s, Q, h', w')."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.num_queries = config.num_queries
        self.temporal = TemporalQFormer(
            num_queries=config.num_queries,
            hidden_size=config.query_hidden_size,
            input_size=config.hidden_size,
            num_layers=config.query_layers,
            num_heads=config.query_heads,
            intermediate_size=config.query_intermediate_size,
            dropout=config.query_dropout,
        )
        widths = structure_widths(config)
        self.conv_in = nn.Conv2d(config.query_hidden_size, widths[0], 3, padding=1)
        self.downsamplers = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=2, padding=1) for before, after in pairwise(widths)
        )
        self.to_moments = nn.Conv2d(widths[-1], 2 * config.structure_channels, 3, padding=1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, D, T, h, w) to (B, 2 C_s, Q, h', w')."""
        grid = self.conv_in(self.temporal(features))
        for downsampler in self.downsamplers:
            grid = functional.relu(downsampler(grid))
        return rearrange(self.to_moments(grid), "(b q) c h w -> b c q h w", q=self.num_queries)


class StructureDecoder(nn.Module):
    """Structure latent (B, C_s, Q, h', w') to features (B, D, T, h, w)."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.grid = config.grid
        widths = structure_widths(config)[::-1]
        self.conv_in = nn.Conv2d(config.structure_channels, widths[0], 3, padding=1)
        self.upsamplers = nn.ModuleList(
            nn.Conv2d(before, after, 3, padding=1) for before, after in pairwise(widths)
        )
        self.conv_out = nn.Conv2d(widths[-1], config.query_hidden_size, 3, padding=1)
        self.to_width = nn.Linear(config.query_hidden_size, config.hidden_size)
        # A convolution of kernel 1 over the query axis is a linear map from Q queries to T frames.
        self.to_frames = nn.Conv1d(config.num_queries, config.num_frames, 1)

    def forward(self, structure: torch.Tensor) -> torch.Tensor:
        """(B, C_s, Q, h', w') to (B, D, T, h, w)."""
        batch = structure.shape[0]
        images = rearrange(structure, "b c q h w -> (b q) c h w")
        images = functional.relu(self.conv_in(images))
        for upsampler in self.upsamplers:
            images = functional.relu(upsampler(images))
            images = functional.interpolate(images, scale_factor=2.0, mode="nearest")
        images = crop_to(self.conv_out(images), self.grid)
        queries = rearrange(images, "(b q) c h w -> (b h w) q c", b=batch)
        frames = functional.relu(self.to_frames(functional.relu(self.to_width(queries))))
        return rearrange(
            frames, "(b h w) t d -> b d t h w", b=batch, h=self.grid[0], w=self.grid[1]
        )


class DynamicsEncoder(nn.Module):
    """Features (B, D, T, h, w) to moments (B, 2 C_d, T, w') and (B, 2 C_d, T, h')."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.downsamplers = nn.ModuleList(
            nn.Conv2d(width, width, 3, stride=2, padding=1)
            for _ in range(config.dynamics_downsamples)
        )
        # One convolution serves both planes, so x and y speak the same code.
        self.to_moments = nn.Conv2d(width, 2 * config.dynamics_channels, 3, padding=1)

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, D, T, h, w) to (B, 2 C_d, T, w') and (B, 2 C_d, T, h')."""
        batch = features.shape[0]
        images = rearrange(features, "b d t h w -> (b t) d h w")
        for downsampler in self.downsamplers:
            images = functional.relu(downsampler(images))
        columns = reduce(images, "(b t) d h w -> b d t w", "mean", b=batch)
        rows = reduce(images, "(b t) d h w -> b d t h", "mean", b=batch)
        return self.to_moments(columns), self.to_moments(rows)


class AxisUpsampler(nn.Module):
    """Linear, ReLU, Linear, ReLU along the last axis: size' to size."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.linear_in = nn.Linear(before, after)
        self.linear_out = nn.Linear(after, after)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(..., size') to (..., size)."""
        return functional.relu(self.linear_out(functional.relu(self.linear_in(features))))


class DynamicsDecoder(nn.Module):
    """Dynamics latents (B, C_d, T, w') and (B, C_d, T, h') to features (B, D, T, h, w).

    Differs from the released model only where that one cannot run: with downsampling and h != w
    each axis has its own upsampler.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        (self.height, self.width), (height, width) = config.grid, config.dynamics_grid
        self.linear_in = nn.Linear(config.dynamics_channels, config.hidden_size)
        self.linear_out = nn.Linear(config.hidden_size, config.hidden_size)
        self.upsamplers = nn.ModuleList()
        if config.dynamics_downsamples:
            self.upsamplers.append(AxisUpsampler(width, self.width))
            if self.height != self.width:
                self.upsamplers.append(AxisUpsampler(height, self.height))

    def forward(self, dynamics_x: torch.Tensor, dynamics_y: torch.Tensor) -> torch.Tensor:
        """(B, C_d, T, w') and (B, C_d, T, h') to (B, D, T, h, w)."""
        columns, rows = self._widen(dynamics_x), self._widen(dynamics_y)
        if len(self.upsamplers) > 0:
            # The first module is the columns'; the last is the rows', the same one on a square.
            columns, rows = self.upsamplers[0](columns), self.upsamplers[-1](rows)
        return repeat(columns, "b d t w -> b d t h w", h=self.height) + repeat(
            rows, "b d t h -> b d t h w", w=self.width
        )

    def _widen(self, dynamics: torch.Tensor) -> torch.Tensor:
        features = rearrange(dynamics, "b c t n -> b t n c")
        features = functional.relu(self.linear_out(functional.relu(self.linear_in(features))))
        return rearrange(features, "b t n d -> b d t n")


@dataclass(frozen=True)
class AutoencoderOutput:
    """What a forward pass gives.

    Args:
        reconstruction: (B, C, T, H, W), about [-1, 1], not clamped.
        posterior: of the three latents.
        latents: those that were decoded.
    """

    reconstruction: torch.Tensor
    posterior: VidTwinPosterior
    latents: VidTwinLatents


class VidTwinAutoencoder(StrictLoading, ModelMixin, ConfigMixin):  # type: ignore[misc]
    """The VidTwin autoencoder; keywords as in `vidtwin.config.AutoencoderConfig`.

    Source: VidTwin (arXiv 2412.17726); number for number the released model, without its dead
    parameters, and with non-square downsampling, which the released code cannot do.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ("Block", "StructureEncoder", "StructureDecoder")  # type: ignore[assignment]

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        num_frames: int = 16,
        height: int = 224,
        width: int = 224,
        patch_size: tuple[int, int, int] = (1, 16, 16),
        hidden_size: int = 768,
        encoder_depth: int = 16,
        decoder_depth: int = 16,
        encoder_heads: int = 12,
        decoder_heads: int = 12,
        mlp_ratio: float = 4.0,
        encoder_causal: bool = True,
        decoder_causal: bool = True,
        num_queries: int = 16,
        query_hidden_size: int = 64,
        query_layers: int = 6,
        query_heads: int = 8,
        query_intermediate_size: int = 768,
        query_dropout: float = 0.1,
        structure_base_channels: int = 128,
        structure_channels: int = 8,
        structure_downsamples: int = 1,
        dynamics_channels: int = 8,
        dynamics_downsamples: int = 1,
        structure_frame: int | None = None,
    ) -> None:
        super().__init__()
        config = AutoencoderConfig(
            **{k: self.config[k] for k in AutoencoderConfig.__dataclass_fields__}
        )
        # A loaded config.json has a list here; `config` should not depend on where it came from.
        self.register_to_config(patch_size=config.patch_size)
        self.sizes = config
        self.patch_embedding = PatchEmbedding(
            config.in_channels, config.hidden_size, config.patch_size
        )
        self.encoder = build_transformer(
            config, config.encoder_depth, config.encoder_heads, config.encoder_causal
        )
        self.structure_encoder = StructureEncoder(config)
        self.dynamics_encoder = DynamicsEncoder(config)
        self.structure_decoder = StructureDecoder(config)
        self.dynamics_decoder = DynamicsDecoder(config)
        self.decoder = build_transformer(
            config, config.decoder_depth, config.decoder_heads, config.decoder_causal
        )
        self.head = PatchHead(
            config.hidden_size, config.patch_size, config.grid, config.in_channels
        )

    @property
    def compression_rate(self) -> float:
        """Latent values over pixel values."""
        return self.sizes.compression_rate

    def encoder_parts(self) -> torch.nn.ModuleDict:
        """What makes latents of videos; the other modules make videos of latents."""
        names = ("patch_embedding", "encoder", "structure_encoder", "dynamics_encoder")
        return torch.nn.ModuleDict({name: getattr(self, name) for name in names})

    def freeze_encoder(self) -> None:
        """Leaves the encoder as it is, so that latents stay what they are while the rest learns."""
        self.encoder_parts().requires_grad_(False)

    @property
    def decoder_last_weight(self) -> torch.Tensor:
        """Weight of the decoder's last Linear, where the adaptive GAN weight is measured."""
        return self.head.linear.weight

    def encode(
        self,
        video: torch.Tensor,
        structure_video: torch.Tensor | None = None,
        dynamics_video: torch.Tensor | None = None,
    ) -> VidTwinPosterior:
        """The posterior over the latents of a batch of clips.

        Args:
            video: (B, C, T, H, W), float in [-1, 1]; C, T, H, W as in the config.
            structure_video: what the structure is read off instead, (B, C, 1 to T, H, W); a
                training may shuffle its frames, see `vidtwin.frame_shuffle`. Without it, the
                config's `structure_frame` alone, or where that is None the video itself.
            dynamics_video: what the dynamics are read off instead, (B, C, T, H, W).
        Returns:
            VidTwinPosterior: call `.mode()` or `.sample()` for latents.
        Raises:
            ValueError: if a size differs from the config (nothing is padded or cropped).
        """
        self._check_video(video)
        frame = self.sizes.structure_frame
        if structure_video is None and frame is not None:
            structure_video = video[:, :, frame : frame + 1]
        if dynamics_video is not None:
            self._check_video(dynamics_video)
            structure_video = video if structure_video is None else structure_video
            video = dynamics_video
        features = self.features(video)
        dynamics_x, dynamics_y = self.dynamics_encoder(features)
        if structure_video is not None:
            self._check_video(structure_video, fewer_frames=True)
            features = self.features(structure_video)
        return VidTwinPosterior(
            structure=DiagonalGaussian.from_moments(self.structure_encoder(features)),
            dynamics_x=DiagonalGaussian.from_moments(dynamics_x),
            dynamics_y=DiagonalGaussian.from_moments(dynamics_y),
        )

    def features(self, video: torch.Tensor) -> torch.Tensor:
        """(B, D, T, h, w): the encoder's output that both branches read."""
        tokens = self.encoder(self.patch_embedding(video))
        return rearrange(tokens, "b t (h w) d -> b d t h w", h=self.sizes.grid[0])

    def decode(
        self,
        latents: VidTwinLatents,
        part: Part = "both",
        branch_weights: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Video (B, C, T, H, W), about [-1, 1], from latents.

        Args:
            latents: raw latents; sizes as in the config.
            part: what to decode: both branches, or one with the other left out.
            branch_weights: (B, 2) factors of the structure's and the dynamics' features, sample by
                sample, for "both"; a training that drops branches has zeros here.
        Raises:
            ValueError: if a latent's size differs from the config, or `part` is unknown.
        """
        self._check_latents(latents)
        features = self.decoder_features(latents, part, branch_weights)
        return self.head(self.decoder(rearrange(features, "b d t h w -> b t (h w) d")))

    def decoder_features(
        self,
        latents: VidTwinLatents,
        part: Part = "both",
        branch_weights: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """(B, D, T, h, w): the sum of the two branches that enters the decoder."""
        if part == "structure":
            return self.structure_decoder(latents.structure)
        if part == "dynamics":
            return self.dynamics_decoder(latents.dynamics_x, latents.dynamics_y)
        if part != "both":
            raise ValueError(f'`part` must be "both", "structure" or "dynamics", got {part!r}')
        structure = self.structure_decoder(latents.structure)
        dynamics = self.dynamics_decoder(latents.dynamics_x, latents.dynamics_y)
        if branch_weights is not None:
            weights = rearrange(branch_weights.to(structure), "b branch -> branch b 1 1 1 1")
            structure, dynamics = structure * weights[0], dynamics * weights[1]
        return structure + dynamics

    def forward(
        self,
        video: torch.Tensor,
        sample_posterior: bool = False,
        generator: Generators = None,
        noise: VidTwinLatents | None = None,
        branch_weights: torch.Tensor | None = None,
        structure_video: torch.Tensor | None = None,
        dynamics_video: torch.Tensor | None = None,
    ) -> AutoencoderOutput:
        """Encodes and decodes.

        Args:
            video: (B, C, T, H, W), float in [-1, 1].
            sample_posterior: draw the latents (training) or take the mode (evaluation).
            generator: for drawing: none, one, or one per sample.
            noise: to use instead of drawing, see `vidtwin.latents.draw_noise`.
            branch_weights: as in `decode`.
            structure_video, dynamics_video: as in `encode`.
        """
        posterior = self.encode(video, structure_video, dynamics_video)
        latents = posterior.sample(generator, noise) if sample_posterior else posterior.mode()
        reconstruction = self.decode(latents, branch_weights=branch_weights)
        return AutoencoderOutput(reconstruction, posterior, latents)

    def reconstruct(
        self,
        video: torch.Tensor,
        tile_overlap: tuple[int, int, int] | None = None,
        part: Part = "both",
        tile_batch_size: int = 1,
    ) -> torch.Tensor:
        """Reconstruction of a video of any length and resolution; see `vidtwin.tiling`.

        Args:
            video: (B, C, T, H, W), float in [-1, 1], any T, H, W.
            tile_overlap: (frames, rows, columns) that neighbouring tiles share; a quarter of the
                model's size by default.
            part: as in `decode`.
            tile_batch_size: tiles per forward pass.
        """
        from vidtwin.tiling import tiled_reconstruct

        return tiled_reconstruct(
            self, video, tile_overlap=tile_overlap, part=part, tile_batch_size=tile_batch_size
        )

    @classmethod
    def from_official(cls, path: str | PathLike[str], **config_overrides) -> VidTwinAutoencoder:
        """The released weights (microsoft/VidTok, .ckpt or .safetensors) in this class.

        Args:
            path: the checkpoint file; loaded without unpickling objects.
            config_overrides: what the weights' shapes can't tell: head counts, causality, and
                height and width of a model that isn't square.
        Raises:
            ValueError: naming every key that is missing or unexpected, or has another shape.
        """
        return load_official(cls, path, **config_overrides)

    def _check_video(self, video: torch.Tensor, fewer_frames: bool = False) -> None:
        expected = self.sizes.video_shape
        if fewer_frames and video.ndim == 5 and 1 <= video.shape[2] <= expected[1]:
            expected = (expected[0], video.shape[2], *expected[2:])
        if video.ndim != 5 or tuple(video.shape[1:]) != expected:
            raise ValueError(
                f"expected a video of shape (B, {', '.join(map(str, expected))}) "
                f"(channels, num_frames, height, width of the config), got {tuple(video.shape)}; "
                "resize or cut it, or call `reconstruct`, which takes any length and resolution"
            )
        if not video.is_floating_point():
            raise ValueError(
                f"expected a float video in [-1, 1], got {video.dtype}; "
                "convert 8-bit frames with video / 127.5 - 1"
            )

    def _check_latents(self, latents: VidTwinLatents) -> None:
        expected = (
            self.sizes.structure_shape,
            self.sizes.dynamics_x_shape,
            self.sizes.dynamics_y_shape,
        )
        names = ("structure", "dynamics_x", "dynamics_y")
        for name, tensor, shape in zip(names, latents.tensors(), expected, strict=True):
            if tuple(tensor.shape[1:]) != shape or tensor.shape[0] != latents.batch_size:
                raise ValueError(
                    f"expected `{name}` of shape ({latents.batch_size}, "
                    f"{', '.join(map(str, shape))}), got {tuple(tensor.shape)}: "
                    "these latents come from another autoencoder config"
                )


def build_transformer(
    config: AutoencoderConfig, depth: int, num_heads: int, causal: bool
) -> SpaceTimeTransformer:
    """The transformer of one side."""
    return SpaceTimeTransformer(
        num_frames=config.num_frames,
        grid=config.grid,
        hidden_size=config.hidden_size,
        depth=depth,
        num_heads=num_heads,
        mlp_size=config.mlp_size,
        causal=causal,
    )


def structure_widths(config: AutoencoderConfig) -> list[int]:
    """Channels of the structure branch before and after each downsampling."""
    levels = range(config.structure_downsamples + 1)
    return [config.structure_base_channels * 2**level for level in levels]


def crop_to(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(..., H, W) cut to `size`, each axis by its own border of (H - size) // 2."""
    top, left = ((now - want) // 2 for now, want in zip(images.shape[-2:], size, strict=True))
    return images[..., top : top + size[0], left : left + size[1]]
