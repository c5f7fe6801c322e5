"""The jagged store: offsets and flat columns in Zarr v3."""

from hepdask.store.reader import Events, Store, open_store

__all__ = ["Events", "Store", "open_store"]
