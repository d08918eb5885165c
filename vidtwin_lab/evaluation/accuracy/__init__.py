"""How often videos show what they were asked for, by a classifier trained on real clips; and the
measures of the Sprites literature on them.

    python evaluate.py accuracy --config configs/evaluation/accuracy_sprites.yaml \
        videos=swap model=outputs/sprites/autoencoder_ema

config says which videos are judged, model_videos makes those of a model, labels says what each has
to show, entropies holds the published measures, summary makes a report of the verdicts, measuring
puts it all together.
"""

from vidtwin.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
