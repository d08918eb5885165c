"""How often videos show what they were asked for, by a classifier trained on real clips; and the
measures of the Sprites literature on them.

    python evaluate.py accuracy --config configs/evaluation/accuracy_sprites.yaml \
        videos=swap model=outputs/sprites/autoencoder_ema

config says which videos are judged, model_videos makes those of a model, labels says what each has
to show, entropies holds the published measures, summary makes a report of the verdicts, measuring
puts it all together.
"""

from vidtwin_lab.evaluation.accuracy.config import AccuracyConfig
from vidtwin_lab.evaluation.accuracy.entropies import (
    balanced_places,
    inter_entropy,
    intra_entropy,
    sprites_measures,
)
from vidtwin_lab.evaluation.accuracy.measuring import describe, measure
from vidtwin_lab.evaluation.accuracy.summary import joint_probabilities

__all__ = [
    "AccuracyConfig",
    "balanced_places",
    "describe",
    "inter_entropy",
    "intra_entropy",
    "joint_probabilities",
    "measure",
    "sprites_measures",
]
