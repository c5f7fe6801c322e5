"""Sums of candidate pT in cones: for one object by going through all, for many with a grid in (eta, phi).

The grid has cells at least one cone radius wide, sorted row by row in eta. Each row has a copy of its last
column before the first and of its first behind the last, turned by 2 pi, so that the neighbours of an object
are three contiguous runs, one a row, and no difference in phi needs wrapping. The time grows with the number
of candidates and of true neighbours, not with the square of the event.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from hepdask.features.candidates import Scratch

_MAX_ROWS = 96
_LANES = 4
_FAR = 1e150
_TURN = 2.0 * math.pi


@numba.njit(nogil=True, cache=True, inline="always")
def wrap(angle: float) -> float:
    """Bring an angle [rad] into [-pi, pi)."""
    if -math.pi <= angle < math.pi:
        return angle
    return angle - _TURN * math.floor((angle + math.pi) / _TURN)


@numba.njit(nogil=True, cache=True, inline="always")
def delta_phi(one: float, other: float, wraps: bool) -> float:
    """Difference of two azimuths [rad].

    Wrapped to [-pi, pi), or as in the published code, which brings only what lies beyond 2 pi back. Without
    branches, so that loops over it run in SIMD.
    """
    difference = one - other
    if wraps:
        return difference - _TURN * math.floor((difference + math.pi) * (1.0 / _TURN))
    return difference - (_TURN if difference > _TURN else 0.0) + (_TURN if difference < -_TURN else 0.0)


@numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz"}, error_model="numpy")
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


class Grid(NamedTuple):
    """Candidates of one event sorted into cells, and room to work in; made once a chunk, filled for each event.

    Attributes
    ----------
    starts : int32
        Where each cell begins in the sorted columns.
    cell, column : int32
        Cell and column of each candidate, while it is sorted.
    eta, phi, pt : float64
        The sorted candidates, with the turned copies.
    kind : int8
        Their kinds.
    member : int32
        Which candidate each is.
    near_eta, near_phi, near_track, near_photon, near_neutral : float64
        The neighbours of one cell: directions, and the pT of those that are tracks, photons, neutral hadrons.
    """

    starts: NDArray[np.int32]
    cell: NDArray[np.int32]
    column: NDArray[np.int32]
    eta: NDArray[np.float64]
    phi: NDArray[np.float64]
    pt: NDArray[np.float64]
    kind: NDArray[np.int8]
    member: NDArray[np.int32]
    near_eta: NDArray[np.float64]
    near_phi: NDArray[np.float64]
    near_track: NDArray[np.float64]
    near_photon: NDArray[np.float64]
    near_neutral: NDArray[np.float64]


class Frame(NamedTuple):
    """Size and place of the cells of an event.

    Attributes
    ----------
    low : float
        Smallest eta.
    inverse_eta, inverse_phi : float
        One over the height and width of a cell.
    rows, columns : int
        Number of cells, without the turned copies.
    """

    low: float
    inverse_eta: float
    inverse_phi: float
    rows: int
    columns: int


@numba.njit(nogil=True, cache=True)
def make_grid(most: int, radius: float) -> Grid:
    """Make room for events of at most `most` candidates."""
    columns = int(_TURN / radius)
    cells = _MAX_ROWS * (columns + 2)
    return Grid(
        np.empty(cells + 2, np.int32),
        np.empty(most, np.int32),
        np.empty(most, np.int32),
        np.empty(2 * most),
        np.empty(2 * most),
        np.empty(2 * most),
        np.empty(2 * most, np.int8),
        np.empty(2 * most, np.int32),
        np.zeros(2 * most + _LANES),
        np.zeros(2 * most + _LANES),
        np.zeros(2 * most + _LANES),
        np.zeros(2 * most + _LANES),
        np.zeros(2 * most + _LANES),
    )


@numba.njit(nogil=True, cache=True)
def fill_grid(grid: Grid, candidates: Scratch, count: int, radius: float, wraps: bool) -> Frame:
    """Sort the candidates of an event into cells; `radius` is below pi, and `wraps` as in `delta_phi`."""
    their_pt, their_eta, their_phi, kinds, _ = candidates
    starts, cells, columns_of, to_eta, to_phi, to_pt, to_kind, to_index = grid[:8]
    low, high = their_eta[0], their_eta[0]
    for i in range(1, count):
        low, high = min(low, their_eta[i]), max(high, their_eta[i])
    inverse_eta = 1.0 / max(radius, (high - low) / (_MAX_ROWS - 1))
    rows = min(_MAX_ROWS, int((high - low) * inverse_eta) + 1)
    columns = int(_TURN / radius)
    inverse_phi = columns / _TURN
    stride = columns + 2

    starts[: rows * stride + 2] = 0
    for i in range(count):
        row = min(rows - 1, int((their_eta[i] - low) * inverse_eta))
        column = _column(_placed(their_phi[i], wraps), inverse_phi, columns)
        cell = row * stride + column + 1
        cells[i], columns_of[i] = cell, column
        starts[cell + 2] += 1
        if wraps and column == 0:
            starts[cell + columns + 2] += 1
        if wraps and column == columns - 1:
            starts[cell - columns + 2] += 1
    for cell in range(rows * stride):
        starts[cell + 2] += starts[cell + 1]
    # starts[cell + 1] is where the next candidate of the cell goes, and at the end where the cell ends
    for i in range(count):
        column, phi = columns_of[i], _placed(their_phi[i], wraps)
        copies = 1 + (wraps and column == 0) + (wraps and column == columns - 1)
        for copy in range(copies):
            # the copies of the first and the last column, turned by 2 pi
            turns = 0 if copy == 0 else (1 if column == 0 and copy == 1 else -1)
            cell = cells[i] + turns * columns
            place = starts[cell + 1]
            starts[cell + 1] = place + 1
            to_eta[place], to_phi[place] = their_eta[i], phi + turns * _TURN
            to_pt[place], to_kind[place], to_index[place] = their_pt[i], kinds[i], i
    return Frame(low, inverse_eta, inverse_phi, rows, columns)


@numba.njit(nogil=True, cache=True, inline="always")
def _placed(phi: float, wraps: bool) -> float:
    """Give the azimuth at which a direction is put on the grid."""
    return wrap(phi) if wraps else phi


@numba.njit(nogil=True, cache=True, inline="always")
def _column(phi: float, inverse_phi: float, columns: int) -> int:
    return max(0, min(columns - 1, int((phi + math.pi) * inverse_phi)))


@numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz"}, error_model="numpy")
def cone_sums(
    sums: NDArray[np.float64], grid: Grid, frame: Frame, radius: float, wanted: NDArray[np.bool_]
) -> None:
    """Sum the candidates in the cones around the wanted ones, cell by cell.

    The neighbours of a cell are copied behind one another once, and gone through in SIMD for each
    candidate in it.

    Parameters
    ----------
    sums : float64 (most, 3)
        Filled, for each wanted candidate, with the sums [GeV] of tracks, photons and neutral hadrons around it, the
        candidate itself included.
    grid, frame : Grid, Frame
        From `fill_grid`.
    radius : float
        What the grid was filled for.
    wanted : bool (most,)
        Which candidates.
    """
    starts, _, _, etas, phis, pts, kinds, indices = grid[:8]
    near_eta, near_phi, near_track, near_photon, near_neutral = grid[8:]
    stride = frame.columns + 2
    limit = radius * radius
    for row in range(frame.rows):
        for column in range(1, frame.columns + 1):
            own = row * stride + column
            any_wanted = False
            for i in range(starts[own], starts[own + 1]):
                any_wanted |= wanted[indices[i]]
            if not any_wanted:
                continue
            count = 0
            for beside in range(max(0, row - 1), min(frame.rows, row + 2)):
                left = beside * stride + column - 1
                for i in range(starts[left], starts[left + 3]):
                    near_eta[count], near_phi[count] = etas[i], phis[i]
                    pt, kind = pts[i], kinds[i]
                    near_track[count] = pt if kind == 0 else 0.0
                    near_photon[count] = pt if kind == 1 else 0.0
                    near_neutral[count] = pt if kind == 2 else 0.0
                    count += 1
            for i in range(count, count + _LANES):
                near_eta[i] = _FAR
            full = _LANES * ((count + _LANES - 1) // _LANES)
            for i in range(starts[own], starts[own + 1]):
                if not wanted[indices[i]]:
                    continue
                eta, phi = etas[i], phis[i]
                tracks = photons = neutrals = 0.0
                for j in range(full):
                    deta, dphi = near_eta[j] - eta, near_phi[j] - phi
                    inside = deta * deta + dphi * dphi < limit
                    tracks += near_track[j] if inside else 0.0
                    photons += near_photon[j] if inside else 0.0
                    neutrals += near_neutral[j] if inside else 0.0
                index = indices[i]
                sums[index, 0], sums[index, 1], sums[index, 2] = tracks, photons, neutrals
