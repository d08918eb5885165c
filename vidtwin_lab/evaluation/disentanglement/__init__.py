"""What a split into structure and dynamics is worth: five measurements, one table, one figure.

    swaps       structure of one clip with the dynamics of another: what a judge sees, and what
                the video encodes to
    probes      what a linear reader finds of content and motion in each latent, against chance
    retrieval   whether nearest neighbours by one latent share its factor
    sampling    one latent held, the other sampled by a pipeline
    scorecard   all of it together

A clip's factors of content (its look) and motion are labels of the data set, see
`vidtwin.data.factors`; content belongs to the structure, motion to the dynamics.
"""

from vidtwin.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
