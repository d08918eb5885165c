"""Encoding, decoding and a training step: VidTwin's official size against diffusers' VAEs.

Theirs have their own default configs, all have random weights. A step is forward, squared error and
backward, at 64 px. CogVideoX takes 16 frames, Wan and LTX one frame more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from speed_parts.measuring import (
    Found,
    Setting,
    flops,
    mebibytes,
    ratio,
    seconds,
    side_by_side,
    together,
)
from vidtwin import AutoencoderConfig, VidTwinAutoencoder

TINY = {
    "hidden_size": 32,
    "encoder_depth": 1,
    "decoder_depth": 1,
    "encoder_heads": 2,
    "decoder_heads": 2,
    "query_layers": 1,
    "query_intermediate_size": 32,
    "structure_base_channels": 16,
}
# Class -> frames, and what makes it tiny.
RIVALS: dict[str, tuple[int, dict[str, Any]]] = {
    "AutoencoderKLCogVideoX": (16, {"block_out_channels": (32,) * 4, "layers_per_block": 1}),
    "AutoencoderKLWan": (17, {"base_dim": 8, "num_res_blocks": 1}),
    "AutoencoderKLLTXVideo": (
        17,
        {
            "block_out_channels": (16,) * 4,
            "decoder_block_out_channels": (16,) * 4,
            "layers_per_block": (1,) * 5,
            "decoder_layers_per_block": (1,) * 5,
        },
    ),
}
# Pixels of a training step: at 224, some of the others need more memory than most machines have.
STEP_SIZE = 64
Calls = dict[str, Callable[[], Any]]


def own_autoencoder(size: int, small: bool) -> VidTwinAutoencoder:
    """VidTwin's, random, at a size in pixels."""
    sizes = AutoencoderConfig(height=size, width=size, **(TINY if small else {}))
    return VidTwinAutoencoder(**asdict(sizes))


def rival(name: str, small: bool) -> nn.Module:
    """A VAE of diffusers, random."""
    import diffusers

    model: nn.Module = getattr(diffusers, name)(**(RIVALS[name][1] if small else {}))
    return model


class Clip:
    """An autoencoder, and a clip, or a batch of them, that it encodes and decodes."""

    def __init__(self, model: Any, frames: int, size: int, batch: int = 1) -> None:
        self.model = model.eval()
        self.own = isinstance(model, VidTwinAutoencoder)
        self.video = torch.rand(batch, 3, frames, size, size) * 2 - 1
        self.latents = self.encode()

    def posterior(self) -> Any:
        """Of the clip."""
        found = self.model.encode(self.video)
        return found if self.own else found.latent_dist

    @torch.no_grad()
    def encode(self) -> Any:
        """The mode of the clip's latents."""
        return self.posterior().mode()

    def decoded(self, latents: Any) -> Tensor:
        """(B, 3, T, H, W)."""
        found = self.model.decode(latents)
        return found if self.own else found.sample

    @torch.no_grad()
    def decode(self) -> Tensor:
        """The clip again."""
        return self.decoded(self.latents)

    def reconstructed(self) -> Tensor:
        """The clip again, through latents that are drawn, for learning."""
        return self.decoded(self.posterior().sample())

    def step(self) -> None:
        """Forward and backward."""
        loss = (self.reconstructed() - self.video).square().mean()
        loss.backward()
        self.model.zero_grad(set_to_none=True)


def calls_of(name: str, size: int, whats: Sequence[str], small: bool) -> tuple[Calls, Clip]:
    """What is measured at a size, of VidTwin's and of the class `name` in turns, and the latter."""
    own = Clip(own_autoencoder(size, small), 16, size)
    other = Clip(rival(name, small), RIVALS[name][0], size)
    calls: Calls = {}
    for what in whats:
        calls |= {f"{what}, own": getattr(own, what), f"{what}, other": getattr(other, what)}
    return calls, other


def counted(build: Callable[[], Any], frames: int, size: int) -> float:
    """GFLOPs of encoding and decoding a clip, without computing them."""
    with torch.device("meta"):
        clip = Clip(build().requires_grad_(False), frames, size)
        return sum(flops(call) for call in (clip.encode, clip.decode)) / 1e9


def measure(setting: Setting) -> Found:
    """A row for each VAE of diffusers, with how often as long as VidTwin's it takes."""
    size, step_size = (32, 32) if setting.small else (setting.size, min(setting.size, STEP_SIZE))
    own = own_autoencoder(size, setting.small).sizes.numel_per_clip
    work = counted(partial(own_autoencoder, size, setting.small), 16, size)
    rows = []
    for name, (frames, _) in RIVALS.items():
        calls, other = calls_of(name, size, ("encode", "decode"), setting.small)
        values = int(other.latents.numel())
        turns = side_by_side(calls, setting.rounds)
        del calls, other
        turns |= side_by_side(calls_of(name, step_size, ["step"], setting.small)[0], setting.rounds)
        row: dict[str, Any] = {
            "beside": name.removeprefix("AutoencoderKL"),
            "frames": frames,
            "latent values": values,
            "own values": own,
            "FLOPs, ×": counted(partial(rival, name, setting.small), frames, size) / work,
        }
        for what in ("encode", "decode", "step"):
            ours, theirs = turns[f"{what}, own"], turns[f"{what}, other"]
            row |= {f"{what}, own s": seconds(ours), f"{what}, s": seconds(theirs)}
            row[f"{what}, ×"] = ratio(theirs, ours)
        ours, theirs = (
            together(turns[f"encode, {who}"], turns[f"decode, {who}"]) for who in ("own", "other")
        )
        row["encode and decode, ×"] = ratio(theirs, ours)
        both = [turns[f"step, {who}"] for who in ("own", "other")]
        row |= dict(zip(("step, own MiB", "step, MiB"), map(mebibytes, both), strict=True))
        rows.append(row)
    sizes = {"size": size, "step_size": step_size, "own_frames": 16, "batch_size": 1}
    return Found(rows=rows, protocol={**sizes, "tiny": setting.small})
