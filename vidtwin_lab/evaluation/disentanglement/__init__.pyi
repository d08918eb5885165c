from vidtwin_lab.evaluation.disentanglement.config import DisentanglementConfig, SamplingConfig
from vidtwin_lab.evaluation.disentanglement.probes import ProbeConfig
from vidtwin_lab.evaluation.disentanglement.scorecard import describe, measure

__all__ = ["DisentanglementConfig", "ProbeConfig", "SamplingConfig", "describe", "measure"]
