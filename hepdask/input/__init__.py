"""ROOT files: which there are, where they are read from, and what could not be read."""

from typing import TYPE_CHECKING

from hepdask._face import listing, modules_on_demand

__all__ = ["fileset", "lost", "read_bytes", "root_files", "routes", "schemas", "xrootd"]

__dir__ = listing(__name__, __all__)
if not TYPE_CHECKING:
    __getattr__ = modules_on_demand(__name__, __all__)
