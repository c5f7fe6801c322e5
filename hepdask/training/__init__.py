"""Data-parallel training: the loop of a rank, and the engines that take a network through batches."""

from typing import TYPE_CHECKING

from hepdask._face import listing, modules_on_demand

__all__ = ["loop"]

__dir__ = listing(__name__, __all__)
if not TYPE_CHECKING:
    __getattr__ = modules_on_demand(__name__, __all__)
