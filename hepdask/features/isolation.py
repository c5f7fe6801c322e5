"""Sums of candidate pT in a cone around objects, with a grid in (eta, phi).

Candidates of an event are sorted into cells at least one cone radius wide, row by row in eta, so
that the neighbours of an object are short contiguous runs: three rows, and in each the object's own
cell and the two beside it, around the cylinder. The time grows with the number of candidates and
with how many truly lie near each other, not with the square of the event.
"""

from __future__ import annotations

import math

import numba
import numpy as np
from numpy.typing import NDArray

_MAX_ROWS = 128


@numba.njit(nogil=True, cache=True)
def wrap(angle: float) -> float:
    """Bring an angle [rad] into [-pi, pi)."""
    return angle - 2.0 * math.pi * math.floor((angle + math.pi) / (2.0 * math.pi))


@numba.njit(nogil=True, cache=True)
def cone_sums(
    object_offsets: NDArray[np.int64],
    object_eta: NDArray[np.float64],
    object_phi: NDArray[np.float64],
    own: NDArray[np.int64],
    own_radius: float,
    offsets: NDArray[np.int64],
    eta: NDArray[np.float64],
    phi: NDArray[np.float64],
    pt: NDArray[np.float64],
    radius: float,
) -> NDArray[np.float64]:
    """Sum the pT of candidates within a cone around each object.

    Parameters
    ----------
    object_offsets : int64 (n_events + 1,)
        Objects of each event.
    object_eta, object_phi : float64 (n_objects,)
        Directions of the objects; phi in rad, any turn.
    own : int64 (n_objects,)
        Index of the candidate that *is* the object and is left out; -1 for none.
    own_radius : float
        Candidates this close to the object are its own and left out too; negative for none.
    offsets : int64 (n_events + 1,)
        Candidates of each event.
    eta, phi, pt : float64 (n_candidates,)
        The candidates; pt in GeV.
    radius : float
        Radius of the cone; a candidate is inside where deta**2 + dphi**2 < radius**2, with dphi
        wrapped to [-pi, pi].

    Returns
    -------
    float64 (n_objects,)
        The sums [GeV].
    """
    sums = np.zeros(len(object_eta))
    width = 2.0 * math.pi
    columns = max(1, int(width / radius))
    if columns < 3:
        columns = 1
    cell_phi = width / columns
    limit = radius * radius
    own_limit = own_radius * own_radius if own_radius >= 0 else -1.0
    largest = 0
    for event in range(len(offsets) - 1):
        largest = max(largest, offsets[event + 1] - offsets[event])
    sorted_eta, sorted_phi, sorted_pt = np.empty(largest), np.empty(largest), np.empty(largest)
    sorted_index = np.empty(largest, np.int64)
    cell_of = np.empty(largest, np.int64)
    starts = np.empty(_MAX_ROWS * columns + 1, np.int64)

    for event in range(len(offsets) - 1):
        first, last = offsets[event], offsets[event + 1]
        if first == last or object_offsets[event] == object_offsets[event + 1]:
            continue
        low, high = eta[first], eta[first]
        for i in range(first + 1, last):
            low, high = min(low, eta[i]), max(high, eta[i])
        cell_eta = max(radius, (high - low) / (_MAX_ROWS - 1))
        rows = min(_MAX_ROWS, int((high - low) / cell_eta) + 1)

        starts[: rows * columns + 1] = 0
        for i in range(first, last):
            row = min(rows - 1, int((eta[i] - low) / cell_eta))
            column = min(columns - 1, int((wrap(phi[i]) + math.pi) / cell_phi))
            cell = row * columns + column
            cell_of[i - first] = cell
            starts[cell + 1] += 1
        for cell in range(rows * columns):
            starts[cell + 1] += starts[cell]
        for i in range(last - 1, first - 1, -1):
            cell = cell_of[i - first]
            starts[cell + 1] -= 1
            place = starts[cell + 1]
            sorted_eta[place], sorted_phi[place], sorted_pt[place] = eta[i], wrap(phi[i]), pt[i]
            sorted_index[place] = i
        # every bound has moved down to the start of its own cell: shift them back
        for cell in range(rows * columns):
            starts[cell] = starts[cell + 1]
        starts[rows * columns] = last - first

        for j in range(object_offsets[event], object_offsets[event + 1]):
            direction = wrap(object_phi[j])
            column = min(columns - 1, int((direction + math.pi) / cell_phi))
            place_eta = math.floor((object_eta[j] - low) / cell_eta)
            if place_eta < -1 or place_eta > rows:
                continue
            row = int(place_eta)
            total = 0.0
            for near_row in range(max(0, row - 1), min(rows, row + 2)):
                for step in range(-1, 2) if columns > 1 else range(0, 1):
                    near_column = (column + step) % columns
                    cell = near_row * columns + near_column
                    for i in range(starts[cell], starts[cell + 1]):
                        deta = sorted_eta[i] - object_eta[j]
                        dphi = abs(sorted_phi[i] - direction)
                        dphi = min(dphi, width - dphi)
                        distance = deta * deta + dphi * dphi
                        inside = distance < limit and distance > own_limit and sorted_index[i] != own[j]
                        total += sorted_pt[i] if inside else 0.0
            sums[j] = total
    return sums
