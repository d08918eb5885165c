"""How far a run is, told where its weights are used before it is done; imports no torch."""

from __future__ import annotations

import logging
from pathlib import Path

from vidtwin_lab.runtime.checkpoints import CheckpointFolder, step_of
from vidtwin_lab.runtime.config import read_yaml

__all__ = ["tell_progress"]

logger = logging.getLogger(__name__)

# What a run writes again with each checkpoint.
TRAINED = ("autoencoder", "autoencoder_ema", "pipeline", "lora")


def tell_progress(weights: Path | None) -> None:
    """Logs how many of its steps the run has done that these weights are of, unless it is done.

    Args:
        weights: a folder that may be a run's, such as RUN/pipeline; None for a hub id.
    """
    if weights is None or weights.name not in TRAINED:
        return
    run = weights.parent
    config = read_yaml(run / "config.yaml") if (run / "config.yaml").is_file() else {}
    if not isinstance(steps := config.get("steps"), int):
        return
    newest = CheckpointFolder(run / "checkpoints").latest()
    if newest is None:
        told = "%s has saved none of its %d steps yet: %s is as it began (save_every=%s)"
        logger.warning(told, run, steps, weights, config.get("save_every"))
    elif (done := step_of(newest)) < steps:
        logger.info("%s has done %d of its %d steps: %s is of then", run, done, steps, weights)
    if weights.name == "pipeline" and config.get("lora", {}).get("rank"):
        told = "%s is what the adapters of this run belong to, without them; add --lora %s"
        logger.warning(told, weights, weights.with_name("lora"))
