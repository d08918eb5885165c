"""Converts the released VidTwin weights (microsoft/VidTok) to our config and names."""

from __future__ import annotations

import logging
import math
import pickle
import re
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from typing_extensions import Self

from vidtwin.config import AutoencoderConfig
from vidtwin.files import nearest_name
from vidtwin.strict_loading import load_strictly

__all__ = [
    "DEAD_KEYS",
    "TABLE_KEYS",
    "ReleasedLoading",
    "infer_config",
    "our_key",
    "read_official",
    "read_official_discriminator",
    "read_official_state_dict",
]

StateDict = dict[str, torch.Tensor]
logger = logging.getLogger(__name__)

# Parameters that the released model has but never uses.
DEAD_KEYS = (
    "decoder.x_embedder.proj.bias",
    "decoder.x_embedder.proj.weight",
    "encoder.final_layer.linear.bias",
    "encoder.final_layer.linear.weight",
    "encoder.final_layer.scale_shift_table",
)
# Fixed position tables, which are computed here.
TABLE_KEYS = tuple(
    f"{side}.pos_embed{suffix}" for side in ("encoder", "decoder") for suffix in ("", "_temporal")
)
LOSS_PREFIX = "loss."
DISCRIMINATOR_PREFIX = "loss.discriminator."
LOGVAR_KEY = "loss.logvar"

# Released name -> ours; the first pattern that matches the start of a key wins.
_RENAMES = (
    (r"encoder\.x_embedder\.proj\.", "patch_embedding."),
    (r"decoder\.final_layer\.scale_shift_table$", "head.modulation"),
    (r"decoder\.final_layer\.linear\.", "head.linear."),
    (r"(encoder|decoder)\.blocks\.(\d+)\.scale_shift_table$", r"\1.blocks.\2.modulation"),
    (r"(encoder|decoder)\.blocks\.(\d+)\.attn\.", r"\1.blocks.\2.spatial_attention."),
    (r"(encoder|decoder)\.blocks\.(\d+)\.attn_temp\.", r"\1.blocks.\2.temporal_attention."),
    (r"(encoder|decoder)\.blocks\.(\d+)\.mlp\.", r"\1.blocks.\2.mlp."),
    (r"temporal_qformer\.query_embeds$", "structure_encoder.temporal.queries"),
    (r"temporal_qformer\.qformer\.", "structure_encoder.temporal.qformer."),
    (r"conv_in\.", "structure_encoder.conv_in."),
    (r"bottle_down\.", "structure_encoder.to_moments."),
    (r"bottle_up\.0\.", "structure_decoder.conv_in."),
    (r"conv_out\.", "structure_decoder.conv_out."),
    (r"cont_emb\.0\.", "structure_decoder.to_width."),
    (r"cont_emb\.2\.", "structure_decoder.to_frames."),
    (r"motion_head\.", "dynamics_encoder.to_moments."),
    (r"motion_emb\.0\.", "dynamics_decoder.linear_in."),
    (r"motion_emb\.2\.", "dynamics_decoder.linear_out."),
    (r"up_motion\.0\.", "dynamics_decoder.upsamplers.0.linear_in."),
    (r"up_motion\.2\.", "dynamics_decoder.upsamplers.0.linear_out."),
)
# The released lists hold activations (and upsampling) between the convolutions: every `stride`-th
# entry is a convolution.
_LISTS = (
    (r"content_downsample_blocks\.(\d+)\.", "structure_encoder.downsamplers.", 2),
    (r"content_upsample_blocks\.(\d+)\.", "structure_decoder.upsamplers.", 3),
    (r"downsample_motion_module\.(\d+)\.", "dynamics_encoder.downsamplers.", 2),
)


class ReleasedLoading:
    """A base class for the autoencoder: makes it from the file that its authors published."""

    @classmethod
    def from_official(cls, path: str | PathLike[str], **config_overrides: Any) -> Self:
        """The released weights (microsoft/VidTok, .ckpt or .safetensors) in this class.

        Args:
            path: the checkpoint file; loaded without unpickling objects.
            config_overrides: what the weights' shapes don't determine: head counts, causality,
                and height and width of a model that isn't square.
        Raises:
            ValueError: naming every key that is missing or unexpected, or has another shape.
        """
        config, weights, unknown = read_official(path)
        model: Any = cls(**(config | config_overrides))
        load_strictly(model, weights, path, unknown)
        return model.eval()

    @classmethod
    def from_single_file(
        cls,
        pretrained_model_link_or_path_or_dict: str | PathLike[str],
        torch_dtype: torch.dtype | None = None,
        **config_overrides: Any,
    ) -> Self:
        """As `from_official`, by diffusers' name for it; its own loader knows its own models alone.

        Args:
            pretrained_model_link_or_path_or_dict: a file, .ckpt or .safetensors.
            torch_dtype: of the weights; None for what the file holds, float32.
            config_overrides: as of `from_official`.
        Raises:
            ValueError: as `from_official`; also for a link, a dict, or an option that is no size.
        """
        source = pretrained_model_link_or_path_or_dict
        if not isinstance(source, str | PathLike) or "://" in str(source):
            raise ValueError(
                "from_single_file reads a file, got "
                f"{source if isinstance(source, str) else type(source).__name__}; download it, and "
                "name its path"
            )
        for name in config_overrides:
            if name not in (known := AutoencoderConfig.__dataclass_fields__):
                raise ValueError(
                    f"from_single_file takes no `{name}` (the nearest size of the model is "
                    f"`{nearest_name(name, known)}`); sizes come from the weights' shapes"
                )
        model: Any = cls.from_official(source, **config_overrides)
        return model if torch_dtype is None else model.to(torch_dtype)


def our_key(official_key: str) -> str | None:
    """Our name of a released parameter; None for a key that has no place in our model."""
    for pattern, replacement in _RENAMES:
        renamed, count = re.subn(f"^{pattern}", replacement, official_key)
        if count:
            return renamed
    for pattern, replacement, stride in _LISTS:
        found = re.match(pattern, official_key)
        if found and int(found.group(1)) % stride == 0:
            index = int(found.group(1)) // stride
            return f"{replacement}{index}.{official_key[found.end() :]}"
    return None


def read_official_state_dict(path: str | PathLike[str]) -> StateDict:
    """All tensors of a released checkpoint under their released names.

    Args:
        path: .safetensors, or .ckpt/.pt/.pth with or without a `state_dict` level.
    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file holds other objects than tensors and numbers, or no state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint file at {path}")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a readable .safetensors file ({error})") from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    # A file of something else ends the reader of pickles in many ways.
    except (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, ValueError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(
            f"{path} can't be read as weights alone ({reason[0]}); expected a torch checkpoint of "
            "tensors or a .safetensors file; objects are never unpickled"
        ) from error
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"{path} holds no state dict (a mapping of names to tensors)")
    return dict(state)


def read_official(path: str | PathLike[str]) -> tuple[dict[str, Any], StateDict, list[str]]:
    """The autoencoder in a released checkpoint.

    Args:
        path: as in `read_official_state_dict`.
    Returns:
        The config keywords that the weights determine (see `infer_config`), the weights under our
        names, and the released names of weights that have no place in our model.
    Raises:
        FileNotFoundError, ValueError: as `read_official_state_dict`; also for other weights.
    """
    official = read_official_state_dict(path)
    weights, unknown = _translate(official)
    return infer_config(official, unknown), weights, unknown


def _translate(official: StateDict) -> tuple[StateDict, list[str]]:
    """Our state dict, and the released keys that have no place in it."""
    ours: StateDict = {}
    unexpected, ignored = [], []
    for key, value in official.items():
        if key in DEAD_KEYS or key in TABLE_KEYS or key.startswith(LOSS_PREFIX):
            ignored.append(key)
            continue
        name = our_key(key)
        if name is None:
            unexpected.append(key)
        else:
            ours[name] = value
    if ignored:
        logger.info("not part of the autoencoder, left out: %s", ", ".join(sorted(ignored)))
    return ours, sorted(unexpected)


def infer_config(official: StateDict, unexpected: list[str]) -> dict[str, Any]:
    """Config keywords that the weights' shapes determine (a square video is assumed).

    Head counts, causality and dropout can't be seen in the weights: they stay at the released
    model's values unless the caller overrides them.
    """
    shape = {key: tuple(value.shape) for key, value in official.items()}
    needed = (
        "encoder.x_embedder.proj.weight",
        "encoder.blocks.0.mlp.fc1.weight",
        "encoder.pos_embed",
        "temporal_qformer.query_embeds",
        "conv_in.weight",
        "cont_emb.2.weight",
        "bottle_down.weight",
        "motion_emb.0.weight",
    )
    absent = [key for key in needed if key not in shape]
    if absent:
        raise ValueError(
            f"this is no VidTwin checkpoint: missing {', '.join(absent)}"
            + (f"; unexpected {', '.join(unexpected[:10])}" if unexpected else "")
        )

    def count(pattern: str) -> int:
        return len({m.group(1) for key in shape if (m := re.match(pattern, key))})

    hidden, channels, *patch = shape["encoder.x_embedder.proj.weight"]
    side = math.isqrt(shape["encoder.pos_embed"][1])
    layers = r"temporal_qformer\.qformer\.encoder\.layer\.(\d+)\."
    feed_forward = "temporal_qformer.qformer.encoder.layer.0.intermediate_query.dense.weight"
    return {
        "in_channels": channels,
        "num_frames": shape["cont_emb.2.weight"][0],
        "height": side * patch[1],
        "width": side * patch[2],
        "patch_size": tuple(patch),
        "hidden_size": hidden,
        "encoder_depth": count(r"encoder\.blocks\.(\d+)\."),
        "decoder_depth": count(r"decoder\.blocks\.(\d+)\."),
        "mlp_ratio": shape["encoder.blocks.0.mlp.fc1.weight"][0] / hidden,
        "num_queries": shape["temporal_qformer.query_embeds"][0],
        "query_hidden_size": shape["temporal_qformer.query_embeds"][1],
        "query_layers": count(layers),
        "query_intermediate_size": shape.get(feed_forward, (768,))[0],
        "structure_base_channels": shape["conv_in.weight"][0],
        "structure_channels": shape["bottle_down.weight"][0] // 2,
        "structure_downsamples": count(r"content_downsample_blocks\.(\d+)\."),
        "dynamics_channels": shape["motion_emb.0.weight"][1],
        "dynamics_downsamples": count(r"downsample_motion_module\.(\d+)\."),
    }


def read_official_discriminator(
    path: str | PathLike[str],
) -> tuple[StateDict, torch.Tensor | None]:
    """The released discriminator and learned log-variance, to continue training from.

    Args:
        path: a released checkpoint that still has its `loss.*` keys.
    Returns:
        (state dict for `vidtwin.discriminator`, logvar or None if the file has none)
    Raises:
        ValueError: if the file holds no discriminator.
    """
    official = read_official_state_dict(path)
    state = {
        key.removeprefix(DISCRIMINATOR_PREFIX): value
        for key, value in official.items()
        if key.startswith(DISCRIMINATOR_PREFIX)
    }
    if not state:
        raise ValueError(
            f"{path} holds no discriminator: no key starts with {DISCRIMINATOR_PREFIX}"
        )
    return state, official.get(LOGVAR_KEY)
