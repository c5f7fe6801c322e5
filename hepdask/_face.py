"""What a package shows: the names that completion offers, loaded when they are first used."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from typing import Any


def listing(package: str, names: Sequence[str]) -> Callable[[], list[str]]:
    """Make the ``__dir__`` of a package: its public names and what all modules have, no accidents of its imports."""

    def listed() -> list[str]:
        found = vars(sys.modules[package])
        return sorted({*names, *(name for name in found if name.startswith("__") and name.endswith("__"))})

    return listed


def modules_on_demand(package: str, names: Sequence[str]) -> Callable[[str], Any]:
    """Make the ``__getattr__`` of a package whose public names are modules, each imported when it is first used."""

    def loaded(name: str) -> Any:
        if name in names:
            return importlib.import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return loaded
