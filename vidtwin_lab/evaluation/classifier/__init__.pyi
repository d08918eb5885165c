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
