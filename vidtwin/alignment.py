"""Aligns the structure latent with what a frozen image encoder sees in the clip's frames.

    target = mean over frames of spatial_norm(encoder(frame)), resized to h' x w'
    loss   = mean over positions of 1 - cosine(conv3x3(structure), target)

Axes: B batch, C channels, Q structure queries, T frames, H W pixels, h' w' the structure's grid,
D width of the image encoder. Source: iREPA (arXiv 2512.10794), its convolution as projection and
its spatial normalization, here for a latent instead of a generator's features.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from einops import rearrange, reduce
from torch import Tensor, nn
from torch.nn import functional

from vidtwin.config import AlignmentConfig

__all__ = ["StructureAlignment", "spatial_norm"]


def spatial_norm(features: Tensor) -> Tensor:
    """(N, D, h, w) less each channel's mean over the positions, over its deviation: only what
    differs between the positions of an image is left."""
    mean, deviation = features.mean((2, 3), keepdim=True), features.std((2, 3), keepdim=True)
    return (features - mean) / (deviation + 1e-6)


class StructureAlignment(nn.Module):
    """The loss, with its projection; the image encoder is neither trained nor saved.

    Args:
        config: see `AlignmentConfig`.
        structure_shape: (C, Q, h', w') of the structure latent.
    Raises:
        ValueError: if there is no image encoder of transformers in the folder.
    """

    def __init__(self, config: AlignmentConfig, structure_shape: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.config = config
        encoder, self.mean, self.std, self.size = read_encoder(str(config.encoder))
        self._encoder = (encoder,)  # in a tuple it is no submodule
        channels, queries, height, width = structure_shape
        self.grid = height, width
        features = self.targets(torch.zeros(1, 3, 1, *self.size)).shape[1]
        self.projection = nn.Conv2d(channels * queries, features, 3, padding=1)

    def forward(
        self,
        video: Tensor,
        structure: Tensor,
        reduce_gradient: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """How far the structure is from the target, from 0 to 2.

        Args:
            video: (B, 3, T, H, W), in [-1, 1].
            structure: (B, C, Q, h', w').
            reduce_gradient: averages a tensor over the processes; the projection's gradients
                become those of the whole batch, since DDP doesn't wrap it.
        """
        weight, bias = self.projection.weight, self.projection.bias
        if reduce_gradient is not None and torch.is_grad_enabled():
            # Clones: a hook on the parameter itself would stay after this batch.
            weight, bias = weight.clone(), bias.clone()  # type: ignore[union-attr]
            for clone in (weight, bias):
                clone.register_hook(reduce_gradient)
        images = rearrange(structure, "b c q h w -> b (c q) h w").to(weight)
        projected = functional.conv2d(images, weight, bias, padding=1)
        return (1 - functional.cosine_similarity(projected, self.targets(video), dim=1)).mean()

    @torch.no_grad()
    def targets(self, video: Tensor) -> Tensor:
        """(B, 3, T, H, W) in [-1, 1] to (B, D, h', w')."""
        count = min(self.config.frames, video.shape[2])
        # The middles of equal parts of the clip.
        chosen = [int((part + 0.5) * video.shape[2] / count) for part in range(count)]
        images = rearrange(video[:, :, chosen].float(), "b c t h w -> (b t) c h w")
        images = functional.interpolate(images, self.size, mode="bicubic", antialias=True)
        mean, std = (images.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        encoder = self._encoder[0].to(video.device)
        found = encoder(pixel_values=(images / 2 + 0.5 - mean) / std).last_hidden_state
        features = as_grid(found, self.size, getattr(encoder.config, "patch_size", 1))
        found = spatial_norm(features.float())
        found = reduce(found, "(b t) d h w -> b d h w", "mean", t=count)
        return functional.adaptive_avg_pool2d(found, self.grid)


def as_grid(features: Tensor, size: tuple[int, int], patch: int) -> Tensor:
    """(N, D, h, w) of a convolutional network's, or of a transformer's (N, extra + h w, D)."""
    if features.ndim == 4:
        return features
    (height, width), count = size, features.shape[1]
    rows, columns = height // patch, width // patch
    if rows * columns > count:  # a transformer that merges patches, and has no extra tokens
        rows = math.isqrt(count * height // width)
        columns = count // rows
    # Patches come last, after a class token and registers.
    return rearrange(features[:, count - rows * columns :], "n (h w) d -> n d h w", h=rows)


def read_encoder(
    folder: str,
) -> tuple[Any, tuple[float, ...], tuple[float, ...], tuple[int, int]]:
    """A frozen image encoder: the model, mean and deviation of its pixels, (height, width)."""
    from transformers import AutoModel  # slow to import

    try:
        prepared = json.loads((Path(folder) / "preprocessor_config.json").read_text("utf-8"))
        mean, std = (tuple(prepared[key]) for key in ("image_mean", "image_std"))
        model = AutoModel.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error).splitlines()[0]
        raise ValueError(
            "loss.alignment.encoder must be the folder of an image encoder of transformers, with "
            f"its preprocessor_config.json; {folder} isn't: {reason}"
        ) from error
    model = getattr(model, "vision_model", model)  # of a CLIP, its images' half
    sizes = [prepared.get("crop_size"), prepared.get("size")]
    found = next((s for s in sizes if isinstance(s, dict) and {"height", "width"} <= s.keys()), {})
    default = getattr(model.config, "image_size", 224)
    size = found.get("height", default), found.get("width", default)
    return model.float().eval().requires_grad_(False), mean, std, size
