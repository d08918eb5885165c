from vidtwin_lab.evaluation.generation.config import GenerationConfig
from vidtwin_lab.evaluation.generation.measuring import describe, measure
from vidtwin_lab.evaluation.generation.protocols import compared

__all__ = ["GenerationConfig", "compared", "describe", "measure"]
