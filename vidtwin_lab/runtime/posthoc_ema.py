"""Averages of a run's weights of any length, made after the run (post-hoc EMA).

An average of exponent g after t updates holds the weights of update u in the share

    p(u) = (u^(g+1) - (u-1)^(g+1)) / t^(g+1),    1 <= u <= t

which one update keeps up to date: average += (1 - (1 - 1/t)^(g+1)) (weights - average). Its length
is told by the deviation of u / t under the continuous share (g+1) x^g, `std`, in (0, 0.28]. A run
keeps two such averages and writes them out now and then; any other share is about a sum of those
that were written, with factors from least squares over the shares, and so is its average.

Source: Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models" (arXiv
2312.02696), Sec. 3 and appendix C.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from vidtwin.files import written_whole

__all__ = ["Snapshot", "combine", "exponent_of", "find_snapshots", "least_squares"]

FOLDER = "ema_snapshots"
_NAME = re.compile(r"step_(\d{9,})_std_(\d+\.\d+)\.safetensors")


@dataclass(frozen=True)
class Snapshot:
    """An average that a run wrote out.

    Args:
        updates: of the weights until then.
        std: length of the average, as a share of those updates.
        path: of its weights, by parameter.
    """

    updates: int
    std: float
    path: Path | None = None

    @property
    def share(self) -> tuple[int, float]:
        """(updates, exponent), which say all about how it was averaged."""
        return self.updates, exponent_of(self.std)


def exponent_of(std: float) -> float:
    """The exponent g whose share has this deviation: (g + 1) / ((g + 2)^2 (g + 3)) = std^2."""
    roots = np.roots([1.0, 7.0, 16.0 - std**-2, 12.0 - std**-2])
    return float(roots.real.max())


def inner_product(one: tuple[float, float], other: tuple[float, float]) -> float:
    """Of two shares (updates, exponent), taken as continuous."""
    (early, g_early), (late, g_late) = sorted([one, other])
    falls = (early / late) ** g_late
    return (g_early + 1) * (g_late + 1) / (g_early + g_late + 1) / late * float(falls)


def least_squares(snapshots: Sequence[Snapshot], std: float, updates: int) -> NDArray[np.float64]:
    """Factors, 1 together, of the snapshots whose sum has about the share of such an average.

    That they are 1 together, which is ours, keeps what never changed in training exactly.

    Args:
        snapshots: of one run, at least one.
        std: length of the wanted average.
        updates: after which it is wanted.
    """
    shares = [snapshot.share for snapshot in snapshots]
    target = (updates, exponent_of(std))
    products = np.array([[inner_product(a, b) for b in shares] for a in shares])
    wanted = np.array([inner_product(share, target) for share in shares])
    # Scaled to a diagonal of ones: early averages have much larger products than late ones.
    scale = 1 / np.sqrt(np.diag(products))
    ones = scale / np.linalg.norm(scale)
    system = np.block([[products * np.outer(scale, scale), ones[:, None]], [ones, np.zeros(1)]])
    right = np.append(wanted * scale, 1 / np.linalg.norm(scale))
    solution, *_ = np.linalg.lstsq(system, right, rcond=1e-13)
    factors = solution[:-1] * scale
    return np.asarray(factors / factors.sum())


def combine(snapshots: Sequence[Snapshot], factors: Iterable[float]) -> dict[str, Tensor]:
    """The sum of snapshots' weights by parameter, float32, each times its factor; added in float64.

    Raises:
        ValueError: if they are of different models.
    """
    total: dict[str, Tensor] = {}
    for snapshot, factor in zip(snapshots, factors, strict=True):
        assert snapshot.path is not None
        with safe_open(str(snapshot.path), "pt") as file:
            if total and total.keys() != set(file.keys()):
                raise ValueError(f"{snapshot.path} is of another model than {snapshots[0].path}")
            for name in file.keys():  # noqa: SIM118 - not a dict
                part = file.get_tensor(name).double() * float(factor)
                total[name] = total[name] + part if name in total else part
    return {name: value.float() for name, value in total.items()}


def write_snapshot(run: Path, step: int, snapshot: Snapshot, weights: Mapping[str, Tensor]) -> None:
    """Writes an average below a run's folder, whole or not at all."""
    path = run / FOLDER / f"step_{step:09d}_std_{snapshot.std:.4f}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    told = {"updates": str(snapshot.updates), "std": repr(snapshot.std)}
    with written_whole(path) as writing:
        save_file(tensors, writing, told)


def find_snapshots(run: Path, last_step: int | None = None) -> list[Snapshot]:
    """What a run has written, oldest first.

    Args:
        run: its folder.
        last_step: leaves out what was written after this step; None takes all.
    Raises:
        ValueError: if there is nothing.
    """
    found = []
    for path in sorted((run / FOLDER).glob("*.safetensors")):
        if (name := _NAME.fullmatch(path.name)) and int(name[1]) <= (last_step or int(name[1])):
            with safe_open(str(path), "pt") as file:
                told = file.metadata()
            found.append(Snapshot(int(told["updates"]), float(told["std"]), path))
    if not found:
        until = "" if last_step is None else f" until step {last_step}"
        raise ValueError(
            f"{run} has no averages{until} in {FOLDER}; train with ema.kind=power and an "
            "ema.snapshot_every that is less than the run's steps"
        )
    return found
