"""Sprites: clips drawn from the sprite sheets of the Liberated Pixel Cup; needs their folder.

config says what can be seen and which clips there are, sheets reads and draws it, dataset puts
characters and motions together.
"""

from vidtwin.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
