"""The options that mend the seams between patches, on top of the released model. No torch here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vidtwin.config import AutoencoderConfig

__all__ = ["check_mending", "check_seams", "seam_options"]

OPTIONS = ("patch_overlap", "refinement_channels", "refinement_layers", "refinement_stride")


def seam_options(config: AutoencoderConfig) -> dict[str, Any]:
    """Those of a config."""
    return {name: getattr(config, name) for name in OPTIONS}


def check_seams(config: AutoencoderConfig) -> None:
    """Raises ValueError for options that can't be, naming the keyword."""
    height, width = config.patch_size[1:]
    channels, stride = config.refinement_channels, config.refinement_stride
    if config.patch_overlap and (height % 2 or width % 2):
        raise ValueError(f"`patch_overlap` needs patches of even sides, got {height} x {width}")
    if channels is not None and (type(channels) is not int or channels < 1):
        raise ValueError(
            f"`refinement_channels` must be null (no refinement) or positive, got {channels!r}"
        )
    if config.refinement_layers < 2:
        raise ValueError(f"`refinement_layers` must be at least 2, got {config.refinement_layers}")
    if height % stride or width % stride:
        raise ValueError(
            f"`refinement_stride` must divide the patch's sides {height} x {width}, got {stride}"
        )


def check_mending(wanted: bool, init_from: str | None, config: AutoencoderConfig) -> None:
    """Raises ValueError if new parts are wanted on top of no weights, or there are none."""
    parts = config.patch_overlap or config.refinement_channels
    if wanted and not (init_from and parts):
        raise ValueError(
            "mend_seams=true adds new parts to weights without them: set init_from (got "
            f"{init_from}), and model.patch_overlap=true or model.refinement_channels"
        )
