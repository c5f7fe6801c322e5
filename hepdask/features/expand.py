"""From the stored columns of a particle to its 19 features, and back to a person's array."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray


@numba.njit(nogil=True, cache=True)
def expand(
    pt: NDArray[np.float32],
    eta: NDArray[np.float32],
    phi: NDArray[np.float32],
    rest: NDArray[np.float32],
    kind: NDArray[np.int8],
    charge: NDArray[np.int8],
    out: NDArray[np.float32],
) -> None:
    """Fill in the 19 features of particles, as massless four-vectors (GeV, mm).

    Parameters
    ----------
    pt, eta, phi : (n,)
        Momentum [GeV], pseudorapidity, azimuth [rad].
    rest : (n, 6)
        vtxX, vtxY, vtxZ [mm], ChPFIso, GammaPFIso, NeuPFIso.
    kind : int8 (n,)
        One of the codes in `names`.
    charge : int8 (n,)
        Electric charge.
    out : (n, 19)
        Filled in the order of `names.PARTICLE`.
    """
    for i in range(len(pt)):
        transverse, rapidity, angle = np.float64(pt[i]), np.float64(eta[i]), np.float64(phi[i])
        out[i, 0] = transverse * np.cosh(rapidity)
        out[i, 1] = transverse * np.cos(angle)
        out[i, 2] = transverse * np.sin(angle)
        out[i, 3] = transverse * np.sinh(rapidity)
        out[i, 4], out[i, 5], out[i, 6] = pt[i], eta[i], phi[i]
        for j in range(6):
            out[i, 7 + j] = rest[i, j]
        for code in range(5):
            out[i, 13 + code] = 1.0 if kind[i] == code else 0.0
        out[i, 18] = charge[i]
