"""Trains a diffusion transformer over the latents of a frozen VidTwin autoencoder.

    python train_diffusion.py --config configs/diffusion/shapes.yaml
    accelerate launch train_diffusion.py --config configs/diffusion/clips.yaml cache=latents/clips

Run the same command again and it goes on where it stopped. `OUTPUT/pipeline` is ready for
sample.py after every checkpoint.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from accelerate import Accelerator

from diffusion import VidTwinPipeline
from diffusion.config import (
    NUM_INFERENCE_STEPS,
    GuidanceScales,
    InputsConfig,
    TransformerConfig,
)
from diffusion.inputs import class_indices, prompt_list
from diffusion.schedulers import build_sampling_scheduler
from diffusion.training import (
    TrainingInputs,
    build_inputs,
    build_transformer,
    describe_transformer,
    losses_of,
    measure_losses,
)
from vidtwin.data import TooManyBadFiles
from vidtwin.media import to_uint8, write_video
from vidtwin.metrics import mean_measures
from vidtwin_lab import runtime


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(InputsConfig, runtime.RunConfig):
    """One diffusion run; the other keys are `InputsConfig`'s and `vidtwin_lab.runtime.RunConfig`'s.

    Args:
        init_from: folder of a saved transformer to start from.
        sample_prompts, sample_classes: of the videos that validation makes, seeds 0, 1, ...
        sample_steps, sample_guidance_scale: how they are made.
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
    ema: runtime.EMAConfig = runtime.EMAConfig()

    RENAMED_KEYS: ClassVar[dict[str, str]] = {"held_dropout": "given_dropout"}

    def __post_init__(self) -> None:
        runtime.RunConfig.__post_init__(self)
        InputsConfig.__post_init__(self)
        GuidanceScales(self.sample_guidance_scale)
        prompt_list(self.sample_prompts or None, "sample_prompts")
        self.flow.check_steps("sample_steps", self.sample_steps)
        for name, needed in (("prompts", "text_encoder"), ("classes", "class_conditional")):
            if getattr(self, f"sample_{name}") and not getattr(self, needed):
                raise ValueError(
                    f"`sample_{name}` are asked of a run without {needed}; set sample_{name}=[]"
                )


# Where files lie and what is shown may change while a run goes on.
MODELS_MAY_MOVE = ("autoencoder", "text_encoder", "init_from")
MAY_CHANGE = (*MODELS_MAY_MOVE, "cache", "data.path", "data.root", "sample_*")


def main() -> None:
    """Reads the command line, then describes the run or trains."""
    runtime.configure_logging()
    arguments = runtime.parse_arguments("Trains a diffusion transformer over VidTwin latents.")
    config = runtime.load_config(TrainConfig, arguments.config, arguments.overrides)
    if arguments.overfit:
        config = dataclasses.replace(config, overfit=arguments.overfit)
    if arguments.dry_run:
        inputs = find_inputs(config, torch.device("cpu"))
        print(runtime.format_config(config))
        print(describe_transformer(inputs.transformer_sizes(config.model)))
        names = ", ".join(inputs.class_names) or "none"
        print(f"clips: {len(inputs.source):,}; classes: {names}")
        return
    accelerator, folder = runtime.start_run(config, MAY_CHANGE)
    torch.manual_seed(config.seed)
    train(Run(config, accelerator, folder, arguments.resume))


def find_inputs(config: TrainConfig, device: torch.device) -> TrainingInputs:
    """The frozen models, the data and the conditions of a run."""
    inputs = build_inputs(config, device, validates=config.validation_samples > 0)
    if config.sample_classes:
        class_indices(config.sample_classes, len(inputs.class_names), inputs.class_names)
    return inputs


class Run:
    """Everything of a run that is made before its first step, and what happens beside the steps."""

    def __init__(
        self,
        config: TrainConfig,
        accelerator: Accelerator,
        folder: runtime.RunFolder,
        resume: str | None,
    ) -> None:
        self.config, self.accelerator, self.folder = config, accelerator, folder
        self.ranks = {"rank": accelerator.process_index, "world_size": accelerator.num_processes}
        self.inputs = find_inputs(config, accelerator.device)
        sizes = self.inputs.transformer_sizes(config.model)
        self.unwrapped = build_transformer(sizes, config.init_from)
        if config.gradient_checkpointing:
            self.unwrapped.enable_gradient_checkpointing()
        self.unwrapped.to(accelerator.device)
        self.model = runtime.prepare_model(accelerator, self.unwrapped, config.compile)
        optimizer = runtime.build_optimizer(self.unwrapped.parameters(), config.optimizer)
        self.optimizer = accelerator.prepare(optimizer)
        self.scheduler = runtime.build_scheduler(self.optimizer, config.optimizer, config.steps)
        self.ema = runtime.build_ema(self.unwrapped, config.ema)
        self.guard = runtime.NonFiniteGuard(config.max_nonfinite_steps)
        accelerator.register_for_checkpointing(
            self.guard, self.scheduler, self.inputs, *([] if self.ema is None else [self.ema])
        )
        self.start = runtime.resume(accelerator, folder, resume)
        if not self.start:
            self.inputs.measure_stats(config.stats_samples, config.validation_batch_size)
        self.pipeline = self.build_pipeline()
        self.batches = self.inputs.train_batches(
            batch_size=config.batch_size,
            seed=config.seed,
            start_batch=self.start,
            num_workers=config.num_workers,
            **self.ranks,
        )
        self.trackers = runtime.start_trackers(
            accelerator, config, folder, start_step=self.start, video_writer=write_video
        )

    def build_pipeline(self) -> VidTwinPipeline:
        """The pipeline around the model; its frozen parts are written once, before training."""
        folder = self.folder.path / "pipeline"
        with runtime.ema_weights(None, self.unwrapped) as model:
            pipeline = self.inputs.pipeline(model, build_sampling_scheduler(self.config.flow))
        # A run that goes on from another's checkpoint has none yet; the index is written last.
        begun = self.folder.checkpoints.latest() and (folder / "model_index.json").is_file()
        if self.accelerator.is_main_process and not begun:
            pipeline.save_pretrained(folder)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def save(self, step: int) -> None:
        """Writes a checkpoint, and the averaged weights into the pipeline."""
        self.folder.checkpoints.save(self.accelerator, step, {})
        self.export()

    def export(self) -> None:
        """Puts the averaged weights into the pipeline's folder."""
        with runtime.ema_weights(self.ema, self.unwrapped) as model:
            if self.accelerator.is_main_process:
                runtime.replace_weights(self.folder.path / "pipeline" / "transformer", model)

    def validate(self, step: int) -> None:
        """Held-out losses of the averaged weights, and videos for fixed prompts and seeds."""
        with runtime.ema_weights(self.ema, self.unwrapped) as model:
            if self.config.validation_samples:
                held_out = self.inputs.source.held_out_batches(
                    batch_size=self.config.validation_batch_size,
                    max_samples=self.config.validation_samples,
                    **self.ranks,
                )
                autocast = self.accelerator.autocast
                rows = measure_losses(model, self.inputs, held_out, autocast=autocast)
                means = mean_measures(runtime.gather_rows(self.accelerator, rows))
                self.trackers.log_validation(means, step)
            self.pipeline.register_modules(transformer=model)
            self.sample("prompt", self.config.sample_prompts, step)
            self.sample("class_labels", self.config.sample_classes, step)
            self.pipeline.register_modules(transformer=self.unwrapped)

    def sample(self, condition: str, asked: Sequence[str], step: int) -> None:
        """One video for each, side by side; each process makes its share of them."""
        if not asked:
            return
        config, accelerator = self.config, self.accelerator
        mine = range(accelerator.process_index, len(asked), accelerator.num_processes)
        rows: list[tuple[int, Any]] = []
        if mine:
            make: Any = self.pipeline
            videos = make(
                **{condition: [asked[index] for index in mine]},
                num_inference_steps=config.sample_steps,
                guidance_scale=config.sample_guidance_scale,
                seed=list(mine),
            ).videos
            rows = [(i, to_uint8(2 * v - 1)) for i, v in zip(mine, videos, strict=True)]
        made = dict(runtime.gather_rows(accelerator, rows))
        row = np.concatenate([made[index] for index in range(len(asked))], axis=2)
        self.trackers.log_video(f"validation/{condition}", row, step, self.inputs.source.fps)


def train(run: Run) -> None:
    """The steps that are left."""
    config, accelerator = run.config, run.accelerator
    mean = runtime.mean_over_processes(accelerator)
    timer = runtime.StepTimer()
    hidden = not accelerator.is_main_process
    bar = runtime.progress_bar(config.steps, run.start, hidden, "diffusion")
    batches = iter(run.batches)
    if run.start >= config.steps:
        run.export()  # a kill may have come between the last checkpoint and its export

    for step in range(run.start, config.steps):
        with timer.data():
            batch = next(batches)
        # After the loader, whose start draws a number.
        runtime.seed_step(config.seed, accelerator.process_index, step)
        logs: dict[str, Any] = {"learning_rate": run.optimizer.param_groups[0]["lr"]}
        size = len(batch["index"]) // config.accumulation
        for index in range(config.accumulation):
            part = run.inputs.read(batch, slice(index * size, (index + 1) * size))
            with runtime.sync_on_last(accelerator, run.model, index, config.accumulation):
                with accelerator.autocast():
                    losses = losses_of(run.model, run.inputs.objective, part)
                accelerator.backward(losses.total.mean() / config.accumulation)
            terms = {name: value.detach().mean() for name, value in losses._asdict().items()}
            runtime.add_share(logs, "loss", terms, config.accumulation)
        max_norm = config.optimizer.max_grad_norm
        norm = runtime.clip_gradients(accelerator, run.unwrapped.parameters(), max_norm)
        if run.guard.ok(accelerator, logs["loss/total"], norm):
            run.optimizer.step()
            if run.ema is not None:
                run.ema.step(run.unwrapped.parameters())
        run.optimizer.zero_grad()
        run.scheduler.step()
        timer.step(config.batch_size)
        bar.update()
        done = step + 1
        last = done == config.steps
        if last or done % config.log_every == 0:
            logs = {name: mean(value) for name, value in (logs | {"gradient_norm": norm}).items()}
            logs["nonfinite_steps"] = run.guard.total
            run.trackers.log(logs | timer.report(), done)
            bar.set_postfix(loss=f"{float(logs['loss/total']):.4g}")
        if last or done % config.save_every == 0:
            run.save(done)
        if last or done % config.validate_every == 0:
            run.validate(done)
    bar.close()
    run.trackers.finish()


if __name__ == "__main__":
    runtime.run_main(main, TooManyBadFiles)
