"""Builds the autoencoder, new or from weights, with its discriminator and objective."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import torch

from vidtwin.autoencoder import VidTwinAutoencoder
from vidtwin.config import AutoencoderConfig, DiscriminatorConfig, LossConfig
from vidtwin.convert import read_official_discriminator
from vidtwin.discriminator import PatchDiscriminator
from vidtwin.files import shipped_path
from vidtwin.losses import AutoencoderLoss
from vidtwin.model_paths import CONFIG_SUFFIXES, find_autoencoder, read_model_section
from vidtwin.seams import seam_options

__all__ = ["build_models", "describe_models", "load_autoencoder"]

logger = logging.getLogger(__name__)


def load_autoencoder(
    path: str | Path, *, untrained: bool = False
) -> tuple[VidTwinAutoencoder, Path]:
    """The autoencoder in a folder or file, in evaluation mode.

    Args:
        path: a `save_pretrained` folder, a run folder of train_ae.py (EMA weights are preferred
            to the last ones), or a released checkpoint file.
        untrained: also accept the YAML config of a train_ae.py run, which gives a model of these
            sizes without weights, on torch's meta device; for `--dry-run`.
    Returns:
        The model, and the folder or file that it was loaded from.
    Raises:
        ValueError: if there is no model at `path`, or any of its weights is missing.
    """
    found = find_autoencoder(path, untrained=untrained)
    if found.suffix in CONFIG_SUFFIXES:
        with torch.device("meta"):
            model = VidTwinAutoencoder(**dataclasses.asdict(read_model_section(found)))
        return model.eval(), found
    if found.is_file():
        return VidTwinAutoencoder.from_official(found), found
    try:
        return VidTwinAutoencoder.from_pretrained(found, local_files_only=True), found
    except (OSError, TypeError) as error:
        raise ValueError(f"the autoencoder in {found} can't be loaded: {error}") from error


def build_models(
    model_config: AutoencoderConfig,
    discriminator_config: DiscriminatorConfig,
    loss_config: LossConfig,
    init_from: str | None = None,
    freeze_encoder: bool = False,
    mend_seams: bool = False,
) -> tuple[VidTwinAutoencoder, PatchDiscriminator, AutoencoderLoss]:
    """The autoencoder, discriminator and objective to train, in training mode.

    Args:
        model_config: sizes of the autoencoder.
        discriminator_config: size of the discriminator.
        loss_config: weights of the objective.
        init_from: weights to start from: the folder of a saved autoencoder, or a released
            checkpoint, whose discriminator and log-variance are used too if it has them.
        freeze_encoder: don't train the encoder, see `VidTwinAutoencoder.freeze_encoder`.
        mend_seams: the weights have neither `patch_overlap` nor a refinement and get the config's,
            new, see `VidTwinAutoencoder.with_mended_seams`; else they must have what it says.
    Raises:
        ValueError: if the configs don't fit together, or the weights don't fit the configs.
    """
    if discriminator_config.in_channels != model_config.in_channels:
        raise ValueError(
            f"discriminator.in_channels={discriminator_config.in_channels} must equal "
            f"model.in_channels={model_config.in_channels}"
        )
    discriminator = PatchDiscriminator(discriminator_config)
    if loss_config.discriminator_weight > 0:
        discriminator.check_frames(model_config.height, model_config.width)
    objective = AutoencoderLoss(loss_config, structure_shape=model_config.structure_shape)
    sizes = dataclasses.asdict(model_config)
    if init_from is not None:
        init_from = str(shipped_path(init_from))
    if init_from is None:
        model = VidTwinAutoencoder(**sizes)
    elif Path(init_from).is_dir():
        # Not a size: weights may be trained further with another single-frame structure.
        model = VidTwinAutoencoder.from_pretrained(
            init_from, structure_frame=model_config.structure_frame
        )
    else:
        released = {name: sizes[name] for name in sizes.keys() - seam_options(model_config).keys()}
        model = VidTwinAutoencoder.from_official(init_from, **released)
        if loss_config.discriminator_weight > 0:
            _continue_official(init_from, discriminator, objective)
    if mend_seams:
        model = model.with_mended_seams(**seam_options(model_config))
    others = [
        f"{name}={getattr(model.sizes, name)}"
        for name, value in sizes.items()
        if getattr(model.sizes, name) != value
    ]
    if others:
        fresh = model.overlap is model.refinement is None
        adds = fresh and (model_config.patch_overlap or model_config.refinement_channels)
        advice = "; mend_seams=true adds new parts to weights without them" if adds else ""
        raise ValueError(
            f"init_from={init_from} has other sizes than the config's model: "
            f"{', '.join(others)}{advice}"
        )
    if freeze_encoder:
        model.freeze_encoder()
    return model.train(), discriminator.train(), objective.train()


def describe_models(
    model_config: AutoencoderConfig, discriminator_config: DiscriminatorConfig
) -> str:
    """Parameter counts, latent shapes and compression rate, without allocating weights."""
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
