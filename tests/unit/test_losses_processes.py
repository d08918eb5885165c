"""Two processes that share a batch get what one process gets for all of it.

Run as a script, this file is the second of the two.
"""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vidtwin.discriminator import DiscriminatorConfig, PatchDiscriminator
from vidtwin.losses import AutoencoderLoss, LossConfig

CONFIG = LossConfig(discriminator_start=0, lecam_weight=0.1)


def clips(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def frame_mse(video: Tensor, reconstruction: Tensor) -> Tensor:
    return (video - reconstruction).square().mean((1, 3, 4))


def one_batch(rank: int, world_size: int) -> dict[str, Tensor]:
    """Everything that training takes from a batch, when `world_size` processes share it."""

    def average(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        if world_size > 1:
            dist.all_reduce(tensor)
        return tensor / world_size

    mine = slice(rank * 4 // world_size, (rank + 1) * 4 // world_size)
    video = clips(4, 3, 2, 12, 12)[mine].double()
    kl = [value.double() for value in clips(3, 4, seed=2)[:, mine]]
    posterior = SimpleNamespace(
        structure=SimpleNamespace(kl=lambda: kl[0]),
        dynamics_x=SimpleNamespace(kl=lambda: kl[1]),
        dynamics_y=SimpleNamespace(kl=lambda: kl[2]),
    )
    torch.manual_seed(0)
    last = nn.Conv3d(3, 3, 1)
    decoder = nn.Sequential(nn.Conv3d(3, 3, 1), nn.Tanh(), last).double()
    loss = AutoencoderLoss(CONFIG, frame_distance=frame_mse).double()
    discriminator = PatchDiscriminator(
        DiscriminatorConfig(kind="3d", channels=4, layers=1)
    ).double()
    judge: nn.Module = discriminator
    if world_size > 1:
        judge = nn.parallel.DistributedDataParallel(discriminator)
    output = decoder(video)
    total, logs = loss.generator_loss(
        video,
        output,
        posterior,
        step=0,
        discriminator=judge,
        last_weight=last.weight,
        reduce_gradient=average,
    )
    total.backward()
    judged, judged_logs = loss.discriminator_loss(judge, video, output, 0, reduce_mean=average)
    judged.backward()
    assert loss.logvar.grad is not None
    values = {name: average(value) for name, value in logs.items()}
    values |= {f"judge {name}": average(value) for name, value in judged_logs.items()}
    values |= {f"adaptive weight on {rank}": logs["adaptive_weight"]}
    values |= {"logvar gradient": loss.logvar.grad.clone()}
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is not None
        values[f"{name} gradient"] = average(parameter.grad)
    for name, parameter in discriminator.named_parameters():
        assert parameter.grad is not None
        values[f"{name} gradient"] = parameter.grad.clone()  # DDP has averaged it
    return values | loss.state_dict() | discriminator.state_dict()


def join(folder: Path, rank: int) -> dict[str, Tensor]:
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'store'}",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=120),
    )
    try:
        return one_batch(rank, 2)
    finally:
        dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path: Path) -> None:
    """Batch statistics, adaptive weight, log-variance and LeCAM are of the whole batch."""
    alone = one_batch(0, 1)
    root = Path(__file__).parents[2]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    other = subprocess.Popen([sys.executable, __file__, str(tmp_path)], env=environment, cwd=root)
    try:
        results = [join(tmp_path, rank=0)]
        assert other.wait(timeout=60) == 0
    finally:
        other.kill()
    results.append(torch.load(tmp_path / "1.pt", weights_only=True))
    for rank, shared in enumerate(results):
        shared["adaptive weight on 0"] = shared.pop(f"adaptive weight on {rank}")
        assert shared.keys() == alone.keys()
        for name, value in alone.items():
            assert torch.allclose(shared[name], value, rtol=1e-6, atol=1e-12), name


if __name__ == "__main__":
    torch.save(join(Path(sys.argv[1]), rank=1), Path(sys.argv[1]) / "1.pt")
