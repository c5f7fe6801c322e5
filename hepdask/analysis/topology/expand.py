"""From the stored columns of particles to their 19 features."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import DTypeLike, NDArray

from hepdask.config import feature_names


def expand(stored: Mapping[str, NDArray], dtype: DTypeLike = np.float32) -> NDArray:
    """Compute the 19 features of particles, as massless four-vectors (GeV, mm).

    Parameters
    ----------
    stored : mapping
        The columns `feature_names.STORED`, (n,) each.
    dtype : dtype
        Of the result.

    Returns
    -------
    dtype (19, n)
        In the order of `feature_names.PARTICLE`. Energy = pT cosh eta, Px = pT cos phi, Py = pT sin phi,
        Pz = pT sinh eta, and one-hots of the kind.
    """
    out = np.empty((len(feature_names.PARTICLE), len(stored["Pt"])), dtype)
    for place, name in enumerate(feature_names.STORED[:9]):
        out[4 + place] = stored[name]
    energy, px, py, pz, pt, eta, phi = out[:7]
    for component, function, angle in (
        (energy, np.cosh, eta), (px, np.cos, phi), (py, np.sin, phi), (pz, np.sinh, eta),
    ):  # fmt: skip
        function(angle, out=component)
        component *= pt
    for kind in range(5):
        np.equal(stored["kind"], kind, out=out[13 + kind], casting="unsafe")
    out[18] = stored["Charge"]
    return out
