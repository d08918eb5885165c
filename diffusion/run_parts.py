"""What a training of the transformer finds ready made: the frozen models and the data.

Axes: B batch, C channels, T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from diffusion.building import TransformerConfig
from diffusion.cache import LatentCache, build_latent_loader, iterate_latents, lasting
from diffusion.dit import TwinDiT
from diffusion.flow import FlowObjective
from diffusion.inputs import class_indices
from diffusion.latent_stats import LatentStats
from diffusion.pipeline import VidTwinPipeline
from diffusion.text_encoder import CachedTextEncoder, TextEncoder
from diffusion.training_batch import BatchReader
from vidtwin import (
    DataConfig,
    VidTwinAutoencoder,
    build_dataset,
    build_evaluation_loader,
    build_loader,
    load_autoencoder,
    weights_digest,
)

DEFAULT_FPS = 8.0
TOKENS_OF_A_CAPTION = 32  # about, to see whether all captions' states fit into memory


class RunParts:
    """The autoencoder, the text encoder, the clips or their latents, and the sizes that follow.

    Args:
        autoencoder: folder of the frozen autoencoder, or the run folder of its training.
        untrained: whether the autoencoder may be a config of train_ae.py, to see sizes alone.
        cache: folder of encode.py with `train` and, for validation, `validation` in it; None to
            encode the videos of `data`.
        data: the clips, without a cache; its sizes follow the autoencoder's. With a cache, what it
            says beyond the defaults must be what was encoded.
        overfit: take the first N clips alone, for validation as well.
        validates: whether validation clips are wanted.
        class_conditional: whether the classes of the data are a condition.
        text_encoder: folder or hub id of the encoder that reads captions; None for no text.
        text_layer, max_text_length: see `TextEncoder`.
        transformer: what the run says of its transformer.
        device: of the models.
    Raises:
        ValueError: if a part is missing, or parts do not belong together.
    """

    def __init__(
        self,
        *,
        autoencoder: str,
        untrained: bool = False,
        cache: str | None,
        data: DataConfig,
        overfit: int | None,
        validates: bool,
        class_conditional: bool,
        text_encoder: str | None,
        text_layer: int,
        max_text_length: int | None,
        transformer: TransformerConfig,
        device: torch.device | str,
    ) -> None:
        model: Any = load_autoencoder(autoencoder, untrained=untrained)[0].requires_grad_(False)
        self.autoencoder: VidTwinAutoencoder = model.to(device)
        self.digests: dict[str, str | None] = {"autoencoder": weights_digest(self.autoencoder)}
        sizes = self.autoencoder.sizes
        # Until they are measured, or come with a checkpoint.
        self.stats = LatentStats(sizes.structure_channels, sizes.dynamics_channels).to(device)
        self.cache = None if cache is None else Path(cache).expanduser()
        self.digests["cache"] = None
        self.overfit = overfit
        self.dataset: Any
        if self.cache is None:
            self.data = data.sized(sizes.num_frames, sizes.height, sizes.width)
            self.dataset = build_dataset(self.data)
        else:
            self.dataset = self._open_cache("train")
            self.dataset.check(data=asked_of(data))
            self.digests["cache"] = self.dataset.digest()
            self.data = DataConfig.from_dict(self.dataset.manifest["data"])
            if overfit:
                self.dataset = self.dataset.first(overfit)
        self.held_out = self._find_held_out() if validates else None
        self.class_names = list(self.dataset.label_names) if class_conditional else []
        if class_conditional and not self.class_names:
            raise ValueError(
                "class_conditional=true, but the clips of this data set have no labels; "
                "set class_conditional=false, or take a source with classes"
            )
        self.text_encoder: TextEncoder | None = None
        if text_encoder is not None:
            if not self._has_captions():
                raise ValueError(
                    "a text_encoder is given, but the clips of this data set have no captions; "
                    "set text_encoder=null, or write captions (see data.captions)"
                )
            reader = TextEncoder.from_pretrained(text_encoder, text_layer, max_text_length)
            self.text_encoder = reader.to(device)
        self.reading: dict[str, Any] = {
            "text_layer": text_layer,
            "max_text_length": max_text_length,
        }
        width = None if self.text_encoder is None else self.text_encoder.hidden_size
        digest = None if self.text_encoder is None else self.text_encoder.digest()
        self.digests["text_encoder"] = digest
        self.sizes = transformer.sizes(sizes, len(self.class_names) or None, width)

    @property
    def fps(self) -> float:
        """Frames per second of the clips; 8 where each keeps its own rate."""
        return self.data.fps or DEFAULT_FPS

    def reader(self, objective: FlowObjective, **dropout: float) -> BatchReader:
        """Makes training batches of the loaders' batches; dropout as of `BatchReader`."""
        text = None if self.text_encoder is None else CachedTextEncoder(self.text_encoder)
        if text is not None and self.cache is not None:
            captions = self.dataset.all_captions()
            size = len(captions) * TOKENS_OF_A_CAPTION * text.encoder.hidden_size * 4
            if size <= text.max_bytes:  # else each is read when it comes, one by one
                text.embed_all(captions)
        return BatchReader(
            self.autoencoder.sizes,
            self.stats,
            objective,
            autoencoder=self.autoencoder,
            text_encoder=text,
            num_classes=self.sizes.num_classes,
            device=self.autoencoder.device,
            **dropout,
        )

    def check_classes(self, asked: Sequence[str]) -> None:
        """Raises ValueError, with the nearest names, for a class that the data do not have."""
        if asked:
            class_indices(asked, len(self.class_names), self.class_names)

    def training_batches(self, **settings: Any) -> Iterable[dict[str, Any]]:
        """This rank's endless batches; settings as of `build_loader`."""
        build: Any = build_loader if self.cache is None else build_latent_loader
        return build(self.dataset, **settings)

    def held_out_batches(self, **settings: Any) -> Iterable[dict[str, Any]]:
        """This rank's validation clips, or the ones to learn by heart, once.

        Settings are batch_size, max_samples, rank and world_size.
        """
        assert self.held_out is not None
        build: Any = build_evaluation_loader if self.cache is None else iterate_latents
        return build(self.held_out, **settings)

    @torch.no_grad()
    def measure_stats(self, num_clips: int, batch_size: int) -> None:
        """Sets the statistics of the latents: those of the cache, or of the first clips."""
        if self.cache is None:
            loader = build_evaluation_loader(
                build_dataset(self.data.centered()), batch_size=batch_size, max_samples=num_clips
            )
            encode, device = self.autoencoder.encode, self.autoencoder.device
            found = LatentStats.measure(encode(batch["video"].to(device)) for batch in loader)
        else:
            found = self.dataset.stats
        self.stats.load_state_dict(found.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: the statistics, and what gave latents and texts."""
        return {"stats": self.stats.state_dict(), "digests": self.digests}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes the statistics of a checkpoint.

        Raises:
            ValueError: if it was trained with another autoencoder, text encoder or cache.
        """
        for name, digest in self.digests.items():
            if state["digests"][name] != digest:
                raise ValueError(
                    f"the run's {name.replace('_', ' ')} has the digest {digest}, the checkpoint "
                    f"was trained with {state['digests'][name]}; take {name} back, or choose "
                    "another output=FOLDER"
                )
        self.stats.load_state_dict(state["stats"])

    def pipeline(self, transformer: TwinDiT, scheduler: Any) -> VidTwinPipeline:
        """The pipeline of these parts around a transformer."""
        text = self.text_encoder
        return VidTwinPipeline(
            autoencoder=self.autoencoder,
            transformer=transformer,
            scheduler=scheduler,
            latent_stats=self.stats,
            text_encoder=None if text is None else text.model,
            tokenizer=None if text is None else text.tokenizer,
            class_names=self.class_names or None,
            fps=self.fps,
            **self.reading,
        )

    def _open_cache(self, part: str) -> LatentCache:
        assert self.cache is not None
        cache = LatentCache(self.cache / part)
        cache.check(self._encoder_digest, self.autoencoder.sizes)
        return cache

    @cached_property
    def _encoder_digest(self) -> str:
        """Of the weights that latents depend on: all of them are read, so once for both parts."""
        return weights_digest(self.autoencoder.encoder_parts())

    def _find_held_out(self) -> Any:
        if self.cache is not None:
            return self.dataset if self.overfit else self._open_cache("validation")
        part = self.data.part if self.overfit else "validation"
        return build_dataset(replace(self.data.centered(), part=part))

    def _has_captions(self) -> bool:
        if self.cache is not None:
            return any(caption for captions in self.dataset.captions for caption in captions)
        return any(self.dataset.captions(index, 1)[0] for index in range(len(self.dataset)))


def asked_of(data: DataConfig) -> dict[str, Any]:
    """What a config says of the clips beyond the defaults, but for where they lie now."""
    return {name: value for name, value in lasting(data.changed()).items() if name != "part"}
