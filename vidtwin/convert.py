"""Reading the weights that were released for VidTwin (microsoft/VidTok)."""

from __future__ import annotations

import logging
import math
import pickle
import re
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from vidtwin.strict_loading import refuse_misfits

if TYPE_CHECKING:
    from vidtwin.autoencoder import VidTwinAutoencoder

Model = TypeVar("Model", bound="VidTwinAutoencoder")
StateDict = dict[str, torch.Tensor]
logger = logging.getLogger(__name__)

# Parameters that the released model carries and never uses.
DEAD_KEYS = (
    "decoder.x_embedder.proj.bias",
    "decoder.x_embedder.proj.weight",
    "encoder.final_layer.linear.bias",
    "encoder.final_layer.linear.weight",
    "encoder.final_layer.scale_shift_table",
)
# Fixed position tables, which we compute.
TABLE_KEYS = tuple(
    f"{side}.pos_embed{suffix}" for side in ("encoder", "decoder") for suffix in ("", "_temporal")
)
LOSS_PREFIX = "loss."
DISCRIMINATOR_PREFIX = "loss.discriminator."
LOGVAR_KEY = "loss.logvar"

# Released name -> ours, tried in order on the start of each key.
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
# Released lists interleave convolutions with activations (and upsampling): their stride in the
# list turns a released index into ours.
_LISTS = (
    (r"content_downsample_blocks\.(\d+)\.", "structure_encoder.downsamplers.", 2),
    (r"content_upsample_blocks\.(\d+)\.", "structure_decoder.upsamplers.", 3),
    (r"downsample_motion_module\.(\d+)\.", "dynamics_encoder.downsamplers.", 2),
)


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
        ValueError: if the file holds more than tensors and plain values, or no state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint file at {path}")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is no readable .safetensors file ({error})") from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(
            f"{path} can't be read as weights alone ({reason[0]}); expected a torch checkpoint of "
            "tensors or a .safetensors file; objects are never unpickled"
        ) from error
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"{path} holds no state dict (a mapping of names to tensors)")
    return dict(state)


def load_official(cls: type[Model], path: str | PathLike[str], **config_overrides) -> Model:
    """A `VidTwinAutoencoder` with released weights; see its `from_official`."""
    official = read_official_state_dict(path)
    ours, unexpected = _translate(official)
    config = infer_config(official, unexpected) | config_overrides
    model = cls(**config)
    wanted = model.state_dict()
    missing = sorted(set(wanted) - set(ours))
    surplus = sorted(set(ours) - set(wanted))
    shapes = [
        f"{key}: file {tuple(ours[key].shape)}, model {tuple(wanted[key].shape)}"
        for key in sorted(set(ours) & set(wanted))
        if ours[key].shape != wanted[key].shape
    ]
    refuse_misfits(
        path,
        {
            "missing (our names)": missing,
            "unexpected (released names)": unexpected,
            "unexpected (our names)": surplus,
            "other shape": shapes,
        },
        "; pass the model's sizes as keywords, e.g. from_official(path, encoder_heads=12)",
    )
    model.load_state_dict(ours, strict=True)
    return model.eval()


def _translate(official: StateDict) -> tuple[StateDict, list[str]]:
    """Our state dict, and the released keys that we can't place."""
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


def infer_config(official: StateDict, unexpected: list[str]) -> dict:
    """Config keywords that the weights' shapes determine (a square video is assumed).

    Head counts, causality and dropout leave no trace in the weights: they stay at the released
    model's values unless the caller says otherwise.
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
    """The released discriminator's state dict and the learned log-variance, to go on training.

    Args:
        path: a released checkpoint that kept its `loss.*` keys.
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
