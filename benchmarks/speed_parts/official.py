"""Encoding, decoding and a training step of VidTwin against the official code, of equal weights.

The official code comes from a checkout of microsoft/VidTok, which today's libraries don't import.
What it asks of lightning, omegaconf and timm is a few names, and of transformers some that later
versions took away; they get stand-ins here. Its attention is the one without flash-attn, which
needs a GPU, and its casts to bfloat16 inside a CUDA autocast become float32, as ours. Its loss,
which would download weights, is left out.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from speed_parts.autoencoders import Clip
from speed_parts.measuring import Found, Setting, mebibytes, ratio, seconds, side_by_side
from vidtwin import VidTwinAutoencoder

PACKAGES = ("vidtwin", "vidtok")
STOOD_IN = ("lightning", "omegaconf", "timm")


class Keys(dict):
    """Settings that are read as keys and as attributes."""

    __getattr__ = dict.__getitem__


class InFloat32:
    """torch, whose bfloat16 is float32."""

    bfloat16 = torch.float32

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


class Mlp(nn.Module):
    """timm's."""

    def __init__(self, *, in_features: int, hidden_features: int, act_layer: Any, drop: float):
        super().__init__()
        self.fc1, self.act = nn.Linear(in_features, hidden_features), act_layer()
        self.fc2 = nn.Linear(hidden_features, in_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


STAND_INS: dict[str, dict[str, Any]] = {
    "lightning": {},
    "lightning.pytorch": {"LightningModule": nn.Module},
    "lightning.pytorch.utilities": {},
    "lightning.pytorch.utilities.rank_zero": {"rank_zero_only": lambda call: call},
    "omegaconf": {"ListConfig": list},
    "timm": {},
    "timm.models": {},
    "timm.models.layers": {"DropPath": lambda rate: nn.Identity()},
    "timm.models.vision_transformer": {"Mlp": Mlp},
}


def official_autoencoder(checkout: Path, size: int) -> nn.Module:
    """The released model's architecture with random weights, at a size in pixels."""
    if not (checkout / "vidtwin" / "models" / "vidtwin_ae.py").is_file():
        raise FileNotFoundError(f"--official must be a checkout of microsoft/VidTok: {checkout}")
    transformer = {
        "in_channels": 3,
        "input_size": [16, size, size],
        "patch_size": [1, 16, 16],
        "hidden_size": 768,
        "depth": 16,
        "num_heads": 12,
        "temporal_casual": True,
        "enable_flashattn": False,
    }
    modules = "vidtwin.modules"
    queries = {"num_query_tokens": 16, "query_hidden_size": 64, "encoder_hidden_size": 768}
    targets = {
        "encoder": (f"{modules}.st_transformer.STTEncoder", transformer),
        "decoder": (f"{modules}.st_transformer.STTDecoder", transformer),
        "temporal_qformer": (f"{modules}.qformer.MyQformerInterface", queries),
        "regularizer": ("vidtok.modules.regularizers.DiagonalGaussianRegularizer", {}),
        "loss": ("torch.nn.Identity", {}),
    }
    own = {name: sys.modules.pop(name) for name in list(sys.modules) if belongs(name)}
    try:
        for name in PACKAGES:
            package = sys.modules[name] = ModuleType(name)
            package.__path__ = [str(checkout / name)]
        stand_in()
        importlib.import_module(f"{modules}.st_transformer").torch = InFloat32()
        found = importlib.import_module("vidtwin.models.vidtwin_ae")
        model: nn.Module = found.VidAutoEncoderQformerCompactSymVidVAE(
            **{
                f"{name}_config": Keys(target=target, params=Keys(settings))
                for name, (target, settings) in targets.items()
            },
            expect_ch=8,
            cont_num_blocks=1,
            downsample_motion=True,
            motion_num_blocks=1,
            d_dim=8,
        )
    finally:
        for name in [name for name in sys.modules if belongs(name)]:
            del sys.modules[name]
        sys.modules.update(own)
    return model


def belongs(module: str) -> bool:
    """Whether it is of a package that is another one while the official code is imported."""
    return module.split(".")[0] in PACKAGES + STOOD_IN


def stand_in() -> None:
    """Puts what is missing where the official code imports it."""
    from transformers import Blip2PreTrainedModel, Blip2QFormerConfig, pytorch_utils

    for name, values in STAND_INS.items():
        module = sys.modules[name] = ModuleType(name)
        vars(module).update(values)
    for name in ("find_pruneable_heads_and_indices", "prune_linear_layer"):
        if not hasattr(pytorch_utils, name):
            setattr(pytorch_utils, name, None)  # imported, never called
    if not hasattr(Blip2PreTrainedModel, "get_head_mask"):
        Blip2PreTrainedModel.get_head_mask = lambda self, mask, layers: [None] * layers
    if not hasattr(Blip2PreTrainedModel, "invert_attention_mask"):
        Blip2PreTrainedModel.invert_attention_mask = inverted
    if not hasattr(Blip2QFormerConfig, "use_return_dict"):
        Blip2QFormerConfig.use_return_dict = True


def inverted(self: Any, mask: Tensor) -> Tensor:
    """(B, N), 1 for tokens that are read, as what is added to scores, (B, 1, 1, N)."""
    return (1 - mask[:, None, None]) * torch.finfo(mask.dtype).min


class OfficialClip(Clip):
    """A clip that the official model encodes and decodes: its latents come after its states."""

    @torch.no_grad()
    def encode(self) -> Any:
        self.model.regularization.sample = False
        return self.model.encode(self.video)

    def decoded(self, latents: Any) -> Tensor:
        return self.model.decode(*latents)

    def reconstructed(self) -> Tensor:
        self.model.regularization.sample = True
        return self.model(self.video)[1]


def measure(setting: Setting) -> Found:
    """A row for each of encoding, decoding and a step; needs `--official`."""
    if setting.official is None:
        raise ValueError("official needs --official FOLDER, a checkout of microsoft/VidTok")
    size = 32 if setting.small else setting.size
    model, weights = official_autoencoder(setting.official, size), setting.scratch / "official.ckpt"
    with torch.no_grad():
        for weight in model.parameters():
            if not weight.any():
                weight.normal_(std=0.02)  # what begins at zero would hide a difference
    torch.save({"state_dict": model.state_dict()}, weights)
    causal = {"encoder_causal": False, "decoder_causal": False}
    same = VidTwinAutoencoder.from_official(weights, height=size, width=size, **causal)
    official, own = OfficialClip(model, 16, size), Clip(same, 16, size)
    own.video = official.video
    own.latents = own.encode()
    difference = float((own.decode() - official.decode()).abs().max())
    rows = []
    for what in ("encode", "decode", "step"):
        calls: dict[str, Callable[[], Any]] = {
            "own": getattr(own, what),
            "official": getattr(official, what),
        }
        turns = side_by_side(calls, setting.rounds)
        row: dict[str, Any] = {"what": what}
        row |= {f"{name}, s": seconds(found) for name, found in turns.items()}
        row["own / official"] = ratio(turns["own"], turns["official"])
        row |= {f"{name}, MiB": mebibytes(found) for name, found in turns.items()}
        rows.append(row)
    return Found(
        rows=rows, protocol={"size": size, "batch_size": 1, "largest_difference": difference}
    )
