"""ROOT files: which there are, where they are read from, and what could not be read."""

from typing import TYPE_CHECKING

from hepdask._face import listing, modules_on_demand

__all__ = [
    "contents",
    "fileset",
    "identity",
    "input_file",
    "lost",
    "opening",
    "read_chunk",
    "routes",
    "schemas",
    "xrootd",
]

__dir__ = listing(__name__, __all__)
if not TYPE_CHECKING:
    __getattr__ = modules_on_demand(__name__, __all__)
