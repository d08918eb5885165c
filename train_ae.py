"""Trains a VidTwin autoencoder.

    python train_ae.py --config configs/ae/shapes.yaml output=outputs/shapes
    accelerate launch train_ae.py --config configs/ae/official.yaml data.path=clips.csv

Run the same command again and it goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidtwin.config import (
    AutoencoderConfig,
    BranchDropout,
    DiscriminatorConfig,
    FrameShuffle,
    LossConfig,
)
from vidtwin.data import DataConfig, TooManyBadFiles
from vidtwin.files import shipped_path
from vidtwin.seams import check_mending
from vidtwin_lab import runtime

if TYPE_CHECKING:
    from torch import Tensor

    from vidtwin.discriminator import PatchDiscriminator
    from vidtwin.losses import AutoencoderLoss

    Run = runtime.TrainingRun["TrainConfig"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(runtime.RunConfig):
    """One autoencoder run; the other keys are `vidtwin_lab.runtime.RunConfig`'s.

    Args:
        init_from: weights to start from: a saved autoencoder's folder, or a released
            .ckpt/.safetensors (its discriminator comes along if it is there).
        mend_seams: add the model's parts against seams, new, to weights that have none.
        branch_dropout: how often a clip is decoded without structure or without dynamics.
        frame_shuffle: how often a clip's structure is encoded from shuffled frames.
        latent_noise: standard deviation of noise that is added to the latents before they are
            decoded, for a decoder that forgives a generator's mistakes.
        freeze_encoder: train the decoder alone; latents that were cached stay valid.
        overfit: learn the first N clips by heart, one window and crop each, and validate on them.
        data: its num_frames, height and width follow the model's.
    """

    output: str = "outputs/autoencoder"
    project: str = "vidtwin-autoencoder"
    init_from: str | None = None
    mend_seams: bool = False
    branch_dropout: BranchDropout = BranchDropout()
    frame_shuffle: FrameShuffle = FrameShuffle()
    latent_noise: float = 0.0
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

    def __post_init__(self) -> None:
        super().__post_init__()
        check_mending(self.mend_seams, self.init_from, self.model)
        if not 0 <= self.latent_noise < math.inf:
            raise ValueError(f"`latent_noise` must be finite, 0 or more, got {self.latent_noise}")

    def check_files(self, dry_run: bool = False) -> None:
        super().check_files(dry_run)
        encoder = self.loss.alignment.encoder
        if encoder is not None and not Path(encoder, "config.json").is_file():
            told = f"no image encoder in {encoder}, it has no config.json"
            raise ValueError(f"loss.alignment.encoder: {told}")
        if dry_run:
            return
        self.data.check_files()
        if self.init_from is not None and not shipped_path(self.init_from).exists():
            raise ValueError(
                f"init_from: no checkpoint file at {self.init_from}, and no folder of a model"
            )

    def resolved(self) -> TrainConfig:
        """The config with the clips that it trains on."""
        data = self.data.sized(self.model.num_frames, self.model.height, self.model.width)
        return dataclasses.replace(self, data=data.first(self.overfit) if self.overfit else data)


# A discriminator normalises and is averaged over each micro-batch of all processes, and weighs the
# adversarial loss by it: a batch that is cut otherwise would go on as another training.
FIXED_WITH_DISCRIMINATOR = ("accumulation",)
# Where the clips lie and how they are read may change while a run goes on, which they are may not.
DATA_MAY_CHANGE = (
    *("data.path", "data.root", "data.timeout", "data.max_pixels", "data.max_frames"),
    *("data.max_bad_fraction", "init_from"),
)

STARTERS = ("configs/ae/shapes_debug.yaml", "configs/ae/clips_64.yaml")


def main() -> None:
    """Reads the command line, then describes the run or trains."""
    config, arguments = runtime.read_training_config(__doc__ or "", TrainConfig, STARTERS)
    if arguments.dry_run:
        from vidtwin.building import describe_models

        print(runtime.format_config(config))
        print(describe_models(config.model, config.discriminator))
        return
    train(config, arguments.resume)


def train(config: TrainConfig, resume: str | None) -> None:
    """Trains the steps that are left."""
    from vidtwin.building import build_models
    from vidtwin.data import build_dataset, build_loader
    from vidtwin.media import write_video

    fixed = FIXED_WITH_DISCRIMINATOR if config.loss.discriminator_weight > 0 else ()
    run = runtime.TrainingRun(config, DATA_MAY_CHANGE, fixed)
    accelerator = run.accelerator
    dataset, held_out = build_dataset(config.data), held_out_clips(run)
    how = (config.model, config.discriminator, config.loss, config.init_from)
    model, discriminator, objective = build_models(*how, config.freeze_encoder, config.mend_seams)
    run.prepare(model, objective)
    adversary = None
    if config.loss.discriminator_weight > 0:
        adversary = Adversary(run, discriminator, objective)
    run.resume(
        resume,
        {
            "objective": objective,
            **({} if adversary is None else {"discriminator_guard": adversary.guard}),
        },
        write_video,
    )
    loader = build_loader(
        dataset,
        batch_size=config.batch_size,
        seed=config.seed,
        start_batch=run.start_step,
        num_workers=config.num_workers,
        **run.ranks,
    )
    if run.start_step:  # a kill may have come between the checkpoint and this, or damage after it
        run.export("autoencoder")
        if held_out is not None and run.validation_pending:
            validate(run, held_out, objective, run.start_step - 1)

    for step, batch in run.steps(loader, "autoencoder"):
        logs: dict[str, Any] = {"learning_rate": run.learning_rate}
        pairs = []
        if adversary is not None:
            adversary.statistics.keep()
        for video, inputs, sync in micro_batches(run, batch):
            with sync:
                output = run.model(video, sample_posterior=True, **inputs)
                loss, terms = objective.generator_loss(
                    video,
                    output.reconstruction,
                    output.posterior,
                    step=step,
                    discriminator=None if adversary is None else adversary.discriminator,
                    last_weight=model.decoder_last_weight,
                    reduce_gradient=run.mean,
                )
                accelerator.backward(loss / config.accumulation)
            runtime.add_share(logs, "loss", terms, config.accumulation)
            pairs.append((video, output.reconstruction.detach()))
        logs["gradient_norm"] = norm = run.clip_gradients()
        if run.guard.ok(accelerator, logs["loss/total"], norm):
            run.optimizer.step()
            run.update_ema()
            if adversary is not None and objective.discriminator_active(step):
                logs |= adversary.step(pairs, step)
        elif adversary is not None:
            adversary.statistics.put_back()
        run.optimizer.zero_grad()
        run.log(step, logs)
        if held_out is not None and run.validates(step):
            validate(run, held_out, objective, step)
        if run.due(step, config.save_every):
            run.save(step)
            run.export("autoencoder")


def held_out_clips(run: Run) -> Any:
    """The loader of the clips that are validated on; None if there are none."""
    from vidtwin.data import build_dataset, build_evaluation_loader

    config = run.config
    if not config.validation_samples:
        return None
    part = config.data.part if config.overfit else "validation"
    return build_evaluation_loader(
        build_dataset(dataclasses.replace(config.data.centered(), part=part)),
        batch_size=config.validation_batch_size,
        max_samples=config.validation_samples,
        **run.ranks,
    )


def validate(run: Run, clips: Any, objective: AutoencoderLoss, step: int) -> None:
    """Measures the averaged weights on the validation clips."""
    from vidtwin.metrics import mean_measures, measure_reconstructions

    config = run.config
    with run.validation(step) as model:
        rows, sheet = measure_reconstructions(
            model, clips, autocast=run.accelerator.autocast, lpips=objective.lpips
        )
    means = mean_measures(runtime.gather_rows(run.accelerator, rows))
    run.trackers.log_validation(means, step + 1)
    if sheet is not None:
        name = "validation/input_both_structure_dynamics"
        run.trackers.log_video(name, sheet, step + 1, config.data.fps or 8.0)


class Adversary:
    """The discriminator's side of a step: its own optimizer and update."""

    def __init__(
        self,
        run: Run,
        discriminator: PatchDiscriminator,
        objective: AutoencoderLoss,
    ) -> None:
        config = run.config
        self.accelerator, self.objective, self.mean = run.accelerator, objective, run.mean
        self.guard = run.new_guard()
        settings = config.discriminator_optimizer
        self.max_grad_norm = settings.max_grad_norm
        self.discriminator = run.accelerator.prepare(discriminator)
        # Of batch norm and LeCAM: a skipped step must not have changed them either.
        self.statistics = runtime.BufferGuard(
            [*discriminator.buffers(), *objective.buffers(recurse=False)]
        )
        self.optimizer = run.add_optimizer(settings, discriminator, key="discriminator_optimizer")

    def step(self, pairs: list[tuple[Tensor, Tensor]], step: int) -> dict[str, Any]:
        """One update on the step's videos and their reconstructions; returns its logs."""
        logs: dict[str, Any] = {"discriminator/learning_rate": self.optimizer.param_groups[0]["lr"]}
        self.statistics.keep()
        for index, (video, reconstruction) in enumerate(pairs):
            with runtime.sync_on_last(self.accelerator, self.discriminator, index, len(pairs)):
                loss, terms = self.objective.discriminator_loss(
                    self.discriminator, video, reconstruction, step, reduce_mean=self.mean
                )
                self.accelerator.backward(loss / len(pairs))
            runtime.add_share(logs, "discriminator", terms, len(pairs))
        norm = runtime.clip_gradients(self.discriminator.parameters(), self.max_grad_norm)
        if self.guard.ok(self.accelerator, logs["discriminator/total"], norm):
            self.optimizer.step()
        else:
            self.statistics.put_back()
        self.optimizer.zero_grad()
        return {**logs, "discriminator/gradient_norm": norm}


def micro_batches(
    run: Run, batch: dict[str, Any]
) -> Iterator[tuple[Tensor, dict[str, Any], AbstractContextManager[Any]]]:
    """(video, the model's other inputs, context of its backward pass) of each micro-batch."""
    from vidtwin.branches import branch_videos, branch_weights, latent_noise
    from vidtwin.data import PAIRED_AUGMENTATIONS
    from vidtwin.latents import draw_noise

    config, accelerator = run.config, run.accelerator
    size = len(batch["video"]) // config.accumulation
    for index in range(config.accumulation):
        part = slice(index * size, (index + 1) * size)
        seeds = batch["noise_seed"][part].tolist()
        video = batch["video"][part].to(accelerator.device, non_blocking=True)
        noise = draw_noise(config.model, seeds).to(accelerator.device)
        inputs = {"noise": noise, "branch_weights": branch_weights(config.branch_dropout, seeds)}
        if config.latent_noise:
            added = latent_noise(config.model, config.latent_noise, seeds)
            inputs["latent_noise"] = added.to(accelerator.device)
        names = [name for name in PAIRED_AUGMENTATIONS if name in batch]
        paired = {name: batch[name][part].to(video.device) for name in names}
        inputs |= branch_videos(video, paired, seeds, config.frame_shuffle)
        sync = runtime.sync_on_last(accelerator, run.model, index, config.accumulation)
        yield video, inputs, sync


if __name__ == "__main__":
    runtime.run_main(main, TooManyBadFiles)
