"""The published analysis as a preset: events with an isolated lepton, their particles and high-level features.

Three functions for people (`select`, `particles`, `high_level`), and `extract`, which does all three at once for
`prepare`.
"""

from hepdask._face import listing
from hepdask.analysis.topology.features import (
    Extracted,
    branches,
    expand_columns,
    extract,
    high_level,
    particles,
    select,
    sequences,
    warm_up,
)

__all__ = [
    "Extracted", "branches", "expand_columns", "extract", "high_level", "particles", "select", "sequences", "warm_up",
]  # fmt: skip

__dir__ = listing(__name__, __all__)
