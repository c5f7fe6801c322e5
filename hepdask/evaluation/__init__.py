"""Metrics, figures and a self-contained report from labels and scores.

Nothing here knows about files of events, clusters or networks: labels, scores and a few facts go in, numbers
and pictures come out.
"""

from hepdask.evaluation.metrics import classification_metrics, roc
from hepdask.evaluation.report import Report, write_report
from hepdask.evaluation.results import ModelResult, RunFacts

__all__ = ["ModelResult", "Report", "RunFacts", "classification_metrics", "roc", "write_report"]
