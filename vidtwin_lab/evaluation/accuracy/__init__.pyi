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
