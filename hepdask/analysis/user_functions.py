"""Users' own selections and high-level features: plain functions, named in the configuration."""

from __future__ import annotations

import awkward as ak
import numpy as np
from numpy.typing import NDArray

from hepdask.config.user_functions import UserFunction, resolve
from hepdask.errors import ConfigError


def apply(function: UserFunction | str, events: ak.Array, kind: str) -> NDArray:
    """Call a user's function on events and check what it gives.

    Parameters
    ----------
    function : UserFunction or str
        Which function, or its reference: ``"path/to/file.py:function"`` or ``"package.module:function"``.
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
        It cannot be loaded, or gives something else.
    """
    function = resolve(function) if isinstance(function, str) else function
    call = function.load()
    try:
        found = np.asarray(ak.to_numpy(call(events)))
    except Exception as error:
        raise ConfigError(f"{function} failed: {type(error).__name__}: {error}") from error
    wanted = "b" if kind == "selection" else "biuf"
    if found.shape != (len(events),) or found.dtype.kind not in wanted:
        raise ConfigError(
            f"{function} must return one {'bool' if kind == 'selection' else 'number'} per event, shape "
            f"({len(events)},); it gave shape {found.shape} of {found.dtype}"
        )
    return found if kind == "selection" else found.astype(np.float64)
