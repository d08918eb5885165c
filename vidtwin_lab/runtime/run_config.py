"""The keys that all training runs share: run, optimizer, running average. Imports no torch."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TypeVar

from vidtwin.files import check_folder

RunConfigType = TypeVar("RunConfigType", bound="RunConfig")

PRECISIONS = (None, "no", "bf16")
MAX_MINUTES = 7 * 24 * 60
OPTIMIZERS = ("adamw", "muon", "adamw_8bit")
TRACKERS = ("none", "tensorboard", "wandb")
# "warmup_cosine" is ours; the others are diffusers', but for the one that needs a table of steps.
SCHEDULES = (
    "warmup_cosine",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
)
EMA_KINDS = ("exponential", "power")
# Of a power function's average: below, few updates count; 0.289 weighs all of them alike.
MIN_STD, MAX_STD = 0.005, 0.28
# What a resumed run may change and still be the same run.
CHANGEABLE = (
    "output",
    "steps",
    "accumulation",
    "gradient_checkpointing",
    "compile",
    "mixed_precision",
    "tf32",
    "max_nonfinite_steps",
    "max_skipped_share",
    "*optimizer.learning_rate",
    "*optimizer.fused",
    "*max_grad_norm",
    "num_workers",
    "validation_*",
    "*_every",
    "*_checkpoints",
    "tracker",
    "project",
    "collective_timeout_minutes",
)
# What not even a branch may change, for the optimizer's state would not fit.
FIXED = ("*optimizer.name", "*optimizer.decay_norms_and_biases")


class NonFiniteError(RuntimeError):
    """Too many steps in a row whose loss or gradient was not finite."""


def check_precision(mixed_precision: str | None) -> None:
    """Raises ValueError for a precision that a config can't ask for."""
    if mixed_precision not in PRECISIONS:
        raise ValueError(f'`mixed_precision` must be "no", "bf16" or null, got {mixed_precision!r}')


def require(holds: bool, name: str, expected: str, value: object) -> None:
    """Raises ValueError unless the value of a key is as expected."""
    if not holds:
        raise ValueError(f"`{name}` must be {expected}, got {value}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """An optimizer and its learning-rate schedule; steps are optimizer steps.

    Args:
        name: "adamw"; "muon", which is Muon for the matrices of the model's blocks and AdamW for
            the rest, with updates of the same size; "adamw_8bit" of bitsandbytes.
        betas, epsilon: of AdamW; Muon's momentum is 0.95.
        fused: update by AdamW's fused kernel, where the device has one.
        decay_norms_and_biases: let weight decay act on vectors too, as the released code does.
        learning_rate: the highest of the schedule.
        weight_decay: decoupled from the gradient, times the learning rate.
        schedule: "warmup_cosine", which falls to 0, or one of diffusers': "linear", "cosine",
            "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup".
        warmup_steps: in which the learning rate rises in a line; None for a twentieth of the run.
        warmup_start: learning rate that the rise begins with, of "warmup_cosine" alone.
        max_grad_norm: longer gradients are scaled down to it; None clips none.
    """

    name: str = "adamw"
    fused: bool = False
    decay_norms_and_biases: bool = True
    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 1e-4
    epsilon: float = 1e-8
    schedule: str = "warmup_cosine"
    warmup_steps: int | None = 1000
    warmup_start: float = 0.0
    max_grad_norm: float | None = 1.0

    def __post_init__(self) -> None:
        if self.name not in OPTIMIZERS:
            raise ValueError(f"`name` must be one of {', '.join(OPTIMIZERS)}; got {self.name!r}")
        if self.fused and self.name == "adamw_8bit":
            raise ValueError("`fused` is not for name=adamw_8bit; set fused=false")
        require(0 < self.learning_rate < math.inf, "learning_rate", "> 0", self.learning_rate)
        require(all(0 <= b < 1 for b in self.betas), "betas", "in [0, 1)", self.betas)
        require(self.weight_decay >= 0, "weight_decay", ">= 0", self.weight_decay)
        require(self.epsilon > 0, "epsilon", "> 0", self.epsilon)
        require((self.warmup_steps or 0) >= 0, "warmup_steps", ">= 0", self.warmup_steps)
        require(self.warmup_start >= 0, "warmup_start", ">= 0", self.warmup_start)
        norm = self.max_grad_norm
        require(norm is None or norm > 0, "max_grad_norm", "> 0 or null (no clipping)", norm)
        if self.schedule not in SCHEDULES:
            names = ", ".join(SCHEDULES)
            raise ValueError(f"`schedule` must be one of {names}; got {self.schedule!r}")
        if self.warmup_start and self.schedule != "warmup_cosine":
            raise ValueError(
                f"`warmup_start` belongs to schedule=warmup_cosine, got {self.warmup_start} with "
                f"schedule={self.schedule}; set warmup_start=0"
            )

    def warmup(self, total_steps: int, key: str = "optimizer") -> int:
        """The steps of a run's warm-up.

        Args:
            total_steps: of the run.
            key: of this config in the run's.
        Raises:
            ValueError: if they do not fit into the run.
        """
        steps = total_steps // 20 if self.warmup_steps is None else self.warmup_steps
        if self.schedule != "constant" and steps >= total_steps:
            raise ValueError(
                f"`{key}.warmup_steps` must be less than the run's {total_steps} steps, got "
                f"{steps}; set {key}.warmup_steps={total_steps // 20}, or null for a twentieth"
            )
        return steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class EMAConfig:
    """Running average of the weights.

    Args:
        kind: "exponential", diffusers' EMAModel: the decay of step n is at most (1 + n) / (10 + n),
            or 1 - (1 + n)^-power with `warmup`. "power": averages over shares of the run (`stds`),
            from which others can be made after it, see `posthoc_ema`; the other keys are then
            not used.
        stds: lengths of the averages of kind "power", relative to the run; the first is exported.
        snapshot_every: steps after which each of them is written to OUTPUT/ema_snapshots, with as
            many bytes as the model in float32.
        enabled: keep an average at all.
        decay: the largest share of the average that a step leaves as it is.
        min_decay: the smallest.
        update_after_step: copy the weights up to this step, and average from there on.
        warmup: let the decay grow as 1 - (1 + n)^-power.
        power: of that growth; 2/3 suits long runs, 3/4 short ones.
    """

    enabled: bool = True
    kind: str = "exponential"
    stds: tuple[float, ...] = (0.05, 0.1)
    snapshot_every: int = 5000
    decay: float = 0.9999
    min_decay: float = 0.0
    update_after_step: int = 0
    warmup: bool = False
    power: float = 2 / 3

    def __post_init__(self) -> None:
        require(self.kind in EMA_KINDS, "kind", " or ".join(EMA_KINDS), repr(self.kind))
        require(self.snapshot_every >= 1, "snapshot_every", ">= 1", self.snapshot_every)
        lengths = {round(std, 4) for std in self.stds if MIN_STD <= std <= MAX_STD}
        require(
            0 < len(lengths) == len(self.stds),
            "stds",
            f"different lengths from {MIN_STD} to {MAX_STD}",
            self.stds,
        )
        require(0 <= self.decay <= 1, "decay", "in [0, 1]", self.decay)
        require(0 <= self.min_decay <= self.decay, "min_decay", "in [0, decay]", self.min_decay)
        after = self.update_after_step
        require(after >= 0, "update_after_step", ">= 0", after)
        require(self.power > 0, "power", "> 0", self.power)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The keys that every training run has.

    Args:
        output: run folder; a run that is found there is resumed.
        seed: of weights, dropout and the order of the data.
        steps: optimizer steps of the whole run.
        batch_size: samples per step, over all processes and micro-batches.
        accumulation: micro-batches that a step's batch is cut into on each process.
        mixed_precision: "no" or "bf16"; None leaves it to `accelerate launch`.
        tf32: let GPUs round the factors of float32 matrix products to 10 bits, as cuDNN's
            convolutions do by default; nothing changes elsewhere.
        gradient_checkpointing: recompute activations in the backward pass to save memory.
        compile: run the model through torch.compile.
        num_workers: processes that read data, for each process that trains.
        validation_samples: samples to validate on; 0 turns validation off.
        validation_batch_size: of each process.
        log_every, validate_every, save_every: in steps.
        keep_checkpoints: how many of the newest stay; None keeps all.
        damaged_checkpoints: "skip" goes on from the checkpoint before a damaged one, with a
            warning; "refuse" stops.
        max_nonfinite_steps: steps in a row without a finite loss and gradient that stop the run.
        max_skipped_share: share of such steps, of the last 100 and of the whole run, that is not
            too much; a run with more stops, or ends with an error.
        tracker: "none", "tensorboard" or "wandb"; metrics.jsonl is written in any case.
        project: the tracker's project.
        collective_timeout_minutes: how long processes wait for each other before the run fails;
            longer than the slowest of them may read, write or sample.
        optimizer: of the model.
        ema: the running average of the model's weights, which is what a run leaves for use.
    """

    output: str
    seed: int = 0
    steps: int = 100_000
    batch_size: int = 24
    accumulation: int = 1
    mixed_precision: str | None = None
    tf32: bool = False
    gradient_checkpointing: bool = False
    compile: bool = False
    num_workers: int = 4
    validation_samples: int = 64
    validation_batch_size: int = 4
    log_every: int = 50
    validate_every: int = 2000
    save_every: int = 1000
    keep_checkpoints: int | None = 3
    damaged_checkpoints: str = "skip"
    max_nonfinite_steps: int = 10
    max_skipped_share: float = 0.1
    tracker: str = "none"
    project: str = "vidtwin"
    collective_timeout_minutes: float = 60.0
    optimizer: OptimizerConfig = OptimizerConfig()
    ema: EMAConfig = EMAConfig()

    def __post_init__(self) -> None:
        positive = ("steps", "batch_size", "accumulation", "validation_batch_size", "log_every")
        for name in (*positive, "validate_every", "save_every", "max_nonfinite_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}")
        for name in ("seed", "num_workers", "validation_samples"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must not be negative, got {getattr(self, name)}")
        keep = self.keep_checkpoints
        if keep is not None and keep < 1:
            raise ValueError(f"`keep_checkpoints` must be at least 1, or null for all, got {keep}")
        on_damage = self.damaged_checkpoints
        require(
            on_damage in ("skip", "refuse"), "damaged_checkpoints", '"skip" or "refuse"', on_damage
        )
        share = self.max_skipped_share
        require(0 <= share <= 1, "max_skipped_share", "in [0, 1]", share)
        check_precision(self.mixed_precision)
        minutes = self.collective_timeout_minutes
        require(
            0 < minutes <= MAX_MINUTES,
            "collective_timeout_minutes",
            f"in (0, {MAX_MINUTES}]",
            minutes,
        )
        if self.tracker not in TRACKERS:
            raise ValueError(
                f"`tracker` must be one of {', '.join(TRACKERS)}; got {self.tracker!r}"
            )

    def check_files(self, dry_run: bool = False) -> None:
        """Raises ValueError for a path that is not there, before anything heavy is imported.

        A config with paths of its own adds them. `dry_run` needs no data and writes nothing.
        """
        if not dry_run:
            check_folder(Path(self.output), "output=FOLDER")

    def resolved(self: RunConfigType) -> RunConfigType:
        """The config in which what follows from other keys is filled in."""
        return self
