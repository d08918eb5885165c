"""The autoencoder with its discriminator and objective, new or from weights."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import torch

from vidtwin.autoencoder import VidTwinAutoencoder
from vidtwin.config import AutoencoderConfig
from vidtwin.convert import read_official_discriminator
from vidtwin.discriminator import DiscriminatorConfig, PatchDiscriminator
from vidtwin.losses import AutoencoderLoss, LossConfig

logger = logging.getLogger(__name__)


def build_models(
    model_config: AutoencoderConfig,
    discriminator_config: DiscriminatorConfig,
    loss_config: LossConfig,
    init_from: str | None = None,
    freeze_encoder: bool = False,
) -> tuple[VidTwinAutoencoder, PatchDiscriminator, AutoencoderLoss]:
    """Everything that a training of the autoencoder learns, in training mode.

    Args:
        init_from: weights to start from: the folder of a saved autoencoder, or a released
            checkpoint, whose discriminator and log-variance come along if it holds them.
        freeze_encoder: leave the encoder as it is, see `VidTwinAutoencoder.freeze_encoder`.
    Raises:
        ValueError: if the weights do not fit the configs.
    """
    if discriminator_config.in_channels != model_config.in_channels:
        raise ValueError(
            f"discriminator.in_channels={discriminator_config.in_channels} must equal "
            f"model.in_channels={model_config.in_channels}"
        )
    discriminator = PatchDiscriminator(discriminator_config)
    if loss_config.discriminator_weight > 0:
        discriminator.check_frames(model_config.height, model_config.width)
    objective = AutoencoderLoss(loss_config)
    sizes = dataclasses.asdict(model_config)
    if init_from is None:
        model = VidTwinAutoencoder(**sizes)
    elif Path(init_from).is_dir():
        # How the structure is read is no size: weights may go on with another way.
        model = VidTwinAutoencoder.from_pretrained(
            init_from, structure_frame=model_config.structure_frame
        )
    else:
        model = VidTwinAutoencoder.from_official(init_from, **sizes)
        if loss_config.discriminator_weight > 0:
            _continue_official(init_from, discriminator, objective)
    others = [
        f"{name}={getattr(model.sizes, name)}"
        for name, value in sizes.items()
        if getattr(model.sizes, name) != value
    ]
    if others:
        raise ValueError(
            f"init_from={init_from} has other sizes than the config's model: {', '.join(others)}"
        )
    if freeze_encoder:
        model.freeze_encoder()
    return model.train(), discriminator.train(), objective.train()


def describe_models(
    model_config: AutoencoderConfig, discriminator_config: DiscriminatorConfig
) -> str:
    """Parameter counts, latent shapes and compression rate, without making any weights."""
    with torch.device("meta"):
        models = {
            "autoencoder": VidTwinAutoencoder(**dataclasses.asdict(model_config)),
            "discriminator": PatchDiscriminator(discriminator_config),
        }
    lines = [
        f"{name}: {sum(p.numel() for p in module.parameters()):,} parameters"
        for name, module in models.items()
    ]
    lines.append(f"video: {model_config.video_shape}")
    for name in ("structure", "dynamics_x", "dynamics_y"):
        lines.append(f"{name}: {getattr(model_config, name + '_shape')}")
    values, rate = model_config.numel_per_clip, model_config.compression_rate
    lines.append(f"{values:,} latent values per clip, rate {rate:.4%}")
    return "\n".join(lines)


def _continue_official(
    path: str, discriminator: PatchDiscriminator, objective: AutoencoderLoss
) -> None:
    try:
        weights, logvar = read_official_discriminator(path)
    except ValueError as error:
        logger.warning("%s; the discriminator starts from scratch", error)
        return
    try:
        discriminator.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"the discriminator of {path} does not fit the config: {reason}"
        ) from error
    if logvar is not None:
        objective.logvar.data.copy_(logvar)
