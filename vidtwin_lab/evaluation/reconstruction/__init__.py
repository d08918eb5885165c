"""How well an autoencoder gives videos back, at what rate, and beside a codec at the same rate.

Each window of T frames is measured by itself; a video's value is the mean over its windows, the
data set's value the mean over its videos. Posteriors are taken at their mode: nothing is random.

config says what is measured, meter measures windows, summary makes videos and means of them,
showing a row of a table and a figure, measuring puts it all together.
"""

from vidtwin.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
