"""What training a model results in, whatever kind it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """A trained model before it is written.

    Attributes
    ----------
    file_name, file : str, bytes
        The model's file.
    history : list of dict
        One entry per epoch, or per round of boosting.
    facts : dict
        Lines of the report.
    importances : dict of float
        Of trees, see `ModelRecord`.
    """

    file_name: str
    file: bytes
    history: list[dict[str, float]]
    facts: dict[str, Any]
    importances: dict[str, float] = field(default_factory=dict)
