"""The jagged store: offsets and flat columns in Zarr v3."""

from hepdask._face import listing
from hepdask.store.events import Events
from hepdask.store.opening import open_store
from hepdask.store.reader import Store

__all__ = ["Events", "Store", "open_store"]

__dir__ = listing(__name__, __all__)
