"""What every script of the project runs on: config, run folder, checkpoints, EMA, trackers.

Knows no model and imports no other package of the project.
"""

from vidtwin.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
