"""The config of what a latent knows of actions; imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from vidtwin import AutoencoderConfig
from vidtwin.data import DataConfig
from vidtwin_lab.evaluation.config import check_least

__all__ = ["ActionsConfig", "NetworkConfig", "PolicyConfig", "ProbesConfig", "WorldConfig"]


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


def _check_physics(data: DataConfig, why: str) -> None:
    """Raises ValueError for clips that no simulator made."""
    if data.source != "physics":
        raise ValueError(f"{why}, so data.source must be physics, got {data.source}")


def _sized(data: DataConfig, sizes: AutoencoderConfig) -> DataConfig:
    """The data in an autoencoder's sizes, with nothing random in them."""
    return data.centered().sized(*sizes.video_shape[1:])


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
    autoencoder: str = "checkpoints/physics"
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
        data = _sized(self.data, sizes)
        if looks is None:
            return data
        size = max(self.data.options.size, self.train_clips + self.test_clips)  # type: ignore[attr-defined]
        return replace(data.with_options(looks=looks, size=size), max_clips=None)


@dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """A measurement of how well a pipeline that takes actions foretells a simulation.

    Args:
        output: folder of the results.
        pipeline: its folder; trained with actions and with given frames.
        data: clips of "physics" with one scene; their size follows the pipeline's.
        judge_clips: of the training part in any look, that the judge of places and the linear
            baseline are trained on.
        clips: of `data`, that are foretold.
        given_frames: first frames that the pipeline is given; two show how fast a body moves.
        steps: of the sampler.
        batch_size: videos sampled together.
        seed: of the judge, and of the first video's noise; the next ones have the next seeds.
        networks: the judge.
    """

    output: str = "outputs/evaluation/world"
    pipeline: str = "outputs/diffusion_physics_actions/pipeline"
    data: DataConfig = field(
        default_factory=lambda: DataConfig(source="physics", part="validation")
    )
    judge_clips: int = 2000
    clips: int = 200
    given_frames: int = 2
    steps: int = 10
    batch_size: int = 20
    seed: int = 0
    networks: NetworkConfig = NetworkConfig()

    def __post_init__(self) -> None:
        check_least(self, judge_clips=10, clips=2, given_frames=1, steps=1, batch_size=2, seed=0)
        _check_physics(self.data, "the places are the simulator's")

    def data_for(self, sizes: AutoencoderConfig) -> tuple[DataConfig, DataConfig]:
        """The judge's clips and the foretold ones in an autoencoder's sizes."""
        data = _sized(self.data, sizes)
        judge = replace(
            data.with_options(looks="all", size=self.judge_clips), part="train", max_clips=None
        )
        return judge, replace(data.with_options(size=self.clips), max_clips=None)


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """A measurement of a cloned policy that is shown what to do.

    Args:
        output: folder of the results.
        autoencoder: as of `ActionsConfig`.
        data: clips of "physics" with one scene; their size follows the autoencoder's.
        train_clips: demonstrations that policies are cloned from.
        test_clips: others, that they are to follow.
        tolerance: in metres, how near the tip must end.
        seed, seeds: of the first policy of each kind, and how many of each.
        steps, hidden_size, learning_rate, weight_decay: of a policy, two hidden layers.
        batch_size: videos encoded together.
    """

    output: str = "outputs/evaluation/policy"
    autoencoder: str = "checkpoints/physics"
    data: DataConfig = field(
        default_factory=lambda: DataConfig(source="physics", part="validation")
    )
    train_clips: int = 1500
    test_clips: int = 200
    tolerance: float = 0.15
    seed: int = 0
    seeds: int = 3
    steps: int = 2000
    hidden_size: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    batch_size: int = 16

    def __post_init__(self) -> None:
        check_least(self, train_clips=10, test_clips=2, seed=0, seeds=1, steps=20, hidden_size=1)
        check_least(self, batch_size=1)
        if not 0 < self.tolerance < math.inf:
            raise ValueError(f"tolerance must be above 0 metres, got {self.tolerance}")
        _check_physics(self.data, "policies act in the simulator")

    def data_for(self, sizes: AutoencoderConfig) -> DataConfig:
        """The demonstrations in an autoencoder's sizes."""
        data = _sized(self.data, sizes)
        return replace(data.with_options(size=self.train_clips + self.test_clips), max_clips=None)
