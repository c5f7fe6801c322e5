"""Sums of candidate pT in cones: for one object by going through all, for many by strips in eta.

The candidates are sorted by kind and, within a kind, into strips of eta at least one cone radius wide. Whatever is
in the cone of a candidate is then in its own strip or in one of the two beside it: one contiguous run a kind, which is
gone through in SIMD. Running on into the next strip is harmless, as what is there is looked at like all else.
The time grows with the number of candidates times those in three strips; at the densities of pile-up the strips
beat cells in (eta, phi), whose bookkeeping costs more than the distances they save.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hepdask.analysis.compiled import compiled
from hepdask.analysis.topology.candidates import Scratch

_MAX_STRIPS = 96
_LANES = 16
_FAR = 1e150
_TURN = 2.0 * math.pi


@compiled(inline="always")
def wrap(angle: float) -> float:
    """Bring an angle [rad] into [-pi, pi)."""
    if -math.pi <= angle < math.pi:
        return angle
    return angle - _TURN * math.floor((angle + math.pi) / _TURN)


@compiled(inline="always")
def delta_phi(one: float, other: float, wraps: bool) -> float:
    """Difference of two azimuths [rad].

    Wrapped to [-pi, pi), or as in the published code, which brings only what lies beyond 2 pi back. Without
    branches, so that loops over it run in SIMD.
    """
    difference = one - other
    if wraps:
        return difference - _TURN * math.floor((difference + math.pi) * (1.0 / _TURN))
    return difference - (_TURN if difference > _TURN else 0.0) + (_TURN if difference < -_TURN else 0.0)


@compiled(fastmath={"reassoc", "contract", "nsz"}, error_model="numpy")
def cone_sum_of_one(
    eta: float,
    phi: float,
    their_pt: NDArray,
    their_eta: NDArray,
    their_phi: NDArray,
    threshold: float,
    radius: float,
    own_radius: float,
    wraps: bool,
) -> float:
    """Sum the candidates in the cone around one direction, by going through all of them.

    Parameters
    ----------
    eta, phi : float
        The direction.
    their_pt, their_eta, their_phi : float (n,)
        The objects of one kind in the event.
    threshold : float
        Those with a pT above this are candidates [GeV].
    radius : float
        Inside is where deta**2 + dphi**2 < radius**2.
    own_radius : float
        What is at most this far away is left out; negative for nothing.
    wraps : bool
        See `delta_phi`.

    Returns
    -------
    float
        The sum [GeV].
    """
    limit = radius * radius
    own_limit = own_radius * own_radius if own_radius >= 0 else -1.0
    total = 0.0
    for i in range(len(their_pt)):
        deta = their_eta[i] - eta
        dphi = delta_phi(their_phi[i], phi, wraps)
        distance = deta * deta + dphi * dphi
        inside = (distance < limit) & (distance > own_limit) & (their_pt[i] > threshold)
        total += their_pt[i] if inside else 0.0
    return total


class Strips(NamedTuple):
    """Candidates of one event sorted by kind and eta; made once a chunk, filled for each event.

    Attributes
    ----------
    starts : int64 (3, strips + 3)
        Where, for each kind, the strips begin in the sorted columns: strip ``s`` at ``starts[kind, s + 1]``. There
        is an empty strip at either end, so that all have two neighbours.
    eta, phi, pt : float64
        The sorted candidates. Behind each kind is room for some that are far away.
    strip : int64
        Strip of each candidate.
    """

    starts: NDArray[np.int64]
    eta: NDArray[np.float64]
    phi: NDArray[np.float64]
    pt: NDArray[np.float64]
    strip: NDArray[np.int64]


@compiled()
def make_strips(most: int) -> Strips:
    """Make room for events of at most `most` candidates."""
    room = most + 3 * _LANES
    return Strips(
        np.zeros((3, _MAX_STRIPS + 3), np.int64),
        np.empty(room),
        np.empty(room),
        np.zeros(room),
        np.empty(most, np.int64),
    )


@compiled()
def fill_strips(strips: Strips, candidates: Scratch, count: int, radius: float, wraps: bool) -> None:
    """Sort the candidates of an event into strips; `wraps` as in `delta_phi`."""
    starts, to_eta, to_phi, to_pt, strip = strips
    pt, eta, phi, kinds, _ = candidates
    low, high = eta[0], eta[0]
    for i in range(1, count):
        low, high = min(low, eta[i]), max(high, eta[i])
    inverse = 1.0 / max(radius, (high - low) / (_MAX_STRIPS - 1))
    for i in range(count):
        strip[i] = min(_MAX_STRIPS - 1, int((eta[i] - low) * inverse))
    starts[:] = 0
    for i in range(count):
        starts[kinds[i], strip[i] + 3] += 1
    place = 0
    for kind in range(3):
        for s in range(_MAX_STRIPS + 3):
            place += starts[kind, s]
            starts[kind, s] = place
        to_eta[place : place + _LANES] = _FAR
        place += _LANES
    # starts[kind, s + 2] is where the next candidate of strip s goes, and at the end where strip s + 1 begins
    for i in range(count):
        place = starts[kinds[i], strip[i] + 2]
        starts[kinds[i], strip[i] + 2] = place + 1
        to_eta[place], to_phi[place], to_pt[place] = eta[i], wrap(phi[i]) if wraps else phi[i], pt[i]


@compiled(fastmath={"reassoc", "contract", "nsz"}, error_model="numpy")
def cone_sums(
    sums: NDArray[np.float64],
    strips: Strips,
    candidates: Scratch,
    members: NDArray[np.int64],
    count: int,
    radius: float,
    wraps: bool,
) -> None:
    """Sum the candidates in the cones around some of them.

    Parameters
    ----------
    sums : float64 (most, 3)
        Filled, for each member, with the sums [GeV] of tracks, photons and neutral hadrons around it, itself included.
    strips : Strips
        From `fill_strips`.
    candidates : Scratch
        The event.
    members : int64 (count, ...)
        Around which candidates.
    count : int
        How many.
    radius : float
        Inside is where deta**2 + dphi**2 < radius**2; what the strips were filled for.
    wraps : bool
        See `delta_phi`.
    """
    starts, etas, phis, pts, strip_of = strips
    _, their_eta, their_phi, _, _ = candidates
    limit = radius * radius
    turns_beyond = math.pi if wraps else _TURN
    for place in range(count):
        member = members[place]
        eta, strip = their_eta[member], strip_of[member]
        phi = wrap(their_phi[member]) if wraps else their_phi[member]
        for kind in range(3):
            start, stop = starts[kind, strip], starts[kind, strip + 3]
            whole = _LANES * ((stop - start + _LANES - 1) // _LANES)
            total = 0.0
            # an unsigned index cannot be negative, which would be counted from the end: this loop runs in SIMD
            for i in range(np.uint64(start), np.uint64(start + whole)):
                deta, dphi = etas[i] - eta, abs(phis[i] - phi)
                dphi -= _TURN if dphi > turns_beyond else 0.0
                total += pts[i] if deta * deta + dphi * dphi < limit else 0.0
            sums[member, kind] = total
