"""What every training loop needs: seeds, gradients, EMA, guard, timing."""

from __future__ import annotations

import logging
import random
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
import psutil
import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch._functorch import config as functorch_config
from tqdm import tqdm

from vidtwin_lab.runtime import sharding
from vidtwin_lab.runtime.posthoc_ema import Snapshot, exponent_of, write_snapshot
from vidtwin_lab.runtime.run_config import (
    EMAConfig,
    NonFiniteError,
    require,
)
from vidtwin_lab.runtime.signals import SIGNALS, StopRequest

logger = logging.getLogger(__name__)
# Values that a processor's cache holds three times.
PIECE = 2**16


def seed_step(seed: int, rank: int, step: int) -> None:
    """Reseed python, numpy and torch (all devices) from these three numbers alone.

    Called at the start of every step, so that a resumed run draws what an uninterrupted one does.
    """
    if min(seed, rank, step) < 0:
        raise ValueError(f"seed, rank and step must be >= 0, got {seed}, {rank}, {step}")
    words = numpy.random.SeedSequence([seed, rank, step]).generate_state(4, numpy.uint64)
    random.seed(int(words[0]))
    numpy.random.seed(words[1:3].view(numpy.uint32))
    torch.manual_seed(int(words[3]))


def compiled(model: nn.Module) -> nn.Module:
    """The model through torch.compile, in a way that GAN losses can differentiate.

    The adaptive weight takes two gradients of one graph before the backward pass, and a compiled
    graph must not give its buffers away at the first of them.
    """
    functorch_config.donated_buffer = False
    return torch.compile(model)  # type: ignore[return-value]


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float | None) -> Tensor:
    """Norm of all gradients before clipping them to `max_norm`; None measures only."""
    parameters = list(parameters)
    norm = sharding.total_norm(parameters)
    if max_norm is not None:
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


@torch.no_grad()
def move_towards(averages: list[Tensor], weights: list[Tensor], share: float) -> None:
    """Takes a share of the weights into their averages.

    On a CPU piece by piece, so that nothing but them passes through memory; the operations are
    the same, and so is every bit.
    """
    if any(average.device.type != "cpu" for average in averages):
        steps = torch._foreach_sub(averages, weights)
        torch._foreach_mul_(steps, share)
        torch._foreach_sub_(averages, steps)
        return
    for average, weight in zip(averages, weights, strict=True):
        whole = average.is_contiguous() and weight.is_contiguous()
        parts = [t.view(-1).split(PIECE) if whole else (t,) for t in (average, weight)]
        for part, towards in zip(*parts, strict=True):
            part.sub_((part - towards).mul_(share))


class _CheckedEMA(EMAModel):
    """EMAModel that refuses another model's average and stays on its device when it resumes.

    Of a sharded model each process averages its own part; the state dict has whole tensors.
    """

    _SETTINGS = frozenset(
        ("decay", "min_decay", "update_after_step", "use_ema_warmup", "inv_gamma", "power")
    )

    @torch.no_grad()
    def step(self, parameters: Iterable[nn.Parameter]) -> None:
        self.optimization_step += 1
        decay = self.get_decay(self.optimization_step)
        shadows = [sharding.local(shadow) for shadow in self.shadow_params]
        move_towards(shadows, [sharding.local(p) for p in parameters], 1 - decay)

    def state_dict(self) -> dict[str, Any]:
        """Collective where the model is sharded."""
        whole = [sharding.for_disk(shadow) for shadow in self.shadow_params]
        return {**super().state_dict(), "shadow_params": whole}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        expected = [tuple(shadow.shape) for shadow in self.shadow_params]
        came = [tuple(shadow.shape) for shadow in state_dict["shadow_params"]]
        if expected != came:
            raise ValueError(
                f"EMA weights of another model: expected {len(expected)} tensors, got {len(came)}, "
                "or of other shapes"
            )
        # The average and its age come back; how it is taken is what this run's config says.
        own = {name: getattr(self, name) for name in state_dict.keys() & self._SETTINGS}
        places = self.shadow_params
        super().load_state_dict({**state_dict, **own})
        self.shadow_params = [
            sharding.shard_like(shadow.to(place.device, place.dtype), place)
            for shadow, place in zip(self.shadow_params, places, strict=True)
        ]


class _PowerAverage(_CheckedEMA):
    """A running average by a power function, see `posthoc_ema`."""

    def __init__(self, parameters: Iterable[nn.Parameter], std: float) -> None:
        super().__init__(parameters)
        self.std, self.exponent = std, exponent_of(std)

    def get_decay(self, optimization_step: int) -> float:
        return float((1 - 1 / optimization_step) ** (self.exponent + 1))


class PowerEMA:
    """Running averages of several lengths; where one is asked for, it is the first.

    Args:
        parameters: of the model.
        stds: their lengths.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], stds: Sequence[float]) -> None:
        parameters = list(parameters)
        self.averages = [_PowerAverage(parameters, std) for std in stds]

    @property
    def shadow_params(self) -> list[Tensor]:
        """The weights of the first."""
        return self.averages[0].shadow_params

    def step(self, parameters: Iterable[nn.Parameter]) -> None:
        """Takes the weights into all."""
        parameters = list(parameters)
        for average in self.averages:
            average.step(parameters)

    def store(self, parameters: Iterable[nn.Parameter]) -> None:
        """Keeps weights for `restore`."""
        self.averages[0].store(parameters)

    def copy_to(self, parameters: Iterable[nn.Parameter]) -> None:
        """Gives the first average to parameters."""
        self.averages[0].copy_to(parameters)

    def restore(self, parameters: Iterable[nn.Parameter]) -> None:
        """Gives back what `store` kept."""
        self.averages[0].restore(parameters)

    def state_dict(self) -> dict[str, Any]:
        """Collective where the model is sharded."""
        return {"averages": [average.state_dict() for average in self.averages]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        saved = state.get("averages", [])
        if len(saved) != len(self.averages):
            raise ValueError(
                f"{len(saved)} averages of ema.kind=power were saved, expected "
                f"{len(self.averages)}; take back ema.kind and ema.stds"
            )
        for average, values in zip(self.averages, saved, strict=True):
            average.load_state_dict(values)

    def write(self, run: Path, step: int, names: Sequence[str], writes: bool) -> None:
        """Writes each average below a run's folder; collective where the model is sharded.

        Args:
            names: of the parameters, in their order.
            writes: whether it is this process that writes.
        """
        for average in self.averages:
            weights = [sharding.for_disk(shadow) for shadow in average.shadow_params]
            if writes:
                snapshot = Snapshot(average.optimization_step, average.std)
                write_snapshot(run, step, snapshot, dict(zip(names, weights, strict=True)))


def build_ema(model: nn.Module, config: EMAConfig) -> EMAModel | PowerEMA | None:
    """The running average of the model's parameters where they lie now; None if not enabled.

    Build it after the model is on its device; register it with
    `accelerator.register_for_checkpointing`. Buffers are not averaged.
    """
    if not config.enabled:
        return None
    if config.kind == "power":
        return PowerEMA(model.parameters(), config.stds)
    return _CheckedEMA(
        model.parameters(),
        decay=config.decay,
        min_decay=float(config.min_decay),
        update_after_step=config.update_after_step,
        use_ema_warmup=config.warmup,
        power=config.power,
    )


@contextmanager
def ema_weights(ema: EMAModel | PowerEMA | None, model: sharding.Model) -> Iterator[sharding.Model]:
    """The model with the averaged weights; afterwards it has its own again, bit for bit.

    For a sharded model it is a whole copy, made by all processes together, which each of them may
    then run as it likes. None leaves the model's own weights.
    """
    if sharding.is_sharded(model):
        averaged = None if ema is None else ema.shadow_params
        yield sharding.whole_model(model, averaged)
        return
    if ema is None:
        yield model
        return
    parameters = list(model.parameters())
    ema.store(parameters)
    ema.copy_to(parameters)
    try:
        yield model
    finally:
        ema.restore(parameters)


class NonFiniteGuard:
    """Counts the steps whose loss or gradient is not finite, and stops a run that has too many.

    Too many are `max_consecutive` in a row, or more than `max_share` of the last 100 or of all.
    Its reduction also carries whether some process was told to stop: `stop` is the number of a
    signal, the same on all of them after `ok`, and 0 for none.

    Register it with `accelerator.register_for_checkpointing` to keep its counts.
    """

    WINDOW = 100  # steps

    def __init__(
        self,
        max_consecutive: int = 10,
        max_share: float = 0.1,
        stop_request: StopRequest | None = None,
    ) -> None:
        require(max_consecutive >= 1, "max_consecutive", ">= 1", max_consecutive)
        require(0 <= max_share <= 1, "max_share", "in [0, 1]", max_share)
        self.max_consecutive, self.max_share = max_consecutive, max_share
        self._recent: deque[int] = deque(maxlen=self.WINDOW)  # 1 for a step that was skipped
        self.stop_request = stop_request
        self.stop = 0
        self.total = 0
        self.consecutive = 0

    def ok(self, accelerator: Accelerator, *values: Tensor | float) -> bool:
        """Whether all values are finite on all processes, the same answer on each of them.

        Raises:
            NonFiniteError: at the `max_consecutive`-th bad step in a row, or if too many of the
                last 100 were bad.
        """
        device = accelerator.device
        finite = [torch.isfinite(torch.as_tensor(v)).all().to(device) for v in values]
        bad = (~torch.stack(finite).all()).to(torch.float32)
        told = 0 if self.stop_request is None else self.stop_request.number
        counted = [bad, *(bad.new_tensor(told == number) for number in SIGNALS)]
        not_finite, *stops = accelerator.reduce(torch.stack(counted), reduction="sum").tolist()
        self.stop = max(
            number if count else 0 for number, count in zip(SIGNALS, stops, strict=True)
        )
        self._recent.append(int(not_finite > 0))
        if not_finite == 0:
            self.consecutive = 0
            return True
        self.total += 1
        self.consecutive += 1
        if self.consecutive >= self.max_consecutive:
            raise NonFiniteError(self._told(f"{self.consecutive} steps in a row"))
        if (skipped := sum(self._recent)) > self.max_share * self.WINDOW:
            raise NonFiniteError(self._told(f"{skipped} of the last {self.WINDOW} steps"))
        return False

    def check_whole_run(self, steps: int) -> None:
        """Warns of skipped steps at the end of a run of so many.

        Raises:
            NonFiniteError: if they are more than `max_share`.
        """
        told = self._told(f"{self.total} of the run's {steps:,} steps")
        if self.total > self.max_share * steps:
            raise NonFiniteError(f"{told}; its weights are saved, but are not what was asked for")
        if self.total:
            logger.warning("%s", told)

    def _told(self, steps: str) -> str:
        return (
            f"{steps} had a loss or gradient that is not finite and changed nothing "
            f"({self.total} in all); lower the learning rate, lower max_grad_norm, or train in fp32"
        )

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {"total": self.total, "consecutive": self.consecutive}
        return state | ({"recent": list(self._recent)} if any(self._recent) else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.total = state["total"]
        self.consecutive = state["consecutive"]
        self._recent = deque(state.get("recent", ()), maxlen=self.WINDOW)


class BufferGuard:
    """Keeps buffers, such as running statistics, for a step that turns out to be skipped."""

    def __init__(self, buffers: Iterable[Tensor]) -> None:
        self._buffers = list(buffers)
        self._kept: list[Tensor] = []

    def keep(self) -> None:
        """Notes the values of now."""
        self._kept = [buffer.clone() for buffer in self._buffers]

    def put_back(self) -> None:
        """Gives the buffers the values that were kept."""
        for buffer, kept in zip(self._buffers, self._kept, strict=True):
            buffer.copy_(kept)


class StepTimer:
    """Throughput, the share of time spent waiting for data, and memory, since the last report."""

    def __init__(self) -> None:
        self._restart()

    def _restart(self) -> None:
        self._start = time.perf_counter()
        self._samples = 0
        self._waited = 0.0

    @contextmanager
    def data(self) -> Iterator[None]:
        """Time spent inside counts as waiting for data."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._waited += time.perf_counter() - start

    def step(self, samples: int) -> None:
        """Count a finished step of `samples` samples, over all processes."""
        self._samples += samples

    def report(self) -> dict[str, float]:
        """samples_per_second, data_wait (share of the time), memory_gib (peak on a GPU)."""
        elapsed = max(time.perf_counter() - self._start, 1e-9)
        values = {
            "samples_per_second": self._samples / elapsed,
            "data_wait": self._waited / elapsed,
            "memory_gib": memory_gib(),
        }
        self._restart()
        return values


def memory_gib() -> float:
    """Most GPU memory ever allocated by this process; without a GPU, its resident memory now."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return psutil.Process().memory_info().rss / 2**30


def progress_bar(
    total: int, initial: int = 0, disable: bool = False, description: str | None = None
) -> tqdm[Any]:
    """A bar with the time left; in a log file it prints a line every half minute."""
    return tqdm(
        total=total,
        initial=initial,
        disable=disable,
        desc=description,
        dynamic_ncols=True,
        smoothing=0.05,
        mininterval=0.5 if sys.stderr.isatty() else 30.0,
    )
