"""The device that a command is asked to run on."""

from __future__ import annotations

import torch

__all__ = ["usable_device"]


def usable_device(name: str | None, default: torch.device | str) -> torch.device | str:
    """The device of `--device`, or the default for None.

    Raises:
        ValueError: if it can't be used, with torch's reason.
    """
    if name is None:
        return default
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"--device {name} can't be used: {reason}") from error
    return name
