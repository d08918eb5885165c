"""Published protocols: lists of keys to compare a config with.

Two figures can be compared only if everything in their protocol is the same. A named protocol is
therefore not a preset that fills in keys: the report says which keys differ from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vidtwin_lab.evaluation.measurement_configs import GenerationConfig

__all__ = ["PROTOCOLS", "Protocol", "compared"]


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How published figures were measured.

    Args:
        about: what it is and where it comes from.
        wants: key of `GenerationConfig` -> value.
        notes: what remains different even where all keys agree.
    """

    about: str
    wants: Mapping[str, Any]
    notes: tuple[str, ...] = ()


_UCF101: dict[str, Any] = {
    "data.source": "ucf101",
    "data.num_frames": 16,
    "data.stride": 1,
    "data.start": "random",
    "data.resize": "cover",
    "data.crop": "center",
    "data.flip": False,
    "features.name": "i3d",
    "eight_bit": True,
}
PROTOCOLS = {
    "ucf101-tats": Protocol(
        about="UCF-101, FVD and KVD of TATS (Ge et al. 2022) and its code: 2,048 samples, the "
        "classes in turn, against 2,048 clips of the train list, 16 frames, 128x128",
        wants=_UCF101
        | {
            "data.part": "train",
            "data.split": 1,
            "data.height": 128,
            "data.width": 128,
            "num_videos": 2048,
            "num_real": 2048,
            "generated.class_distribution": "balanced",
            "kvd_subset_size": None,
        },
        notes=(
            "its real clips are drawn among all windows of all videos, so long videos count more; "
            "here each video gives one random window",
            "its samples are truncated to 8 bits, ours rounded",
            "its I3D weights are another conversion of the same network",
        ),
    ),
    "ucf101-stylegan-v": Protocol(
        about="UCF-101, fvd2048_16f of StyleGAN-V (Skorokhodov et al. 2022) and its code: 2,048 "
        "samples without classes against 2,048 clips of the train and test lists, one random "
        "window of each video, 256x256",
        wants=_UCF101
        | {
            "data.part": "all",
            "data.height": 256,
            "data.width": 256,
            "num_videos": 2048,
            "num_real": 2048,
            "generated.conditions": "none",
        },
        notes=("its resize to 224x224 is done inside the TorchScript file",),
    ),
    "ucf101-10000": Protocol(
        about="UCF-101 with 10,000 samples, as quoted for inception scores (Saito et al. 2020) and "
        "by newer papers for FVD; all clips of the train list, 16 frames",
        wants=_UCF101
        | {
            "data.part": "train",
            "data.split": 1,
            "num_videos": 10000,
            "num_real": None,
            "is_splits": 10,
            "classifier.name": "c3d",
        },
        notes=(
            "papers that quote 10,000 differ in resolution and in how real clips are drawn, and "
            "many do not say; an FVD of 10,000 is lower than one of 2,048 for the same model",
        ),
    ),
}


def compared(config: GenerationConfig) -> dict[str, Any] | None:
    """The named protocol, and each key in which the config differs from it."""
    if config.protocol is None:
        return None
    protocol, differences = PROTOCOLS[config.protocol], []
    for key, wanted in protocol.wants.items():
        value: Any = config
        for part in key.split("."):
            value = getattr(value, part, None)
        if value != wanted:
            differences.append(f"{key} is {value}, the protocol has {wanted}")
    return {
        "name": config.protocol,
        "about": protocol.about,
        "differences": differences,
        "notes": list(protocol.notes),
    }
