"""Users' own selections and high-level features: plain functions, named in the configuration."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
from numpy.typing import NDArray

from hepdask.errors import ConfigError


@cache
def load(reference: str) -> Callable[[ak.Array], Any]:
    """Find a function.

    Parameters
    ----------
    reference : str
        ``"package.module:function"`` or ``"path/to/file.py:function"``.

    Raises
    ------
    ConfigError
        There is no such file, module or function.
    """
    where, _, name = reference.rpartition(":")
    try:
        if where.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(where).stem, where)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(where)
        return getattr(module, name)
    except (ImportError, FileNotFoundError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"{reference!r} is not a function that can be loaded ({error}); give package.module:function or "
            "path/to/file.py:function"
        ) from None


def apply(reference: str, events: ak.Array, kind: str) -> NDArray:
    """Call a user's function on events and check what it gives.

    Parameters
    ----------
    reference : str
        Which function; see `load`.
    events : ak.Array
        Record array of events.
    kind : "selection" or "feature"
        What it must give: one bool, or one number, an event.

    Returns
    -------
    bool or float64 (n_events,)

    Raises
    ------
    ConfigError
        It gives something else.
    """
    try:
        found = np.asarray(ak.to_numpy(load(reference)(events)))
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"{reference} failed: {type(error).__name__}: {error}") from error
    wanted = "b" if kind == "selection" else "biuf"
    if found.shape != (len(events),) or found.dtype.kind not in wanted:
        raise ConfigError(
            f"{reference} must give one {'bool' if kind == 'selection' else 'number'} an event, shape "
            f"({len(events)},); it gave shape {found.shape} of {found.dtype}"
        )
    return found if kind == "selection" else found.astype(np.float64)
