"""The config of what a latent knows of actions; imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from vidtwin import AutoencoderConfig
from vidtwin.data import DataConfig
from vidtwin_lab.evaluation.config import check_least

__all__ = ["ActionsConfig", "NetworkConfig", "ProbesConfig"]


@dataclass(frozen=True, kw_only=True)
class ProbesConfig:
    """How the probes are trained.

    Args:
        context: frames before and after a frame whose features a probe is given too.
        penalties: of the ridge regression, to choose from, relative to the number of frames.
        validation_fraction: share of the training clips on which the penalty, and the step at
            which the small network is best, are chosen.
        hidden_size, steps, batch_size, learning_rate, weight_decay: of the small network, one
            hidden layer.
    """

    context: int = 1
    penalties: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    validation_fraction: float = 0.2
    hidden_size: int = 256
    steps: int = 3000
    batch_size: int = 256
    learning_rate: float = 2e-3
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        if not self.penalties or min(self.penalties) <= 0 or math.inf in self.penalties:
            raise ValueError(
                f"probes.penalties must be finite and above 0, got {list(self.penalties)}"
            )
        if not 0 < self.validation_fraction < 1:
            raise ValueError(
                f"probes.validation_fraction must be in (0, 1), got {self.validation_fraction}"
            )
        check_least(self, "probes.", context=0, hidden_size=1, steps=1, batch_size=1)


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """How the latent-action baseline and the judge of states are trained, on frames of 32 x 32.

    Args:
        steps, batch_size, learning_rate: of AdamW; a batch is of frames or pairs of frames.
        channels: of the first convolution; the others have two and four times as many.
    """

    steps: int = 1500
    batch_size: int = 64
    learning_rate: float = 2e-3
    channels: int = 24

    def __post_init__(self) -> None:
        check_least(self, "networks.", steps=1, batch_size=1, channels=1)


@dataclass(frozen=True, kw_only=True)
class ActionsConfig:
    """A measurement of what the latents of an autoencoder know of actions.

    Args:
        output: folder of the results.
        autoencoder: a saved autoencoder's folder, a run folder of train_ae.py, or a released
            checkpoint.
        data: clips with actions, of "physics" or "lerobot"; their size follows the autoencoder's.
            Of "physics", probes are trained on seen looks and tested on seen and on unseen ones.
        train_clips: that probes and baselines are trained on.
        test_clips: others, that they are tested on, in seen and in unseen looks.
        pairs: of clips whose latents are swapped; of "physics" alone.
        batch_size: videos of one forward pass.
        seed: of the probes, the baselines and the pairs.
        examples: swaps in the figure.
        probes: the probes.
        networks: the latent-action baseline and the judge of states.
    """

    output: str = "outputs/evaluation/actions"
    autoencoder: str = "outputs/physics_paired/autoencoder_ema"
    data: DataConfig = field(
        default_factory=lambda: DataConfig(source="physics", part="validation")
    )
    train_clips: int = 2000
    test_clips: int = 500
    pairs: int = 200
    batch_size: int = 16
    seed: int = 0
    examples: int = 4
    probes: ProbesConfig = ProbesConfig()
    networks: NetworkConfig = NetworkConfig()

    def __post_init__(self) -> None:
        check_least(self, train_clips=10, test_clips=2, pairs=1, batch_size=1, examples=0)
        check_least(self, seed=0)

    def data_for(self, sizes: AutoencoderConfig, looks: str | None) -> DataConfig:
        """The data in an autoencoder's sizes, with nothing random in them, in some looks."""
        data = self.data.centered().sized(*sizes.video_shape[1:])
        if looks is None:
            return data
        size = max(self.data.options.size, self.train_clips + self.test_clips)  # type: ignore[attr-defined]
        return replace(data.with_options(looks=looks, size=size), max_clips=None)
