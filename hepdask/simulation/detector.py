"""The detector: from generated particles to tracks, towers, leptons and missing momentum."""

from __future__ import annotations

import awkward as ak
import numpy as np
import numpy.typing as npt

from hepdask.simulation import tracker
from hepdask.simulation.calorimeter import ECAL, HCAL, Calorimeter, Deposits, Towers, energy_flow
from hepdask.simulation.particles import Bools, Floats, Ints, Particles

# Particles that shower in the ECAL; every other visible one but muons ends in the HCAL.
ELECTROMAGNETIC = (11, 22)


def reconstruct(particles: Particles, events: int, rng: np.random.Generator) -> dict[str, ak.Array]:
    """Run particles through tracker and calorimeters.

    Parameters
    ----------
    particles : Particles
        Final state of all events, in any order.
    events : int
        Number of events.
    rng : numpy.random.Generator
        All of the detector's random numbers.

    Returns
    -------
    dict of ak.Array
        ``EFlowTrack``, ``EFlowPhoton``, ``EFlowNeutralHadron``, ``Electron``, ``MuonTight``: jagged records
        of length ``events`` with Delphes' field names, GeV and mm, float32 and int32.
    """
    particles = particles.take(particles.visible)
    particles = particles.take(np.argsort(particles.event, kind="stable"))
    impact = tracker.propagate(particles)
    tracked = tracker.is_tracked(particles, impact.reaches, rng)
    tracks = particles.take(tracked)
    pt = tracker.measured_pt(tracks, rng)

    track_energy = np.zeros(len(particles))
    track_energy[tracked] = np.hypot(pt * np.cosh(tracks.eta), tracks.m)
    kind = np.abs(particles.pid)
    in_ecal = np.isin(kind, ELECTROMAGNETIC)

    def towers_of(calorimeter: Calorimeter, rows: Bools) -> Towers:
        rows = rows & impact.reaches
        deposits = Deposits(
            particles.event[rows], impact.eta[rows], impact.phi[rows], particles.e[rows], track_energy[rows]
        )
        return energy_flow(deposits, calorimeter, rng)

    photons = towers_of(ECAL, in_ecal)
    neutral = towers_of(HCAL, ~in_ecal & (kind != 13))
    return {
        "EFlowTrack": _tracks(tracks, pt, events),
        "EFlowPhoton": _towers(photons, events),
        "EFlowNeutralHadron": _towers(neutral, events),
        **_leptons(tracks, pt, events, rng),
    }


def missing_et(detected: dict[str, ak.Array]) -> ak.Array:
    """Minus the vector sum of all energy-flow objects.

    Parameters
    ----------
    detected : dict of ak.Array
        From `reconstruct`.

    Returns
    -------
    ak.Array
        One record an event, jagged with length 1: ``MET`` in GeV, ``Eta`` and ``Phi`` of the missing
        momentum, float32.
    """
    total = [0.0, 0.0, 0.0]
    for name, momentum in (("EFlowTrack", "PT"), ("EFlowPhoton", "ET"), ("EFlowNeutralHadron", "ET")):
        objects = detected[name]
        pt, eta, phi = (ak.values_astype(objects[f], np.float64) for f in (momentum, "Eta", "Phi"))
        for axis, direction in enumerate((np.cos(phi), np.sin(phi), np.sinh(eta))):
            total[axis] = total[axis] - ak.to_numpy(ak.sum(pt * direction, axis=1))
    x, y, z = (np.asarray(component) for component in total)
    met = np.hypot(x, y)
    columns = {"MET": met, "Phi": np.arctan2(y, x), "Eta": np.arcsinh(z / np.maximum(met, 1e-9))}
    return jagged(np.arange(len(met)), len(met), columns)


def jagged(event: Ints, events: int, columns: dict[str, npt.NDArray]) -> ak.Array:
    """Group flat columns by event into records with Delphes' types.

    Parameters
    ----------
    event : (n,) int64
        Event of each row, not decreasing.
    events : int
        Number of events.
    columns : dict of (n,) arrays
        float64 becomes float32; other types stay.

    Returns
    -------
    ak.Array
        Type ``events * var * {...}``.
    """
    record = ak.zip(
        {
            name: column.astype(np.float32) if column.dtype == np.float64 else column
            for name, column in columns.items()
        }
    )
    return ak.unflatten(record, np.bincount(event, minlength=events))


def _tracks(tracks: Particles, pt: Floats, events: int) -> ak.Array:
    columns: dict[str, npt.NDArray] = {
        "PID": tracks.pid.astype(np.int32),
        "Charge": tracks.charge.astype(np.int32),
        "PT": pt,
        "Eta": tracks.eta,
        "Phi": tracks.phi,
        "Mass": tracks.m,
        "X": tracks.x,
        "Y": tracks.y,
        "Z": tracks.z,
    }
    return jagged(tracks.event, events, columns)


def _towers(towers: Towers, events: int) -> ak.Array:
    return jagged(towers.event, events, {"ET": towers.et, "Eta": towers.eta, "Phi": towers.phi})


def _leptons(tracks: Particles, pt: Floats, events: int, rng: np.random.Generator) -> dict[str, ak.Array]:
    identified = tracker.is_identified(tracks.pid, pt, tracks.eta, rng)
    found = {}
    for name, code in (("Electron", 11), ("MuonTight", 13)):
        rows = identified & (np.abs(tracks.pid) == code)
        lepton = tracks.take(rows)
        columns: dict[str, npt.NDArray] = {
            "PT": pt[rows],
            "Eta": lepton.eta,
            "Phi": lepton.phi,
            "Charge": lepton.charge.astype(np.int32),
        }
        found[name] = jagged(lepton.event, events, columns)
    return found
