"""Measurements of autoencoders and pipelines that say how they were made.

report holds what all share; every other module is one measurement or a part of some. A module
that measures has a config dataclass, `describe(config)` and `measure(config, processes)`.
"""

from vidtwin_lab.evaluation.report import Processes, Report, write_report

__all__ = ["Processes", "Report", "write_report"]
