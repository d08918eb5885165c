"""A training of the classifier, and what it is tested on."""

from __future__ import annotations

from dataclasses import dataclass, replace

from vidtwin.data import DataConfig, ShapesOptions

__all__ = ["ClassifierConfig"]


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """A training of the judge.

    Args:
        output: folder of the results; the classifier is saved in its folder "classifier".
        data: the training clips; num_frames, height and width of them are the classifier's.
        test_part: of the data, that it is tested on: "test" for sprites, whose characters it then
            has never seen, "validation" for the others.
        test_clips: the first n alone; null for all.
        steps, batch_size: of the training.
        learning_rate: the highest; it rises for a tenth of the steps, then falls to zero.
        weight_decay: of AdamW.
        max_grad_norm: gradients are clipped to.
        noise: the highest standard deviation of the Gaussian noise that a training clip gets, of
            pixels in [-1, 1]: a judge of decoded videos must not hang on single pixels.
        channels, hidden_size, dropout: see `VideoClassifier`.
        num_workers: processes that read.
        seed: of the weights, of the order of the clips and of the noise.
        log_every: steps between two lines of the log.
    """

    output: str = "outputs/evaluation/classifier"
    data: DataConfig = DataConfig(
        num_frames=16, height=64, width=64, sections={"shapes": ShapesOptions(max_objects=1)}
    )
    test_part: str = "validation"
    test_clips: int | None = None
    steps: int = 600
    batch_size: int = 32
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    max_grad_norm: float = 1.0
    noise: float = 0.1
    channels: tuple[int, ...] = (32, 64, 128)
    hidden_size: int = 256
    dropout: float = 0.1
    num_workers: int = 0
    seed: int = 0
    log_every: int = 50

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "hidden_size", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}")
        for name in ("noise", "weight_decay", "seed", "num_workers"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must not be negative, got {getattr(self, name)}")
        for name in ("learning_rate", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be above 0, got {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"`dropout` must be in [0, 1), got {self.dropout}")
        if self.test_clips is not None and self.test_clips < 1:
            raise ValueError(f"`test_clips` must be at least 1 or null, got {self.test_clips}")
        _ = self.test_data  # its checks

    @property
    def test_data(self) -> DataConfig:
        """The held-out clips, with nothing random in them."""
        return replace(self.data.centered(), part=self.test_part, max_clips=self.test_clips)
