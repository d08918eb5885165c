"""What a call of the pipeline is given, in the form that sampling takes, and what it gives back.

Axes: B batch, T frames, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.utils.outputs import BaseOutput
from einops import rearrange
from PIL import Image
from torch import Tensor

from diffusion.conditions import ActionCondition, ActionEmbedder, TextCondition
from diffusion.config import GuidanceScales
from diffusion.given_frames import GivenFrames, filled_video, given_video, known_dynamics
from diffusion.guiders import check_guider, refuse_scales
from diffusion.inputs import check_count, check_lead, negative_list, prompt_list
from diffusion.long_video import window_starts
from diffusion.pipeline_files import check_scheduler
from diffusion.sampling import AfterStep
from vidtwin import VidTwinLatents

__all__ = [
    "OUTPUT_TYPES",
    "Text",
    "VidTwinPipelineOutput",
    "actions_of",
    "after_step_of",
    "as_output",
    "check_call",
    "check_class_scale",
    "check_distilled",
    "check_guidance",
    "check_size",
    "frames_of",
    "going_on",
    "lead_of",
    "lengths_of",
    "noise_of",
    "starts_of",
    "text_of",
]

OUTPUT_TYPES = ("pt", "np", "pil", "latent")
Text = list[str] | TextCondition


@dataclass
class VidTwinPipelineOutput(BaseOutput):
    """What the pipeline makes.

    Args:
        videos: "pt": (B, 3, T, H, W) float32 in [0, 1]; "np": (B, T, H, W, 3); "pil": frames of
            each video; None for "latent".
        latents: raw latents, float32; of a long video, the dynamics of all its frames.
    """

    videos: Any
    latents: VidTwinLatents

    @property
    def frames(self) -> Any:
        """The videos, by the name that diffusers' video pipelines have for them."""
        return self.videos


def text_of(
    pipeline: Any,
    kind: str,
    prompt: str | Sequence[str] | None,
    embeds: Tensor | None,
    mask: Tensor | None,
) -> Text | None:
    """A prompt as the list of its texts, or as the condition that was made of it before.

    Args:
        kind: "prompt" or "negative_prompt".
        prompt: of a call.
        embeds, mask: of a call; the states (B, L, D) and which tokens (B, L) are real.
    """
    if embeds is None:
        if mask is not None:
            raise ValueError(f"`{kind}_attention_mask` is given without `{kind}_embeds`")
        return prompt_list(prompt) if kind == "prompt" else negative_list(prompt)
    if prompt is not None:
        raise ValueError(f"give `{kind}` or `{kind}_embeds`, got both")
    width = pipeline.transformer.sizes.text_hidden_size
    if embeds.ndim != 3 or embeds.shape[2] != width:
        raise ValueError(
            f"`{kind}_embeds` must be of shape (videos, tokens, {width}) for this transformer, "
            f"got {tuple(embeds.shape)}"
        )
    if mask is None:
        mask = torch.ones(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
    if mask.shape != embeds.shape[:2]:
        raise ValueError(
            f"`{kind}_attention_mask` must be of shape {tuple(embeds.shape[:2])} as "
            f"`{kind}_embeds`, got {tuple(mask.shape)}"
        )
    return TextCondition(embeds, mask.bool())


def check_call(pipeline: Any, num_videos: int, output_type: str, motion_scale: float) -> None:
    """Raises ValueError for plain values out of range, or a scheduler that does not fit."""
    check_count("num_videos_per_prompt", num_videos)
    if output_type not in OUTPUT_TYPES:
        raise ValueError(
            f"`output_type` must be one of {', '.join(OUTPUT_TYPES)}; got {output_type!r}"
        )
    if not math.isfinite(motion_scale):
        raise ValueError(f"`motion_scale` must be finite, got {motion_scale}")
    check_scheduler(pipeline)


def check_guidance(guider: Any, **scales: float | None) -> None:
    """Raises ValueError for a guider that does not fit, or one beside scales."""
    if guider is not None:
        check_guider(guider)
        refuse_scales(**scales)


def check_class_scale(scale: float | None, labels: list[int] | None) -> None:
    """Raises ValueError for a scale of classes where none is asked for."""
    if scale is not None and labels is None:
        raise ValueError(
            f"`class_guidance_scale` is {scale} and there are no class labels to guide by; leave "
            "it out, or ask for a class"
        )


def lengths_of(
    given: VidTwinLatents,
    given_names: frozenset[str],
    frames: GivenFrames | None,
    acting: ActionCondition | None,
) -> dict[str, Tensor]:
    """What is given beside prompts and classes, whose lengths must fit them, by its name."""
    found = {name: getattr(given, name) for name in sorted(given_names)}
    found |= {"given frames": frames.video} if frames else {}
    return found | ({"actions": acting.actions} if acting else {})


def check_size(pipeline: Any, height: int | None, width: int | None) -> None:
    """Raises ValueError for any other size than the one that the autoencoder decodes."""
    sizes = pipeline.autoencoder.sizes
    asked = (height or sizes.height, width or sizes.width)
    if asked != (sizes.height, sizes.width):
        raise ValueError(
            f"this pipeline makes videos of {sizes.height} x {sizes.width} pixels, got `height` x "
            f"`width` of {asked[0]} x {asked[1]}; leave them out, and resize the video"
        )


def noise_of(
    pipeline: Any, latents: VidTwinLatents | None, batch_size: int, num_windows: int
) -> VidTwinLatents | None:
    """The noise that a call gives to start from, on its device."""
    if latents is None:
        return None
    if not isinstance(latents, VidTwinLatents):
        raise ValueError(
            "`latents` must be VidTwinLatents of standard normal noise, as vidtwin.draw_noise "
            f"makes, got {type(latents).__name__}"
        )
    if num_windows > 1:
        raise ValueError("`latents` are the noise of one window; leave out `num_frames`")
    sizes = pipeline.transformer.sizes
    for name in VidTwinLatents.names:
        wanted = (batch_size, *getattr(sizes, f"{name}_shape"))
        if (came := tuple(getattr(latents, name).shape)) != wanted:
            raise ValueError(f"`latents.{name}` must be of shape {wanted}, got {came}")
    return latents.to(device=pipeline._execution_device, dtype=torch.float32)


def frames_of(
    pipeline: Any,
    first_frame: Tensor | None,
    last_frame: Tensor | None,
    prefix: Tensor | None,
    num_windows: int,
    given_names: frozenset[str],
) -> GivenFrames | None:
    """The frames that are given and what is known by them; None without any."""
    found = given_video(first_frame, last_frame, prefix, pipeline.autoencoder.sizes.video_shape)
    if found is None:
        return None
    if not pipeline.transformer.sizes.given_frames:
        raise ValueError(
            "this pipeline was not trained with given frames: leave out `first_frame`, "
            "`last_frame` and `prefix`, or train one with given.prefix=0.2 or the like"
        )
    if "dynamics_x" in given_names:
        raise ValueError("frames and `dynamics` are both given; leave out one of them")
    if last_frame is not None and num_windows > 1:
        raise ValueError(
            "`last_frame` is the last that the model makes at once; leave out `num_frames`"
        )
    return encoded_frames(pipeline, *found)


def actions_of(pipeline: Any, actions: Tensor | None, num_windows: int) -> ActionCondition | None:
    """The condition of (B, T, A) or (T, A) actions, checked; None without any."""
    if actions is None:
        return None
    size, frames = pipeline.transformer.sizes.action_size, pipeline.autoencoder.sizes.num_frames
    if size is None:
        raise ValueError(
            "this pipeline was not trained with actions: leave out `actions`, or train one with "
            "action_conditional=true"
        )
    if num_windows > 1:
        raise ValueError(f"`actions` are those of {frames} frames; leave out `num_frames`")
    if not isinstance(actions, Tensor) or not actions.is_floating_point():
        raise ValueError(f"`actions` must be a float tensor, got {type(actions).__name__}")
    actions = actions[None] if actions.ndim == 2 else actions
    if actions.ndim != 3 or not len(actions) or tuple(actions.shape[1:]) != (frames, size):
        names = ", ".join(pipeline.config["action_names"] or ())
        raise ValueError(
            f"`actions` must be of shape (B, {frames}, {size}) ({names}), got "
            f"{tuple(actions.shape)}"
        )
    if not bool(actions.isfinite().all()):
        raise ValueError("`actions` hold values that are not finite")
    return ActionEmbedder(pipeline.config["action_names"] or ()).embed(actions)


def encoded_frames(pipeline: Any, video: Tensor, frames: Tensor) -> GivenFrames:
    """What is known by (T,) given frames of a (B, 3, T, H, W) video."""
    filled = filled_video(video, frames.expand(len(video), -1))
    latents = pipeline.latent_stats.scale(pipeline._encode(filled).to(dtype=torch.float32))
    causal = pipeline.autoencoder.sizes.encoder_causal
    return GivenFrames(video, frames, latents, known_dynamics(frames) if causal else 0)


def going_on(pipeline: Any, window: VidTwinLatents, shift: int) -> GivenFrames:
    """The frames that the next window starts with: the last ones of this window, decoded.

    Args:
        window: scaled latents.
        shift: frames from its start to the next one's.
    """
    pixels = pipeline._decode(pipeline.latent_stats.unscale(window), [0]).clamp(-1, 1)
    place = torch.arange(pixels.shape[2], device=pixels.device)
    return encoded_frames(pipeline, pixels.roll(-shift, 2), place < len(place) - shift)


def check_distilled(
    pipeline: Any, steps: int, scales: GuidanceScales, guider: Any, gives: bool
) -> None:
    """Raises ValueError for what a few-step student did not learn; `gives`: a latent is given."""
    trained, other = pipeline.config["distilled_steps"], "take the pipeline it was distilled from"
    if not trained:
        return
    if steps != trained:
        raise ValueError(
            f"`num_inference_steps` must be {trained}, which this pipeline was distilled to, got "
            f"{steps}; leave it out, or {other}"
        )
    if guider is not None or {*scales.of("text"), *scales.of("class_")} != {1.0}:
        raise ValueError(
            f"this pipeline was distilled with its guidance built in; leave out `guider` and every "
            f"guidance scale, or {other}"
        )
    if gives:
        raise ValueError(
            "this pipeline was distilled for one window of which both latents are sampled; leave "
            f"out `structure`, `dynamics` and `num_frames`, or {other}"
        )


def lead_of(pipeline: Any, asked: float | None, steps: int, given_names: frozenset[str]) -> float:
    """The lead of a call; the pipeline's own one is of calls that sample both latents."""
    if given_names:
        if asked:
            raise ValueError(
                f"`structure_lead` is {asked}, and one of the latents is given, so there is one to "
                "sample and none to lead; leave it out"
            )
        return 0.0
    if asked is None:  # of few steps it may be none
        return float(pipeline.config["structure_lead"])
    check_lead(asked, steps)
    return asked


def starts_of(
    pipeline: Any, num_frames: int | None, overlap: int | None, dynamics_are_given: bool
) -> list[int]:
    """The first frame of each window."""
    window = pipeline.autoencoder.sizes.num_frames
    num_frames = window if num_frames is None else check_count("num_frames", num_frames)
    starts = window_starts(num_frames, window, overlap)
    if len(starts) > 1 and dynamics_are_given:
        raise ValueError(
            f"`dynamics` hold {window} frames of motion, got `num_frames` of {num_frames}; "
            "leave it out"
        )
    return starts


def after_step_of(pipeline: Any, callback: Any, names: Sequence[str]) -> AfterStep | None:
    """The caller's callback as the sampler calls it."""
    if callback is None:
        return None
    names = getattr(callback, "tensor_inputs", names)
    unknown = sorted(set(names) - set(pipeline._callback_tensor_inputs))
    if unknown:
        raise ValueError(
            "`callback_on_step_end_tensor_inputs` must be of "
            f"{', '.join(pipeline._callback_tensor_inputs)}; got {', '.join(unknown)}"
        )

    def after_step(step: int, timestep: Tensor, latents: dict[str, Tensor]) -> dict[str, Tensor]:
        return callback(pipeline, step, timestep, {name: latents[name] for name in names}) or {}

    return after_step


def as_output(videos: Tensor, output_type: str) -> Any:
    """Videos in [-1, 1] as the caller wants them, in [0, 1]; see `VidTwinPipelineOutput`."""
    videos = ((videos + 1) / 2).clamp(0, 1)
    if output_type == "pt":
        return videos
    frames = rearrange(videos, "b c t h w -> b t h w c").cpu().numpy()
    if output_type == "np":
        return frames
    levels = (frames * 255).round().astype(np.uint8)
    return [[Image.fromarray(frame) for frame in video] for video in levels]
