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
from accelerate import Accelerator, DistributedDataParallelKwargs

import runtime
from vidtwin import AutoencoderConfig, VidTwinAutoencoder, VidTwinLatents
from vidtwin.bad_files import TooManyBadFiles
from vidtwin.building import build_models
from vidtwin.data import DataConfig, build_dataset
from vidtwin.discriminator import DiscriminatorConfig, PatchDiscriminator
from vidtwin.latents import draw_noise
from vidtwin.loading import build_evaluation_loader, build_loader
from vidtwin.losses import AutoencoderLoss, LossConfig
from vidtwin.media import write_video
from vidtwin.metrics import Lpips
from vidtwin.validation import mean_measures, measure_reconstructions


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One autoencoder run.

    Args:
        output: run folder; a run that is found there is resumed.
        init_from: weights to start from: a saved autoencoder's folder, or a released
            .ckpt/.safetensors (its discriminator comes along if it is there).
        seed: of weights, order of data and noise.
        steps: optimizer steps of the whole run.
        batch_size: clips per step, over all processes and micro-batches.
        accumulation: micro-batches that a step's batch is cut into on each process.
        mixed_precision: "no" or "bf16"; None leaves it to `accelerate launch`.
        gradient_checkpointing: recompute activations in the backward pass to save memory.
        compile: run the model through torch.compile.
        num_workers: processes that read data, for each process that trains.
        validation_samples: clips to validate on; 0 turns validation off.
        validation_batch_size: of each process.
        log_every, validate_every, save_every: in steps.
        keep_checkpoints: how many of the newest stay; None keeps all.
        max_nonfinite_steps: steps in a row without a finite loss and gradient that stop the run.
        tracker: "none", "tensorboard" or "wandb"; metrics.jsonl is written in any case.
        project: the tracker's project.
        data: its num_frames, height and width follow the model's.
    """

    output: str = "outputs/autoencoder"
    init_from: str | None = None
    seed: int = 0
    steps: int = 100_000
    batch_size: int = 24
    accumulation: int = 1
    mixed_precision: str | None = None
    gradient_checkpointing: bool = False
    compile: bool = False
    num_workers: int = 4
    validation_samples: int = 64
    validation_batch_size: int = 4
    log_every: int = 50
    validate_every: int = 2000
    save_every: int = 1000
    keep_checkpoints: int | None = 3
    max_nonfinite_steps: int = 10
    tracker: str = "none"
    project: str = "vidtwin-autoencoder"
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
        for name in ("steps", "batch_size", "accumulation", "validation_batch_size", "log_every",
                     "validate_every", "save_every"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}")
        if self.mixed_precision not in (None, "no", "bf16"):
            raise ValueError(
                f'`mixed_precision` must be "no", "bf16" or null, got {self.mixed_precision!r}'
            )
        default = DataConfig()
        sizes = {name: getattr(self.model, name) for name in ("num_frames", "height", "width")}
        for name, size in sizes.items():
            if getattr(self.data, name) not in (getattr(default, name), size):
                raise ValueError(
                    f"data.{name}={getattr(self.data, name)} differs from model.{name}={size}; "
                    f"remove data.{name}, it follows the model's"
                )
        object.__setattr__(self, "data", dataclasses.replace(self.data, **sizes))


# What a resumed run may change without becoming another run.
CHANGEABLE = ("output", "steps", "num_workers", "compile", "gradient_checkpointing", "accumulation",
              "log_every", "validate_every", "save_every", "keep_checkpoints", "tracker", "project",
              "validation_*")  # fmt: skip


def main() -> None:
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    arguments = runtime.parse_arguments("Trains a VidTwin autoencoder.")
    config = runtime.load_config(TrainConfig, arguments.config, arguments.overrides)
    if arguments.overfit:
        config = dataclasses.replace(config, data=overfit_data(config.data, arguments.overfit))
    if arguments.dry_run:
        describe(config)
        return
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
    micro = accelerator.num_processes * config.accumulation
    if config.batch_size % micro:
        raise ValueError(
            f"`batch_size` must be a multiple of processes x accumulation = {micro}, "
            f"got {config.batch_size}; set batch_size={-(-config.batch_size // micro) * micro}"
        )
    folder = runtime.RunFolder(config.output, config.keep_checkpoints)
    folder.claim(config, CHANGEABLE)
    train(config, accelerator, folder, arguments.resume)


def train(
    config: TrainConfig,
    accelerator: Accelerator,
    folder: runtime.RunFolder,
    resume: str | None,
) -> None:
    """The whole run: builds, resumes, loops, saves."""
    torch.manual_seed(config.seed)
    dataset = build_dataset(config.data)
    plain, plain_discriminator, objective = build_models(
        config.model, config.discriminator, config.loss, config.init_from
    )
    if config.gradient_checkpointing:
        plain.enable_gradient_checkpointing()
    plain.to(accelerator.device)
    objective.to(accelerator.device)
    optimizer = runtime.build_optimizer(
        [*plain.parameters(), *objective.parameters()], config.optimizer
    )
    model, discriminator, optimizer, discriminator_optimizer = accelerator.prepare(
        torch.compile(plain) if config.compile else plain,
        plain_discriminator,
        optimizer,
        runtime.build_optimizer(plain_discriminator.parameters(), config.discriminator_optimizer),
    )
    schedulers = [
        runtime.build_scheduler(optimizer, config.optimizer, config.steps),
        runtime.build_scheduler(
            discriminator_optimizer, config.discriminator_optimizer, config.steps
        ),
    ]
    ema = runtime.build_ema(plain, config.ema)
    guard = runtime.NonFiniteGuard(config.max_nonfinite_steps)
    accelerator.register_for_checkpointing(
        objective, guard, *schedulers, *([] if ema is None else [ema])
    )
    start = runtime.resume(accelerator, folder, resume)
    batches = iter(
        build_loader(
            dataset,
            batch_size=config.batch_size,
            seed=config.seed,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            start_batch=start,
            num_workers=config.num_workers,
        )
    )
    trackers = runtime.build_trackers(
        accelerator, config.tracker, config.project, folder, config,
        start_step=start, video_writer=write_video,
    )  # fmt: skip
    reduce_mean = runtime.mean_over_processes(accelerator)
    timer = runtime.StepTimer()
    bar = runtime.progress_bar(config.steps, start, not accelerator.is_main_process, "autoencoder")

    for step in range(start, config.steps):
        runtime.seed_step(config.seed, accelerator.process_index, step)
        with timer.data():
            batch = next(batches)
        logs: dict[str, Any] = {}
        pairs = []
        for video, noise, last in micro_batches(batch, config, accelerator.device):
            with contextlib.nullcontext() if last else accelerator.no_sync(model):
                output = model(video, sample_posterior=True, noise=noise)
                loss, terms = objective.generator(
                    video, output.reconstruction, output.posterior, step=step,
                    discriminator=discriminator, last_weight=plain.decoder_last_weight,
                    reduce_gradient=reduce_mean,
                )  # fmt: skip
                accelerator.backward(loss / config.accumulation)
            runtime.add_share(logs, "loss", terms, config.accumulation)
            pairs.append((video, output.reconstruction.detach()))
        norm = runtime.clip_gradients(
            accelerator, plain.parameters(), config.optimizer.max_grad_norm
        )
        logs["gradient_norm"] = norm
        if guard.ok(accelerator, logs["loss/total"], norm):
            optimizer.step()
            if ema is not None:
                ema.step(plain.parameters())
            if objective.discriminator_active(step):
                logs |= discriminator_step(
                    config, accelerator, objective, discriminator, discriminator_optimizer,
                    guard, pairs, step,
                )  # fmt: skip
        optimizer.zero_grad()
        for scheduler in schedulers:
            scheduler.step()
        done = step + 1
        timer.step(config.batch_size)
        bar.update()
        if done % config.log_every == 0 or done == config.steps:
            rates = {"learning_rate": optimizer.param_groups[0]["lr"],
                     "nonfinite_steps": guard.total}  # fmt: skip
            averaged = {name: reduce_mean(value) for name, value in logs.items()}
            trackers.log({**averaged, **rates, **timer.report()}, done)
            bar.set_postfix(loss=f"{float(averaged['loss/total']):.4g}")
        if config.validation_samples and (
            done % config.validate_every == 0 or done == config.steps
        ):
            with runtime.ema_weights(ema, plain):
                values, sheet = validate(config, accelerator, plain, objective.lpips)
            trackers.log(values, done)
            if sheet is not None:
                trackers.log_video("validation/input_both_structure_dynamics", sheet, done, 8.0)
            bar.write(f"step {done}: " + ", ".join(f"{k} {v:.4g}" for k, v in values.items()))
        if done % config.save_every == 0 or done == config.steps:
            folder.checkpoints.save(accelerator, done, {})
            if accelerator.is_main_process:
                runtime.export_weights(folder, "autoencoder", plain, ema)
    bar.close()
    trackers.finish()


def discriminator_step(
    config: TrainConfig,
    accelerator: Accelerator,
    objective: AutoencoderLoss,
    discriminator: torch.nn.Module,
    optimizer: Any,
    guard: runtime.NonFiniteGuard,
    pairs: list[tuple[torch.Tensor, torch.Tensor]],
    step: int,
) -> dict[str, Any]:
    """One update of the discriminator on the step's videos and their reconstructions."""
    logs: dict[str, Any] = {}
    for index, (video, reconstruction) in enumerate(pairs):
        last = index == len(pairs) - 1
        with contextlib.nullcontext() if last else accelerator.no_sync(discriminator):
            loss, terms = objective.discriminator_loss(
                discriminator, video, reconstruction, step,
                reduce_mean=runtime.mean_over_processes(accelerator),
            )  # fmt: skip
            accelerator.backward(loss / len(pairs))
        runtime.add_share(logs, "discriminator", terms, len(pairs))
    norm = runtime.clip_gradients(
        accelerator, discriminator.parameters(), config.discriminator_optimizer.max_grad_norm
    )
    if guard.ok(accelerator, logs["discriminator/total"], norm):
        optimizer.step()
    optimizer.zero_grad()
    return {**logs, "discriminator/gradient_norm": norm}


def micro_batches(
    batch: dict[str, Any], config: TrainConfig, device: torch.device
) -> Iterator[tuple[torch.Tensor, VidTwinLatents, bool]]:
    """(video, posterior noise, whether it is the last) for each part of this process's batch."""
    size = len(batch["video"]) // config.accumulation
    for index in range(config.accumulation):
        part = slice(index * size, (index + 1) * size)
        noise = draw_noise(config.model, batch["noise_seed"][part].tolist())
        video = batch["video"][part].to(device, non_blocking=True)
        yield video, noise.to(device), index == config.accumulation - 1


def validate(
    config: TrainConfig,
    accelerator: Accelerator,
    model: VidTwinAutoencoder,
    lpips: Lpips | None,
) -> tuple[dict[str, float], Any]:
    """Means over the validation clips, and this process's first ones as a video."""
    part = "validation" if config.data.start == "random" else config.data.part
    data = dataclasses.replace(config.data, part=part, start="center", crop="center")
    loader = build_evaluation_loader(
        build_dataset(data),
        batch_size=config.validation_batch_size,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        max_samples=config.validation_samples,
    )
    rows, sheet = measure_reconstructions(
        model, loader, autocast=accelerator.autocast, lpips=lpips
    )
    means = mean_measures(runtime.gather_rows(accelerator, rows))
    return {f"validation/{name}": value for name, value in means.items()}, sheet


def overfit_data(data: DataConfig, clips: int) -> DataConfig:
    """The first clips alone, each with one window and one crop, to learn by heart."""
    return dataclasses.replace(data, max_clips=clips, start="center", crop="center", flip=False)


def describe(config: TrainConfig) -> None:
    """Prints the resolved config, parameter counts and latent shapes, without training."""
    print(runtime.format_config(config))
    with torch.device("meta"):
        counted = {
            "autoencoder": VidTwinAutoencoder(**dataclasses.asdict(config.model)),
            "discriminator": PatchDiscriminator(config.discriminator),
        }
    for name, module in counted.items():
        print(f"{name}: {sum(p.numel() for p in module.parameters()):,} parameters")
    model = config.model
    print(f"video: {model.video_shape}")
    for name in ("structure", "dynamics_x", "dynamics_y"):
        print(f"{name}: {getattr(model, name + '_shape')}")
    print(f"{model.numel_per_clip:,} latent values per clip, rate {model.compression_rate:.4%}")


if __name__ == "__main__":
    runtime.run_main(main, TooManyBadFiles)
