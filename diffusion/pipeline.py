"""Everything between a prompt and a video, saved and loaded as one folder.

Axes: B batch, C channels, Q structure queries, T frames, H W pixels, h w latent grid.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.loaders.lora_pipeline import CogVideoXLoraLoaderMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor

from diffusion.conditions import (
    ClassEmbedder,
    Condition,
    Conditions,
)
from diffusion.config import GUIDANCE_SCALE, NUM_INFERENCE_STEPS, GuidanceScales
from diffusion.dit import TwinDiT
from diffusion.given_frames import GivenFrames
from diffusion.guidance import check_negative
from diffusion.inputs import (
    check_count,
    check_lead,
    common_length,
)
from diffusion.latent_stats import LatentStats
from diffusion.long_video import join_windows, latent_windows, scale_motion
from diffusion.pipeline_files import PipelineFiles, check_parts
from diffusion.pipeline_prompts import PromptReading
from diffusion.pipeline_values import (
    Text,
    VidTwinPipelineOutput,
    actions_of,
    after_step_of,
    as_output,
    check_call,
    check_class_scale,
    check_distilled,
    check_guidance,
    check_size,
    frames_of,
    going_on,
    lead_of,
    lengths_of,
    noise_of,
    starts_of,
    text_of,
)
from diffusion.sampling import (
    LatentSampler,
    generators_of,
    given_latents,
    repeated_to,
)
from diffusion.schedulers import note_flow, prediction_of
from vidtwin import VidTwinAutoencoder, VidTwinLatents, decode_windows

__all__ = ["VidTwinPipeline", "VidTwinPipelineOutput"]


Callback = Callable[[Any, int, Tensor, dict[str, Any]], dict[str, Any]]


# Of diffusers' loaders the one that takes a transformer's adapters as they are, whatever the model.
class VidTwinPipeline(  # type: ignore[misc]
    PipelineFiles, PromptReading, CogVideoXLoraLoaderMixin, DiffusionPipeline
):
    """Text, class or nothing to video; structure or dynamics may be given and the other sampled.

    Args:
        autoencoder: decodes the latents.
        transformer: predicts what to take away from noised, scaled latents.
        scheduler: any of diffusers that fits the transformer's objective, see `diffusion.flow`.
        latent_stats: between raw and scaled latents.
        text_encoder: a transformers model; None for a transformer without text.
        tokenizer: of the text encoder.
        class_names: the name of each class, for those who ask by name.
        text_layer: which hidden state of the text encoder is read.
        max_text_length: tokens of a prompt; None for all that the text encoder can read.
        fps: frames per second of the clips that the transformer was trained on.
        prediction: what the transformer predicts: "velocity", "epsilon", "v_prediction", "sample",
            or "flow_sample" (flow matching's); None for what the scheduler expects.
        num_inference_steps, guidance_scale, given_guidance_scale: defaults of a call. Guidance by
            a given latent suits a transformer that was trained for it alone, see
            `FlowConfig.given_guidance_scale`.
        structure_lead: the same, see `__call__`.
        action_names: of the values of a frame's action, for a transformer that takes actions.
        distilled_steps: of a student (`diffusion.distillation`), the only number of steps it
            takes, always without guidance and with nothing given; 0 for any other transformer.
    Raises:
        ValueError: naming the parts that do not belong together.
    """

    model_cpu_offload_seq: str = "text_encoder->transformer->autoencoder"  # type: ignore[assignment]
    _optional_components = ["text_encoder", "tokenizer"]  # noqa: RUF012
    # A handful of numbers, used without a forward pass that could bring them over.
    _exclude_from_cpu_offload = ["latent_stats"]  # noqa: RUF012
    _callback_tensor_inputs: ClassVar[list[str]] = list(VidTwinLatents.names)

    def __init__(
        self,
        autoencoder: VidTwinAutoencoder,
        transformer: TwinDiT,
        scheduler: Any,
        latent_stats: LatentStats,
        text_encoder: Any = None,
        tokenizer: Any = None,
        class_names: Sequence[str] | None = None,
        text_layer: int = -1,
        max_text_length: int | None = None,
        fps: float | None = None,
        prediction: str | None = None,
        num_inference_steps: int = NUM_INFERENCE_STEPS,
        guidance_scale: float = GUIDANCE_SCALE,
        given_guidance_scale: float = 1.0,
        structure_lead: float = 0.0,
        action_names: Sequence[str] | None = None,
        distilled_steps: int = 0,
    ) -> None:
        super().__init__()
        note_flow(scheduler)
        if distilled_steps:
            num_inference_steps, guidance_scale = distilled_steps, 1.0
        self.register_modules(
            autoencoder=autoencoder,
            transformer=transformer,
            scheduler=scheduler,
            latent_stats=latent_stats,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
        )
        self.register_to_config(
            class_names=None if class_names is None else list(class_names),
            text_layer=text_layer,
            max_text_length=max_text_length,
            fps=fps,
            prediction=prediction or prediction_of(scheduler),
            num_inference_steps=check_count("num_inference_steps", num_inference_steps),
            guidance_scale=guidance_scale,
            given_guidance_scale=given_guidance_scale,
            structure_lead=structure_lead,
            action_names=None if action_names is None else list(action_names),
            distilled_steps=distilled_steps,
        )
        check_lead(structure_lead, 1000)
        GuidanceScales(text=guidance_scale, given=given_guidance_scale)
        self._interrupt = False
        self._num_timesteps = 0
        check_parts(self)

    @classmethod
    def _get_signature_types(cls) -> dict[str, tuple[Any, ...]]:
        """What diffusers may go by: the classes of our own parts, which `from_pipe` keeps by them.

        It reads few kinds of annotations, other ones in each version, and the constructor checks
        the parts itself; so of all else it is told nothing to warn by.
        """
        empty = inspect.Signature.empty
        types = {name: (empty,) for name in inspect.signature(cls.__init__).parameters}
        own = {
            "autoencoder": (VidTwinAutoencoder,),
            "transformer": (TwinDiT,),
            "latent_stats": (LatentStats,),
        }
        return types | own

    @property
    def interrupt(self) -> bool:
        """Whether to stop before the next step; callbacks set `pipe._interrupt = True`."""
        return self._interrupt

    @property
    def num_timesteps(self) -> int:
        """Steps of a window in the last call, which diffusers' callbacks count by."""
        return self._num_timesteps

    def enable_sequential_cpu_offload(self, *args: Any, **kwargs: Any) -> None:
        """Not for this pipeline, whose parts are small and called by other methods than forward.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "the parts of this pipeline can't be offloaded layer by layer; "
            "call enable_model_cpu_offload(), which brings one part at a time"
        )

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        class_labels: int | str | Sequence[int | str] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        num_videos_per_prompt: int = 1,
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        structure: VidTwinLatents | Tensor | None = None,
        dynamics: VidTwinLatents | Tensor | None = None,
        output_type: str = "pt",
        return_dict: bool = True,
        class_guidance_scale: float | None = None,
        structure_guidance_scale: float | None = None,
        dynamics_guidance_scale: float | None = None,
        given_guidance_scale: float | None = None,
        num_frames: int | None = None,
        overlap_frames: int | None = None,
        motion_scale: float = 1.0,
        structure_lead: float | None = None,
        guider: Any = None,
        first_frame: Tensor | None = None,
        last_frame: Tensor | None = None,
        prefix: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        negative_prompt_attention_mask: Tensor | None = None,
        latents: VidTwinLatents | None = None,
        height: int | None = None,
        width: int | None = None,
        callback_on_step_end: Callback | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = VidTwinLatents.names,
        actions: Tensor | None = None,
    ) -> Any:
        """Videos.

        Args:
            prompt: what to show; one or several.
            class_labels: the same by class, number or name.
            num_inference_steps: solver steps; None for the pipeline's own, as for the next.
            guidance_scale: of the prompt, and of the class unless it has its own; 1.0 is off.
            num_videos_per_prompt: videos of each prompt, one after the other.
            seed: of the first video, the next ones count on; or one for each. A video's noise
                depends on its own seed alone, bit for bit on any device and in any batch. The
                video is then the same up to rounding, which batch size and device change.
            generator: instead of seeds: one for all videos, or one for each.
            negative_prompt: what not to show.
            structure: latents, or a video (B, 3, T, H, W) in [-1, 1], whose structure is kept
                while dynamics are sampled.
            dynamics: the same, whose dynamics are kept while structure is sampled.
            output_type: "pt", "np", "pil" or "latent".
            return_dict: False for a tuple.
            class_guidance_scale: of the class.
            structure_guidance_scale: for the structure latent, instead of both former scales.
            dynamics_guidance_scale: the same for the dynamics latents.
            given_guidance_scale: of the structure or dynamics that are given, or carried over from
                a long video's first window; None for the pipeline's own, which is 1.0 (off) unless
                it was trained with `FlowConfig.structure_noise` and `dynamics_noise`.
            num_frames: of the video; more than the model makes at once takes several windows.
            overlap_frames: which neighbouring windows share; a quarter of a window by default.
            motion_scale: multiplies the dynamics' deviation from their mean over time.
            structure_lead: by which share of its schedule the structure is denoised ahead of the
                dynamics, in [-1, 1]; below 0 the dynamics lead; rounded to whole solver steps, see
                `diffusion.tracks`; None for the pipeline's own, where nothing is given.
            guider: of `diffusers.guiders`, in place of guidance by prompt and class; it has a scale
                of its own, and is used as in `diffusion.guiders`.
            first_frame, last_frame: images (B, 3, H, W) or (3, H, W) in [-1, 1] that the video
                starts and ends with, for a pipeline that was trained with given frames; they come
                out pixel by pixel.
            prefix: the same, a video (B, 3, N, H, W) of fewer frames than the model makes, which
                goes on from there.
            prompt_embeds, prompt_attention_mask: of `encode_prompt`, instead of a prompt.
            negative_prompt_embeds, negative_prompt_attention_mask: the same of the negative prompt.
            latents: standard normal noise of a window to start from, as `vidtwin.draw_noise` draws
                it from seeds; schedulers that add noise on their way still draw from the generator.
            height, width: of the videos, in pixels; the model's own alone.
            callback_on_step_end: called as (pipe, step, timestep, tensors) after each step;
                returns the tensors that it changed.
            callback_on_step_end_tensor_inputs: scaled latents that it is given, of "structure",
                "dynamics_x" and "dynamics_y".
            actions: (B, T, A) or (T, A), what acts from each frame to the next, for a pipeline that
                was trained with actions; `pipe.config["action_names"]` names the A values.
        Returns:
            VidTwinPipelineOutput: `.videos`, `.latents`.
        Raises:
            ValueError: for anything that this pipeline can't do; the message names the keyword.
        """
        num_inference_steps = check_count(
            "num_inference_steps", self._or_own("num_inference_steps", num_inference_steps)
        )
        check_call(self, num_videos_per_prompt, output_type, motion_scale)
        scales = GuidanceScales.from_keywords(
            self._or_own("guidance_scale", guidance_scale),
            class_guidance_scale,
            structure_guidance_scale,
            dynamics_guidance_scale,
            self._or_own("given_guidance_scale", given_guidance_scale),
        )
        check_guidance(
            guider,
            guidance_scale=guidance_scale,
            class_guidance_scale=class_guidance_scale,
            structure_guidance_scale=structure_guidance_scale,
            dynamics_guidance_scale=dynamics_guidance_scale,
        )
        check_size(self, height, width)
        starts = starts_of(self, num_frames, overlap_frames, dynamics is not None)
        gives = structure is not None or dynamics is not None or len(starts) > 1
        check_distilled(self, num_inference_steps, scales, guider, gives)
        asked: dict[str, Any] = {
            "prompt": text_of(self, "prompt", prompt, prompt_embeds, prompt_attention_mask),
            "negative_prompt": text_of(
                self,
                "negative_prompt",
                negative_prompt,
                negative_prompt_embeds,
                negative_prompt_attention_mask,
            ),
            "class_labels": self.class_indices(class_labels),
        }
        check_class_scale(class_guidance_scale, asked["class_labels"])
        sizes, device = self.autoencoder.sizes, self._execution_device
        given, given_names = given_latents(structure, dynamics, sizes, self._encode, device)
        frames = frames_of(self, first_frame, last_frame, prefix, len(starts), given_names)
        acting = actions_of(self, actions, len(starts))
        lengths = lengths_of(given, given_names, frames, acting)
        batch_size = common_length(**asked, **lengths) * num_videos_per_prompt
        given = given.map(lambda tensor: repeated_to(tensor, batch_size))
        generators = generators_of(seed, generator, batch_size)
        lead = lead_of(self, structure_lead, num_inference_steps, given_names)
        after_step = after_step_of(self, callback_on_step_end, callback_on_step_end_tensor_inputs)
        frames = frames and frames.repeated(batch_size)
        # A long video goes on from its last frames where the transformer takes given frames.
        takes_frames = self.transformer.sizes.given_frames and "structure" not in given_names
        conditions, negative = self._conditions(
            **asked, known=[frames.condition() if frames else None, acting], batch_size=batch_size
        )
        if negative is not None and guider is None:
            later = [given_names | {"structure"}] if len(starts) > 1 else []
            check_negative(conditions, scales, [given_names, *later])
        self._interrupt = False
        windows = LatentSampler(
            transformer=self.transformer,
            prediction=self.config["prediction"],
            scheduler=self.scheduler,
            num_inference_steps=num_inference_steps,
            generators=generators,
            device=device,
            conditions=conditions,
            negative=negative,
            scales=scales,
            given=self.latent_stats.scale(given),
            given_names=given_names,
            after_step=after_step,
            interrupted=lambda: self._interrupt,
            progress_bar=self._window_bar,
            structure_lead=lead,
            guider=guider,
            going_on=partial(going_on, self) if takes_frames else None,
            known=frames.latents if frames else None,
            known_frames=frames.num_known if frames else 0,
            noise=noise_of(self, latents, batch_size, len(starts)),
        ).sample(starts, batch_size)
        made, videos = self._made(
            windows, starts, given, given_names, frames, motion_scale, output_type
        )
        self.maybe_free_model_hooks()
        output = VidTwinPipelineOutput(videos=videos, latents=made)
        return output if return_dict else output.to_tuple()

    def _or_own(self, name: str, value: Any) -> Any:
        """The value that a call gives, or else the pipeline's own."""
        return self.config[name] if value is None else value

    def _window_bar(self, total: int) -> Any:
        """Shows the steps of a window."""
        self._num_timesteps = total
        return self.progress_bar(total=total)

    def _encode(self, video: Tensor) -> VidTwinLatents:
        """The latents of (B, 3, T, H, W) or one (3, T, H, W) video in [-1, 1]."""
        self._bring(self.autoencoder)
        video = video[None] if video.ndim == 4 else video
        if video.is_floating_point():  # what is not, the autoencoder complains of
            video = video.to(self.autoencoder.device, self.autoencoder.dtype)
        latents: VidTwinLatents = self.autoencoder.encode(video).mode()
        return latents

    def _decode(self, latents: VidTwinLatents, starts: list[int]) -> Tensor:
        """(B, 3, T, H, W) in about [-1, 1], float32."""
        self._bring(self.autoencoder)
        windows = latent_windows(latents, starts, self.autoencoder.sizes)
        return decode_windows(self.autoencoder, windows, dtype=torch.float32)

    def _conditions(
        self,
        prompt: Text | None,
        negative_prompt: Text | None,
        class_labels: list[int] | None,
        known: list[Condition | None],
        batch_size: int,
    ) -> tuple[Conditions, Conditions | None]:
        """The conditions of each video in the order of guidance, and its negative prompt."""
        if negative_prompt is not None and prompt is None:
            raise ValueError("`negative_prompt` needs a `prompt` to tell it from; got none")

        def repeated(condition: Condition) -> Condition:
            # The text encoder may lie on another device than what it reads for.
            condition = condition.map(lambda tensor: repeated_to(tensor, batch_size))
            return condition.to(self._execution_device)

        found = [condition for condition in known if condition is not None]
        if prompt is not None:
            found.append(self._read_for_attention(prompt))
        if class_labels is not None:
            found.append(ClassEmbedder(self.transformer.sizes.num_classes).embed(class_labels))
        conditions = Conditions(found).map(repeated)
        if negative_prompt is None:
            return conditions, None
        negative = Conditions([self._read_for_attention(negative_prompt)])
        return conditions, negative.map(repeated)

    def _made(
        self,
        windows: list[VidTwinLatents],
        starts: list[int],
        given: VidTwinLatents,
        given_names: frozenset[str],
        frames: GivenFrames | None,
        motion_scale: float,
        output_type: str,
    ) -> tuple[VidTwinLatents, Any]:
        """The raw latents of windows of scaled ones, and their videos, None for "latent"."""
        starts = starts[: len(windows)]
        made = self.latent_stats.unscale(join_windows(windows, starts))
        # What was given comes out bit for bit, not scaled and scaled back.
        made = scale_motion(made.taking(given, given_names), motion_scale)
        if output_type == "latent":
            return made, None
        videos = self._decode(made, starts)
        return made, as_output(frames.put_into(videos) if frames else videos, output_type)

    def _bring(self, module: Any) -> None:
        """Moves a module that was offloaded to the device, for a method other than forward."""
        hook = getattr(module, "_hf_hook", None)
        if hook is not None:
            hook.pre_forward(module)
