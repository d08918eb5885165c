"""Two small convolutional networks: a latent-action baseline, and a judge that reads states; and
how networks are trained.

Both see frames of 32 x 32. The baseline is an inverse-dynamics bottleneck: from two frames in a
row a few numbers, with which the second frame is to be made from the first; those of a clip
together are as many as the dynamics have. The judge is trained on real renders in every look.

Axes: N clips, T frames, B frames of a batch, C channels, Z values of a latent action.
Source: latent actions as in LAPO (arXiv 2312.10812) and LAPA (arXiv 2410.11758), continuous here.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor, nn

from vidtwin_lab.evaluation.actions.clips import THUMBNAIL, ActionClips
from vidtwin_lab.evaluation.actions.config import NetworkConfig, PolicyConfig, ProbesConfig

__all__ = ["LatentActions", "StateJudge", "train_judge", "train_latent_actions", "train_to_best"]

Array = NDArray[np.float32]
BLOCK = 256  # frames of one pass without gradients


def _encoder(channels_in: int, channels: int) -> nn.Sequential:
    """(B, C, 32, 32) to (B, 4 channels, 4, 4)."""
    layers: list[nn.Module] = []
    for width in (channels, 2 * channels, 4 * channels):
        layers += [nn.Conv2d(channels_in, width, 3, stride=2, padding=1), nn.GELU()]
        channels_in = width
    return nn.Sequential(*layers)


def _scaled(frames: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(frames).float() / 127.5 - 1


class LatentActions(nn.Module):
    """From a frame and the next one a few numbers; from the first frame and these the second."""

    def __init__(self, values: int, channels: int) -> None:
        super().__init__()
        wide, self.side = 4 * channels, THUMBNAIL // 8
        self.inverse = nn.Sequential(
            _encoder(6, channels), nn.Flatten(), nn.Linear(wide * self.side**2, values)
        )
        self.first = _encoder(3, channels)
        self.action = nn.Linear(values, wide * self.side**2)
        layers: list[nn.Module] = []
        for width in (2 * channels, channels, 3):
            layers += [nn.GELU(), nn.ConvTranspose2d(wide, width, 4, stride=2, padding=1)]
            wide = width
        self.forward_model = nn.Sequential(*layers)

    def encode(self, frames: Tensor, following: Tensor) -> Tensor:
        """(B, Z) from (B, 3, 32, 32) twice."""
        found: Tensor = self.inverse(torch.cat((frames, following), dim=1))
        return found

    def forward(self, frames: Tensor, following: Tensor) -> Tensor:
        """(B, 3, 32, 32): what the second frame is taken for."""
        action = self.action(self.encode(frames, following))
        grid = rearrange(action, "b (c h w) -> b c h w", h=self.side, w=self.side)
        made: Tensor = frames + self.forward_model(self.first(frames) + grid)
        return made

    @torch.no_grad()
    def features(self, clips: ActionClips) -> Array:
        """(N, T, Z): the latent action from each frame to the next, zeros at the last one."""
        rows = []
        for clip in clips.frames:
            frames = _scaled(clip)
            actions = self.encode(frames[:-1], frames[1:])
            rows.append(torch.cat((actions, 0 * actions[:1])).numpy())
        return np.stack(rows)


class StateJudge(nn.Module):
    """Reads the positions of a state off a single frame; `mean` and `spread` are theirs, (P,)."""

    def __init__(self, values: int, channels: int) -> None:
        super().__init__()
        side = THUMBNAIL // 8
        self.layers = nn.Sequential(
            _encoder(3, channels),
            nn.Flatten(),
            nn.Linear(4 * channels * side**2, 8 * channels),
            nn.GELU(),
            nn.Linear(8 * channels, values),
        )
        self.mean, self.spread = torch.zeros(values), torch.ones(values)

    def forward(self, frames: Tensor) -> Tensor:
        """(B, 3, 32, 32) to (B, P), standardised."""
        found: Tensor = self.layers(frames)
        return found

    @torch.no_grad()
    def read(self, frames: NDArray[np.uint8]) -> Array:
        """(N, T, P) positions in (N, T, 3, 32, 32) uint8 frames."""
        flat = rearrange(frames, "n t c h w -> (n t) c h w")
        parts = [self(_scaled(flat[start : start + BLOCK])) for start in range(0, len(flat), BLOCK)]
        values = torch.cat(parts) * self.spread + self.mean
        return rearrange(values, "(n t) p -> n t p", n=len(frames)).numpy()


def _train(network: nn.Module, config: NetworkConfig, seed: int, loss: object) -> None:
    """AdamW with a rate that falls to zero; `loss` gives that of a batch, drawn by a generator."""
    assert callable(loss)
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, total_steps=config.steps + 1, pct_start=0.1
    )
    rng = np.random.default_rng([seed, 9])
    for _ in range(config.steps):
        optimizer.zero_grad()
        loss(rng).backward()
        optimizer.step()
        schedule.step()


def train_to_best(
    network: nn.Module,
    config: ProbesConfig | PolicyConfig,
    loss: Callable[[], Tensor],
    error: Callable[[], Tensor],
) -> int:
    """AdamW; the network is left as it was at the step at which it erred least, which is returned.

    Args:
        network: in place.
        config: steps, learning rate and weight decay.
        loss: of the next batch.
        error: on what it is not trained on, asked for twenty times.
    Raises:
        ValueError: if the error is never a number.
    """
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    best, chosen, weights = float("inf"), 0, network.state_dict()
    every = max(1, config.steps // 20)
    for step in range(1, config.steps + 1):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        if step % every == 0 or step == config.steps:
            with torch.no_grad():
                found = float(error())
            if found < best:
                best, chosen, weights = found, step, copy.deepcopy(network.state_dict())
    if not chosen:
        raise ValueError(f"the network diverged; lower learning_rate={config.learning_rate}")
    network.load_state_dict(weights)
    return chosen


def train_latent_actions(
    clips: ActionClips, size: int, config: NetworkConfig, seed: int
) -> LatentActions:
    """The baseline, with as many values for a clip as the dynamics have, or a few fewer."""
    count, frames = clips.frames.shape[:2]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = LatentActions(max(1, size // (frames - 1)), config.channels)

    def loss(rng: np.random.Generator) -> Tensor:
        clip = rng.integers(count, size=config.batch_size)
        frame = rng.integers(frames - 1, size=config.batch_size)
        first, second = _scaled(clips.frames[clip, frame]), _scaled(clips.frames[clip, frame + 1])
        return (network(first, second) - second).square().mean()

    _train(network, config, seed, loss)
    return network.eval()


def train_judge(
    frames: NDArray[np.uint8], positions: Array, config: NetworkConfig, seed: int
) -> StateJudge:
    """The judge of states, from (N, T, 3, 32, 32) frames and their (N, T, P) positions."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        judge = StateJudge(positions.shape[-1], config.channels)
    flat = torch.from_numpy(rearrange(positions, "n t p -> (n t) p"))
    judge.mean, judge.spread = flat.mean(0), flat.std(0).clamp_min(1e-6)
    images = rearrange(frames, "n t c h w -> (n t) c h w")
    wanted = (flat - judge.mean) / judge.spread

    def loss(rng: np.random.Generator) -> Tensor:
        batch = rng.integers(len(images), size=config.batch_size)
        return (judge(_scaled(images[batch])) - wanted[torch.from_numpy(batch)]).square().mean()

    _train(judge, config, seed, loss)
    return judge.eval()
