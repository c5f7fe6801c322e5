"""Searching for the best settings of a model by cross-validation.

`search_space` says what may be tried, `study` decides what to try and remembers what came of it, `trial` tries
it. The step `tune` brings them to a cluster.
"""

from typing import TYPE_CHECKING

from hepdask._face import listing, modules_on_demand

__all__ = ["page", "search_space", "study", "trial"]

__dir__ = listing(__name__, __all__)
if not TYPE_CHECKING:
    __getattr__ = modules_on_demand(__name__, __all__)
