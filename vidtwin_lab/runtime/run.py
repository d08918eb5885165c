"""What the configs of all training scripts share, and how a run of one begins."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from accelerate import Accelerator, DistributedDataParallelKwargs

from vidtwin_lab.runtime.checkpoints import RunFolder
from vidtwin_lab.runtime.sharding import RunAccelerator
from vidtwin_lab.runtime.trackers import TRACKERS, Trackers, VideoWriter, build_trackers

PRECISIONS = (None, "no", "bf16")
# What a resumed run may change and still be the same run.
CHANGEABLE = (
    "output",
    "steps",
    "accumulation",
    "gradient_checkpointing",
    "compile",
    "mixed_precision",
    "max_nonfinite_steps",
    "optimizer.learning_rate",
    "*max_grad_norm",
    "num_workers",
    "validation_*",
    "*_every",
    "keep_checkpoints",
    "tracker",
    "project",
)


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
        gradient_checkpointing: recompute activations in the backward pass to save memory.
        compile: run the model through torch.compile.
        num_workers: processes that read data, for each process that trains.
        validation_samples: samples to validate on; 0 turns validation off.
        validation_batch_size: of each process.
        log_every, validate_every, save_every: in steps.
        keep_checkpoints: how many of the newest stay; None keeps all.
        max_nonfinite_steps: steps in a row without a finite loss and gradient that stop the run.
        tracker: "none", "tensorboard" or "wandb"; metrics.jsonl is written in any case.
        project: the tracker's project.
    """

    output: str
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
    project: str = "vidtwin"

    def __post_init__(self) -> None:
        positive = ("steps", "batch_size", "accumulation", "validation_batch_size", "log_every")
        for name in (*positive, "validate_every", "save_every", "max_nonfinite_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}")
        for name in ("seed", "num_workers", "validation_samples"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must not be negative, got {getattr(self, name)}")
        check_precision(self.mixed_precision)
        if self.tracker not in TRACKERS:
            raise ValueError(
                f"`tracker` must be one of {', '.join(TRACKERS)}; got {self.tracker!r}"
            )


def check_precision(mixed_precision: str | None) -> None:
    """Raises ValueError for a precision that a config can't ask for."""
    if mixed_precision not in PRECISIONS:
        raise ValueError(f'`mixed_precision` must be "no", "bf16" or null, got {mixed_precision!r}')


def check_launched_precision(accelerator: Accelerator) -> None:
    """Raises ValueError if accelerate was configured for a precision that we don't have."""
    if accelerator.mixed_precision not in PRECISIONS:
        raise ValueError(
            f'accelerate is configured for mixed precision "{accelerator.mixed_precision}"; '
            'expected "no" or "bf16": set mixed_precision=bf16'
        )


def start_run(config: RunConfig, changeable: Sequence[str] = ()) -> tuple[Accelerator, RunFolder]:
    """The processes and the folder of a run.

    Args:
        changeable: patterns of further keys that a resumed run may change.
    Raises:
        ValueError: the batch can't be divided, or the folder can't be used.
    """
    accelerator = RunAccelerator(
        mixed_precision=config.mixed_precision,
        # Our loops cut their batches themselves; the launcher's own accumulation is not for them.
        gradient_accumulation_steps=1,
        # Our batch norms synchronise themselves; nothing else has buffers to hand around.
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
    if accelerator.gradient_accumulation_steps != 1:
        raise ValueError(
            "accelerate is configured to accumulate gradients over "
            f"{accelerator.gradient_accumulation_steps} steps; leave that out and set "
            "accumulation=... of the run instead"
        )
    check_launched_precision(accelerator)
    parts = accelerator.num_processes * config.accumulation
    if config.batch_size % parts:
        raise ValueError(
            f"`batch_size` must be a multiple of {parts} ({accelerator.num_processes} processes "
            f"x accumulation {config.accumulation}), got {config.batch_size}; "
            f"set batch_size={-(-config.batch_size // parts) * parts}"
        )
    folder = RunFolder(config.output, config.keep_checkpoints)
    folder.claim(config, (*CHANGEABLE, *changeable))
    return accelerator, folder


def start_trackers(
    accelerator: Accelerator,
    config: RunConfig,
    folder: RunFolder,
    *,
    start_step: int,
    video_writer: VideoWriter,
) -> Trackers:
    """The logs that the config asks for; see `build_trackers`."""
    return build_trackers(
        accelerator,
        config.tracker,
        config.project,
        folder,
        config,
        start_step=start_step,
        video_writer=video_writer,
    )
