"""Simulated bodies: captioned clips with the actions that moved them, by MuJoCo.

scenes says what there is and how it moves, looks how it looks, engine simulates and draws it in
a process of its own, config says which clips, dataset makes them a data set.
"""

from vidtwin.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
