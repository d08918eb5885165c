"""The configurations of the autoencoder and of its training. Imports no torch: a wrong key is
refused before anything slow is loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from vidtwin.seams import check_seams

__all__ = [
    "LPIPS_NETS",
    "METRICS",
    "WEIGHT_DTYPES",
    "AlignmentConfig",
    "AutoencoderConfig",
    "BranchDropout",
    "DiscriminatorConfig",
    "FrameShuffle",
    "LossConfig",
]

# Names of `vidtwin.extractors`.
STRUCTURE_EXTRACTORS = ("qformer", "joint_qformer", "convolution")
DYNAMICS_EXTRACTORS = ("mean", "qformer")
RECONSTRUCTIONS = ("l1", "l2")
# Of a reconstruction, frame by frame.
METRICS = ("psnr", "ssim", "lpips")
# That a model for use may be loaded in; training is in float32.
WEIGHT_DTYPES = ("float32", "bfloat16", "float16")
LPIPS_NETS = ("vgg", "alex", "squeeze")
DISCRIMINATOR_KINDS = ("2d", "3d")
DISCRIMINATOR_NORMS = ("batch", "group", "none")


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
        dynamics_channels: C_d, channels of the dynamics latents; 0 for an autoencoder without a
            dynamics branch, whose structure is one latent of everything (Table 3: no
            disentanglement).
        dynamics_downsamples: halvings of the grid for the dynamics latents
            (0 is `downsample_motion: False` of the released code).
        structure_frame: the one frame of a window that the structure is encoded from, so that it
            can't hold any motion (single-frame structure); None uses all frames, as the paper
            does. For an autoencoder trained with `frame_shuffle.frames=1`.
        structure_extractor: how the structure is read off the frames: "qformer", for each position
            by itself; and what Table 3 compares it with: "joint_qformer", space not moved to the
            batch axis, and "convolution", a convolution and an MLP instead of a Q-Former.
        dynamics_extractor: how each frame's dynamics are read off the grid: "mean" over rows and
            over columns, or "qformer", a Q-Former over the positions (Table 3). The `query_*`
            keywords are those of either Q-Former.
        patch_overlap: whether every token also draws half a patch beyond its own, where its
            neighbours' drawings are added; of even patches. Off in the released model, as is
        refinement_channels: width of a convolutional head after the patches; None for none.
        refinement_layers: its 3 x 3 convolutions.
        refinement_stride: pixels along a side of the cells that it works on.

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
    structure_extractor: str = "qformer"
    dynamics_extractor: str = "mean"
    patch_overlap: bool = False
    refinement_channels: int | None = None
    refinement_layers: int = 3
    refinement_stride: int = 1

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> AutoencoderConfig:
        """The config that was saved as JSON, where `patch_size` is a list."""
        values = dict(values)
        if isinstance(values.get("patch_size"), list):
            values["patch_size"] = tuple(values["patch_size"])
        return cls(**values)

    def __post_init__(self) -> None:
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
        self._check_extractors()
        check_seams(self)

    def _check_numbers(self) -> None:
        may_be_zero = {"dynamics_channels", "query_dropout"}
        may_be_zero |= {"structure_downsamples", "dynamics_downsamples"}
        for field in fields(self):
            name, kind = field.name, type(field.default)
            value: Any = getattr(self, name)
            if kind is tuple or field.default is None:
                continue
            # isinstance would take True for a count.
            if type(value) not in ((float, int) if kind is float else (kind,)):
                raise ValueError(f"`{name}` must be of type {kind.__name__}, got {value!r}")
            if kind in (bool, str):
                continue
            if not (value > 0 or (value == 0 and name in may_be_zero)) or math.isinf(value):
                raise ValueError(f"`{name}` must be positive, got {value}")

    def _check_extractors(self) -> None:
        for name, names in (
            ("structure_extractor", STRUCTURE_EXTRACTORS),
            ("dynamics_extractor", DYNAMICS_EXTRACTORS),
        ):
            if getattr(self, name) not in names:
                raise ValueError(f"`{name}` must be one of {names}, got {getattr(self, name)!r}")
        if self.structure_extractor == "convolution" and self.structure_frame is not None:
            raise ValueError(
                '`structure_frame` must be null for structure_extractor="convolution", which needs '
                f"all {self.num_frames} frames, got {self.structure_frame}"
            )

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
                f"`mlp_ratio`={self.mlp_ratio} of `hidden_size`={self.hidden_size} leaves no width "
                "for the MLP"
            )

    @property
    def mlp_size(self) -> int:
        """Width between the two layers of the transformers' MLPs."""
        # Truncated as in the released code. A ratio inferred from weights (width / D) may fall just
        # short of the exact width by rounding.
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


@dataclass(frozen=True, kw_only=True)
class AlignmentConfig:
    """Alignment of the structure latent with a frozen image encoder, for a latent that is easier to
    generate; see `vidtwin.alignment`.

    Args:
        encoder: folder of an image encoder of transformers, such as DINOv2; None for none.
        weight: of the alignment against the reconstruction error: both are means, per value.
        frames: how many of a clip's frames the image encoder sees, at equal distances.
    """

    encoder: str | None = None
    weight: float = 0.1
    frames: int = 4

    def __post_init__(self) -> None:
        if not 0 < self.weight < math.inf:
            raise ValueError(f"loss.alignment.weight must be positive, got {self.weight}")
        if self.frames < 1:
            raise ValueError(f"loss.alignment.frames must be at least 1, got {self.frames}")


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the objective; the defaults are the released VidTwin's.

    Args:
        reconstruction: "l1" or "l2", per pixel.
        perceptual_weight: of LPIPS; 0 leaves it out and never loads its network.
        perceptual_net: "vgg", "alex" or "squeeze".
        kl_weight: of the KL divergence.
        kl_structure: extra factor on the KL of the structure latent.
        kl_dynamics: extra factor on the KL of both dynamics latents.
        learn_logvar: learn the log-variance s; False keeps it at its initial value.
        initial_logvar: s at the start.
        discriminator_weight: of the adversarial term; 0 leaves it out.
        discriminator_start: number of batches before the adversarial term and the
            discriminator's own training begin.
        adaptive_weight_max: upper bound of the ratio of gradient norms.
        lecam_weight: of the LeCAM regularization of the discriminator; 0 is off.
        lecam_decay: decay of its moving averages of the logits.
        alignment: of the structure latent with an image encoder; off by default.
    """

    reconstruction: str = "l1"
    perceptual_weight: float = 0.05
    perceptual_net: str = "vgg"
    kl_weight: float = 1e-3
    kl_structure: float = 1.0
    kl_dynamics: float = 1.0
    learn_logvar: bool = True
    initial_logvar: float = 0.0
    discriminator_weight: float = 0.05
    discriminator_start: int = 10001
    adaptive_weight_max: float = 1e4
    lecam_weight: float = 0.0
    lecam_decay: float = 0.99
    alignment: AlignmentConfig = AlignmentConfig()

    def __post_init__(self) -> None:
        if self.reconstruction not in RECONSTRUCTIONS:
            raise ValueError(
                f"loss.reconstruction must be one of {RECONSTRUCTIONS}, got {self.reconstruction!r}"
            )
        if self.perceptual_net not in LPIPS_NETS:
            raise ValueError(
                f"loss.perceptual_net must be one of {LPIPS_NETS}, got {self.perceptual_net!r}"
            )
        for name in (
            "perceptual_weight",
            "kl_weight",
            "kl_structure",
            "kl_dynamics",
            "discriminator_weight",
            "discriminator_start",
            "adaptive_weight_max",
            "lecam_weight",
        ):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(
                    f"loss.{name} must be finite and not negative, got {getattr(self, name)}"
                )
        if not 0 <= self.lecam_decay < 1:
            raise ValueError(f"loss.lecam_decay must be in [0, 1), got {self.lecam_decay}")
        if not math.isfinite(self.initial_logvar):
            raise ValueError(f"loss.initial_logvar must be finite, got {self.initial_logvar}")


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    """Size and kind of the discriminator; the defaults are the released VidTwin's.

    Args:
        kind: "2d" judges single frames, "3d" judges windows in space and time.
        channels: width of the first layer; doubles each layer up to 8 times.
        layers: strided layers: one logit per 2**layers pixels.
        norm: "batch" (released; synchronized over processes), "group" or "none".
        in_channels: channels of the video.
    """

    kind: str = "2d"
    channels: int = 64
    layers: int = 3
    norm: str = "batch"
    in_channels: int = 3

    def __post_init__(self) -> None:
        if self.kind not in DISCRIMINATOR_KINDS:
            raise ValueError(
                f"discriminator.kind must be one of {DISCRIMINATOR_KINDS}, got {self.kind!r}"
            )
        if self.norm not in DISCRIMINATOR_NORMS:
            raise ValueError(
                f"discriminator.norm must be one of {DISCRIMINATOR_NORMS}, got {self.norm!r}"
            )
        for name in ("channels", "layers", "in_channels"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"discriminator.{name} must be at least 1, got {getattr(self, name)}"
                )


@dataclass(frozen=True, kw_only=True)
class BranchDropout:
    """How often a clip is decoded without one of its branches in training.

    A decoder that sometimes lacks the dynamics keeps colours and background in the structure; one
    that sometimes lacks the structure keeps the motion in the dynamics. That is what lets a
    diffusion model sample one latent given the other.

    Args:
        structure: share of the clips that are decoded without the structure.
        dynamics: share of the clips that are decoded without the dynamics.
    """

    structure: float = 0.0
    dynamics: float = 0.0

    def __post_init__(self) -> None:
        shares = (self.structure, self.dynamics)
        if min(shares) < 0 or not sum(shares) <= 1:
            raise ValueError(
                "the shares of branch_dropout must not be negative and sum to at most 1, got "
                f"structure={shares[0]} and dynamics={shares[1]}"
            )


@dataclass(frozen=True, kw_only=True)
class FrameShuffle:
    """How often the structure branch sees shuffled frames in training.

    The order of the frames can then reach the decoder only through the dynamics.

    Args:
        share: of the clips; the dynamics branch always sees the frames in order. Above 0, every
            clip is encoded twice.
        frames: how many distinct frames such a clip keeps; None keeps all, 1 (single-frame
            structure) hides all motion. With `share` below 1 they are repeated to the clip's
            length.
    Source: `shuffle_content_ratio` of the released VidTwin code (0.5 where it is used). Its
        `shuffle_content`, which shuffles the encoder's features, has no effect: the Q-Former
        treats the frames of a position as a set.
    """

    share: float = 0.0
    frames: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"frame_shuffle.share must be in [0, 1], got {self.share}")
        if self.frames is not None and self.frames < 1:
            raise ValueError(f"frame_shuffle.frames must be at least 1 or null, got {self.frames}")
