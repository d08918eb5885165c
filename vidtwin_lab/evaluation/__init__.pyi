from vidtwin_lab.evaluation.report import Processes, Report, write_report

__all__ = ["Processes", "Report", "write_report"]
