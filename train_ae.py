"""Trains a VidTwin autoencoder.

    python train_ae.py --config configs/ae/shapes.yaml output=outputs/shapes
    accelerate launch train_ae.py --config configs/ae/official.yaml data.path=clips.csv

Run the same command again and it goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator

from vidtwin.branches import branch_videos, branch_weights
from vidtwin.building import build_models, describe_models
from vidtwin.config import (
    AutoencoderConfig,
    BranchDropout,
    DiscriminatorConfig,
    FrameShuffle,
    LossConfig,
)
from vidtwin.data import (
    PAIRED_AUGMENTATIONS,
    DataConfig,
    build_dataset,
    build_evaluation_loader,
    build_loader,
)
from vidtwin.data.bad_files import TooManyBadFiles
from vidtwin.discriminator import PatchDiscriminator
from vidtwin.latents import draw_noise
from vidtwin.losses import AutoencoderLoss
from vidtwin.media import write_video
from vidtwin.metrics import mean_measures, measure_reconstructions
from vidtwin_lab import runtime


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(runtime.RunConfig):
    """One autoencoder run; the other keys are `vidtwin_lab.runtime.RunConfig`'s.

    Args:
        init_from: weights to start from: a saved autoencoder's folder, or a released
            .ckpt/.safetensors (its discriminator comes along if it is there).
        branch_dropout: how often a clip is decoded without structure or without dynamics.
        frame_shuffle: how often a clip's structure is encoded from shuffled frames.
        freeze_encoder: train the decoder alone; latents that were cached stay valid.
        overfit: learn the first N clips by heart, one window and crop each, and validate on them.
        data: its num_frames, height and width follow the model's.
    """

    output: str = "outputs/autoencoder"
    project: str = "vidtwin-autoencoder"
    init_from: str | None = None
    branch_dropout: BranchDropout = BranchDropout()
    frame_shuffle: FrameShuffle = FrameShuffle()
    freeze_encoder: bool = False
    overfit: int | None = None
    model: AutoencoderConfig = AutoencoderConfig()
    data: DataConfig = DataConfig()
    loss: LossConfig = LossConfig()
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    optimizer: runtime.OptimizerConfig = runtime.OptimizerConfig(
        learning_rate=3e-5, betas=(0.0, 0.9), warmup_steps=5000
    )
    discriminator_optimizer: runtime.OptimizerConfig = runtime.OptimizerConfig(
        learning_rate=1.5e-5, betas=(0.0, 0.9), warmup_steps=5000, warmup_start=1e-5
    )
    ema: runtime.EMAConfig = runtime.EMAConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        data = self.data.sized(self.model.num_frames, self.model.height, self.model.width)
        object.__setattr__(self, "data", data.first(self.overfit) if self.overfit else data)


# Where the clips lie and how they are read may change while a run goes on, which they are may not.
DATA_MAY_CHANGE = ("data.path", "data.root", "data.timeout", "data.max_bad_fraction", "init_from")


def main() -> None:
    """Reads the command line, then describes the run or trains."""
    runtime.configure_logging()
    arguments = runtime.parse_arguments("Trains a VidTwin autoencoder.")
    config = runtime.load_config(TrainConfig, arguments.config, arguments.overrides)
    if arguments.overfit:
        config = dataclasses.replace(config, overfit=arguments.overfit)
    if arguments.dry_run:
        print(runtime.format_config(config))
        print(describe_models(config.model, config.discriminator))
        return
    accelerator, folder = runtime.start_run(config, DATA_MAY_CHANGE)
    torch.manual_seed(config.seed)
    train(Run(config, accelerator, folder, arguments.resume))


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
        ranks = {"rank": accelerator.process_index, "world_size": accelerator.num_processes}
        dataset = build_dataset(config.data)
        self.validation_loader = None
        if config.validation_samples:
            part = config.data.part if config.overfit else "validation"
            self.validation_loader = build_evaluation_loader(
                build_dataset(dataclasses.replace(config.data.centered(), part=part)),
                batch_size=config.validation_batch_size,
                max_samples=config.validation_samples,
                **ranks,
            )
        self.unwrapped, discriminator, self.objective = build_models(
            config.model,
            config.discriminator,
            config.loss,
            config.init_from,
            config.freeze_encoder,
        )
        if config.gradient_checkpointing:
            self.unwrapped.enable_gradient_checkpointing()
        self.unwrapped.to(accelerator.device)
        self.objective.to(accelerator.device)
        self.model = runtime.prepare_model(accelerator, self.unwrapped, config.compile)
        parameters = [*self.unwrapped.parameters(), *self.objective.parameters()]
        optimizer = runtime.build_optimizer(parameters, config.optimizer)
        self.optimizer = accelerator.prepare(optimizer)
        self.scheduler = runtime.build_scheduler(self.optimizer, config.optimizer, config.steps)
        self.adversary = None
        if config.loss.discriminator_weight > 0:
            self.adversary = Adversary(config, accelerator, discriminator, self.objective)
        self.ema = runtime.build_ema(self.unwrapped, config.ema)
        self.guard = runtime.NonFiniteGuard(config.max_nonfinite_steps)
        accelerator.register_for_checkpointing(
            self.objective,
            self.guard,
            self.scheduler,
            *([] if self.ema is None else [self.ema]),
            *([] if self.adversary is None else [self.adversary.guard, self.adversary.scheduler]),
        )
        self.start = runtime.resume(accelerator, folder, resume)
        ranks |= {"num_workers": config.num_workers, "batch_size": config.batch_size}
        self.loader = build_loader(dataset, seed=config.seed, start_batch=self.start, **ranks)
        self.trackers = runtime.start_trackers(
            accelerator, config, folder, start_step=self.start, video_writer=write_video
        )

    def save(self, step: int) -> None:
        """Writes a checkpoint, and the weights for use."""
        self.folder.checkpoints.save(self.accelerator, step, {})
        self.export()

    def export(self) -> None:
        """Writes the weights and their average for `from_pretrained`."""
        runtime.export_weights(
            self.accelerator, self.folder, "autoencoder", self.unwrapped, self.ema
        )

    def validate(self, step: int) -> None:
        """Measures the averaged weights on the validation clips."""
        if self.validation_loader is None:
            return
        with runtime.ema_weights(self.ema, self.unwrapped) as model:
            rows, sheet = measure_reconstructions(
                model,
                self.validation_loader,
                autocast=self.accelerator.autocast,
                lpips=self.objective.lpips,
            )
        means = mean_measures(runtime.gather_rows(self.accelerator, rows))
        self.trackers.log_validation(means, step)
        if sheet is not None:
            name = "validation/input_both_structure_dynamics"
            self.trackers.log_video(name, sheet, step, self.config.data.fps or 8.0)


def train(run: Run) -> None:
    """The steps that are left."""
    config, accelerator, unwrapped, adversary = (
        run.config,
        run.accelerator,
        run.unwrapped,
        run.adversary,
    )
    mean = runtime.mean_over_processes(accelerator)
    timer = runtime.StepTimer()
    hidden = not accelerator.is_main_process
    bar = runtime.progress_bar(config.steps, run.start, hidden, "autoencoder")
    batches = iter(run.loader)
    if run.start >= config.steps:
        run.export()  # a kill may have come between the last checkpoint and its export

    for step in range(run.start, config.steps):
        with timer.data():
            batch = next(batches)
        # After the loader, whose start draws a number.
        runtime.seed_step(config.seed, accelerator.process_index, step)
        logs: dict[str, Any] = {"learning_rate": run.optimizer.param_groups[0]["lr"]}
        pairs = []
        for video, inputs, sync in micro_batches(batch, config, accelerator, run.model):
            with sync:
                output = run.model(video, sample_posterior=True, **inputs)
                loss, terms = run.objective.generator_loss(
                    video,
                    output.reconstruction,
                    output.posterior,
                    step=step,
                    discriminator=None if adversary is None else adversary.discriminator,
                    last_weight=unwrapped.decoder_last_weight,
                    reduce_gradient=mean,
                )
                accelerator.backward(loss / config.accumulation)
            runtime.add_share(logs, "loss", terms, config.accumulation)
            pairs.append((video, output.reconstruction.detach()))
        max_norm = config.optimizer.max_grad_norm
        norm = runtime.clip_gradients(accelerator, unwrapped.parameters(), max_norm)
        if run.guard.ok(accelerator, logs["loss/total"], norm):
            run.optimizer.step()
            if run.ema is not None:
                run.ema.step(unwrapped.parameters())
            if adversary is not None and run.objective.discriminator_active(step):
                logs |= adversary.step(pairs, step)
        run.optimizer.zero_grad()
        run.scheduler.step()
        if adversary is not None:
            adversary.scheduler.step()
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


class Adversary:
    """The discriminator's side of a step: its own optimizer, schedule and update."""

    def __init__(
        self,
        config: TrainConfig,
        accelerator: Accelerator,
        discriminator: PatchDiscriminator,
        objective: AutoencoderLoss,
    ) -> None:
        self.accelerator = accelerator
        self.objective = objective
        self.guard = runtime.NonFiniteGuard(config.max_nonfinite_steps)
        settings = config.discriminator_optimizer
        self.max_grad_norm = settings.max_grad_norm
        optimizer = runtime.build_optimizer(discriminator.parameters(), settings)
        self.discriminator, self.optimizer = accelerator.prepare(discriminator, optimizer)
        self.scheduler = runtime.build_scheduler(self.optimizer, settings, config.steps)

    def step(self, pairs: list[tuple[torch.Tensor, torch.Tensor]], step: int) -> dict[str, Any]:
        """One update on the step's videos and their reconstructions; returns its logs."""
        logs: dict[str, Any] = {"discriminator/learning_rate": self.optimizer.param_groups[0]["lr"]}
        for index, (video, reconstruction) in enumerate(pairs):
            with runtime.sync_on_last(self.accelerator, self.discriminator, index, len(pairs)):
                loss, terms = self.objective.discriminator_loss(
                    self.discriminator,
                    video,
                    reconstruction,
                    step,
                    reduce_mean=runtime.mean_over_processes(self.accelerator),
                )
                self.accelerator.backward(loss / len(pairs))
            runtime.add_share(logs, "discriminator", terms, len(pairs))
        norm = runtime.clip_gradients(
            self.accelerator, self.discriminator.parameters(), self.max_grad_norm
        )
        if self.guard.ok(self.accelerator, logs["discriminator/total"], norm):
            self.optimizer.step()
        self.optimizer.zero_grad()
        return {**logs, "discriminator/gradient_norm": norm}


def micro_batches(
    batch: dict[str, Any], config: TrainConfig, accelerator: Accelerator, model: torch.nn.Module
) -> Iterator[tuple[torch.Tensor, dict[str, Any], contextlib.AbstractContextManager[Any]]]:
    """(video, the model's other inputs, context of its backward pass) of each micro-batch."""
    size = len(batch["video"]) // config.accumulation
    for index in range(config.accumulation):
        part = slice(index * size, (index + 1) * size)
        seeds = batch["noise_seed"][part].tolist()
        video = batch["video"][part].to(accelerator.device, non_blocking=True)
        noise = draw_noise(config.model, seeds).to(accelerator.device)
        inputs = {"noise": noise, "branch_weights": branch_weights(config.branch_dropout, seeds)}
        names = [name for name in PAIRED_AUGMENTATIONS if name in batch]
        paired = {name: batch[name][part].to(video.device) for name in names}
        inputs |= branch_videos(video, paired, seeds, config.frame_shuffle)
        sync = runtime.sync_on_last(accelerator, model, index, config.accumulation)
        yield video, inputs, sync


if __name__ == "__main__":
    runtime.run_main(main, TooManyBadFiles)
