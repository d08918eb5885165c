"""Trains a diffusion transformer over the latents of a frozen VidTwin autoencoder.

    python train_diffusion.py --config configs/diffusion/shapes.yaml
    accelerate launch train_diffusion.py --config configs/diffusion/clips.yaml cache=latents/clips

Run the same command again and it goes on where it stopped. `OUTPUT/pipeline` is ready for
sample.py after every checkpoint.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from diffusion.config import (
    NUM_INFERENCE_STEPS,
    GuidanceScales,
    InputsConfig,
    LoraConfig,
    TransformerConfig,
)
from diffusion.distillation_config import DistillationConfig
from diffusion.inputs import class_indices, prompt_list
from diffusion.training_files import check_input_files, find_transformer
from vidtwin.data import TooManyBadFiles
from vidtwin_lab import runtime

if TYPE_CHECKING:
    import torch

    from diffusion import VidTwinPipeline
    from diffusion.flow import FlowLosses
    from diffusion.training import TrainingInputs

    Run = runtime.TrainingRun["TrainConfig"]
    Reads = Callable[[Mapping[str, Any], slice], Any]
    Losses = Callable[[torch.nn.Module, Any], FlowLosses]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(InputsConfig, runtime.RunConfig):
    """One diffusion run; the other keys are `InputsConfig`'s and `vidtwin_lab.runtime.RunConfig`'s.

    Args:
        init_from: folder of a saved transformer to start from.
        sample_prompts, sample_classes: of the videos that validation makes, seeds 0, 1, ...
        sample_steps, sample_guidance_scale: how they are made.
        lora: adapters, to be trained in place of the transformer of `init_from`; OUTPUT/lora holds
            them, OUTPUT/pipeline what they belong to.
        distill: few steps, learned from the transformer of `init_from`.
    """

    output: str = "outputs/diffusion"
    project: str = "vidtwin-diffusion"
    init_from: str | None = None
    sample_prompts: tuple[str, ...] = ()
    sample_classes: tuple[str, ...] = ()
    sample_steps: int = NUM_INFERENCE_STEPS
    sample_guidance_scale: float = 3.0
    model: TransformerConfig = TransformerConfig()
    optimizer: runtime.OptimizerConfig = runtime.OptimizerConfig(weight_decay=0.0)
    lora: LoraConfig = LoraConfig()
    distill: DistillationConfig = DistillationConfig()

    RENAMED_KEYS: ClassVar[dict[str, str]] = {"held_dropout": "given_dropout"}

    def __post_init__(self) -> None:
        runtime.RunConfig.__post_init__(self)
        InputsConfig.__post_init__(self)
        GuidanceScales(self.sample_guidance_scale)
        prompt_list(self.sample_prompts or None, "sample_prompts")
        self.flow.check_steps("sample_steps", self.sample_steps)
        if self.lora.rank and self.init_from is None:
            raise ValueError(
                f"`lora.rank` is {self.lora.rank} and `init_from` names no transformer to adapt; "
                "set init_from=checkpoints/shapes/transformer or another PIPELINE/transformer"
            )
        if self.distill.steps:
            self._check_distillation()
        for name, needed in (("prompts", "text_encoder"), ("classes", "class_conditional")):
            if getattr(self, f"sample_{name}") and not getattr(self, needed):
                raise ValueError(
                    f"`sample_{name}` are asked of a run without {needed}; set sample_{name}=[]"
                )

    def _check_distillation(self) -> None:
        wanted = {
            "init_from": (self.init_from is not None, "the teacher, PIPELINE/transformer"),
            "lora.rank": (not self.lora.rank, "0"),
            "flow.prediction": (self.flow.prediction == "velocity", "velocity"),
            "given.share": (not self.given.share, "0: all of `given` 0"),
            "validation_samples": (not self.validation_samples, "0"),
            "sample_steps": (self.sample_steps == self.distill.steps, str(self.distill.steps)),
            "sample_guidance_scale": (self.sample_guidance_scale == 1, "1"),
        }
        for key, (fits, value) in wanted.items():
            if not fits:
                raise ValueError(f"`distill.steps` is {self.distill.steps}; set {key} to {value}")

    def check_files(self, dry_run: bool = False) -> None:
        runtime.RunConfig.check_files(self, dry_run)
        runtime.tell_progress(check_input_files(self, dry_run))
        if self.init_from is not None:
            find_transformer(self.init_from)


# Where files lie and what is shown may change while a run goes on.
MODELS_MAY_MOVE = ("autoencoder", "text_encoder", "init_from")
MAY_CHANGE = (
    *(*MODELS_MAY_MOVE, "cache", "verify", "sample_*"),
    *("data.path", "data.root", "data.max_pixels", "data.max_frames"),
)

STARTERS = ("configs/diffusion/shapes_debug.yaml", "configs/diffusion/clips.yaml")


def main() -> None:
    """Reads the command line, then describes the run or trains."""
    config, arguments = runtime.read_training_config(__doc__ or "", TrainConfig, STARTERS)
    if arguments.dry_run:
        describe(config)
    else:
        train(config, arguments.resume)


def describe(config: TrainConfig) -> None:
    """Prints the config, the transformer's sizes, and the clips."""
    from diffusion.training import describe_training

    print(runtime.format_config(config))
    validates = config.validation_samples > 0
    print(describe_training(config, config.model, validates, config.sample_classes))


def find_inputs(config: TrainConfig, device: torch.device | str, **options: Any) -> TrainingInputs:
    """The frozen models, the data and the conditions of a run; options as of `build_inputs`."""
    from diffusion.training import build_inputs

    inputs = build_inputs(config, device, config.validation_samples > 0, **options)
    if asked := config.sample_classes:
        class_indices(asked, len(inputs.class_names), inputs.class_names, "sample_classes")
    return inputs


def train(config: TrainConfig, resume: str | None) -> None:
    """Trains the steps that are left."""
    from diffusion.lora import add_lora
    from diffusion.training import build_transformer
    from vidtwin.media import write_video

    run = runtime.TrainingRun(config, MAY_CHANGE)
    accelerator = run.accelerator
    inputs = find_inputs(config, accelerator.device, autocast=accelerator.autocast)
    transformer = build_transformer(inputs.transformer_sizes(config.model), config.init_from)
    read, losses_of = task_of(config, inputs)
    if config.lora.rank:
        add_lora(transformer, config.lora, config.seed)
    run.prepare(transformer)
    run.resume(resume, {"inputs": inputs}, write_video)
    if not run.start_step and (config.lora.rank or config.distill.steps):
        inputs.keep_stats(str(config.init_from))
    elif not run.start_step:
        gather = functools.partial(runtime.gather_rows, accelerator)
        settings = (config.stats_samples, config.validation_batch_size)
        inputs.measure_stats(*settings, **run.ranks, gather=gather)
    pipeline = build_pipeline(run, inputs)
    batches = inputs.train_batches(
        batch_size=config.batch_size,
        seed=config.seed,
        start_batch=run.start_step,
        num_workers=config.num_workers,
        **run.ranks,
    )
    if run.start_step:
        export(run)  # a kill may have come between the checkpoint and this, or damage after it
        if run.validation_pending:
            validate(run, inputs, pipeline, run.start_step - 1)

    for step, batch in run.steps(batches, "diffusion"):
        logs: dict[str, Any] = {"learning_rate": run.learning_rate}
        size = len(batch["index"]) // config.accumulation
        for index in range(config.accumulation):
            part = read(batch, slice(index * size, (index + 1) * size))
            with runtime.sync_on_last(accelerator, run.model, index, config.accumulation):
                with accelerator.autocast():
                    losses = losses_of(run.model, part)
                accelerator.backward(losses.total.mean() / config.accumulation)
            terms = {name: value.detach().mean() for name, value in losses._asdict().items()}
            runtime.add_share(logs, "loss", terms, config.accumulation)
        logs["gradient_norm"] = norm = run.clip_gradients()
        if run.guard.ok(accelerator, logs["loss/total"], norm):
            run.optimizer.step()
            run.update_ema()
        run.optimizer.zero_grad()
        run.log(step, logs)
        if run.validates(step):
            validate(run, inputs, pipeline, step)
        if run.due(step, config.save_every):
            run.save(step)
            export(run)


def task_of(config: TrainConfig, inputs: TrainingInputs) -> tuple[Reads, Losses]:
    """What is read of some rows of a batch, and a model's losses for it."""
    from diffusion.distillation import Distillation
    from diffusion.training import build_transformer, losses_of

    if not config.distill.steps:
        return inputs.read, lambda model, part: losses_of(model, inputs.objective, part)
    teacher: Any = build_transformer(inputs.transformer_sizes(config.model), config.init_from)
    distillation = Distillation(teacher.to(inputs.device), inputs.objective, config.distill)
    inputs.digests["teacher"] = distillation.digest()  # a run goes on with the one it began with
    return inputs.noise_and_conditions, lambda model, asked: distillation.losses(model, *asked)


def build_pipeline(run: Run, inputs: TrainingInputs) -> VidTwinPipeline:
    """The pipeline around the model; its frozen parts are written once, before training."""
    from diffusion.distillation import build_student_scheduler
    from diffusion.schedulers import build_sampling_scheduler
    from diffusion.training import build_transformer

    config, steps = run.config, run.config.distill.steps
    scheduler = build_student_scheduler(steps) if steps else build_sampling_scheduler(config.flow)
    if config.lora.rank:  # what is written is the transformer that the adapters belong to
        sizes = inputs.transformer_sizes(config.model)
        pipeline = inputs.pipeline(build_transformer(sizes, config.init_from), scheduler)
    else:
        with runtime.ema_weights(None, run.unwrapped) as model:
            pipeline = inputs.pipeline(model, scheduler, distilled_steps=steps)
    if run.accelerator.is_main_process:
        # Without a checkpoint, what lies there may be of another config.
        anew = run.folder.checkpoints.latest() is None
        folder = run.folder.path / "pipeline"
        runtime.write_frozen(folder, pipeline, trained="transformer", anew=anew)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def export(run: Run) -> None:
    """Puts the averaged weights into the pipeline's folder, or the adapters beside it."""
    from diffusion.lora import save_lora
    from vidtwin.files import folder_written_whole

    with run.averaged() as model:
        if run.accelerator.is_main_process and run.config.lora.rank:
            with folder_written_whole(run.folder.path / "lora") as writing:
                save_lora(model, writing)
        elif run.accelerator.is_main_process:
            runtime.replace_weights(run.folder.path / "pipeline" / "transformer", model)
    run.accelerator.wait_for_everyone()  # as `TrainingRun.export` does


def validate(run: Run, inputs: TrainingInputs, pipeline: VidTwinPipeline, step: int) -> None:
    """Held-out losses of the averaged weights, and videos for fixed prompts and seeds."""
    from diffusion.training import measure_losses
    from vidtwin.metrics import mean_measures

    config, accelerator = run.config, run.accelerator
    with run.validation(step) as model:
        if config.validation_samples:
            held_out = inputs.source.held_out_batches(
                batch_size=config.validation_batch_size,
                max_samples=config.validation_samples,
                **run.ranks,
            )
            rows = measure_losses(model, inputs, held_out, autocast=accelerator.autocast)
            means = mean_measures(runtime.gather_rows(accelerator, rows))
            run.trackers.log_validation(means, step + 1)
        pipeline.register_modules(transformer=model)
        sample(run, pipeline, "prompt", config.sample_prompts, step)
        sample(run, pipeline, "class_labels", config.sample_classes, step)
    pipeline.register_modules(transformer=run.unwrapped)


def sample(run: Run, pipeline: Any, condition: str, asked: Sequence[str], step: int) -> None:
    """One video for each, side by side; each process makes its share of them."""
    import numpy as np

    from vidtwin.media import to_uint8

    if not asked:
        return
    accelerator, rows = run.accelerator, []
    if mine := range(accelerator.process_index, len(asked), accelerator.num_processes):
        videos = pipeline(
            **{condition: [asked[index] for index in mine]},
            num_inference_steps=run.config.sample_steps,
            guidance_scale=run.config.sample_guidance_scale,
            seed=list(mine),
        ).videos
        rows = [(index, to_uint8(2 * video - 1)) for index, video in zip(mine, videos, strict=True)]
    made = dict(runtime.gather_rows(accelerator, rows))
    row = np.concatenate([made[index] for index in range(len(asked))], axis=2)
    run.trackers.log_video(f"validation/{condition}", row, step + 1, pipeline.config["fps"])


if __name__ == "__main__":
    runtime.run_main(main, TooManyBadFiles)
