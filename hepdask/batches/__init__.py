"""From the store to batches: which events, in which order, read ahead of those who train on them."""

from typing import TYPE_CHECKING

from hepdask._face import listing, modules_on_demand

__all__ = ["batch", "batch_order", "padding", "prefetch", "reading"]

__dir__ = listing(__name__, __all__)
if not TYPE_CHECKING:
    __getattr__ = modules_on_demand(__name__, __all__)
