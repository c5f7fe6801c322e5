"""The jagged store: offsets and flat columns in Zarr v3."""

from hepdask._face import listing
from hepdask.store.reader import Events, Store, open_store

__all__ = ["Events", "Store", "open_store"]

__dir__ = listing(__name__, __all__)
