"""The VidTwin autoencoder: video to structure and dynamics latents, and back.

Axes: B batch, C channels, T frames, H W pixels, h w grid, D width.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

# From their own modules: type checkers can't see through the package's lazy imports.
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from einops import rearrange
from typing_extensions import Self

from vidtwin.branches import (
    DynamicsDecoder,
    DynamicsEncoder,
    NoDynamicsDecoder,
    NoDynamicsEncoder,
    StructureDecoder,
    StructureEncoder,
)
from vidtwin.config import AutoencoderConfig
from vidtwin.convert import ReleasedLoading
from vidtwin.latents import (
    DiagonalGaussian,
    Generators,
    Part,
    VidTwinLatents,
    VidTwinPosterior,
    dynamics_vector,
)
from vidtwin.refinement import PatchOverlap, Refinement
from vidtwin.seams import seam_options
from vidtwin.strict_loading import StrictLoading
from vidtwin.transformer import PatchEmbedding, PatchHead, SpaceTimeTransformer


@dataclass(frozen=True)
class AutoencoderOutput:
    """Result of a forward pass.

    Args:
        reconstruction: (B, C, T, H, W), about [-1, 1], not clamped.
        posterior: the distributions of the three latents.
        latents: the latents that were decoded.
    """

    reconstruction: torch.Tensor
    posterior: VidTwinPosterior
    latents: VidTwinLatents


class VidTwinAutoencoder(  # type: ignore[misc]
    ReleasedLoading, StrictLoading, ModelMixin, ConfigMixin
):
    """The VidTwin autoencoder; keywords as in `vidtwin.config.AutoencoderConfig`.

    Source: VidTwin (arXiv 2412.17726). Computes exactly what the released model does, without its
        unused parameters; also downsamples grids that aren't square, which the released code
        can't.
    """

    _encoder_is_frozen = False
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
        structure_extractor: str = "qformer",
        dynamics_extractor: str = "mean",
        patch_overlap: bool = False,
        refinement_channels: int | None = None,
        refinement_layers: int = 3,
        refinement_stride: int = 1,
    ) -> None:
        super().__init__()
        config = AutoencoderConfig.from_dict(
            {name: self.config[name] for name in AutoencoderConfig.__dataclass_fields__}
        )
        # A tuple also where config.json had a list: configs of equal models compare equal.
        self.register_to_config(patch_size=config.patch_size)
        self.sizes = config
        self.patch_embedding = PatchEmbedding(
            config.in_channels, config.hidden_size, config.patch_size
        )
        shared: dict[str, Any] = {
            "num_frames": config.num_frames,
            "grid": config.grid,
            "hidden_size": config.hidden_size,
            "mlp_size": config.mlp_size,
        }
        self.encoder = SpaceTimeTransformer(
            depth=config.encoder_depth,
            num_heads=config.encoder_heads,
            causal=config.encoder_causal,
            **shared,
        )
        self.structure_encoder = StructureEncoder(config)
        has_dynamics = config.dynamics_channels > 0
        self.dynamics_encoder = (DynamicsEncoder if has_dynamics else NoDynamicsEncoder)(config)
        self.structure_decoder = StructureDecoder(config)
        self.dynamics_decoder = (DynamicsDecoder if has_dynamics else NoDynamicsDecoder)(config)
        self.decoder = SpaceTimeTransformer(
            depth=config.decoder_depth,
            num_heads=config.decoder_heads,
            causal=config.decoder_causal,
            **shared,
        )
        self.head = PatchHead(
            config.hidden_size, config.patch_size, config.grid, config.in_channels
        )
        self.overlap = PatchOverlap(config) if config.patch_overlap else None
        self.refinement = None if config.refinement_channels is None else Refinement(config)

    @property
    def compression_rate(self) -> float:
        """Latent values over pixel values."""
        return self.sizes.compression_rate

    def encoder_parts(self) -> torch.nn.ModuleDict:
        """The modules that turn videos into latents; the others turn latents into videos."""
        names = ("patch_embedding", "encoder", "structure_encoder", "dynamics_encoder")
        return torch.nn.ModuleDict({name: getattr(self, name) for name in names})

    def freeze_encoder(self) -> None:
        """Stops training of the encoder: cached latents stay valid while the decoder learns.

        From here on it stays in evaluation mode, without dropout, whatever `train` is called with.
        """
        self._encoder_is_frozen = True
        self.encoder_parts().requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """Sets training or evaluation mode; a frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self._encoder_is_frozen:
            self.encoder_parts().eval()
        return self

    @property
    def decoder_last_weight(self) -> torch.Tensor:
        """Weight of the decoder's last Linear, which the adaptive GAN weight is computed from.

        Also where parts that mend seams follow, which start at zero.
        """
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
            structure_video: encode the structure from this video instead, (B, C, 1 to T, H, W),
                see `vidtwin.branches.branch_videos`. By default the config's `structure_frame`,
                or all frames where that is None.
            dynamics_video: encode the dynamics from this video instead, (B, C, T, H, W).
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
            self._check_video(structure_video, self.structure_encoder.temporal.any_frames)
            features = self.features(structure_video)
        return VidTwinPosterior(
            structure=DiagonalGaussian.from_moments(self.structure_encoder(features)),
            dynamics_x=DiagonalGaussian.from_moments(dynamics_x),
            dynamics_y=DiagonalGaussian.from_moments(dynamics_y),
        )

    def features(self, video: torch.Tensor) -> torch.Tensor:
        """(B, D, T, h, w): the encoder's output, the input of both branches."""
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
            part: decode both branches, or only one of them.
            branch_weights: (B, 2) factors per sample of the structure's and the dynamics'
                features, for part "both"; zeros where branch dropout drops a branch.
        Raises:
            ValueError: if a latent's size differs from the config, or `part` is unknown.
        """
        self._check_latents(latents)
        features = self.decoder_features(latents, part, branch_weights)
        tokens = self.decoder(rearrange(features, "b d t h w -> b t (h w) d"))
        video = self.head(tokens)
        for seams in (self.overlap, self.refinement):
            video = video if seams is None else seams(video, tokens)
        return video

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

    def encode_dynamics(
        self,
        video: torch.Tensor,
        stride: int | None = None,
        *,
        sample_posterior: bool = False,
        generator: Generators = None,
        batch_size: int = 8,
    ) -> torch.Tensor:
        """(B, N): the dynamics as one vector, in the order of `vidtwin.latents.dynamics_vector`.

        Args:
            video: (B, C, T, H, W), float in [-1, 1]; sizes as in the config, but for a stride.
            stride: for a video of any length: a vector of every window that starts at a multiple
                of `stride` frames and lies within the video.
            sample_posterior: draw the latents instead of taking the posterior's mode.
            generator: of the random draw, as in `VidTwinPosterior.sample`; not with a stride.
            batch_size: windows of each pass through the encoder.
        Returns:
            (B, N), or with a stride (B, windows, N).
        Raises:
            ValueError: if a size differs from the config, or a video is shorter than a window.
        """
        if stride is None:
            self._check_video(video)
            parts = map(DiagonalGaussian.from_moments, self.dynamics_encoder(self.features(video)))
            x, y = (p.sample(generator) if sample_posterior else p.mode() for p in parts)
            return dynamics_vector(x, y)
        if stride < 1 or video.ndim != 5 or video.shape[2] < self.sizes.num_frames:
            raise ValueError(
                f"a stride of at least 1 needs a video (B, C, T, H, W) of at least "
                f"{self.sizes.num_frames} frames, got stride={stride} and {tuple(video.shape)}"
            )
        if generator is not None:
            raise ValueError("`generator` draws for clips; encode windows one by one to use it")
        windows = video.unfold(2, self.sizes.num_frames, stride)  # (B, C, windows, H, W, T)
        clips = rearrange(windows, "b c n h w t -> (b n) c t h w")
        vectors = [
            self.encode_dynamics(part, sample_posterior=sample_posterior)
            for part in clips.split(batch_size)
        ]
        return rearrange(torch.cat(vectors), "(b n) v -> b n v", b=len(video))

    def decode_dynamics(
        self, vector: torch.Tensor, structure_from: torch.Tensor | VidTwinLatents
    ) -> torch.Tensor:
        """Video (B, C, T, H, W) of the vector's motion, in the look of something else.

        Args:
            vector: (B, N) as `encode_dynamics` gives it.
            structure_from: a video (B, C, 1 to T, H, W), whose posterior's mode is taken, or
                latents; one clip may serve all vectors.
        """
        if isinstance(structure_from, VidTwinLatents):
            structure = structure_from.structure
        else:
            frame = self.sizes.structure_frame
            if frame is not None and structure_from.shape[2] > frame:
                structure_from = structure_from[:, :, frame : frame + 1]
            self._check_video(structure_from, bool(self.structure_encoder.temporal.any_frames))
            moments = self.structure_encoder(self.features(structure_from))
            structure = DiagonalGaussian.from_moments(moments).mode()
        x, y = self.sizes.dynamics_x_shape, self.sizes.dynamics_y_shape
        like = VidTwinLatents(structure, structure.new_empty(1, *x), structure.new_empty(1, *y))
        return self.decode(like.from_vector(vector))

    def forward(
        self,
        video: torch.Tensor,
        sample_posterior: bool = False,
        generator: Generators = None,
        noise: VidTwinLatents | None = None,
        branch_weights: torch.Tensor | None = None,
        structure_video: torch.Tensor | None = None,
        dynamics_video: torch.Tensor | None = None,
        latent_noise: VidTwinLatents | None = None,
    ) -> AutoencoderOutput:
        """Encodes and decodes.

        Args:
            video: (B, C, T, H, W), float in [-1, 1].
            sample_posterior: draw the latents (training) or take the mode (evaluation).
            generator: of the random draw: None, one, or one per sample.
            noise: use this instead of drawing, see `vidtwin.latents.draw_noise`.
            branch_weights: as in `decode`.
            structure_video, dynamics_video: as in `encode`.
            latent_noise: added to the latents before they are decoded, see
                `vidtwin.branches.latent_noise`.
        """
        posterior = self.encode(video, structure_video, dynamics_video)
        latents = posterior.sample(generator, noise) if sample_posterior else posterior.mode()
        if latent_noise is not None:
            latents = VidTwinLatents.combine(torch.add, latents, latent_noise)
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

    def with_mended_seams(self, **options: Any) -> VidTwinAutoencoder:
        """This model with new parts that mend the seams between patches; untrained they do nothing.

        Args:
            options: `patch_overlap`, `refinement_channels` and so on, as in the config.
        Raises:
            ValueError: if the model has such parts already.
        """
        if self.overlap is not None or self.refinement is not None:
            raise ValueError(
                f"the autoencoder has parts that mend seams already, {seam_options(self.sizes)}; "
                "train them on, without adding others"
            )
        sizes = dataclasses.asdict(dataclasses.replace(self.sizes, **options))
        model = VidTwinAutoencoder(**sizes)
        torch.nn.Module.to(model, self.device, self.dtype)
        # All weights are named: the new parts' own, and these.
        model.load_state_dict(model.state_dict() | self.state_dict(), strict=True)
        return model.train(self.training)

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
