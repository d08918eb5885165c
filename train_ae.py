"""Trains a VidTwin autoencoder.

    python train_ae.py --config configs/ae/shapes.yaml output=outputs/shapes
    accelerate launch train_ae.py --config configs/ae/official.yaml data.path=clips.csv

Run the same command again and it goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator

import runtime
from vidtwin import AutoencoderConfig, VidTwinAutoencoder, VidTwinLatents
from vidtwin.building import build_models, describe_models
from vidtwin.data import (
    DataConfig,
    TooManyBadFiles,
    build_dataset,
    build_evaluation_loader,
    build_loader,
)
from vidtwin.discriminator import DiscriminatorConfig, PatchDiscriminator
from vidtwin.latents import draw_noise
from vidtwin.losses import AutoencoderLoss, LossConfig
from vidtwin.media import write_video
from vidtwin.validation import mean_measures, measure_reconstructions


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(runtime.RunConfig):
    """One autoencoder run; the other keys are `runtime.RunConfig`'s.

    Args:
        init_from: weights to start from: a saved autoencoder's folder, or a released
            .ckpt/.safetensors (its discriminator comes along if it is there).
        data: its num_frames, height and width follow the model's.
    """

    output: str = "outputs/autoencoder"
    project: str = "vidtwin-autoencoder"
    init_from: str | None = None
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
        default = DataConfig()
        sizes = {name: getattr(self.model, name) for name in ("num_frames", "height", "width")}
        for name, size in sizes.items():
            if getattr(self.data, name) not in (getattr(default, name), size):
                raise ValueError(
                    f"data.{name}={getattr(self.data, name)} differs from model.{name}={size}; "
                    f"remove data.{name}, it follows the model's"
                )
        object.__setattr__(self, "data", dataclasses.replace(self.data, **sizes))


def main() -> None:
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    arguments = runtime.parse_arguments("Trains a VidTwin autoencoder.")
    config = runtime.load_config(TrainConfig, arguments.config, arguments.overrides)
    if arguments.overfit:
        config = dataclasses.replace(config, data=config.data.first(arguments.overfit))
    if arguments.dry_run:
        print(runtime.format_config(config))
        print(describe_models(config.model, config.discriminator))
        return
    accelerator, folder = runtime.start_run(config)
    train(config, accelerator, folder, arguments.resume)


def train(
    config: TrainConfig, accelerator: Accelerator, folder: runtime.RunFolder, resume: str | None
) -> None:
    """The whole run: builds, resumes, loops, saves."""
    torch.manual_seed(config.seed)
    dataset = build_dataset(config.data)
    plain, discriminator, objective = build_models(
        config.model, config.discriminator, config.loss, config.init_from
    )
    if config.gradient_checkpointing:
        plain.enable_gradient_checkpointing()
    plain.to(accelerator.device)
    objective.to(accelerator.device)
    model, optimizer = accelerator.prepare(
        torch.compile(plain) if config.compile else plain,
        runtime.build_optimizer([*plain.parameters(), *objective.parameters()], config.optimizer),
    )
    schedulers = [runtime.build_scheduler(optimizer, config.optimizer, config.steps)]
    adversary = None
    if config.loss.discriminator_weight > 0:
        adversary = Adversary(config, accelerator, discriminator, objective)
        schedulers.append(adversary.scheduler)
    ema = runtime.build_ema(plain, config.ema)
    guard = runtime.NonFiniteGuard(config.max_nonfinite_steps)
    accelerator.register_for_checkpointing(
        objective, guard, *schedulers, *([] if ema is None else [ema])
    )
    start = runtime.resume(accelerator, folder, resume)
    rank, world_size = accelerator.process_index, accelerator.num_processes
    loader = build_loader(
        dataset,
        batch_size=config.batch_size,
        seed=config.seed,
        rank=rank,
        world_size=world_size,
        start_batch=start,
        num_workers=config.num_workers,
    )
    trackers = runtime.build_trackers(
        accelerator,
        config.tracker,
        config.project,
        folder,
        config,
        start_step=start,
        video_writer=write_video,
    )
    mean = runtime.mean_over_processes(accelerator)
    timer = runtime.StepTimer()
    bar = runtime.progress_bar(config.steps, start, not accelerator.is_main_process, "autoencoder")
    batches = iter(loader)

    for step in range(start, config.steps):
        with timer.data():
            batch = next(batches)
        runtime.seed_step(config.seed, rank, step)  # after the loader, whose start draws a number
        logs: dict[str, Any] = {}
        pairs = []
        for video, noise, sync in micro_batches(batch, config, accelerator, model):
            with sync:
                output = model(video, sample_posterior=True, noise=noise)
                loss, terms = objective.generator(
                    video,
                    output.reconstruction,
                    output.posterior,
                    step=step,
                    discriminator=None if adversary is None else adversary.discriminator,
                    last_weight=plain.decoder_last_weight,
                    reduce_gradient=mean,
                )
                accelerator.backward(loss / config.accumulation)
            runtime.add_share(logs, "loss", terms, config.accumulation)
            pairs.append((video, output.reconstruction.detach()))
        norm = runtime.clip_gradients(
            accelerator, plain.parameters(), config.optimizer.max_grad_norm
        )
        if guard.ok(accelerator, logs["loss/total"], norm):
            optimizer.step()
            if ema is not None:
                ema.step(plain.parameters())
            if adversary is not None and objective.discriminator_active(step):
                logs |= adversary.step(pairs, step, guard)
        optimizer.zero_grad()
        for scheduler in schedulers:
            scheduler.step()
        timer.step(config.batch_size)
        bar.update()
        done = step + 1
        last = done == config.steps
        if last or done % config.log_every == 0:
            logs = {name: mean(value) for name, value in (logs | {"gradient_norm": norm}).items()}
            logs["learning_rate"] = optimizer.param_groups[0]["lr"]
            logs["nonfinite_steps"] = guard.total
            trackers.log(logs | timer.report(), done)
            bar.set_postfix(loss=f"{float(logs['loss/total']):.4g}")
        if config.validation_samples and (last or done % config.validate_every == 0):
            with runtime.ema_weights(ema, plain):
                values, sheet = validate(config, accelerator, plain, objective)
            trackers.log(values, done)
            if sheet is not None:
                trackers.log_video("validation/input_both_structure_dynamics", sheet, done, 8.0)
            if accelerator.is_main_process:
                bar.write(f"step {done}: " + ", ".join(f"{k} {v:.4g}" for k, v in values.items()))
        if last or done % config.save_every == 0:
            folder.checkpoints.save(accelerator, done, {})
            if accelerator.is_main_process:
                runtime.export_weights(folder, "autoencoder", plain, ema)
    bar.close()
    trackers.finish()


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
        self.max_grad_norm = config.discriminator_optimizer.max_grad_norm
        optimizer = runtime.build_optimizer(
            discriminator.parameters(), config.discriminator_optimizer
        )
        self.discriminator, self.optimizer = accelerator.prepare(discriminator, optimizer)
        self.scheduler = runtime.build_scheduler(
            self.optimizer, config.discriminator_optimizer, config.steps
        )

    def step(
        self,
        pairs: list[tuple[torch.Tensor, torch.Tensor]],
        step: int,
        guard: runtime.NonFiniteGuard,
    ) -> dict[str, Any]:
        """One update on the step's videos and their reconstructions; returns its logs."""
        logs: dict[str, Any] = {}
        for index, (video, reconstruction) in enumerate(pairs):
            with sync_on_last(self.accelerator, self.discriminator, index, len(pairs)):
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
        if guard.ok(self.accelerator, logs["discriminator/total"], norm):
            self.optimizer.step()
        self.optimizer.zero_grad()
        return {**logs, "discriminator/gradient_norm": norm}


def sync_on_last(
    accelerator: Accelerator, model: torch.nn.Module, index: int, parts: int
) -> contextlib.AbstractContextManager[Any]:
    """Gradients are averaged over processes in the last micro-batch alone."""
    return contextlib.nullcontext() if index == parts - 1 else accelerator.no_sync(model)


def micro_batches(
    batch: dict[str, Any], config: TrainConfig, accelerator: Accelerator, model: torch.nn.Module
) -> Iterator[tuple[torch.Tensor, VidTwinLatents, contextlib.AbstractContextManager[Any]]]:
    """(video, posterior noise, context of its backward pass) of each micro-batch."""
    size = len(batch["video"]) // config.accumulation
    for index in range(config.accumulation):
        part = slice(index * size, (index + 1) * size)
        noise = draw_noise(config.model, batch["noise_seed"][part].tolist())
        video = batch["video"][part].to(accelerator.device, non_blocking=True)
        sync = sync_on_last(accelerator, model, index, config.accumulation)
        yield video, noise.to(accelerator.device), sync


def validate(
    config: TrainConfig,
    accelerator: Accelerator,
    model: VidTwinAutoencoder,
    objective: AutoencoderLoss,
) -> tuple[dict[str, float], Any]:
    """Means over the validation clips, and this process's first ones as a video."""
    # Learning by heart is judged on what was learned.
    part = config.data.part if config.data.max_clips else "validation"
    data = dataclasses.replace(config.data.centered(), part=part)
    loader = build_evaluation_loader(
        build_dataset(data),
        batch_size=config.validation_batch_size,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        max_samples=config.validation_samples,
    )
    rows, sheet = measure_reconstructions(
        model, loader, autocast=accelerator.autocast, lpips=objective.lpips
    )
    means = mean_measures(runtime.gather_rows(accelerator, rows))
    return {f"validation/{name}": value for name, value in means.items()}, sheet


if __name__ == "__main__":
    runtime.run_main(main, TooManyBadFiles)
