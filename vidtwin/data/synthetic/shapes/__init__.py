"""Moving shapes: a procedural data set of captioned clips that needs no download.

attributes says what can be seen, rendering draws it, captions describes it, clips puts these
together, config says which clips, dataset makes them a data set for training.
"""

from vidtwin.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
