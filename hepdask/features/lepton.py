"""The isolated lepton that selects an event."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hepdask.config import Physics
from hepdask.features.candidates import Candidates
from hepdask.features.columns import Columns
from hepdask.features.isolation import cone_sums


@dataclass(frozen=True)
class Leptons:
    """One lepton for each selected event.

    Attributes
    ----------
    selected : bool (n_events,)
        Whether the event has an isolated lepton. The other arrays have one entry for each such event.
    pt, eta, phi, charge : float64 (n_selected,)
        pT [GeV], pseudorapidity, azimuth [rad], charge.
    isolation : float64 (n_selected, 3)
        Relative isolation from charged, photon and neutral-hadron candidates.
    is_electron : bool (n_selected,)
        Electron, otherwise muon.
    """

    selected: NDArray[np.bool_]
    pt: NDArray[np.float64]
    eta: NDArray[np.float64]
    phi: NDArray[np.float64]
    charge: NDArray[np.float64]
    isolation: NDArray[np.float64]
    is_electron: NDArray[np.bool_]


def leading_leptons(electrons: Columns, muons: Columns, candidates: Candidates, physics: Physics) -> Leptons:
    """Choose the hardest isolated electron or muon of each event.

    A lepton passes with pT > `lepton_min_pt` and a summed relative isolation below
    `lepton_max_isolation` (23 GeV and 0.45 in Migliorini et al. 2019). Of those that pass, the one with
    the highest pT is taken, whatever its flavour; of equal ones the first, electrons before muons.

    Parameters
    ----------
    electrons, muons : Columns
        With PT [GeV], Eta, Phi [rad] and Charge.
    candidates : Candidates
        What the isolation is summed over.
    physics : Physics
        Cuts.

    Returns
    -------
    Leptons
    """
    leptons, is_electron = _merge(electrons, muons)
    hard = leptons["PT"] > physics.lepton_min_pt
    leptons, is_electron = leptons.where(hard), is_electron[hard]
    isolation = lepton_isolation(leptons, candidates, physics)
    passing = isolation.sum(axis=1) < physics.lepton_max_isolation
    leptons, is_electron, isolation = leptons.where(passing), is_electron[passing], isolation[passing]

    # by event, then by falling pT; a stable sort keeps the stored order of equal ones
    order = np.lexsort((-leptons["PT"], leptons.events))
    selected = leptons.counts > 0
    best = order[leptons.offsets[:-1][selected]]
    return Leptons(
        selected,
        pt=leptons["PT"][best],
        eta=leptons["Eta"][best],
        phi=leptons["Phi"][best],
        charge=leptons["Charge"][best],
        isolation=isolation[best],
        is_electron=is_electron[best],
    )


def lepton_isolation(leptons: Columns, candidates: Candidates, physics: Physics) -> NDArray[np.float64]:
    """Relative isolation of leptons, float64 (n_leptons, 3): charged, photon, neutral hadron.

    The lepton's own track, within `own_track_cone`, is left out of the charged sum; nothing is left
    out of the other two.
    """
    nothing = np.full(len(leptons), -1)
    sums = [
        cone_sums(
            leptons.offsets, leptons["Eta"], leptons["Phi"], nothing, own_radius,
            kind.offsets, kind["Eta"], kind["Phi"], kind["PT"], physics.isolation_cone,
        )
        for kind, own_radius in (
            (candidates.tracks, physics.own_track_cone),
            (candidates.photons, -1.0),
            (candidates.neutrals, -1.0),
        )
    ]  # fmt: skip
    return np.stack(sums, axis=1) / leptons["PT"][:, None]


def _merge(electrons: Columns, muons: Columns) -> tuple[Columns, NDArray[np.bool_]]:
    """Put electrons and muons of each event behind one another."""
    is_electron = np.concatenate((np.ones(len(electrons), bool), np.zeros(len(muons), bool)))
    order = np.argsort(np.concatenate((electrons.events, muons.events)), kind="stable")
    values = {name: np.concatenate((electrons[name], muons[name]))[order] for name in electrons.values}
    return Columns(electrons.offsets + muons.offsets, values), is_electron[order]
