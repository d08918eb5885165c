"""A small video classifier, trained on real clips, as the judge of content and motion.

    python evaluate.py classifier --config configs/evaluation/classifier_sprites.yaml

It has one head for each factor of the data set (`vidtwin.data.factors`), so that one network says
what a clip shows and what happens in it. What it scores on held-out clips is in its report: no
measurement that it makes can be better than that.

model is the network, config and training how it learns, verdicts what it says of videos, measuring
puts it all together.
"""

from vidtwin.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
