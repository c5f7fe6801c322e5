"""Numbers from labels and scores, and nothing else: metrics, calibration, DeLong's variances, over-training."""

from hepdask._face import listing
from hepdask.evaluation.metrics import classification_metrics, roc

__all__ = ["classification_metrics", "roc"]

__dir__ = listing(__name__, __all__)
