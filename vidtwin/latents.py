"""The three latents of a clip and the diagonal Gaussians they are drawn from.

Axes: B batch, C channels, Q structure queries, T frames, h w grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from diffusers.utils.torch_utils import randn_tensor
from einops import pack, rearrange, unpack

from vidtwin.config import AutoencoderConfig

# One generator for the whole batch, or one per sample (then a sample's noise does not depend on
# the batch around it), as everywhere in diffusers.
Generators = torch.Generator | Sequence[torch.Generator] | None
Part = Literal["both", "structure", "dynamics"]


@dataclass(frozen=True)
class VidTwinLatents:
    """Raw latents of a batch of clips.

    Args:
        structure: (B, C_s, Q, h', w'), overall content and global movement.
        dynamics_x: (B, C_d, T, w'), detail and rapid motion, averaged over rows.
        dynamics_y: (B, C_d, T, h'), the same averaged over columns.
    """

    names: ClassVar[tuple[str, ...]] = ("structure", "dynamics_x", "dynamics_y")

    structure: torch.Tensor
    dynamics_x: torch.Tensor
    dynamics_y: torch.Tensor

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(structure, dynamics_x, dynamics_y)."""
        return self.structure, self.dynamics_x, self.dynamics_y

    def items(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, tensor) of each latent."""
        return zip(self.names, self.tensors(), strict=True)

    def map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> VidTwinLatents:
        """A function of each latent."""
        return VidTwinLatents(*map(function, self.tensors()))

    @staticmethod
    def combine(function: Callable[..., torch.Tensor], *latents: VidTwinLatents) -> VidTwinLatents:
        """A function of several batches, latent by latent: the structures, then the dynamics."""
        together = zip(*(batch.tensors() for batch in latents), strict=True)
        return VidTwinLatents(*(function(*tensors) for tensors in together))

    def pack(self, names: Collection[str] = names) -> torch.Tensor:
        """(B, values): the named latents one after another; `unpack` is the inverse."""
        flat: torch.Tensor = pack([t for name, t in self.items() if name in names], "b *")[0]
        return flat

    @staticmethod
    def unpack(
        flat: torch.Tensor, like: VidTwinLatents, names: Collection[str] = names
    ) -> VidTwinLatents:
        """The latents that were packed.

        Args:
            flat: (B, values) of the named latents.
            like: gives their shapes, and the latents that were not packed.
            names: what was packed.
        """
        packed = [name for name in VidTwinLatents.names if name in names]
        shapes = [getattr(like, name).shape[1:] for name in packed]
        return replace(like, **dict(zip(packed, unpack(flat, shapes, "b *"), strict=True)))

    def to_vector(self) -> torch.Tensor:
        """(B, N): the dynamics alone, see `dynamics_vector`; `from_vector` is the inverse."""
        return dynamics_vector(self.dynamics_x, self.dynamics_y)

    def from_vector(self, vector: torch.Tensor) -> VidTwinLatents:
        """The inverse of `to_vector`: this structure with the vector's dynamics.

        Args:
            vector: (B, N); the structure may be of one clip, which then serves all.
        Raises:
            ValueError: if N is another than these latents' dynamics have.
        """
        x, y = self.dynamics_x, self.dynamics_y
        _, channels, frames, columns = x.shape
        rows, both = y.shape[-1], min(columns, y.shape[-1])
        size = frames * channels * (columns + rows)
        if vector.ndim != 2 or vector.shape[1] != size:
            raise ValueError(
                f"expected a vector of shape (B, {size}), the dynamics of these latents, got "
                f"{tuple(vector.shape)}"
            )
        per_frame = rearrange(vector, "b (t v) -> b t v", t=frames)
        counts = [2 * channels * both, channels * (columns - both), channels * (rows - both)]
        joint, more_x, more_y = (
            rearrange(part, "b t (n c) -> b c t n", c=channels * (1 if index else 2))
            for index, part in enumerate(per_frame.split(counts, dim=-1))
        )
        start_x, start_y = joint.chunk(2, dim=1)
        structure = self.structure
        if len(structure) == 1:
            structure = structure.expand(len(vector), *structure.shape[1:])
        return VidTwinLatents(
            structure, torch.cat((start_x, more_x), -1), torch.cat((start_y, more_y), -1)
        )

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> VidTwinLatents:
        """The same latents on another device or in another dtype."""
        return self.map(lambda tensor: tensor.to(device=device, dtype=dtype))

    @property
    def numel_per_clip(self) -> int:
        """Latent values of one clip, all three latents together."""
        return sum(math.prod(tensor.shape[1:]) for tensor in self.tensors())

    @property
    def batch_size(self) -> int:
        """B."""
        return self.structure.shape[0]

    def __getitem__(self, index: slice) -> VidTwinLatents:
        """Some clips of the batch, by slice: `latents[2:3]` is still a batch."""
        if not isinstance(index, slice):
            raise ValueError(f"latents take a slice such as [i:i+1], got {index!r}")
        return self.map(lambda tensor: tensor[index])

    def __len__(self) -> int:
        return self.batch_size

    def __iter__(self) -> Iterator[VidTwinLatents]:
        """Clip by clip, each a batch of one."""
        return (self[i : i + 1] for i in range(self.batch_size))

    @staticmethod
    def cat(parts: Sequence[VidTwinLatents]) -> VidTwinLatents:
        """Several batches as one."""
        return VidTwinLatents.combine(lambda *tensors: torch.cat(tensors), *parts)

    def taking(self, other: VidTwinLatents, names: Collection[str]) -> VidTwinLatents:
        """These latents, but for the named ones, which are the other's."""
        return replace(self, **{name: getattr(other, name) for name in names})

    def with_structure(self, other: VidTwinLatents) -> VidTwinLatents:
        """These dynamics under another clip's structure (the paper's cross-reenactment)."""
        return self.taking(other, ["structure"])


def dynamics_vector(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """(B, N): both dynamics, in the order that robot learners take them.

    Frame after frame, in a frame position after position, at a position the channels of `x`, then
    those of `y`: both concatenated on the channel axis, then (B, T, position, channel). 1,792
    values at the released size. Where the grid isn't square, the positions that only the longer
    axis has come last in their frame.

    Args:
        x, y: (B, C_d, T, w'), (B, C_d, T, h').
    Source: the flattened dynamics of CoWVLA (arXiv 2603.03195), as LeRobot policies wrap them.
    """
    both = min(x.shape[-1], y.shape[-1])
    joint = torch.cat((x[..., :both], y[..., :both]), dim=1)
    parts = (joint, x[..., both:], y[..., both:])
    frames = [rearrange(part, "b c t n -> b t (n c)") for part in parts]
    return rearrange(torch.cat(frames, dim=-1), "b t v -> b (t v)")


@dataclass(frozen=True)
class DiagonalGaussian:
    """A Gaussian with independent entries.

    Args:
        mean: (B, ...).
        logvar: (B, ...), clamped to [-30, 20] by `from_moments`.
    Source: diffusers has a class of this purpose, but its `kl()` sums axes 1 to 3 only, which is
        wrong for the five axes of the structure latent.
    """

    mean: torch.Tensor
    logvar: torch.Tensor

    @staticmethod
    def from_moments(moments: torch.Tensor) -> DiagonalGaussian:
        """Splits (B, 2C, ...) moments into mean and logvar on the channel axis."""
        mean, logvar = moments.chunk(2, dim=1)
        return DiagonalGaussian(mean, logvar.clamp(-30.0, 20.0))

    def mode(self) -> torch.Tensor:
        """The mean."""
        return self.mean

    def sample(
        self, generator: Generators = None, noise: torch.Tensor | None = None
    ) -> torch.Tensor:
        """mean + exp(logvar / 2) * noise, of the mean's shape; the noise is drawn if not given."""
        shape = tuple(self.mean.shape)
        if noise is None:
            noise = standard_normal(shape, generator, self.mean.device)
        if tuple(noise.shape) != shape:
            raise ValueError(f"expected noise of shape {shape}, got {tuple(noise.shape)}")
        return self.mean + torch.exp(0.5 * self.logvar) * noise.to(self.mean)

    def kl(self) -> torch.Tensor:
        """(B,): divergence from the standard normal, summed over every non-batch axis, in nats."""
        # Thousands of terms are summed: under autocast, bf16 would keep three digits of them.
        wide = torch.promote_types(self.mean.dtype, torch.float32)
        mean, logvar = self.mean.to(wide), self.logvar.to(wide)
        terms = mean.square() + logvar.exp() - 1.0 - logvar
        return 0.5 * terms.flatten(1).sum(1, dtype=wide)


@dataclass(frozen=True)
class VidTwinPosterior:
    """The posterior q(latents | video): one diagonal Gaussian per latent.

    Args:
        structure: mean and logvar (B, C_s, Q, h', w').
        dynamics_x: mean and logvar (B, C_d, T, w').
        dynamics_y: mean and logvar (B, C_d, T, h').
    """

    structure: DiagonalGaussian
    dynamics_x: DiagonalGaussian
    dynamics_y: DiagonalGaussian

    def parts(self) -> tuple[DiagonalGaussian, DiagonalGaussian, DiagonalGaussian]:
        """(structure, dynamics_x, dynamics_y)."""
        return self.structure, self.dynamics_x, self.dynamics_y

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> VidTwinPosterior:
        """The same posterior on another device or in another dtype."""
        return VidTwinPosterior(
            *(
                DiagonalGaussian(p.mean.to(device, dtype), p.logvar.to(device, dtype))
                for p in self.parts()
            )
        )

    def mode(self) -> VidTwinLatents:
        """The most probable latents: what evaluation uses."""
        return VidTwinLatents(*(part.mode() for part in self.parts()))

    def sample(
        self, generator: Generators = None, noise: VidTwinLatents | None = None
    ) -> VidTwinLatents:
        """Latents drawn at random: what training uses.

        Args:
            generator: none, one for the batch, or a list with one per sample.
            noise: standard normal noise to use instead of drawing it, see `draw_noise`.
        Raises:
            ValueError: if a list is not as long as the batch.
        """
        noises = (None, None, None) if noise is None else noise.tensors()
        return VidTwinLatents(
            *(part.sample(generator, n) for part, n in zip(self.parts(), noises, strict=True))
        )

    def kl(self) -> torch.Tensor:
        """(B,): summed over every non-batch axis of the three latents, in nats."""
        return self.structure.kl() + self.dynamics_x.kl() + self.dynamics_y.kl()


def standard_normal(
    shape: tuple[int, ...], generator: Generators, device: torch.device
) -> torch.Tensor:
    """Float32 noise of a shape from no generator, one, or one per sample."""
    if generator is not None and not isinstance(generator, torch.Generator):
        generator = list(generator)
        if len(generator) != shape[0]:
            raise ValueError(
                f"expected one generator per sample ({shape[0]}), got {len(generator)}"
            )
    # Always float32: another dtype would draw other numbers from the same seed.
    return randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)


def draw_noise(config: AutoencoderConfig, seeds: Sequence[int]) -> VidTwinLatents:
    """Standard normal noise for a batch, each sample's from its own seed alone.

    Drawn on the CPU, so that it is the same on every device and for any batch around it.

    Args:
        config: gives the latents' shapes.
        seeds: one per sample.
    Returns:
        VidTwinLatents: float32, on the CPU; what `posterior.sample(generators)` draws, where
            generator i is seeded with seed i.
    """
    generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
    return standard_normal_latents(config, len(seeds), generators, torch.device("cpu"))


def standard_normal_latents(
    sizes: Any, batch_size: int, generator: Generators, device: torch.device
) -> VidTwinLatents:
    """Float32 noise of all latents, drawn in the order of their names.

    Args:
        sizes: a config with `structure_shape`, `dynamics_x_shape` and `dynamics_y_shape`.
        batch_size: B.
        generator: none, one for the batch, or a list with one per sample.
        device: of the noise; generators on the CPU draw the same on every device.
    """
    shapes = (getattr(sizes, f"{name}_shape") for name in VidTwinLatents.names)
    return VidTwinLatents(
        *(standard_normal((batch_size, *shape), generator, device) for shape in shapes)
    )
