"""The particle list of a selected event: the lepton, then its tracks, photons and neutral hadrons."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from hepdask.analysis.columns import Columns
from hepdask.analysis.compiled import compiled
from hepdask.analysis.topology.candidates import NEUTRAL, PHOTON, TRACK, Inputs, Scratch, gather, make_scratch
from hepdask.analysis.topology.conventions import CONVENTIONS, Convention
from hepdask.analysis.topology.isolation import cone_sums, delta_phi, fill_strips, make_strips
from hepdask.analysis.topology.lepton import Leptons
from hepdask.config import Topology, feature_names

#: Stored kind of each kind of candidate.
_CODES = (feature_names.CHARGED_HADRON, feature_names.PHOTON, feature_names.NEUTRAL_HADRON)


class _Rows(NamedTuple):
    """The stored columns, in the order of `feature_names.STORED`."""

    pt: NDArray
    eta: NDArray
    phi: NDArray
    x: NDArray
    y: NDArray
    z: NDArray
    charged: NDArray
    photon: NDArray
    neutral: NDArray
    kind: NDArray[np.int8]
    charge: NDArray[np.int8]


def particle_lists(
    leptons: Leptons,
    inputs: Inputs,
    settings: Topology,
    in_sequence: bool = False,
    dtype: DTypeLike = np.float64,
) -> Columns:
    """Build the particle list of each selected event.

    The lepton comes first, then at most `max_tracks` tracks (its own track, within `own_track_cone`,
    left out), `max_photons` photons and `max_neutrals` neutral hadrons, each kind in stored order. The
    isolation of a particle is the pT sum of the candidates of a kind within the cone over its own pT.
    Which candidates fill the list, and what is left out of the sums, depends on the convention.

    Parameters
    ----------
    leptons : Leptons
        From `leading_leptons`.
    inputs : Inputs
        The candidates' collections of all events.
    settings : Topology
        Caps, cone sizes, convention.
    in_sequence : bool
        Order the particles of an event by falling distance from its lepton, which then comes last. Equally far
        ones stay in the order of the list.
    dtype : dtype
        Type of the floating-point columns.

    Returns
    -------
    Columns
        The columns `feature_names.STORED` of the selected events; `kind` and `Charge` are int8.
    """
    events = np.flatnonzero(leptons.selected)
    most = 1 + settings.max_tracks + settings.max_photons + settings.max_neutrals
    objects = sum(
        offsets[events + 1] - offsets[events]
        for offsets in (inputs.track_offsets, inputs.photon_offsets, inputs.neutral_offsets)
    )
    room = int(np.minimum(objects + 1, most).sum())
    numbers = [np.empty(room, dtype) for _ in range(9)]
    rows = _Rows._make([*numbers, np.empty(room, np.int8), np.empty(room, np.int8)])
    caps = np.array([settings.max_tracks, settings.max_photons, settings.max_neutrals])
    offsets = _fill(
        rows, events, leptons.pt, leptons.eta, leptons.phi, leptons.charge, leptons.isolation,
        leptons.is_electron, inputs, caps, settings.isolation_cone, settings.own_track_cone,
        CONVENTIONS[settings.convention], in_sequence,
    )  # fmt: skip
    return Columns(
        offsets,
        {name: column[: offsets[-1]] for name, column in zip(feature_names.STORED, rows, strict=True)},
    )


@compiled()
def _fill(
    rows: _Rows,
    events: NDArray[np.int64],
    lepton_pt: NDArray[np.float64],
    lepton_eta: NDArray[np.float64],
    lepton_phi: NDArray[np.float64],
    lepton_charge: NDArray[np.float64],
    lepton_isolation: NDArray[np.float64],
    lepton_is_electron: NDArray[np.bool_],
    inputs: Inputs,
    caps: NDArray[np.int64],
    radius: float,
    own_radius: float,
    convention: Convention,
    in_sequence: bool,
) -> NDArray[np.int64]:
    """Write the rows of all events behind one another; give the offsets."""
    scratch = make_scratch(inputs)
    strips = make_strips(len(scratch.pt))
    kept = np.empty(len(scratch.pt) + 1, np.int64)
    away = np.empty(len(scratch.pt))
    distance = np.empty(len(scratch.pt) + 1)
    order = np.empty(len(scratch.pt) + 1, np.int64)
    sums = np.empty((len(scratch.pt), 3))
    objects = np.empty(len(scratch.pt), np.int64)
    pt, eta, phi, kinds, _ = scratch
    offsets = np.zeros(len(events) + 1, np.int64)
    for which, event in enumerate(events):
        tracks, photons, count = gather(inputs, event, scratch)
        _distances(away, eta, phi, count, lepton_eta[which], lepton_phi[which])
        wanted = 0
        for i in range(count):
            kept[wanted], distance[wanted] = i, away[i]
            wanted += kinds[i] != TRACK or away[i] > own_radius
        if tracks > caps[TRACK] or photons - tracks > caps[PHOTON] or count - photons > caps[NEUTRAL]:
            wanted = _cap(kept, distance, wanted, caps, scratch, convention.hardest_fill_up)
        first = offsets[which]
        offsets[which + 1] = first + wanted + 1
        if in_sequence:  # the lepton comes last
            sort_falling(distance, order, wanted)
            lepton_row = first + wanted
            for place in range(wanted):
                objects[place] = kept[order[place]]
        else:  # the lepton comes first
            lepton_row = first
            first += 1
            objects[:wanted] = kept[:wanted]
        _write_lepton(
            rows, lepton_row, lepton_pt[which], lepton_eta[which], lepton_phi[which], lepton_charge[which],
            lepton_isolation[which], lepton_is_electron[which],
        )  # fmt: skip
        if wanted:
            fill_strips(strips, scratch, count, radius, convention.wraps_cone)
            cone_sums(sums, strips, scratch, objects, wanted, radius, convention.wraps_cone)
            for place in range(wanted):
                i = objects[place]
                sums[i, kinds[i] if convention.leaves_itself_out else TRACK] -= pt[i]
            _write_candidates(rows, first, objects, wanted, scratch, inputs, sums)
    return offsets


@compiled()
def _distances(
    away: NDArray[np.float64], etas: NDArray, phis: NDArray, count: int, eta: float, phi: float
) -> None:
    """Compute Delta R of the first candidates and one direction; both conventions wrap here."""
    for i in range(count):
        deta, dphi = etas[i] - eta, delta_phi(phis[i], phi, True)
        away[i] = math.sqrt(deta * deta + dphi * dphi)


@compiled()
def _cap(
    kept: NDArray[np.int64],
    distance: NDArray[np.float64],
    wanted: int,
    caps: NDArray[np.int64],
    scratch: Scratch,
    hardest: bool,
) -> int:
    """Keep at most ``caps[kind]`` of each kind, in stored order; give the new number.

    The hardest, of equally hard ones the first stored; or simply the first stored.
    """
    left = stop = 0
    for kind in range(3):
        start = stop
        while stop < wanted and scratch.kind[kept[stop]] == kind:
            stop += 1
        # those harder than the softest one kept, and as many of just its pT as there is room for
        softest, room = -1.0, caps[kind]
        if hardest and stop - start > room:
            pts = scratch.pt[kept[start:stop]]
            softest = nth_largest(pts, room)
            room -= np.count_nonzero(pts > softest)
        for place in range(start, stop):
            is_harder = hardest and scratch.pt[kept[place]] > softest
            keep = is_harder or (room > 0 and scratch.pt[kept[place]] >= softest)
            kept[left], distance[left] = kept[place], distance[place]
            left += keep
            room -= keep and not is_harder
    return left


@compiled()
def nth_largest(values: NDArray[np.float64], n: int) -> float:
    """Find the n-th largest (from 1) of numbers that are not negative.

    The leading bits of such a number are ordered as the numbers are: counting them leaves few to be looked at.
    """
    leading = values.view(np.int64) >> 44  # exponent and 8 bits of the fraction
    low, high = leading.min(), leading.max()
    counts = np.zeros(high - low + 1, np.int32)
    for bits in leading:
        counts[bits - low] += 1
    larger, place = 0, high - low
    while larger + counts[place] < n:
        larger += counts[place]
        place -= 1
    near = np.sort(values[leading == low + place])
    return near[len(near) - (n - larger)]


@compiled()
def sort_falling(keys: NDArray[np.float64], order: NDArray[np.int64], count: int) -> None:
    """Order ``keys[:count]`` (not negative) from large to small, equal ones as they stand.

    Keys go into as many bins as there are keys, and are put in order bin by bin: nearly linear for
    the spread-out distances of an event.
    """
    if count == 0:
        return
    largest = keys[0]
    for i in range(1, count):
        largest = max(largest, keys[i])
    scale = (count - 1) / largest if largest > 0 else 0.0
    starts = np.zeros(count + 1, np.int32)
    for i in range(count):
        starts[count - int(keys[i] * scale)] += 1
    for bin_ in range(count):
        starts[bin_ + 1] += starts[bin_]
    # from behind, so that equal keys stay as they stand; starts[b] moves from the end of bin b to its begin
    for i in range(count - 1, -1, -1):
        bin_ = count - int(keys[i] * scale)
        starts[bin_] -= 1
        order[starts[bin_]] = i
    for i in range(1, count):
        moved = order[i]
        place = i
        while place > 0 and keys[order[place - 1]] < keys[moved]:
            order[place] = order[place - 1]
            place -= 1
        order[place] = moved


@compiled()
def _write_lepton(
    rows: _Rows,
    row: int,
    pt: float,
    eta: float,
    phi: float,
    charge: float,
    isolation: NDArray[np.float64],
    is_electron: bool,
) -> None:
    rows.pt[row], rows.eta[row], rows.phi[row] = pt, eta, phi
    rows.x[row], rows.y[row], rows.z[row] = 0.0, 0.0, 0.0
    rows.charged[row], rows.photon[row], rows.neutral[row] = isolation[0], isolation[1], isolation[2]
    rows.kind[row] = feature_names.ELECTRON if is_electron else feature_names.MUON
    rows.charge[row] = (charge > 0) - (charge < 0)


@compiled()
def _write_candidates(
    rows: _Rows,
    first: int,
    objects: NDArray[np.int64],
    count: int,
    scratch: Scratch,
    inputs: Inputs,
    sums: NDArray[np.float64],
) -> None:
    pts, etas, phis, kinds, sources = scratch
    to_pt, to_eta, to_phi, to_x, to_y, to_z, to_charged, to_photon, to_neutral, to_kind, to_charge = rows
    xs, ys, zs, signs = inputs.track_x, inputs.track_y, inputs.track_z, inputs.track_sign
    for place in range(count):
        i, row = objects[place], first + place
        pt, kind = pts[i], kinds[i]
        to_pt[row], to_eta[row], to_phi[row] = pt, etas[i], phis[i]
        to_charged[row] = sums[i, 0] / pt
        to_photon[row] = sums[i, 1] / pt
        to_neutral[row] = sums[i, 2] / pt
        to_kind[row] = _CODES[kind]
        if kind == TRACK:
            source = sources[i]
            to_x[row], to_y[row], to_z[row] = xs[source], ys[source], zs[source]
            to_charge[row] = (signs[source] > 0) - (signs[source] < 0)
        else:
            to_x[row], to_y[row], to_z[row], to_charge[row] = 0.0, 0.0, 0.0, 0
