"""Measurements of autoencoders and pipelines that say how they were made.

report holds what all share; every other module is one measurement or a part of some. A module
that measures has a config dataclass, `describe(config)` and `measure(config, processes)`.
"""

from vidtwin.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
