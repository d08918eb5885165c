"""What each video has to show: factor -> class."""

from __future__ import annotations

from collections.abc import Callable

from vidtwin.data import Factors, VideoDataset
from vidtwin_lab.evaluation.accuracy.config import SHOWN
from vidtwin_lab.evaluation.accuracy.model_videos import ModelVideos
from vidtwin_lab.evaluation.classifier import UNKNOWN
from vidtwin_lab.evaluation.videos import DataVideos, Video, VideoSource

__all__ = ["Labels", "asked_labels", "given_labels"]

Labels = dict[str, int]


def given_labels(
    real: DataVideos, source: VideoSource, factors: Factors
) -> Callable[[Video], Labels]:
    """What each clip after a model has to show: factor -> class, UNKNOWN for what was sampled."""
    videos = source.videos if isinstance(source, ModelVideos) else "real"

    def labels_of(video: Video) -> Labels:
        labels = dict.fromkeys(factors.all, UNKNOWN)
        for group in SHOWN[videos]:
            giver = video.index
            if group == "content" and isinstance(source, ModelVideos) and videos == "swap":
                giver = source.partner(video.index)
            own = real.dataset.factors(int(real.order[giver]))
            labels |= {name: own[name] for name in getattr(factors, group)}
        return labels

    return labels_of


def asked_labels(dataset: VideoDataset, factors: Factors) -> Callable[[Video], Labels]:
    """What each generated video was asked to show, by its class and by the caption it had.

    A caption of the data says all of its clip's factors, but for those in which clips with the
    same caption differ.
    """
    by_caption: dict[str, Labels] = {}
    for index in range(len(dataset)):
        caption, labels = dataset.captions(index, 1)[0], dataset.factors(index)
        if caption:
            known = by_caption.setdefault(caption, dict(labels))
            known |= {name: UNKNOWN for name in known if known[name] != labels[name]}

    def labels_of(video: Video) -> Labels:
        labels = dict.fromkeys(factors.all, UNKNOWN)
        # The name of a class may stand behind the caption.
        for text in (video.asked, video.asked.rpartition(", ")[0]):
            if text in by_caption:
                return labels | by_caption[text] | dataset.label_factors(video.label)
        return labels | dataset.label_factors(video.label)

    return labels_of
