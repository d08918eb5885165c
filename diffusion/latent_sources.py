"""Where training takes its latents from: a cache on disk, or clips that are encoded as they come.

Axes: B batch, C channels, T frames, H W pixels.
"""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from diffusion.cache import LatentCache, build_latent_loader, iterate_latents
from diffusion.cache_format import lasting
from diffusion.given_frames import filled_video
from diffusion.latent_stats import LatentStats, LatentStatsAccumulator
from vidtwin import (
    DataConfig,
    VidTwinAutoencoder,
    VidTwinLatents,
    VidTwinPosterior,
    build_dataset,
    build_evaluation_loader,
    build_loader,
    draw_noise,
    weights_digest,
)
from vidtwin.data import iterate_variants

__all__ = ["CachedLatents", "EncodedClips", "LatentSource", "encode_clips", "open_source"]

logger = logging.getLogger(__name__)

DEFAULT_FPS = 8.0
Autocast = Callable[[], AbstractContextManager[Any]]


@torch.no_grad()
def encode_clips(
    autoencoder: VidTwinAutoencoder, video: torch.Tensor, autocast: Autocast = nullcontext
) -> VidTwinPosterior:
    """The float32 posterior of (B, 3, T, H, W) clips, on the autoencoder's device.

    Clips that are encoded in advance and clips that are encoded as they come both go through here,
    so that a precision means the same with and without a cache.

    Args:
        autocast: context of the run's precision; what comes out of it is made float32.
    """
    with autocast():
        posterior = autoencoder.encode(video.to(autoencoder.device, non_blocking=True))
    return posterior.to(dtype=torch.float32)


class LatentSource(ABC):
    """The clips of a run and their raw latents.

    Args:
        autoencoder: frozen; gives the latents.
        data: the clips.
        dataset: them, opened.
        held_out: the clips of validation, opened; None for a run that does not validate.
    """

    def __init__(
        self, autoencoder: VidTwinAutoencoder, data: DataConfig, dataset: Any, held_out: Any
    ) -> None:
        self.autoencoder, self.data = autoencoder, data
        self.dataset, self.held_out = dataset, held_out
        self.label_names: list[str] = list(dataset.label_names)

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def fps(self) -> float:
        """Frames per second of the clips; 8 where each keeps its own rate."""
        return self.data.fps or DEFAULT_FPS

    @property
    def device(self) -> torch.device:
        """Of the latents."""
        return self.autoencoder.device

    def digests(self) -> dict[str, str | None]:
        """Of what the latents follow from, by the config key that names it."""
        return {"autoencoder": weights_digest(self.autoencoder), "cache": None}

    @abstractmethod
    def has_captions(self) -> bool:
        """Whether any clip has one."""

    def all_captions(self) -> list[str]:
        """Every caption once, if they are known in advance."""
        return []

    @abstractmethod
    def train_batches(self, **settings: Any) -> Iterable[dict[str, Any]]:
        """This rank's endless batches; settings as of `vidtwin.build_loader`."""

    @abstractmethod
    def held_out_batches(self, **settings: Any) -> Iterable[dict[str, Any]]:
        """This rank's validation clips once; settings as of `vidtwin.build_evaluation_loader`."""

    @abstractmethod
    def stats(
        self,
        num_clips: int,
        batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        gather: Callable[[list[Any]], list[Any]] = list,
    ) -> LatentStats:
        """The statistics of the latents, measured on as many clips if they are not known.

        Args:
            rank, world_size: the work is shared out over as many processes; the result is the same
                for any number of them, bit for bit.
            gather: gives the items of every process, on every process.
        """

    @abstractmethod
    def latents(self, batch: Mapping[str, Any]) -> VidTwinLatents:
        """The raw latents of a batch; what is drawn of them, by each sample's noise_seed."""

    def given_latents(self, batch: Mapping[str, Any], frames: torch.Tensor) -> VidTwinLatents:
        """The raw latents of what is known of a batch.

        Args:
            frames: (B, T) bool, True for the frames that are given.
        """
        raise NotImplementedError(f"{type(self).__name__} holds no clips to give frames of")


class EncodedClips(LatentSource):
    """Videos, encoded at every step.

    Args:
        autoencoder: encodes them.
        data: the clips; its sizes follow the autoencoder's.
        overfit: take the first N clips alone, for validation as well.
        validates: whether validation clips are wanted.
        autocast: context that they are encoded in, see `encode_clips`.
        posterior: "sample" or "mode", what is taken of each clip's.
    """

    def __init__(
        self,
        autoencoder: VidTwinAutoencoder,
        data: DataConfig,
        overfit: int | None = None,
        validates: bool = True,
        autocast: Autocast = nullcontext,
        posterior: str = "sample",
    ) -> None:
        self.autocast, self.posterior = autocast, posterior
        sizes = autoencoder.sizes
        data = data.first(overfit) if overfit else data
        data = data.sized(sizes.num_frames, sizes.height, sizes.width)
        dataset = build_dataset(data)
        part = data.part if overfit else "validation"
        held_out = build_dataset(replace(data.centered(), part=part)) if validates else None
        super().__init__(autoencoder, data, dataset, held_out)

    def has_captions(self) -> bool:
        """Whether any clip has one."""
        return any(self.dataset.captions(index, 1)[0] for index in range(len(self.dataset)))

    def train_batches(self, **settings: Any) -> Iterable[dict[str, Any]]:
        """Batches with `video`."""
        return build_loader(self.dataset, **settings)

    def held_out_batches(self, **settings: Any) -> Iterable[dict[str, Any]]:
        """The same of the validation clips."""
        return build_evaluation_loader(self.held_out, **settings)

    def stats(
        self,
        num_clips: int,
        batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        gather: Callable[[list[Any]], list[Any]] = list,
    ) -> LatentStats:
        """Of the first clips."""
        dataset = build_dataset(self.data.centered())
        keys = [(index, 0) for index in range(min(num_clips, len(dataset)))]
        # Whole batches are shared out, so that each is the same for any number of processes.
        batches = [keys[start : start + batch_size] for start in range(0, len(keys), batch_size)]
        mine = batches[rank::world_size]
        found = []
        for places, batch in zip(mine, iterate_variants(dataset, mine), strict=True):
            dataset.bad_file_log.record(batch["skipped"])
            if batch["video"] is not None:
                sums = LatentStatsAccumulator()
                sums.add(encode_clips(self.autoencoder, batch["video"], self.autocast))
                found.append((places[0], sums.state_dict()))
        # Added up in the order of the clips, whoever encoded them.
        total = LatentStatsAccumulator()
        for _, state in sorted(gather(found), key=lambda item: item[0]):
            total.merge(LatentStatsAccumulator.from_state(state))
        return total.result()

    @torch.no_grad()
    def latents(self, batch: Mapping[str, Any]) -> VidTwinLatents:
        """Drawn from the posteriors of the videos, or their modes."""
        posterior = encode_clips(self.autoencoder, batch["video"], self.autocast)
        if self.posterior == "mode":
            return posterior.mode()
        noise = draw_noise(self.autoencoder.sizes, batch["noise_seed"].tolist())
        return posterior.sample(noise=noise.to(self.device))

    @torch.no_grad()
    def given_latents(self, batch: Mapping[str, Any], frames: torch.Tensor) -> VidTwinLatents:
        """The modes of the videos with but some frames given, see `diffusion.given_frames`."""
        video = filled_video(batch["video"].to(self.device), frames)
        return encode_clips(self.autoencoder, video, self.autocast).mode()


class CachedLatents(LatentSource):
    """Latents that encode.py has written.

    Args:
        folder: with `train` and, for validation, `validation` in it.
        autoencoder: which must have encoded them.
        data: what it says beyond the defaults must be what was encoded.
        overfit: take the first N clips alone, for validation as well.
        validates: whether validation clips are wanted.
        verify: as of `LatentCache`; the first process of a run does it for all.
    Raises:
        ValueError: if the cache is missing or damaged, or was made from something else.
    """

    def __init__(
        self,
        folder: str | Path,
        autoencoder: VidTwinAutoencoder,
        data: DataConfig,
        overfit: int | None = None,
        validates: bool = True,
        verify: bool = True,
    ) -> None:
        folder = Path(folder).expanduser()
        verify = verify and os.environ.get("RANK", "0") == "0"
        digest = None
        if autoencoder.device.type != "meta":  # else it has no weights, and only describes a run
            # All weights are read for it, so once for both parts.
            digest = weights_digest(autoencoder.encoder_parts())

        def opened(part: str) -> LatentCache:
            cache = LatentCache(folder / part, verify=verify)
            cache.check(digest, autoencoder.sizes)
            return cache

        whole = opened("train")
        whole.check(data=asked_of(data))
        _warn_of_another_place(folder, whole.manifest["data"].get("path"), data.path)
        dataset = whole.first(overfit) if overfit else whole
        held_out = None
        if validates:
            held_out = dataset if overfit else opened("validation")
        data = DataConfig.from_dict(whole.manifest["data"])
        super().__init__(autoencoder, data, dataset, held_out)

    def digests(self) -> dict[str, str | None]:
        """Of the autoencoder, and of what was encoded."""
        return super().digests() | {"cache": self.dataset.digest()}

    def has_captions(self) -> bool:
        """Whether any clip has one."""
        return any(self.all_captions())

    def all_captions(self) -> list[str]:
        """Every caption once, sorted."""
        return self.dataset.all_captions()

    def train_batches(self, **settings: Any) -> Iterable[dict[str, Any]]:
        """Batches with `structure`, `dynamics_x` and `dynamics_y`."""
        return build_latent_loader(self.dataset, **settings)

    def held_out_batches(self, **settings: Any) -> Iterable[dict[str, Any]]:
        """The same of the validation clips."""
        return iterate_latents(self.held_out, **settings)

    def stats(self, num_clips: int, batch_size: int, **shared: Any) -> LatentStats:
        """Of the whole cache."""
        return self.dataset.stats

    def latents(self, batch: Mapping[str, Any]) -> VidTwinLatents:
        """As the cache gives them."""
        return VidTwinLatents(*(batch[name].to(self.device) for name in VidTwinLatents.names))


def _warn_of_another_place(folder: Path, made_from: str | None, asked: str | None) -> None:
    """Says so where `data.path` names other clips than the cache was made from, or they moved."""
    if asked is None or made_from is None or os.path.abspath(asked) == os.path.abspath(made_from):
        return
    logger.warning(
        "the latents of the cache %s are of the clips in %s, not of those in data.path=%s, which "
        "are not read; encode them into another folder if they are other clips",
        *(folder, made_from, asked),
    )


def open_source(
    autoencoder: VidTwinAutoencoder,
    cache: str | Path | None,
    data: DataConfig,
    overfit: int | None = None,
    validates: bool = True,
    autocast: Autocast = nullcontext,
    verify: bool = True,
    posterior: str = "sample",
) -> LatentSource:
    """The latents of a cache, or those of clips if there is none; arguments as of the classes."""
    if cache is None:
        return EncodedClips(autoencoder, data, overfit, validates, autocast, posterior)
    return CachedLatents(cache, autoencoder, data, overfit, validates, verify)


def asked_of(data: DataConfig) -> dict[str, Any]:
    """What a config says of the clips beyond the defaults, but for where they lie now."""
    return {name: value for name, value in lasting(data.changed()).items() if name != "part"}
