"""The parts of a diffusion run, made from its config and the autoencoder they stand on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from diffusion.config import PRESETS, DiTConfig
from diffusion.dit import TwinDiT
from diffusion.flow import NUM_TIMESTEPS, FlowConfig
from vidtwin import AutoencoderConfig


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """What a run says of its transformer; the rest follows from autoencoder and conditions.

    Args:
        preset: "debug", "S", "B", "L" or "XL".
        hidden_size, depth, num_heads: instead of the preset's; None for those.
        mlp_ratio, structure_patch_size, dynamics_patch_size, qk_norm, text_conditioning: see
            `DiTConfig`.
    """

    preset: str = "S"
    hidden_size: int | None = None
    depth: int | None = None
    num_heads: int | None = None
    mlp_ratio: float = DiTConfig.mlp_ratio
    structure_patch_size: int = DiTConfig.structure_patch_size
    dynamics_patch_size: int = DiTConfig.dynamics_patch_size
    qk_norm: bool = DiTConfig.qk_norm
    text_conditioning: str = DiTConfig.text_conditioning

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ValueError(f"`preset` must be one of {', '.join(PRESETS)}; got {self.preset!r}")

    def sizes(
        self,
        autoencoder: AutoencoderConfig,
        num_classes: int | None,
        text_hidden_size: int | None,
    ) -> DiTConfig:
        """The transformer's sizes for the latents of an autoencoder.

        Raises:
            ValueError: if they do not fit together.
        """
        given = {name: value for name, value in vars(self).items() if value is not None}
        return DiTConfig.preset(
            given.pop("preset"),
            **given,
            structure_shape=autoencoder.structure_shape,
            dynamics_x_shape=autoencoder.dynamics_x_shape,
            dynamics_y_shape=autoencoder.dynamics_y_shape,
            num_classes=num_classes,
            text_hidden_size=text_hidden_size,
        )


def build_transformer(sizes: DiTConfig, init_from: str | None = None) -> TwinDiT:
    """A transformer in training mode, new or with a saved one's weights.

    Raises:
        ValueError: if there is none in that folder, or it has other sizes.
    """
    if init_from is None:
        return TwinDiT(**vars(sizes)).train()
    folder = Path(init_from).expanduser()
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"init_from={init_from} holds no transformer: expected a folder of save_pretrained, "
            "such as RUN/pipeline/transformer"
        )
    model: TwinDiT = TwinDiT.from_pretrained(folder, local_files_only=True)
    others = [
        f"{name}={getattr(model.sizes, name)}, expected {value}"
        for name, value in vars(sizes).items()
        if getattr(model.sizes, name) != value
    ]
    if others:
        raise ValueError(f"init_from={init_from} has other sizes: {'; '.join(others)}")
    return model.float().train()


def build_sampling_scheduler(config: FlowConfig) -> Any:
    """diffusers' scheduler that samples what the objective trains, to go into the pipeline."""
    if config.prediction == "velocity":
        return FlowMatchEulerDiscreteScheduler(NUM_TIMESTEPS)
    # From the last step that training saw, unless nothing of the latents is left there: a little
    # error of epsilon, divided by what is left, would be the whole sample.
    lost = config.prediction == "epsilon" and config.beta_schedule == "squaredcos_cap_v2"
    spacing = "leading" if lost else "trailing"
    return DDIMScheduler(
        NUM_TIMESTEPS,
        beta_schedule=config.beta_schedule,
        prediction_type="epsilon" if config.prediction == "epsilon" else "v_prediction",
        clip_sample=False,
        timestep_spacing=spacing,
    )


def describe_transformer(sizes: DiTConfig) -> str:
    """Parameters and tokens, without making any weights."""
    with torch.device("meta"):
        model = TwinDiT(**vars(sizes))
    structure, along_x, along_y = sizes.token_counts
    return (
        f"transformer: {sum(p.numel() for p in model.parameters()):,} parameters\n"
        f"{structure + along_x + along_y:,} tokens: structure {structure}, dynamics_x {along_x}, "
        f"dynamics_y {along_y}"
    )
