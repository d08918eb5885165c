"""Moving shapes: a procedural data set of captioned clips that needs no download.

attributes says what can be seen, rendering draws it, captions describes it, dataset puts clips
together.
"""

from vidtwin.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
