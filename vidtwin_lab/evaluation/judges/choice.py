"""The judge that a config names: the pixel judge of the moving shapes, or a trained classifier.

Axes: B batch, C channels, T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch

from vidtwin.data import Factors
from vidtwin.media import to_uint8
from vidtwin.reconstruction import weights_digest
from vidtwin_lab.evaluation.disentanglement.config import SHAPES_JUDGE
from vidtwin_lab.evaluation.judges.classifier_judge import VideoClassifier, load_classifier
from vidtwin_lab.evaluation.judges.shapes_judge import judge_video

__all__ = ["UNKNOWN", "ClassifierJudge", "Judge", "ShapesJudge", "build_judge"]

UNKNOWN = -1  # like nothing known
OBJECT_FACTORS = ("color", "shape", "motion")


class Judge(Protocol):
    """Says which class of each factor videos show.

    Args:
        factors: those that it judges.
    """

    factors: tuple[str, ...]

    def __call__(self, videos: torch.Tensor) -> list[dict[str, int]]:
        """Factor -> class of each of (B, 3, T, H, W) videos in [-1, 1]; UNKNOWN for none."""

    def protocol(self) -> dict[str, Any]:
        """What its verdicts depend on."""


class ShapesJudge:
    """Measures the pixels of the moving shapes; nothing is learned, see `shapes_judge`.

    Args:
        classes: factor -> names of its classes, those of the data set.
    """

    def __init__(self, classes: Mapping[str, tuple[str, ...]]) -> None:
        self.classes = dict(classes)
        self.factors = tuple(self.classes)

    def __call__(self, videos: torch.Tensor) -> list[dict[str, int]]:
        """What is seen in each of (B, 3, T, H, W) videos as 8-bit frames, see `Judge`."""
        return [self._judge(video) for video in videos]

    def _judge(self, video: torch.Tensor) -> dict[str, int]:
        seen = judge_video(to_uint8(video), 1)
        holders = {
            name: seen.objects[0] if name in OBJECT_FACTORS else seen for name in self.classes
        }
        names = {name: getattr(holder, name) for name, holder in holders.items()}
        return {
            name: UNKNOWN if names[name] is None else known.index(names[name])
            for name, known in self.classes.items()
        }

    def protocol(self) -> dict[str, Any]:
        """What its verdicts depend on: nothing but the code."""
        judge = "vidtwin_lab.evaluation.judges.shapes_judge"
        return {"judge": f"{judge} on uint8 frames, told to look for one object"}


class ClassifierJudge:
    """The likeliest class of a classifier that was trained on real clips.

    Args:
        classifier: of `vidtwin_lab.evaluation.classifier`.
        path: where it came from.
        classes: factor -> names of its classes, those of the data set.
    Raises:
        ValueError: if the classifier does not know exactly these classes.
    """

    def __init__(
        self, classifier: VideoClassifier, path: str, classes: Mapping[str, tuple[str, ...]]
    ) -> None:
        self.classifier, self.path = classifier, path
        self.factors = tuple(classes)
        known = classifier.factors.all
        for name, names in classes.items():
            if tuple(known.get(name, ())) != tuple(names):
                raise ValueError(
                    f"judge={path} knows other classes of {name!r} than the data: expected "
                    f"{', '.join(names)}; got {', '.join(known.get(name, ())) or 'none'}; train "
                    "it on clips of the same data set (evaluate.py classifier)"
                )

    @torch.no_grad()
    def __call__(self, videos: torch.Tensor) -> list[dict[str, int]]:
        """The likeliest classes of (B, 3, T, H, W) videos, see `Judge`."""
        found = self.classifier.predict(videos)
        best = {name: found[name].argmax(1).tolist() for name in self.factors}
        return [{name: best[name][row] for name in best} for row in range(len(videos))]

    def protocol(self) -> dict[str, Any]:
        """Which classifier it is."""
        return {
            "judge": "likeliest class of a classifier trained on real clips",
            "classifier": self.path,
            "weights_digest": weights_digest(self.classifier),
        }


def build_judge(name: str, factors: Factors, source: str, device: torch.device) -> Judge:
    """The judge that a config names.

    Args:
        name: "shapes", or the folder of a classifier.
        factors: those that it has to judge.
        source: of the data.
        device: where the classifier goes.
    Raises:
        ValueError: if it can't judge them.
    """
    if name != SHAPES_JUDGE:
        classifier: Any = load_classifier(name, key="judge")  # diffusers' `to` hides its types
        return ClassifierJudge(classifier.to(device), name, factors.all)
    unknown = sorted(set(factors.all) - {*OBJECT_FACTORS, "background"})
    if source != "shapes" or unknown:
        raise ValueError(
            f"judge=shapes knows {', '.join(OBJECT_FACTORS)} and background of the moving shapes "
            f"alone, got data.source={source} with {', '.join(factors.all)}; train a classifier "
            "(evaluate.py classifier) and set judge=FOLDER"
        )
    return ShapesJudge(factors.all)
