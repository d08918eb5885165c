"""Trains a diffusion transformer over the latents of a frozen VidTwin autoencoder.

    python train_diffusion.py --config configs/diffusion/shapes.yaml
    accelerate launch train_diffusion.py --config configs/diffusion/clips.yaml cache=latents/clips

Run the same command again and it goes on where it stopped. `OUTPUT/pipeline` is ready for
sample.py after every checkpoint.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from diffusion import FlowConfig
from diffusion.building import TransformerConfig
from diffusion.conditioning import GuidanceScales
from diffusion.inputs import check_count, prompt_list
from vidtwin.data import DataConfig, TooManyBadFiles
from vidtwin_lab import runtime

if TYPE_CHECKING:
    import torch

    from diffusion import VidTwinPipeline
    from diffusion.run_parts import RunParts
    from diffusion.training_batch import BatchReader

    Run = runtime.TrainingRun["TrainConfig"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(runtime.RunConfig):
    """One diffusion run; the other keys are `vidtwin_lab.runtime.RunConfig`'s.

    Args:
        autoencoder: folder of the frozen autoencoder, or the run folder of its training.
        cache: folder of encode.py with `train` and, for validation, `validation` in it; None
            encodes the videos of `data` at every step.
        data: for a run without a cache; its sizes follow the autoencoder's.
        stats_samples: clips that the latents' statistics are measured on, without a cache.
        class_conditional: learn the classes of the data set.
        text_encoder: folder or hub id of the encoder that reads captions; None for no text.
        text_layer: which of its hidden states; -1 is the last.
        max_text_length: in tokens; None for what the encoder takes.
        class_dropout, text_dropout: share of the samples that learn without the condition.
        given_dropout: the same where structure or dynamics are given clean, if it is larger.
        init_from: folder of a saved transformer to start from.
        overfit: learn the first N clips by heart.
        sample_prompts, sample_classes: of the videos that validation makes, seeds 0, 1, ...
        sample_steps, sample_guidance_scale: how they are made.
    """

    output: str = "outputs/diffusion"
    project: str = "vidtwin-diffusion"
    autoencoder: str = "checkpoints/shapes/autoencoder"
    cache: str | None = None
    data: DataConfig = DataConfig()
    stats_samples: int = 512
    class_conditional: bool = False
    text_encoder: str | None = None
    text_layer: int = -1
    max_text_length: int | None = None
    class_dropout: float = 0.1
    text_dropout: float = 0.1
    given_dropout: float = 0.5
    init_from: str | None = None
    overfit: int | None = None
    sample_prompts: tuple[str, ...] = ()
    sample_classes: tuple[str, ...] = ()
    sample_steps: int = 30
    sample_guidance_scale: float = 3.0
    model: TransformerConfig = TransformerConfig()
    flow: FlowConfig = FlowConfig()
    optimizer: runtime.OptimizerConfig = runtime.OptimizerConfig(weight_decay=0.0)
    ema: runtime.EMAConfig = runtime.EMAConfig()

    RENAMED_KEYS: ClassVar[dict[str, str]] = {"held_dropout": "given_dropout"}

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("class_dropout", "text_dropout", "given_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must lie in [0, 1], got {getattr(self, name)}")
        check_count("stats_samples", self.stats_samples)
        GuidanceScales(self.sample_guidance_scale)
        prompt_list(self.sample_prompts or None, "sample_prompts")
        self.flow.check_steps("sample_steps", self.sample_steps)
        for name, needed in (("prompts", "text_encoder"), ("classes", "class_conditional")):
            if getattr(self, f"sample_{name}") and not getattr(self, needed):
                raise ValueError(
                    f"`sample_{name}` are asked of a run without {needed}; set sample_{name}=[]"
                )

    def resolved(self) -> TrainConfig:
        """The config with the clips that it trains on."""
        if self.overfit and self.cache is None:
            return dataclasses.replace(self, data=self.data.first(self.overfit))
        return self


# Where files lie and what is shown may change while a run goes on.
MODELS_MAY_MOVE = ("autoencoder", "text_encoder", "init_from")
MAY_CHANGE = (*MODELS_MAY_MOVE, "cache", "data.path", "data.root", "sample_*")


def main() -> None:
    """Reads the command line, then describes the run or trains."""
    about = "Trains a diffusion transformer over VidTwin latents."
    config, arguments = runtime.read_training_config(about, TrainConfig)
    if arguments.dry_run:
        describe(config)
    else:
        train(config, arguments.resume)


def describe(config: TrainConfig) -> None:
    """Prints the config, the transformer's sizes, and the clips."""
    from diffusion.building import describe_transformer

    parts = find_parts(config, "cpu", dry_run=True)
    print(runtime.format_config(config))
    print(describe_transformer(parts.sizes))
    print(f"clips: {len(parts.dataset):,}; classes: {', '.join(parts.class_names) or 'none'}")


def find_parts(
    config: TrainConfig, device: torch.device | str, *, dry_run: bool = False
) -> RunParts:
    """The frozen models and the data of a run."""
    from diffusion.run_parts import RunParts

    parts = RunParts(
        autoencoder=config.autoencoder,
        untrained=dry_run,
        cache=config.cache,
        data=config.data,
        overfit=config.overfit,
        validates=config.validation_samples > 0,
        class_conditional=config.class_conditional,
        text_encoder=config.text_encoder,
        text_layer=config.text_layer,
        max_text_length=config.max_text_length,
        transformer=config.model,
        device=device,
    )
    parts.check_classes(config.sample_classes)
    return parts


def train(config: TrainConfig, resume: str | None) -> None:
    """Trains the steps that are left."""
    from diffusion import FlowObjective
    from diffusion.building import build_transformer
    from diffusion.training_batch import losses_of
    from vidtwin.media import write_video

    run = runtime.TrainingRun(config, MAY_CHANGE)
    accelerator = run.accelerator
    parts = find_parts(config, accelerator.device)
    objective = FlowObjective(config.flow)
    run.prepare(build_transformer(parts.sizes, config.init_from))
    run.resume(resume, parts, video_writer=write_video)
    if not run.start_step:
        parts.measure_stats(config.stats_samples, config.validation_batch_size)
    pipeline = build_pipeline(run, parts)
    reader = parts.reader(
        objective,
        class_dropout=config.class_dropout,
        text_dropout=config.text_dropout,
        given_dropout=config.given_dropout,
    )
    batches = parts.training_batches(
        batch_size=config.batch_size,
        seed=config.seed,
        start_batch=run.start_step,
        num_workers=config.num_workers,
        **run.ranks,
    )
    if run.finished:
        export(run)  # a kill may have come between the last checkpoint and this

    for step, batch in run.steps(batches, "diffusion"):
        logs: dict[str, Any] = {"learning_rate": run.learning_rate}
        size = len(batch["index"]) // config.accumulation
        for index in range(config.accumulation):
            part = reader.read(batch, slice(index * size, (index + 1) * size))
            with runtime.sync_on_last(accelerator, run.model, index, config.accumulation):
                with accelerator.autocast():
                    losses = losses_of(run.model, objective, part)
                accelerator.backward(losses.total.mean() / config.accumulation)
            terms = {name: value.detach().mean() for name, value in losses._asdict().items()}
            runtime.add_share(logs, "loss", terms, config.accumulation)
        logs["gradient_norm"] = norm = run.clip_gradients()
        if run.guard.ok(accelerator, logs["loss/total"], norm):
            run.optimizer.step()
            run.update_ema()
        run.optimizer.zero_grad()
        run.scheduler.step()
        run.log(step, logs)
        if run.due(step, config.validate_every):
            validate(run, parts, reader, pipeline, step)
        if run.due(step, config.save_every):
            run.save(step)
            export(run)


def build_pipeline(run: Run, parts: RunParts) -> VidTwinPipeline:
    """The pipeline around the model; its frozen parts are written once, before training."""
    from diffusion.building import build_sampling_scheduler

    folder = run.folder.path / "pipeline"
    model: Any = run.unwrapped
    pipeline = parts.pipeline(model, build_sampling_scheduler(run.config.flow))
    # A run that goes on from another's checkpoint has none yet; the index is written last.
    begun = run.folder.checkpoints.latest() and (folder / "model_index.json").is_file()
    if run.accelerator.is_main_process and not begun:
        pipeline.save_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def export(run: Run) -> None:
    """Puts the averaged weights into the pipeline's folder."""
    if run.accelerator.is_main_process:
        with run.averaged():
            runtime.replace_weights(run.folder.path / "pipeline" / "transformer", run.unwrapped)


def validate(
    run: Run, parts: RunParts, reader: BatchReader, pipeline: VidTwinPipeline, step: int
) -> None:
    """Held-out losses of the averaged weights, and videos for fixed prompts and seeds."""
    from diffusion.validation import measure_losses
    from vidtwin.validation import mean_measures

    config, accelerator = run.config, run.accelerator
    model: Any = run.unwrapped
    with run.averaged():
        if config.validation_samples:
            held_out = parts.held_out_batches(
                batch_size=config.validation_batch_size,
                max_samples=config.validation_samples,
                **run.ranks,
            )
            rows = measure_losses(model, reader, held_out, autocast=accelerator.autocast)
            means = mean_measures(runtime.gather_rows(accelerator, rows))
            run.trackers.log_validation(means, step + 1)
        if accelerator.is_main_process:
            sample(run, pipeline, "prompt", config.sample_prompts, step)
            sample(run, pipeline, "class_labels", config.sample_classes, step)


def sample(run: Run, pipeline: Any, condition: str, asked: Sequence[str], step: int) -> None:
    """One video for each, side by side."""
    from einops import rearrange

    from vidtwin.media import to_uint8

    if not asked:
        return
    videos = pipeline(
        **{condition: list(asked)},
        num_inference_steps=run.config.sample_steps,
        guidance_scale=run.config.sample_guidance_scale,
        seed=list(range(len(asked))),
    ).videos
    row = to_uint8(rearrange(2 * videos - 1, "b c t h w -> c t h (b w)"))
    run.trackers.log_video(f"validation/{condition}", row, step + 1, pipeline.config["fps"])


if __name__ == "__main__":
    runtime.run_main(main, TooManyBadFiles)
