"""The particle list of a selected event: the lepton, then its tracks, photons and neutral hadrons."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hepdask.config import Physics
from hepdask.features import names
from hepdask.features.candidates import Candidates
from hepdask.features.columns import Columns
from hepdask.features.isolation import cone_sums
from hepdask.features.lepton import Leptons


def particle_lists(leptons: Leptons, candidates: Candidates, physics: Physics) -> Columns:
    """Build the particle list of each selected event.

    The lepton comes first, then at most `max_tracks` tracks (its own track, within `own_track_cone`,
    left out), `max_photons` photons and `max_neutrals` neutral hadrons. Where there are more, those
    with the highest pT are kept; each kind stays in its stored order. The isolation of a particle is
    the pT sum of the candidates of a kind within the cone over its own pT, itself left out.

    Parameters
    ----------
    leptons : Leptons
        One for each selected event.
    candidates : Candidates
        Of the selected events alone.
    physics : Physics
        Caps and cone sizes.

    Returns
    -------
    Columns
        The columns `names.STORED` of each particle, in float64.
    """
    kinds = (
        (candidates.tracks, physics.max_tracks, names.CHARGED_HADRON),
        (candidates.photons, physics.max_photons, names.PHOTON),
        (candidates.neutrals, physics.max_neutrals, names.NEUTRAL_HADRON),
    )
    parts = [_lepton_rows(leptons)]
    for kind, (objects, most, code) in enumerate(kinds):
        keep = np.ones(len(objects), bool)
        if kind == 0:
            keep = _distance(objects, leptons) > physics.own_track_cone
        keep = hardest(objects, keep, most)
        kept = objects.where(keep)
        own = np.flatnonzero(keep)
        isolation = [
            cone_sums(
                kept.offsets, kept["Eta"], kept["Phi"], own if other == kind else np.full(len(kept), -1), -1.0,
                neighbours.offsets, neighbours["Eta"], neighbours["Phi"], neighbours["PT"],
                physics.isolation_cone,
            )
            for other, (neighbours, _, _) in enumerate(kinds)
        ]  # fmt: skip
        parts.append(_rows(kept, isolation, code))
    return _interleave(parts)


def sequence_order(particles: Columns, leptons: Leptons) -> NDArray[np.int64]:
    """Order the particles of each event by falling distance from its lepton, which comes last.

    Parameters
    ----------
    particles : Columns
        With Eta and Phi, the lepton first.
    leptons : Leptons
        One for each event.

    Returns
    -------
    int64 (n_particles,)
        Indices into the flat columns: ``values[name][order]`` is the sequence. Particles equally far
        stay in the order of the list; the lepton is behind them all.
    """
    distance = _distance(particles, leptons)
    distance[particles.offsets[:-1]] = -1.0
    return np.lexsort((-distance, particles.events))


def hardest(objects: Columns, allowed: NDArray[np.bool_], most: int) -> NDArray[np.bool_]:
    """Mark the `most` allowed objects of highest pT in each event; of equal ones the first stored."""
    order = np.lexsort((-objects["PT"], ~allowed, objects.events))
    place = np.empty(len(objects), np.int64)
    place[order] = np.arange(len(objects)) - np.repeat(objects.offsets[:-1], objects.counts)
    return allowed & (place < most)


def _distance(objects: Columns, leptons: Leptons) -> NDArray[np.float64]:
    """Delta R between each object and the lepton of its event."""
    event = objects.events
    deta = objects["Eta"] - leptons.eta[event]
    dphi = np.abs(objects["Phi"] - leptons.phi[event]) % (2 * np.pi)
    return np.hypot(deta, np.minimum(dphi, 2 * np.pi - dphi))


def _lepton_rows(leptons: Leptons) -> Columns:
    n = len(leptons.pt)
    values = {
        "Pt": leptons.pt, "Eta": leptons.eta, "Phi": leptons.phi,
        "vtxX": np.zeros(n), "vtxY": np.zeros(n), "vtxZ": np.zeros(n),
        "ChPFIso": leptons.isolation[:, 0], "GammaPFIso": leptons.isolation[:, 1],
        "NeuPFIso": leptons.isolation[:, 2],
        "kind": np.where(leptons.is_electron, float(names.ELECTRON), float(names.MUON)),
        "Charge": leptons.charge,
    }  # fmt: skip
    return Columns(np.arange(n + 1), values)


def _rows(kept: Columns, isolation: list[NDArray[np.float64]], code: int) -> Columns:
    n = len(kept)
    zero = np.zeros(n)
    charged, photon, neutral = (total / kept["PT"] for total in isolation)
    values = {
        "Pt": kept["PT"], "Eta": kept["Eta"], "Phi": kept["Phi"],
        "vtxX": kept.values.get("X", zero), "vtxY": kept.values.get("Y", zero),
        "vtxZ": kept.values.get("Z", zero),
        "ChPFIso": charged, "GammaPFIso": photon, "NeuPFIso": neutral,
        "kind": np.full(n, float(code)), "Charge": kept.values.get("Charge", zero),
    }  # fmt: skip
    return Columns(kept.offsets, values)


def _interleave(parts: list[Columns]) -> Columns:
    """Put the parts of each event behind one another."""
    order = np.argsort(np.concatenate([part.events for part in parts]), kind="stable")
    offsets = np.sum([part.offsets for part in parts], axis=0)
    return Columns(
        offsets, {name: np.concatenate([part[name] for part in parts])[order] for name in names.STORED}
    )
