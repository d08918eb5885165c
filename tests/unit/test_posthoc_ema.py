"""Averages of any length from those that a run wrote, against what they stand for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from vidtwin_lab.runtime import EMAConfig, build_ema, ema_weights
from vidtwin_lab.runtime.posthoc_ema import (
    Snapshot,
    combine,
    exponent_of,
    find_snapshots,
    least_squares,
    write_snapshot,
)

UPDATES, EVERY, STDS = 2000, 100, (0.05, 0.1)


def shares(std: float, updates: int) -> np.ndarray:
    """How much of each update there is in an average after so many, by definition."""
    power = exponent_of(std) + 1
    ends = (np.arange(updates + 1) / updates) ** power
    return np.diff(ends)


class Walk(nn.Module):
    """Weights that wander, ever less, as those of a training do."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(5, 4))
        self.bias = nn.Parameter(torch.zeros(4))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, torch.Tensor]:
    """A run's folder with its averages, and (updates, values) all weights there were."""
    folder = tmp_path_factory.mktemp("run")
    model, generator = Walk(), torch.Generator().manual_seed(0)
    ema = build_ema(model, EMAConfig(kind="power", stds=STDS))
    trail = []
    for update in range(1, UPDATES + 1):
        with torch.no_grad():
            for parameter in model.parameters():
                step = torch.randn(parameter.shape, generator=generator)
                parameter += step / update**0.5
        trail.append(torch.cat([p.detach().flatten().clone() for p in model.parameters()]))
        ema.step(model.parameters())
        if update % EVERY == 0:
            ema.write(folder, update, ["weight", "bias"], writes=True)
    return folder, torch.stack(trail).double()


def flat(weights: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([weights["weight"].flatten(), weights["bias"]]).double()


@pytest.mark.parametrize("std", [0.02, 0.05, 0.1, 0.25])
def test_a_length_is_the_deviation_of_its_share(std) -> None:
    share, place = shares(std, 20_000), (np.arange(20_000) + 0.5) / 20_000
    mean = (share * place).sum()
    assert (share * (place - mean) ** 2).sum() ** 0.5 == pytest.approx(std, rel=1e-3)


def test_what_is_written_is_the_average_by_definition(run) -> None:
    folder, trail = run
    snapshots = find_snapshots(folder)
    assert len(snapshots) == 2 * UPDATES // EVERY
    for snapshot in (snapshots[0], snapshots[21], snapshots[-1]):
        expected = (
            torch.from_numpy(shares(snapshot.std, snapshot.updates)) @ (trail[: snapshot.updates])
        )
        assert_close(flat(combine([snapshot], [1.0])), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("std", [0.03, 0.05, 0.07, 0.1, 0.15, 0.2])
@pytest.mark.parametrize("last", [UPDATES, 1300])
def test_an_average_of_another_length_is_put_together(run, std, last) -> None:
    folder, trail = run
    snapshots = find_snapshots(folder, last_step=last)
    assert snapshots[-1].updates == last
    factors = least_squares(snapshots, std, last)
    assert factors.sum() == pytest.approx(1)
    found = flat(combine(snapshots, factors))
    expected = torch.from_numpy(shares(std, last)) @ trail[:last]
    # Beside the nearest length that the run kept, to which another one is no substitute.
    kept = min(snapshots[-2:], key=lambda each: abs(each.std - std))
    other = (flat(combine([kept], [1.0])) - expected).norm()
    error = (found - expected).norm()
    assert error < 5e-3 * expected.norm()
    assert error < 0.1 * other or std in STDS


def test_one_that_was_kept_is_found_again(run) -> None:
    snapshots = find_snapshots(run[0])
    factors = least_squares(snapshots, STDS[1], UPDATES)
    assert factors[-1] == pytest.approx(1, abs=1e-3)
    assert_close(combine(snapshots, factors), combine(snapshots[-1:], [1.0]), rtol=1e-3, atol=1e-4)


def test_a_saved_average_goes_on(run) -> None:
    model, other = Walk(), Walk()
    config = EMAConfig(kind="power", stds=STDS)
    ema, again = build_ema(model, config), build_ema(other, config)
    for value in (1.0, 2.0, 5.0):
        nn.init.constant_(model.weight, value)
        ema.step(model.parameters())
    again.load_state_dict(ema.state_dict())
    for average in (ema, again):
        average.step(model.parameters())
    for one, two in zip(ema.averages, again.averages, strict=True):
        assert all(map(torch.equal, one.shadow_params, two.shadow_params))
    assert not torch.equal(ema.averages[0].shadow_params[0], ema.averages[1].shadow_params[0])
    with ema_weights(ema, model):
        assert torch.equal(model.weight, ema.shadow_params[0])
    assert torch.equal(model.weight, torch.full((5, 4), 5.0))
    with pytest.raises(ValueError, match=r"1 averages of ema\.kind=power were saved, expected 2"):
        again.load_state_dict({"averages": ema.state_dict()["averages"][:1]})
    exponential = build_ema(model, EMAConfig())
    with pytest.raises(ValueError, match=r"take back ema\.kind and ema\.stds"):
        again.load_state_dict(exponential.state_dict())


def test_bad_input(tmp_path) -> None:
    with pytest.raises(ValueError, match="has no averages in ema_snapshots; train with"):
        find_snapshots(tmp_path)
    write_snapshot(tmp_path, 4, Snapshot(4, 0.05), {"a": torch.zeros(2)})
    write_snapshot(tmp_path, 8, Snapshot(8, 0.05), {"b": torch.zeros(2)})
    with pytest.raises(ValueError, match="has no averages until step 3"):
        find_snapshots(tmp_path, last_step=3)
    with pytest.raises(ValueError, match="is of another model than"):
        combine(find_snapshots(tmp_path), [1.0, 1.0])
    for options, message in (
        ({"kind": "hat"}, "`kind` must be exponential or power, got 'hat'"),
        ({"stds": ()}, "`stds` must be different lengths from 0.005 to 0.28"),
        ({"stds": (0.1, 0.1)}, "different lengths"),
        ({"stds": (0.1, 0.5)}, "different lengths"),
        ({"snapshot_every": 0}, "`snapshot_every` must be >= 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            EMAConfig(**options)
