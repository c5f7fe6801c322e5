"""A trained model as a function of events."""

from typing import TYPE_CHECKING

from hepdask._face import listing, modules_on_demand

__all__ = ["classifier", "importance", "network_scorer", "score_files", "tree_scorer"]

__dir__ = listing(__name__, __all__)
if not TYPE_CHECKING:
    __getattr__ = modules_on_demand(__name__, __all__)
