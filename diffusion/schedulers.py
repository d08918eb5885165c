"""Which of diffusers' schedulers fit a model's objective, and how they step latents.

A model predicts the velocity (flow matching: x = (1 - sigma) latents + sigma noise, timestep
1000 x sigma), or epsilon or v on a schedule of betas (timesteps 0 to 999), or the clean sample on
either. diffusers' schedulers of betas take a predicted sample ("sample"); those of flow matching
take a velocity alone, so there it is converted ("flow_sample").
Axes: B batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.schedulers.scheduling_flow_match_heun_discrete import FlowMatchHeunDiscreteScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from torch import Tensor

from diffusion.config import FlowConfig
from diffusion.flow_config import NUM_TIMESTEPS
from diffusion.scheduler_names import (
    BETA_SCHEDULERS,
    FLOW_SCHEDULERS,
    check_scheduler_name,
)

__all__ = [
    "build_sampling_scheduler",
    "build_scheduler",
    "note_flow",
    "prediction_of",
    "sampling_prediction",
    "without_notes",
]

# Name -> class.
OF_FLOWS: dict[str, Any] = dict(
    zip(
        FLOW_SCHEDULERS,
        (
            FlowMatchEulerDiscreteScheduler,
            FlowMatchHeunDiscreteScheduler,
            DPMSolverMultistepScheduler,
            UniPCMultistepScheduler,
        ),
        strict=True,
    )
)
OF_BETAS: dict[str, Any] = dict(
    zip(
        BETA_SCHEDULERS,
        (
            EulerDiscreteScheduler,
            DPMSolverMultistepScheduler,
            UniPCMultistepScheduler,
            DDIMScheduler,
            DDPMScheduler,
        ),
        strict=True,
    )
)


def sampling_prediction(config: FlowConfig) -> str:
    """What a pipeline calls an objective's prediction."""
    names = {"v": "v_prediction", "x0": "flow_sample" if config.is_flow else "sample"}
    return names.get(config.prediction, config.prediction)


def prediction_of(scheduler: Any) -> str:
    """What a scheduler takes: "velocity", "epsilon", "v_prediction" or "sample".

    Raises:
        ValueError: if the scheduler can't step whitened latents, each sample by itself.
    """
    config, name = scheduler.config, type(scheduler).__name__
    noted = not _is_flow_matching(scheduler) and config.get("prediction_type") == "flow_prediction"
    if noted and "use_flow_sigmas" not in inspect.signature(type(scheduler).__init__).parameters:
        raise ValueError(
            f"the scheduler {name} was made from one of flow matching and steps no flows; take one "
            f"of {', '.join(FLOW_SCHEDULERS)} by diffusion.schedulers.build_scheduler"
        )
    for option in ("clip_sample", "thresholding"):
        if config.get(option):
            raise ValueError(
                f"the scheduler {name} has {option}=True, which would cut the latents; "
                f"make it with {option}=False"
            )
    for option in ("stochastic_sampling", "use_dynamic_shifting"):
        if config.get(option):
            raise ValueError(f"the scheduler {name} must be made with {option}=False here")
    if hasattr(scheduler, "noise_sampler"):
        raise ValueError(
            f"the scheduler {name} draws one noise for the whole batch, so a video would depend "
            'on the others; take "sde-dpmsolver++" of DPMSolverMultistepScheduler'
        )
    if _is_flow_matching(scheduler):
        return "velocity"
    prediction = config.get("prediction_type", "epsilon")
    if prediction == "flow_prediction" and config.get("use_flow_sigmas"):
        return "velocity"
    if prediction not in ("epsilon", "v_prediction", "sample") or config.get("use_flow_sigmas"):
        raise ValueError(
            f"the scheduler {name} has prediction_type={prediction!r} and use_flow_sigmas="
            f"{bool(config.get('use_flow_sigmas'))}; expected flow_prediction with flow sigmas, or "
            "epsilon, v_prediction or sample without"
        )
    return str(prediction)


def note_flow(scheduler: Any) -> None:
    """Notes in a flow matching scheduler's config what other solvers call the same noise schedule.

    `UniPCMultistepScheduler.from_config(pipe.scheduler.config)` is then a solver of flows as well,
    where it would otherwise be one of epsilon.
    """
    if _is_flow_matching(scheduler):
        scheduler.register_to_config(**_flow_options(scheduler.config.get("shift", 1.0)))


def without_notes(scheduler: Any) -> Any:
    """The same scheduler as it is saved: its class would warn of what `note_flow` notes."""
    if not _is_flow_matching(scheduler):
        return scheduler
    notes = _flow_options(1.0)
    kept = {name: value for name, value in scheduler.config.items() if name not in notes}
    return type(scheduler).from_config(kept)


def _is_flow_matching(scheduler: Any) -> bool:
    return type(scheduler).__name__.startswith("FlowMatch")


def _flow_options(shift: float) -> dict[str, Any]:
    """What makes a solver of both kinds one of flows."""
    return {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": shift}


def build_scheduler(name: str, like: Any) -> Any:
    """A scheduler by its short name, with the noise schedule of another.

    Args:
        name: of `scheduler_names`.
        like: the scheduler that came with the model.
    Raises:
        ValueError: if there is none of that name for the model's objective.
    """
    prediction = prediction_of(like)
    check_scheduler_name(name, prediction)
    if prediction != "velocity":
        diffusion = OF_BETAS[name]
        # The default spacing of most would begin far below the last step, at half-clean noise.
        options = {"clip_sample": False, "timestep_spacing": "trailing"}
        accepted = inspect.signature(diffusion).parameters
        options = {key: value for key, value in options.items() if key in accepted}
        return diffusion.from_config(like.config, **options)
    flow = OF_FLOWS[name]
    shift = like.config.get("shift", like.config.get("flow_shift", 1.0))
    if flow in (FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler):
        return flow(shift=shift)
    return flow(**_flow_options(shift))


def build_sampling_scheduler(config: FlowConfig) -> Any:
    """diffusers' scheduler that samples what the objective trains, to go into the pipeline."""
    if config.is_flow:
        return FlowMatchEulerDiscreteScheduler(NUM_TIMESTEPS)
    # From the last step that training saw, unless nothing of the latents is left there: a little
    # error of epsilon, divided by what is left, would be the whole sample.
    lost = config.prediction == "epsilon" and config.beta_schedule == "squaredcos_cap_v2"
    spacing = "leading" if lost else "trailing"
    return DDIMScheduler(
        NUM_TIMESTEPS,
        beta_schedule=config.beta_schedule,
        prediction_type=sampling_prediction(config),
        clip_sample=False,
        timestep_spacing=spacing,
    )


class LatentSolver:
    """One run of a scheduler over (B, values) samples, each with its own noise.

    Args:
        scheduler: that fits, see `prediction_of`.
        num_inference_steps: solver steps; some schedulers call the model twice in a step.
        device: of the samples.
        generators: for schedulers that add noise: one for each sample, or one for all.
        prediction: what is predicted; None for what the scheduler takes.
    """

    def __init__(
        self,
        scheduler: Any,
        num_inference_steps: int,
        device: torch.device,
        generators: Sequence[torch.Generator] | torch.Generator,
        prediction: str | None = None,
    ) -> None:
        self.scheduler = scheduler
        self.is_flow = prediction_of(scheduler) == "velocity"
        self.converts = prediction == "flow_sample"
        scheduler.set_timesteps(num_inference_steps, device=device)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)
        self.timesteps: Tensor = scheduler.timesteps
        # Some schedulers keep them on the CPU whatever device they are told.
        self.sigmas: Tensor | None = scheduler.sigmas.to(device) if self.is_flow else None
        self.options: dict[str, Any] = {"return_dict": False}
        if "generator" in inspect.signature(scheduler.step).parameters:
            self.options["generator"] = generators

    def __len__(self) -> int:
        return len(self.timesteps)

    def start(self, noise: Tensor) -> Tensor:
        """The sample to start from."""
        return noise * getattr(self.scheduler, "init_noise_sigma", 1.0)

    def timestep(self, index: int) -> Tensor:
        """What the model is told of the noise level at a step, a float without axes."""
        # Some schedulers round a flow's timesteps to whole numbers, but never its sigmas.
        if self.sigmas is not None:
            return self.sigmas[index].float() * self.scheduler.config.num_train_timesteps
        return self.timesteps[index].float()

    def model_input(self, sample: Tensor, index: int) -> Tensor:
        """The sample as the model was trained to see it."""
        if hasattr(self.scheduler, "scale_model_input"):
            scaled: Tensor = self.scheduler.scale_model_input(sample, self.timesteps[index])
            return scaled
        return sample

    def noised(self, clean: Tensor, noise: Tensor, index: int) -> Tensor:
        """Known values at the noise level of a step."""
        if self.sigmas is not None:
            sigma = self.sigmas[index].to(clean)
            return clean + sigma * (noise - clean)
        levels = self.timesteps[index].expand(len(clean))
        noisy: Tensor = self.scheduler.add_noise(clean, noise, levels)
        return noisy

    def step(self, prediction: Tensor, sample: Tensor, index: int) -> Tensor:
        """The sample at the next, lower noise level."""
        if self.converts:
            # No clip as in training: no step begins at sigma 0, and only the exact quotient lands
            # on the predicted sample at the end.
            assert self.sigmas is not None
            prediction = (sample - prediction) / self.sigmas[index].to(sample)
        stepped: Tensor = self.scheduler.step(
            prediction, self.timesteps[index], sample, **self.options
        )[0]
        return stepped
