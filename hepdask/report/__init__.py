"""The report: one page with figures, from labels, scores and a few facts.

Nothing here knows about files of events, clusters or networks.
"""

from hepdask._face import listing
from hepdask.report.page import Report, write_report
from hepdask.report.results import ModelResult, RunFacts

__all__ = ["ModelResult", "Report", "RunFacts", "write_report"]

__dir__ = listing(__name__, __all__)
