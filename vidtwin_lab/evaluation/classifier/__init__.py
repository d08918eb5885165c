"""A small video classifier, trained on real clips, as the judge of content and motion.

    python evaluate.py classifier --config configs/evaluation/classifier_sprites.yaml

It has one head for each factor of the data set (`vidtwin.data.factors`), so that one network says
what a clip shows and what happens in it. What it scores on held-out clips is in its report: no
measurement that it makes can be better than that.

model is the network, config and training how it learns, verdicts what it says of videos, measuring
puts it all together.
"""

from vidtwin_lab.evaluation.classifier.config import ClassifierConfig
from vidtwin_lab.evaluation.classifier.measuring import describe, measure
from vidtwin_lab.evaluation.classifier.model import MODEL_FOLDER, VideoClassifier, load_classifier
from vidtwin_lab.evaluation.classifier.training import build_classifier, train_classifier
from vidtwin_lab.evaluation.classifier.verdicts import UNKNOWN, accuracies, flat_row, percent

__all__ = [
    "MODEL_FOLDER",
    "UNKNOWN",
    "ClassifierConfig",
    "VideoClassifier",
    "accuracies",
    "build_classifier",
    "describe",
    "flat_row",
    "load_classifier",
    "measure",
    "percent",
    "train_classifier",
]
