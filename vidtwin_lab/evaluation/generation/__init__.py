"""How far generated videos are from real ones: FVD, KVD, inception score, FVD of each class.

    python evaluate.py generation --config configs/evaluation/generation.yaml \
        generated.path=checkpoints/shapes features.path=i3d_torchscript.pt

config says what is compared, protocols holds the published ones, collecting makes the features of
both sides, comparing the numbers of them, showing a table and a figure, measuring puts it all
together.
"""

from vidtwin.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
