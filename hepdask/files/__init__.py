"""Files and folders: written whole, locked, and what the operating system refuses, in words."""

from typing import TYPE_CHECKING

from hepdask._face import listing, modules_on_demand

__all__ = ["atomic", "folders", "lock", "outputs", "paths"]

__dir__ = listing(__name__, __all__)
if not TYPE_CHECKING:
    __getattr__ = modules_on_demand(__name__, __all__)
