"""What a training of the transformer needs beside its loop: the model, its batches, its losses.

Everything random about a sample follows from its own seed, so a batch means the same on one
process and on many.

Axes: B batch, C channels, T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from diffusion.cached_text_encoder import CachedTextEncoder
from diffusion.conditions import (
    ActionEmbedder,
    ClassEmbedder,
    ConditionEmbedder,
    Conditions,
    TextEmbedder,
)
from diffusion.config import DiTConfig, InputsConfig, TransformerConfig
from diffusion.dit import TwinDiT
from diffusion.flow import (
    NUM_UNIFORMS,
    FlowLosses,
    FlowObjective,
    Levels,
    draw_uniforms,
    quantile,
)
from diffusion.given_frames import FramesEmbedder
from diffusion.inputs import class_indices
from diffusion.latent_sources import LatentSource, open_source
from diffusion.latent_stats import LatentStats
from diffusion.pipeline import VidTwinPipeline
from diffusion.schedulers import sampling_prediction
from diffusion.text_encoder import TextEncoder
from diffusion.text_loading import find_encoder
from diffusion.training_files import find_transformer
from vidtwin import VidTwinLatents, draw_noise, load_autoencoder

__all__ = [
    "TrainingBatch",
    "TrainingInputs",
    "build_inputs",
    "build_transformer",
    "describe_training",
    "describe_transformer",
    "losses_of",
    "measure_losses",
]

# The sample's seed itself draws the posterior's noise; these keep the other draws apart from it.
NOISE_STREAM = 0x2545F4914F6CDD1D
LEVELS_STREAM = 1
DROPOUT_STREAM = 2
GIVEN_STREAM = 5  # 3 and 4 are the autoencoder's
DRAWS_STREAM = 0x1B873593CC9E2D51  # keeps the draws of a clip apart
QUANTILES = 4


@dataclass(frozen=True)
class TrainingBatch:
    """Scaled latents, the noise and levels they are mixed by, and what is asked of them."""

    latents: VidTwinLatents
    noise: VidTwinLatents
    levels: Levels
    conditions: Conditions


class TrainingInputs:
    """The frozen parts of a run, and the training batches that they make.

    Args:
        source: of raw latents.
        objective: draws the noise levels.
        embedders: make the conditions; in training, each is left out by its own dropout.
        given_dropout: the least share of leaving out each condition where a latent is given
            clean: what structure or dynamics of another video are continued with mostly comes
            without a prompt.
        noise_draws: how often each clip of a batch is learned.
    """

    def __init__(
        self,
        source: LatentSource,
        objective: FlowObjective,
        embedders: Sequence[ConditionEmbedder] = (),
        given_dropout: float = 0.5,
        noise_draws: int = 1,
    ) -> None:
        self.source, self.objective = source, objective
        self.embedders, self.given_dropout = list(embedders), given_dropout
        self.noise_draws = noise_draws
        self.device = source.device
        sizes = source.autoencoder.sizes
        # Until they are measured, or come with a checkpoint.
        stats = LatentStats(sizes.structure_channels, sizes.dynamics_channels)
        self.stats = stats.to(self.device)

    @cached_property
    def digests(self) -> dict[str, str | None]:
        """Of all weights and data that latents and conditions follow from."""
        found = self.source.digests()
        for embedder in self.embedders:
            found |= embedder.digests()
        return found

    @property
    def class_names(self) -> list[str]:
        """The classes that are a condition; none for a run without them."""
        found = [e.class_names for e in self.embedders if isinstance(e, ClassEmbedder)]
        return found[0] if found else []

    def transformer_sizes(self, config: TransformerConfig) -> DiTConfig:
        """The sizes of the run's transformer; they follow from latents and conditions."""
        of_conditions = {k: value for e in self.embedders for k, value in e.sizes().items()}
        return config.sizes(self.source.autoencoder.sizes, of_conditions)

    def train_batches(self, **settings: Any) -> Iterable[dict[str, Any]]:
        """This rank's endless batches; settings as of `vidtwin.build_loader`."""
        for embedder in self.embedders:
            if isinstance(embedder, TextEmbedder):
                embedder.read_ahead(self.source.all_captions())
        return self.source.train_batches(**settings)

    def read(self, batch: Mapping[str, Any], part: slice = slice(None)) -> TrainingBatch:
        """Some samples of a batch.

        Args:
            batch: of the source's loader.
            part: which samples.
        """
        batch = {name: values[part] for name, values in batch.items()}
        latents = self.latents(batch)
        conditions = self.conditions(batch, batch["noise_seed"].tolist())
        if self.noise_draws > 1:
            latents = latents.map(self._repeated)
            conditions = conditions.map(lambda condition: condition.map(self._repeated))
        seeds = [
            seed ^ draw * DRAWS_STREAM % 2**63
            for seed in batch["noise_seed"].tolist()
            for draw in range(self.noise_draws)
        ]
        uniforms = draw_uniforms(seeds, NUM_UNIFORMS, LEVELS_STREAM)
        uniforms = uniforms.to(self.device, torch.float32)
        levels = self.objective.draw_levels(uniforms)
        given = (levels.structure == 0) | (levels.dynamics == 0)
        # A latent that is clean because it led was not given, and is asked for like the other.
        given = given & ~self.objective.leads(uniforms)
        dropout = {
            embedder.condition.name: torch.where(
                given, max(self.given_dropout, embedder.dropout), embedder.dropout
            )
            for embedder in self.embedders
        }
        columns = 1 + max([e.condition.dropout_column for e in self.embedders], default=0)
        uniforms = draw_uniforms(seeds, columns, DROPOUT_STREAM).to(self.device, torch.float32)
        return TrainingBatch(latents, self.noise(seeds), levels, conditions.drop(uniforms, dropout))

    def _repeated(self, values: torch.Tensor) -> torch.Tensor:
        """(B, ...) to (B draws, ...), the draws of each sample beside each other."""
        return values.repeat_interleave(self.noise_draws, dim=0)

    def noise_and_conditions(
        self, batch: Mapping[str, Any], part: slice = slice(None)
    ) -> tuple[VidTwinLatents, Conditions]:
        """What some samples of a batch start from and are asked for, without their latents."""
        batch = {name: values[part] for name, values in batch.items()}
        return self.noise(batch["noise_seed"].tolist()), self.conditions(batch)

    def latents(self, batch: Mapping[str, Any]) -> VidTwinLatents:
        """The scaled latents of a batch."""
        with torch.no_grad():
            return self.stats.scale(self.source.latents(batch))

    def noise(self, seeds: Sequence[int]) -> VidTwinLatents:
        """Each sample's noise from its own seed."""
        seeds = [seed ^ NOISE_STREAM for seed in seeds]
        return draw_noise(self.source.autoencoder.sizes, seeds).to(self.device)

    def conditions(
        self, batch: Mapping[str, Any], seeds: Sequence[int] | None = None
    ) -> Conditions:
        """The conditions of a batch, none left out.

        Args:
            batch: of the source's loader.
            seeds: that draw which frames are given; None gives none.
        """
        found = Conditions(
            embedder.embed(self._given(batch, embedder, seeds))
            if isinstance(embedder, FramesEmbedder)
            else embedder.embed(batch[embedder.column])
            for embedder in self.embedders
        )
        return found.to(self.device)

    def _given(
        self, batch: Mapping[str, Any], embedder: FramesEmbedder, seeds: Sequence[int] | None
    ) -> tuple[VidTwinLatents, torch.Tensor]:
        """What is known of each sample: scaled latents, and (B, T) bool."""
        if seeds is None:
            latents = self.noise([0] * len(batch["index"]))
            frames = torch.zeros(len(latents), embedder.num_frames, dtype=torch.bool)
            return latents, frames
        uniforms = draw_uniforms(seeds, 2, GIVEN_STREAM)
        frames = embedder.draw(uniforms).to(self.device)
        with torch.no_grad():
            return self.stats.scale(self.source.given_latents(batch, frames)), frames

    def measure_stats(self, num_clips: int, batch_size: int, **shared: Any) -> None:
        """Sets the statistics of the latents; arguments as of `LatentSource.stats`."""
        stats = self.source.stats(num_clips, batch_size, **shared)
        self.stats.load_state_dict(stats.state_dict())

    def keep_stats(self, init_from: str) -> None:
        """Takes over the statistics of the pipeline that a saved transformer lies in.

        Raises:
            ValueError: if it lies in none.
        """
        folder = find_transformer(init_from).parent / "latent_stats"
        if not folder.is_dir():
            raise ValueError(
                f"init_from={init_from} lies in no pipeline: what is adapted or distilled keeps "
                f"the statistics of one, and {folder} is missing; name PIPELINE/transformer"
            )
        stats = LatentStats.from_pretrained(folder, local_files_only=True)
        self.stats.load_state_dict(stats.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: the statistics, and what gave latents and conditions."""
        return {"stats": self.stats.state_dict(), "digests": self.digests}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes the statistics of a checkpoint.

        Raises:
            ValueError: if it was trained with another autoencoder, text encoder or cache.
        """
        for name in sorted(self.digests.keys() | state["digests"].keys()):
            saved, now = state["digests"].get(name), self.digests.get(name)
            if saved != now:
                raise ValueError(
                    f"the run's {name.replace('_', ' ')} has the digest {now}, the checkpoint "
                    f"was trained with {saved}; take {name} back, or choose another output=FOLDER"
                )
        self.stats.load_state_dict(state["stats"])

    def pipeline(self, transformer: TwinDiT, scheduler: Any, **options: Any) -> VidTwinPipeline:
        """The pipeline of these parts around a transformer; options are its constructor's."""
        parts = {name: part for e in self.embedders for name, part in e.pipeline_parts().items()}
        return VidTwinPipeline(
            autoencoder=self.source.autoencoder,
            transformer=transformer,
            scheduler=scheduler,
            latent_stats=self.stats,
            fps=self.source.fps,
            prediction=sampling_prediction(self.objective.config),
            given_guidance_scale=self.objective.config.given_guidance_scale,
            structure_lead=self.objective.config.structure_lead,
            **parts,
            **options,
        )


def build_inputs(
    config: InputsConfig,
    device: torch.device | str,
    validates: bool = True,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> TrainingInputs:
    """The frozen models, the data and the conditions of a run.

    Args:
        config: which.
        device: of the models.
        validates: whether validation clips are wanted.
        autocast: context that clips are encoded in, where there is no cache.
    Raises:
        ValueError: if one is missing, or they do not belong together.
    """
    autoencoder: Any = load_autoencoder(config.autoencoder)[0]
    source = _open_source(config, autoencoder.to(device), validates, autocast)
    embedders = _build_embedders(config, source, device)
    return TrainingInputs(
        source,
        FlowObjective(config.flow),
        embedders,
        given_dropout=config.given_dropout,
        noise_draws=config.noise_draws,
    )


def _open_source(
    config: InputsConfig,
    autoencoder: Any,
    validates: bool,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> LatentSource:
    frozen = autoencoder.requires_grad_(False)
    clips = (config.data, config.overfit, validates, autocast)
    return open_source(frozen, config.cache, *clips, config.verify, config.posterior)


def _build_embedders(
    config: InputsConfig, source: LatentSource | None, device: torch.device | str, text: bool = True
) -> list[ConditionEmbedder]:
    """What makes a run's conditions; a description leaves out what needs absent data or text."""
    embedders: list[ConditionEmbedder] = []
    if config.class_conditional and source is not None:
        names = source.label_names
        if not names:
            raise ValueError(
                "class_conditional=true, but the clips of this data set have no labels; "
                "set class_conditional=false, or take a source with classes"
            )
        embedders.append(ClassEmbedder(len(names), names, config.class_dropout))
    if config.text_encoder is not None and text:
        if source is not None and not source.has_captions():
            raise ValueError(
                "a text_encoder is given, but the clips of this data set have no captions; "
                "set text_encoder=null, or write captions (see data.captions)"
            )
        length = config.max_text_length
        encoder = TextEncoder.from_pretrained(config.text_encoder, config.text_layer, length)
        cached = CachedTextEncoder(encoder.to(device, torch.float32))
        embedders.append(TextEmbedder(cached, length, config.text_dropout))
    if config.action_conditional and source is not None:
        actions = getattr(source.dataset, "action_names", ())
        if not actions:
            raise ValueError(
                "action_conditional=true, but the clips of this data set have no actions; "
                "set action_conditional=false, or take a source with actions"
            )
        embedders.append(ActionEmbedder(actions, config.action_dropout))
    if config.given.share and source is not None:
        embedders.append(FramesEmbedder(config.given, source.autoencoder.sizes.num_frames))
    return embedders


def build_transformer(sizes: DiTConfig, init_from: str | None = None) -> TwinDiT:
    """A transformer in training mode, new or with a saved one's weights.

    Raises:
        ValueError: if there is none in that folder, or it has other sizes.
    """
    if init_from is None:
        return TwinDiT(**vars(sizes)).train()
    model: TwinDiT = TwinDiT.from_pretrained(find_transformer(init_from), local_files_only=True)
    added = {
        name: getattr(sizes, name)
        for name in ("given_frames", "action_size")
        if getattr(sizes, name) and not getattr(model.sizes, name)
    }
    if added:
        # What a new model adds for frames and actions is zero, so it begins as the saved one.
        new = TwinDiT(**vars(replace(model.sizes, **added)))
        new.load_state_dict(new.added_state() | model.float().state_dict())
        model = new
    others = [
        f"{name}={getattr(model.sizes, name)}, expected {value}"
        for name, value in vars(sizes).items()
        if getattr(model.sizes, name) != value
    ]
    if others:
        raise ValueError(f"init_from={init_from} has other sizes: {'; '.join(others)}")
    return model.float().train()


def describe_transformer(sizes: DiTConfig) -> str:
    """Parameters and tokens, without making any weights."""
    with torch.device("meta"):
        model = TwinDiT(**vars(sizes))
    structure, along_x, along_y = sizes.token_counts
    return (
        f"transformer: {sum(p.numel() for p in model.parameters()):,} parameters\n"
        f"{structure + along_x + along_y:,} tokens: structure {structure}, dynamics_x {along_x}, "
        f"dynamics_y {along_y}"
    )


def describe_training(
    config: InputsConfig,
    model: TransformerConfig,
    validates: bool = True,
    sample_classes: Sequence[str] = (),
) -> str:
    """The sizes of a run's transformer and its clips, before there is anything to train on.

    The autoencoder may be a config. Where the data or the text encoder can't be read, what follows
    from them is left out, and a line says so and why.

    Args:
        config, model: of the run.
        validates: whether validation clips are wanted.
        sample_classes: must be classes of the data.
    Raises:
        ValueError: for a config that does not fit its autoencoder, its data or itself.
    """
    autoencoder, _ = load_autoencoder(config.autoencoder, untrained=True)
    of_latents = autoencoder.sizes
    if config.cache is None:
        config.data.sized(of_latents.num_frames, of_latents.height, of_latents.width)
    lines, text = [], config.text_encoder is not None
    source: LatentSource | None = None
    try:
        source = _open_source(config, autoencoder, validates)
    except (ValueError, OSError) as error:
        left_out = ", so these sizes are without classes" if config.class_conditional else ""
        lines.append(f"the data can't be read{left_out}: {error}")
    try:
        if config.text_encoder is not None:
            find_encoder(config.text_encoder)
    except ValueError as error:
        lines.append(f"the text encoder can't be read, so these sizes are without text: {error}")
        text = False
    embedders = _build_embedders(config, source, "cpu", text)
    known = {name: value for one in embedders for name, value in one.sizes().items()}
    lines.insert(0, describe_transformer(model.sizes(of_latents, known)))
    if source is not None:
        names = source.label_names if config.class_conditional else []
        if sample_classes:
            class_indices(sample_classes, len(names), names, "sample_classes")
        lines.append(f"clips: {len(source):,}; classes: {', '.join(names) or 'none'}")
    return "\n".join(lines)


def losses_of(model: torch.nn.Module, objective: FlowObjective, batch: TrainingBatch) -> FlowLosses:
    """The losses of a model's predictions for a batch, (B,) each."""
    noised = objective.add_noise(batch.latents, batch.noise, batch.levels)
    timesteps = objective.timesteps(batch.levels)
    outputs = model(*noised.tensors(), *timesteps, **batch.conditions.arguments())
    predictions = VidTwinLatents(*outputs)
    return objective.losses(predictions, batch.latents, batch.noise, batch.levels)


@torch.no_grad()
def measure_losses(
    model: torch.nn.Module,
    inputs: TrainingInputs,
    batches: Iterable[Mapping[str, Any]],
    *,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> list[tuple[int, dict[str, float]]]:
    """The losses of every sample with its conditions, at the middles of the levels' quartiles.

    Both latents have equal levels, and every sample the same noise each time, so that two
    measurements differ by the model alone.

    Returns:
        (index of the sample in its data set, measures): "structure_q1" for the lowest quarter of
        the levels, up to "dynamics_q4"; "structure" and "dynamics" are the means over quarters.
    """
    objective = inputs.objective
    rows: list[tuple[int, dict[str, float]]] = []
    training = model.training
    model.eval()
    for batch in batches:
        measures: list[dict[str, float]] = [{} for _ in batch["index"]]
        seeds = batch["noise_seed"].tolist()
        no_levels = Levels(torch.empty(0), torch.empty(0))
        clean = TrainingBatch(
            inputs.latents(batch), inputs.noise(seeds), no_levels, inputs.conditions(batch)
        )
        for quarter in range(QUANTILES):
            middle = torch.full((len(seeds),), (quarter + 0.5) / QUANTILES, device=inputs.device)
            level = quantile(objective.config.structure_levels, middle)
            with autocast():
                losses = losses_of(model, objective, replace(clean, levels=Levels(level, level)))
            for name in ("structure", "dynamics"):
                for found, value in zip(measures, getattr(losses, name).tolist(), strict=True):
                    found[f"{name}_q{quarter + 1}"] = value
                    found[name] = found.get(name, 0.0) + value / QUANTILES
        rows += zip(batch["index"].tolist(), measures, strict=True)
    model.train(training)
    return rows
