"""What a training has beside its model, its data and its loss; the loop itself is in the script."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from typing import Any, Generic, TypeVar

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import Tensor, nn

from vidtwin_lab.runtime.checkpoints import RunFolder
from vidtwin_lab.runtime.optimizers import (
    build_optimizer,
    learning_rate_schedule,
    set_learning_rate,
)
from vidtwin_lab.runtime.processes import (
    lock_folders,
    mean_over_processes,
    replace_weights,
    resume,
)
from vidtwin_lab.runtime.run_config import CHANGEABLE, PRECISIONS, OptimizerConfig, RunConfig
from vidtwin_lab.runtime.sharding import RunAccelerator, prepare_model
from vidtwin_lab.runtime.signals import InterruptedRunError, StopRequest, ended_at_once
from vidtwin_lab.runtime.trackers import VideoWriter, build_trackers
from vidtwin_lab.runtime.training import (
    NonFiniteGuard,
    PowerEMA,
    StepTimer,
    build_ema,
    clip_gradients,
    ema_weights,
    progress_bar,
    seed_step,
)

logger = logging.getLogger(__name__)
RunConfigType = TypeVar("RunConfigType", bound=RunConfig)


class TrainingRun(Generic[RunConfigType]):
    """One run's processes, folder, optimizers, running average, checkpoints and logs.

    In the order of use: make it, `prepare` the model, `resume`, and go through `steps`.

    Attributes:
        config, accelerator, folder: of the run.
        unwrapped: the model itself, without what DDP and torch.compile put around it.
        model: the prepared model, to be called in training.
        optimizer, ema, guard: of the model; `ema` is None where it is turned off.
        start_step: steps that were done when the run was resumed.
        validation_pending: whether the validation after the last of them is still to come.
        trackers: its logs.
        mean: averages a tensor over all processes.
    """

    def __init__(
        self, config: RunConfigType, changeable: Sequence[str] = (), fixed: Sequence[str] = ()
    ) -> None:
        """
        Args:
            changeable: patterns of further keys that a resumed run may change.
            fixed: keys that it may not change, of those that most runs may.
        Raises:
            ValueError: the batch can't be divided, or the folder can't be used.
        """
        self.config = config
        self.accelerator = start_processes(config)
        self.folder = RunFolder(config.output, config.keep_checkpoints)
        lock_folders(self.accelerator, self.folder.path)
        self.folder.claim(config, [key for key in (*CHANGEABLE, *changeable) if key not in fixed])
        self._stop_request = StopRequest()
        self._guards: list[NonFiniteGuard] = []
        self.guard = self.new_guard(self._stop_request)
        self.mean = mean_over_processes(self.accelerator)
        self.start_step = 0
        self._schedules: list[tuple[torch.optim.Optimizer, Callable[[int], float]]] = []
        torch.manual_seed(config.seed)

    def new_guard(self, stop_request: StopRequest | None = None) -> NonFiniteGuard:
        """A guard with the config's limits, which also hold for the whole run."""
        limits = (self.config.max_nonfinite_steps, self.config.max_skipped_share)
        self._guards.append(NonFiniteGuard(*limits, stop_request))
        return self._guards[-1]

    @property
    def ranks(self) -> dict[str, int]:
        """This process and the number of all, as the loaders want them."""
        return {
            "rank": self.accelerator.process_index,
            "world_size": self.accelerator.num_processes,
        }

    @property
    def finished(self) -> bool:
        """Whether no step is left."""
        return self.start_step >= self.config.steps

    @property
    def learning_rate(self) -> float:
        """That of the present step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def prepare(self, model: nn.Module, *others: nn.Module) -> None:
        """Puts the model on its device, and makes its optimizer and running average.

        Args:
            others: their parameters are trained too, but neither clipped nor averaged.
        """
        config, device = self.config, self.accelerator.device
        if config.gradient_checkpointing:
            # The names that diffusers and transformers have for it.
            enable: Any = getattr(
                model,
                "enable_gradient_checkpointing",
                getattr(model, "gradient_checkpointing_enable", None),
            )
            enable()
        self.unwrapped: Any = model.to(device)
        # Sharding exchanges the model's parameters: what holds them comes after it.
        self.model = prepare_model(self.accelerator, model, config.compile)
        self.optimizer = self.add_optimizer(
            config.optimizer, model, *(module.to(device) for module in others)
        )
        self.ema = build_ema(model, config.ema)

    def add_optimizer(
        self,
        settings: OptimizerConfig,
        model: nn.Module,
        *others: nn.Module,
        key: str = "optimizer",
    ) -> torch.optim.Optimizer:
        """An optimizer whose learning rate is set at the start of each step; `key` says where its
        settings stand in the config."""
        schedule = learning_rate_schedule(settings, self.config.steps, key)
        optimizer = self.accelerator.prepare(build_optimizer(model, settings, *others))
        assert isinstance(optimizer, torch.optim.Optimizer)
        self._schedules.append((optimizer, schedule))
        return optimizer

    def resume(
        self,
        path: str | None,
        stateful: Mapping[str, Any] | None = None,
        video_writer: VideoWriter | None = None,
    ) -> None:
        """Goes on from the newest checkpoint, if there is one, and opens the logs.

        Args:
            path: of `--resume`; see `processes.resume`.
            stateful: further objects that belong into a checkpoint, with state_dict and
                load_state_dict, by name.
            video_writer: see `build_trackers`.
        """
        states = NamedStates({"guard": self.guard, **(stateful or {})}, ema=self.ema)
        self.accelerator.register_for_checkpointing(states)
        refuse = self.config.damaged_checkpoints == "refuse"
        self.start_step = resume(self.accelerator, self.folder, path, refuse)
        self.validation_pending = self.folder.checkpoints.validation_pending(self.start_step)
        if "ema" in states.absent:  # turned on since: it begins with the weights of now
            self.ema = states.optional["ema"] = build_ema(self.unwrapped, self.config.ema)
        self.trackers = build_trackers(
            self.accelerator,
            self.config.tracker,
            self.config.project,
            self.folder,
            self.config,
            start_step=self.start_step,
            validation_pending=self.validation_pending,
            video_writer=video_writer,
        )

    def steps(self, batches: Iterable[Any], description: str) -> Iterator[tuple[int, Any]]:
        """(step, batch) of the steps that are left; every step begins with a seed of its own.

        Raises:
            InterruptedRunError: after a step with its checkpoint, if a process was told to stop.
            NonFiniteError: after the last step, if more than their share of all were skipped.
        """
        if self.finished:
            done = "%s has done %d steps, so steps=%d leaves nothing to train; raise it to go on"
            logger.info(done, self.folder.path, self.start_step, self.config.steps)
        self._timer = StepTimer()
        hidden = not self.accelerator.is_main_process
        self._bar = progress_bar(self.config.steps, self.start_step, hidden, description)
        with self._stop_request.listening():
            iterator = iter(batches)
            for step in range(self.start_step, self.config.steps):
                with self._timer.data():
                    batch = next(iterator)
                # After the loader, whose start draws a number.
                seed_step(self.config.seed, self.accelerator.process_index, step)
                for optimizer, schedule in self._schedules:
                    set_learning_rate(optimizer, schedule(step))
                yield step, batch
                if self.guard.stop:
                    raise self._stopped()
        self._bar.close()
        self.trackers.finish()
        for guard in self._guards:
            guard.check_whole_run(self.config.steps)

    def _stopped(self) -> InterruptedRunError:
        self._bar.close()
        self.trackers.finish()
        saved = self.folder.checkpoints.latest()
        done = f"saved {saved}; the same command goes on from there"
        return InterruptedRunError(self.guard.stop, done)

    def clip_gradients(self) -> Tensor:
        """Norm of the model's gradients before they are clipped as the config says."""
        max_norm = self.config.optimizer.max_grad_norm
        return clip_gradients(self.unwrapped.parameters(), max_norm)

    def update_ema(self) -> None:
        """Takes the model's weights into their running average."""
        if self.ema is not None:
            self.ema.step(self.unwrapped.parameters())

    def averaged(self) -> AbstractContextManager[Any]:
        """Context of the unwrapped model with its averaged weights; see `ema_weights`."""
        return ema_weights(self.ema, self.unwrapped)

    @contextmanager
    def validation(self, step: int) -> Iterator[Any]:
        """Context of the validation after a step, with the averaged model; see `averaged`.

        Where one process trains, a signal ends it: the run saves, and validates when it goes on.
        Several processes wait for each other in it, and none may leave.
        """
        interruption: InterruptedRunError | None = None
        with self.averaged() as model:
            # Not while the weights are exchanged: half of them would be saved.
            self._stop_request.at_once = self.accelerator.num_processes == 1
            try:
                yield model
            except InterruptedRunError as error:
                interruption = error
            finally:
                self._stop_request.at_once = False
        if interruption is not None:
            self.guard.stop = interruption.number
            self.save(step)
            raise self._stopped() from interruption

    def due(self, step: int, every: int) -> bool:
        """Whether something that happens every so many steps follows this step."""
        done = step + 1
        return done == self.config.steps or done % every == 0

    def validates(self, step: int) -> bool:
        """Whether a validation follows this step now; a run that was told to stop does it later."""
        return self.due(step, self.config.validate_every) and not self.guard.stop

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Counts a step, and logs its values, averaged over processes, if it is time to.

        Saves a checkpoint where the run was told to stop.
        """
        self._timer.step(self.config.batch_size)
        self._bar.update()
        if self.due(step, self.config.log_every):
            self._log(step, values)
        if isinstance(self.ema, PowerEMA) and self.due(step, self.config.ema.snapshot_every):
            names = [name for name, _ in self.unwrapped.named_parameters()]
            self.ema.write(self.folder.path, step + 1, names, self.accelerator.is_main_process)
        if self.guard.stop:
            self.save(step)

    def _log(self, step: int, values: Mapping[str, Any]) -> None:
        logs: dict[str, Any] = {name: self.mean(value) for name, value in values.items()}
        logs["nonfinite_steps"] = self.guard.total
        self.trackers.log(logs | self._timer.report(), step + 1)
        self._bar.set_postfix(loss=f"{float(logs['loss/total']):.4g}")

    def save(self, step: int) -> None:
        """Writes a checkpoint; to be called by every process."""
        pending = self.guard.stop and self.due(step, self.config.validate_every)
        self.folder.checkpoints.save(self.accelerator, step + 1, validated=not pending)

    def export(self, name: str, files: Callable[[Any], Any] = lambda model: model) -> None:
        """Writes `name`/ and, with an average, `name`_ema/ for from_pretrained.

        To be called by every process.

        Args:
            files: what of the model is saved, such as the model with its tokenizer.
        """
        averages = {name: None} if self.ema is None else {name: None, f"{name}_ema": self.ema}
        for folder, average in averages.items():
            with ema_weights(average, self.unwrapped) as model:
                if self.accelerator.is_main_process:
                    replace_weights(self.folder.path / folder, files(model))
        # Here it may take as long as the time-out says; in a sharded model's groups it may not.
        self.accelerator.wait_for_everyone()


class NamedStates:
    """Several objects' states as one, by name.

    Args:
        needed: objects with state_dict and load_state_dict.
        optional: what a run may turn on or off when it branches off; None for what is off.

    Attributes:
        absent: names of optional objects whose state was not in what was loaded.
    """

    def __init__(self, needed: Mapping[str, Any], **optional: Any) -> None:
        self.needed = dict(needed)
        self.optional = {name: value for name, value in optional.items() if value is not None}
        self.absent: set[str] = set()

    def state_dict(self) -> dict[str, Any]:
        objects = {**self.needed, **self.optional}
        return {name: value.state_dict() for name, value in objects.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.absent = self.optional.keys() - state.keys()
        for name, value in {**self.needed, **self.optional}.items():
            if name not in self.absent:
                value.load_state_dict(state[name])


def start_processes(config: RunConfig) -> RunAccelerator:
    """The processes of a run.

    Raises:
        ValueError: if accelerate is configured for what we don't have, or they can't share a batch.
    """
    patience = timedelta(minutes=config.collective_timeout_minutes)
    torch.backends.cuda.matmul.allow_tf32 = config.tf32
    with ended_at_once():
        accelerator = RunAccelerator(
            mixed_precision=config.mixed_precision,
            # Our loops cut their batches themselves; the launcher's accumulation is not for them.
            gradient_accumulation_steps=1,
            # Our batch norms synchronise themselves; nothing else has buffers to hand around.
            kwargs_handlers=[
                # Gradients lie in the buckets that are sent, not in a copy beside them.
                DistributedDataParallelKwargs(
                    broadcast_buffers=False, gradient_as_bucket_view=True
                ),
                InitProcessGroupKwargs(timeout=patience),
            ],
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
    return accelerator


def check_launched_precision(accelerator: Accelerator) -> None:
    """Raises ValueError if accelerate was configured for a precision that we don't have."""
    if accelerator.mixed_precision not in PRECISIONS:
        raise ValueError(
            f'accelerate is configured for mixed precision "{accelerator.mixed_precision}"; '
            'expected "no" or "bf16": set mixed_precision=bf16'
        )
