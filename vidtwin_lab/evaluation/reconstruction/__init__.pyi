from vidtwin_lab.evaluation.reconstruction.config import ReconstructionConfig
from vidtwin_lab.evaluation.reconstruction.measuring import describe, measure

__all__ = ["ReconstructionConfig", "describe", "measure"]
