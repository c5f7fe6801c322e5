"""The candidates of an event: tracks, photons and neutral hadrons above threshold."""

from __future__ import annotations

from typing import NamedTuple

import awkward as ak
import numpy as np
from numpy.typing import NDArray

from hepdask.analysis.columns import columns
from hepdask.analysis.compiled import compiled
from hepdask.analysis.topology.conventions import CONVENTIONS
from hepdask.config import Topology

#: Place of each kind in arrays with one entry a kind.
TRACK, PHOTON, NEUTRAL = range(3)


class Inputs(NamedTuple):
    """The three collections that candidates come from, as the kernels take them.

    Attributes
    ----------
    track_offsets, photon_offsets, neutral_offsets : int64 (n_events + 1,)
        Objects of each event.
    track_pt, track_eta, track_phi, track_x, track_y, track_z : float (n_tracks,)
        GeV, rad, mm.
    track_sign : int (n_tracks,)
        What the charge is the sign of: the charge, or the PID (see `conventions.Convention.signs_by_pid`).
    photon_pt, photon_eta, photon_phi, neutral_pt, neutral_eta, neutral_phi : float
        ET [GeV] (they are massless here), pseudorapidity, azimuth [rad].
    thresholds : float64 (3,)
        Candidates have a pT above this [GeV]: tracks, photons, neutral hadrons.
    """

    track_offsets: NDArray[np.int64]
    track_pt: NDArray
    track_eta: NDArray
    track_phi: NDArray
    track_x: NDArray
    track_y: NDArray
    track_z: NDArray
    track_sign: NDArray
    photon_offsets: NDArray[np.int64]
    photon_pt: NDArray
    photon_eta: NDArray
    photon_phi: NDArray
    neutral_offsets: NDArray[np.int64]
    neutral_pt: NDArray
    neutral_eta: NDArray
    neutral_phi: NDArray
    thresholds: NDArray[np.float64]


class Scratch(NamedTuple):
    """Room for the candidates of one event, used again for each.

    Attributes
    ----------
    pt, eta, phi : float64 (most,)
        GeV, pseudorapidity, azimuth [rad].
    kind : int8 (most,)
        TRACK, PHOTON or NEUTRAL.
    source : int64 (most,)
        Index into the columns of its collection.
    """

    pt: NDArray[np.float64]
    eta: NDArray[np.float64]
    phi: NDArray[np.float64]
    kind: NDArray[np.int8]
    source: NDArray[np.int64]


def inputs(events: ak.Array, settings: Topology) -> Inputs:
    """Take the three collections of a chunk."""
    names = settings.collections
    sign = "PID" if CONVENTIONS[settings.convention].signs_by_pid else "Charge"
    track = columns(events, names.track, ("PT", "Eta", "Phi", "X", "Y", "Z", sign), positive="PT")
    photon = columns(events, names.photon, ("ET", "Eta", "Phi"), positive="ET")
    neutral = columns(events, names.neutral, ("ET", "Eta", "Phi"), positive="ET")
    return Inputs(
        track_offsets=track.offsets,
        track_pt=track["PT"],
        track_eta=track["Eta"],
        track_phi=track["Phi"],
        track_x=track["X"],
        track_y=track["Y"],
        track_z=track["Z"],
        track_sign=track[sign],
        photon_offsets=photon.offsets,
        photon_pt=photon["ET"],
        photon_eta=photon["Eta"],
        photon_phi=photon["Phi"],
        neutral_offsets=neutral.offsets,
        neutral_pt=neutral["ET"],
        neutral_eta=neutral["Eta"],
        neutral_phi=neutral["Phi"],
        thresholds=np.array([settings.track_min_pt, settings.photon_min_et, settings.neutral_min_et]),
    )


@compiled()
def make_scratch(inputs: Inputs) -> Scratch:
    """Make room for the largest event."""
    most = 0
    for event in range(len(inputs.track_offsets) - 1):
        objects = 0
        for offsets in (inputs.track_offsets, inputs.photon_offsets, inputs.neutral_offsets):
            objects += offsets[event + 1] - offsets[event]
        most = max(most, objects)
    return Scratch(
        np.empty(most), np.empty(most), np.empty(most), np.empty(most, np.int8), np.empty(most, np.int64)
    )


@compiled()
def gather(inputs: Inputs, event: int, scratch: Scratch) -> tuple[int, int, int]:
    """Put the candidates of an event into `scratch`: tracks, then photons, then neutral hadrons.

    Returns
    -------
    tuple of int
        Where the tracks, the photons and the neutral hadrons end.
    """
    tracks = _gather_kind(
        inputs.track_offsets, inputs.track_pt, inputs.track_eta, inputs.track_phi,
        inputs.thresholds[TRACK], TRACK, event, 0, scratch,
    )  # fmt: skip
    photons = _gather_kind(
        inputs.photon_offsets, inputs.photon_pt, inputs.photon_eta, inputs.photon_phi,
        inputs.thresholds[PHOTON], PHOTON, event, tracks, scratch,
    )  # fmt: skip
    neutrals = _gather_kind(
        inputs.neutral_offsets, inputs.neutral_pt, inputs.neutral_eta, inputs.neutral_phi,
        inputs.thresholds[NEUTRAL], NEUTRAL, event, photons, scratch,
    )  # fmt: skip
    return tracks, photons, neutrals


@compiled()
def _gather_kind(
    offsets: NDArray[np.int64],
    pt: NDArray,
    eta: NDArray,
    phi: NDArray,
    threshold: float,
    kind: int,
    event: int,
    place: int,
    scratch: Scratch,
) -> int:
    to_pt, to_eta, to_phi, to_kind, to_source = scratch
    for i in range(offsets[event], offsets[event + 1]):
        if pt[i] > threshold:
            to_pt[place], to_eta[place], to_phi[place] = pt[i], eta[i], phi[i]
            to_kind[place], to_source[place] = kind, i
            place += 1
    return place
