"""Which schedulers fit what a model predicts, by name; imports no torch."""

from __future__ import annotations

__all__ = ["SCHEDULER_NAMES", "check_scheduler_name", "is_flow", "scheduler_names", "stepped_by"]

# Of `diffusion.schedulers.build_scheduler`: those for flow matching, and those for betas.
FLOW_SCHEDULERS = ("euler", "heun", "dpm++", "unipc")
BETA_SCHEDULERS = ("euler", "dpm++", "unipc", "ddim", "ddpm")
SCHEDULER_NAMES = tuple(dict.fromkeys(FLOW_SCHEDULERS + BETA_SCHEDULERS))


def stepped_by(prediction: str) -> str:
    """What the scheduler of a pipeline must take, for what its transformer predicts."""
    return "velocity" if prediction == "flow_sample" else prediction


def is_flow(prediction: str) -> bool:
    """Whether a pipeline's prediction is one of flow matching."""
    return stepped_by(prediction) == "velocity"


def scheduler_names(prediction: str) -> tuple[str, ...]:
    """The names that `build_scheduler` knows for a model that predicts this."""
    return FLOW_SCHEDULERS if is_flow(prediction) else BETA_SCHEDULERS


def check_scheduler_name(name: str, prediction: str) -> None:
    """Raises ValueError if there is no scheduler of that name for such a model."""
    names = scheduler_names(prediction)
    if name not in names:
        raise ValueError(
            f"`scheduler` must be one of {', '.join(names)} for a model that predicts "
            f"{prediction}, got {name!r}"
        )
