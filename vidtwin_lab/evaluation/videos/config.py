"""Which videos are measured, and their sizes where a file tells them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from diffusion.config import GUIDANCE_SCALE, NUM_INFERENCE_STEPS, SCHEDULER_NAMES
from vidtwin.data import DataConfig

__all__ = ["DTYPES", "Sizes", "VideosConfig", "autoencoder_path", "model_sizes"]

KINDS = ("pipeline", "videos", "latents", "data")
CONDITIONS = ("auto", "prompts", "classes", "both", "none")
DISTRIBUTIONS = ("balanced", "data")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Sizes = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class VideosConfig:
    """The videos that are measured.

    Args:
        kind: "pipeline" samples on the fly; "videos" and "latents" are folders; "data" is another
            data set, such as the validation part, which tells what distance to expect of real
            videos.
        path: the pipeline (folder or hub id), or the folder.
        autoencoder: decodes "latents": a model folder, or a pipeline's; None for `path` itself.
        data: the data set of the kind "data".
        conditions: what a pipeline is asked for: "prompts", the captions of the real data; their
            "classes"; "both"; "none"; "auto" for all that it was trained with.
        class_distribution: "balanced" takes the classes in turn, "data" those of the real clips.
        num_inference_steps, guidance_scale, class_guidance_scale: see `VidTwinPipeline`.
        scheduler: by name; None for the pipeline's own.
        seed: video i has the noise of seed + i.
        dtype: of the pipeline.
    Raises:
        ValueError: for a value that is out of range.
    """

    kind: str = "pipeline"
    path: str | None = None
    autoencoder: str | None = None
    data: DataConfig | None = None
    conditions: str = "auto"
    class_distribution: str = "balanced"
    num_inference_steps: int = NUM_INFERENCE_STEPS
    guidance_scale: float = GUIDANCE_SCALE
    class_guidance_scale: float | None = None
    scheduler: str | None = None
    seed: int = 0
    dtype: str = "float32"

    def __post_init__(self) -> None:
        choices: dict[str, Sequence[str]] = {
            "kind": KINDS,
            "conditions": CONDITIONS,
            "class_distribution": DISTRIBUTIONS,
            "dtype": tuple(DTYPES),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"generated.{name} must be one of {', '.join(allowed)}; "
                    f"got {getattr(self, name)!r}"
                )
        if self.scheduler is not None and self.scheduler not in SCHEDULER_NAMES:
            raise ValueError(
                f"generated.scheduler must be one of {', '.join(SCHEDULER_NAMES)} or null, "
                f"got {self.scheduler!r}"
            )
        if (self.kind == "data") != (self.data is not None):
            raise ValueError(
                "generated.data is the data set of generated.kind=data, got "
                f"kind={self.kind!r} and data={self.data and self.data.source!r}"
            )
        if self.kind != "data" and not self.path:
            wanted = "a pipeline" if self.kind == "pipeline" else f"a folder of {self.kind}"
            raise ValueError(f"generated.path must name {wanted}, got {self.path!r}")
        if self.num_inference_steps < 1 or self.seed < 0:
            raise ValueError(
                "generated.num_inference_steps must be at least 1 and generated.seed not "
                f"negative, got {self.num_inference_steps} and {self.seed}"
            )


def autoencoder_path(path: str | Path) -> Path:
    """The folder of the autoencoder itself, also where a pipeline's is named."""
    inside = Path(path).expanduser() / "autoencoder"
    whole = Path(path).expanduser() / "model_index.json"
    return inside if whole.is_file() else Path(path).expanduser()


def model_sizes(config: VideosConfig) -> Sizes | None:
    """(T, H, W) that a pipeline or decoder makes, from its config file; None where not known."""
    named = config.path if config.kind == "pipeline" else config.autoencoder or config.path
    if config.kind not in ("pipeline", "latents") or named is None:
        return None
    file = autoencoder_path(named) / "config.json"
    if not file.is_file():
        return None
    found = json.loads(file.read_text(encoding="utf-8"))
    if not {"num_frames", "height", "width"} <= set(found):
        return None
    return found["num_frames"], found["height"], found["width"]
