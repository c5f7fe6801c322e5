"""From the stored columns of particles to their 19 features."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numba
import numpy as np
from numpy.typing import DTypeLike, NDArray

from hepdask import names


def expand(stored: Mapping[str, NDArray], dtype: DTypeLike = np.float32) -> NDArray:
    """Compute the 19 features of particles, as massless four-vectors (GeV, mm).

    Parameters
    ----------
    stored : mapping
        The columns `names.STORED`, (n,) each.
    dtype : dtype
        Of the result.

    Returns
    -------
    dtype (19, n)
        In the order of `names.PARTICLE`. Energy = pT cosh eta, Px = pT cos phi, Py = pT sin phi,
        Pz = pT sinh eta, and one-hots of the kind.
    """
    out = np.empty((len(names.PARTICLE), len(stored["Pt"])), dtype)
    for place, name in enumerate(names.STORED[:9]):
        out[4 + place] = stored[name]
    _derive(out, stored["kind"], stored["Charge"])
    return out


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _derive(out: NDArray, kind: NDArray, charge: NDArray) -> None:
    """Fill in what follows from pT, eta, phi (rows 4 to 6), kind and charge, in the precision of `out`."""
    energy, px, py, pz, pt, eta, phi = out[0], out[1], out[2], out[3], out[4], out[5], out[6]
    for i in range(len(kind)):
        growth = math.exp(eta[i])
        shrink = 1 / growth
        energy[i] = pt[i] * (growth + shrink) / 2
        # near zero the difference of two exponentials has lost its digits
        pz[i] = pt[i] * (math.sinh(eta[i]) if abs(eta[i]) < 1 else (growth - shrink) / 2)
        px[i] = pt[i] * math.cos(phi[i])
        py[i] = pt[i] * math.sin(phi[i])
    out[13:18] = 0.0
    for i in range(len(kind)):
        out[13 + kind[i], i] = 1.0
        out[18, i] = charge[i]
