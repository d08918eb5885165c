"""Per-channel statistics of the three latents, and the scaling that makes them whitened.

Raw latents are what the autoencoder gives and what is stored; scaled latents, with mean 0 and
standard deviation 1 in every channel, are what the diffusion model sees.
Axes: C channels; C_s of structure, C_d of dynamics.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from os import PathLike
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor
from typing_extensions import Self

from vidtwin import StrictLoading, VidTwinLatents, VidTwinPosterior

# A channel that varies less than this share of its latent's widest channel carries no signal:
# dividing by its own deviation would blow rounding errors up to full size.
DEAD_CHANNEL = 1e-3


class LatentStats(StrictLoading, ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Mean and standard deviation of each channel: `scale` to whitened latents, `unscale` back.

    A new one has mean 0 and deviation 1 and changes nothing; `LatentStats.measure` and
    `LatentStatsAccumulator` make one that fits a data set. The numbers are float32 whatever dtype
    is asked for: rounded to bfloat16 they would be off by up to 0.4 %.

    Args:
        structure_channels: C_s.
        dynamics_channels: C_d, of dynamics_x and of dynamics_y.
    """

    structure_mean: Tensor
    structure_std: Tensor
    dynamics_x_mean: Tensor
    dynamics_x_std: Tensor
    dynamics_y_mean: Tensor
    dynamics_y_std: Tensor

    @register_to_config
    def __init__(self, structure_channels: int, dynamics_channels: int) -> None:
        super().__init__()
        if structure_channels < 1 or dynamics_channels < 1:
            raise ValueError(
                "`structure_channels` and `dynamics_channels` must be at least 1, got "
                f"{structure_channels} and {dynamics_channels}; a transformer needs both latents"
            )
        for name in VidTwinLatents.names:
            channels = structure_channels if name == "structure" else dynamics_channels
            self.register_buffer(f"{name}_mean", torch.zeros(channels))
            self.register_buffer(f"{name}_std", torch.ones(channels))

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        kept = dict(self.named_buffers())  # as they were: dtypes are not for them to take
        super()._apply(fn, recurse)
        for name, buffer in kept.items():
            self._buffers[name] = buffer.to(getattr(self, name).device)
        return self

    def scale(self, latents: VidTwinLatents) -> VidTwinLatents:
        """Raw latents -> scaled latents, in their own dtype.

        Raises:
            ValueError: if the latents have other numbers of channels.
        """
        return self._map(latents, lambda value, mean, std: (value - mean) / std)

    def unscale(self, latents: VidTwinLatents) -> VidTwinLatents:
        """Scaled latents -> raw latents, which `decode` takes; the inverse of `scale`.

        Raises:
            ValueError: if the latents have other numbers of channels.
        """
        return self._map(latents, lambda value, mean, std: value * std + mean)

    def _map(self, latents: VidTwinLatents, function: Any) -> VidTwinLatents:
        results = []
        for name, value in latents.items():
            mean, std = getattr(self, f"{name}_mean"), getattr(self, f"{name}_std")
            if value.ndim < 2 or value.shape[1] != len(mean):
                raise ValueError(
                    f"expected `{name}` with {len(mean)} channels on axis 1, got shape "
                    f"{tuple(value.shape)}: these statistics belong to another autoencoder"
                )
            # (C,) -> (C, 1, ...), beside the batch axis.
            shape = (-1, *[1] * (value.ndim - 2))
            results.append(
                function(value, mean.to(value).reshape(shape), std.to(value).reshape(shape))
            )
        return VidTwinLatents(*results)

    @classmethod
    def measure(cls, batches: Iterable[VidTwinLatents | VidTwinPosterior]) -> LatentStats:
        """The statistics of some batches of raw latents or posteriors; see the accumulator.

        Raises:
            ValueError: if there is no batch, or a value is not finite.
        """
        accumulator = LatentStatsAccumulator()
        for batch in batches:
            accumulator.add(batch)
        return accumulator.result()

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | PathLike[str] | None, **kwargs: Any
    ) -> Self:
        """As `StrictLoading.from_pretrained`, float32 whatever is stored or asked for.

        Raises:
            ValueError: for numbers that can't scale, too.
        """
        options = {key: kwargs[key] for key in kwargs.keys() - {"torch_dtype", "dtype"}}
        loaded: Any = super().from_pretrained(pretrained_model_name_or_path, **options)
        stats = loaded[0] if kwargs.get("output_loading_info") else loaded
        for name, buffer in stats.named_buffers():
            stats._buffers[name] = buffer.float()
        stats._check()
        return loaded

    def _check(self) -> None:
        for name, value in self.named_buffers():
            good = value.isfinite() & (value > 0 if name.endswith("_std") else True)
            if not bool(good.all()):
                raise ValueError(
                    f"`{name}` of latent statistics must be finite, and above 0 for a deviation, "
                    f"got {value.tolist()}"
                )


class LatentStatsAccumulator:
    """Count, mean and variance per channel, in one pass and in float64.

    Given posteriors, it describes latents that are drawn from them: their variance is the variance
    of the means plus the mean of exp(logvar). Merging in a fixed order gives the same bits however
    the work was shared.
    """

    def __init__(self) -> None:
        # Per latent: number of values per channel, and (C,) float64 mean, sum of squared
        # deviations from it, sum of exp(logvar).
        self._sums: dict[str, tuple[int, Tensor, Tensor, Tensor]] = {}

    def add(self, batch: VidTwinLatents | VidTwinPosterior) -> None:
        """Count a batch.

        Args:
            batch: raw latents, or the posterior they will be drawn from.
        Raises:
            ValueError: if a value is not finite, or the channels differ from those before.
        """
        sums = {}
        pairs: list[tuple[Tensor, Tensor | None]]
        if isinstance(batch, VidTwinPosterior):
            pairs = [(part.mean, part.logvar) for part in batch.parts()]
        else:
            pairs = [(value, None) for value in batch.tensors()]
        for name, (value, logvar) in zip(VidTwinLatents.names, pairs, strict=True):
            rows = _by_channel(value)
            if rows.shape[1] == 0:
                return
            center = rows.mean(1)
            squares = (rows - center[:, None]).square().sum(1)
            noise = torch.zeros_like(center)
            if logvar is not None:
                noise = _by_channel(logvar).exp().sum(1)
            if not bool((center.isfinite() & squares.isfinite() & noise.isfinite()).all()):
                raise ValueError(f"`{name}` holds values that are not finite")
            sums[name] = (rows.shape[1], center, squares, noise)
        self._merge(sums)

    def merge(self, other: LatentStatsAccumulator) -> None:
        """Count everything that the other has counted.

        Raises:
            ValueError: if its latents have other numbers of channels.
        """
        self._merge(other._sums)

    def _merge(self, sums: Mapping[str, tuple[int, Tensor, Tensor, Tensor]]) -> None:
        for name, came in sums.items():
            if name not in self._sums:
                continue
            expected = len(self._sums[name][1])
            if len(came[1]) != expected:
                raise ValueError(
                    f"expected `{name}` with {expected} channels, got {len(came[1])}: "
                    "these latents come from different autoencoders"
                )
        for name, (count, mean, squares, noise) in sums.items():
            if name in self._sums:
                known, center, spread, variance = self._sums[name]
                total, shift = known + count, mean - center
                mean = center + shift * (count / total)
                squares = spread + squares + shift.square() * (known * count / total)
                count, noise = total, variance + noise
            self._sums[name] = (count, mean, squares, noise)

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Plain numbers, exact in JSON, from which `from_state` makes an equal accumulator."""
        return {
            name: {
                "count": count,
                "mean": mean.tolist(),
                "squared_deviations": squares.tolist(),
                "posterior_variances": noise.tolist(),
            }
            for name, (count, mean, squares, noise) in self._sums.items()
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Mapping[str, Any]]) -> LatentStatsAccumulator:
        """The accumulator whose `state_dict` this is."""
        accumulator = cls()
        for name, sums in state.items():
            parts = (sums[key] for key in ("mean", "squared_deviations", "posterior_variances"))
            mean, squares, noise = (torch.tensor(part, dtype=torch.float64) for part in parts)
            accumulator._sums[name] = (int(sums["count"]), mean, squares, noise)
        return accumulator

    def result(self) -> LatentStats:
        """The statistics of all that was counted.

        No deviation is below a thousandth of the largest one of its latent (or 1, where all are
        0): a channel that the autoencoder does not use stays near 0 when scaled.

        Raises:
            ValueError: if nothing was counted.
        """
        if not self._sums:
            raise ValueError("no latents were counted: there is nothing to make statistics of")
        stats = LatentStats(len(self._sums["structure"][1]), len(self._sums["dynamics_x"][1]))
        for name, (count, mean, squares, noise) in self._sums.items():
            std = ((squares + noise) / count).sqrt()
            widest = std.max()
            std = std.clamp(min=DEAD_CHANNEL * widest) if widest > 0 else torch.ones_like(std)
            getattr(stats, f"{name}_mean").copy_(mean)
            getattr(stats, f"{name}_std").copy_(std)
        stats._check()
        return stats


def _by_channel(value: Tensor) -> Tensor:
    """(B, C, ...) -> (C, values) in float64, in the order of the batch."""
    return value.detach().to("cpu", torch.float64).transpose(0, 1).flatten(1)
