"""The isolated lepton that selects an event."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import awkward as ak
import numpy as np
from numpy.typing import NDArray

from hepdask.analysis import cutflow
from hepdask.analysis.columns import Columns, columns
from hepdask.analysis.compiled import compiled
from hepdask.analysis.topology.candidates import NEUTRAL, PHOTON, TRACK, Inputs
from hepdask.analysis.topology.conventions import CONVENTIONS, Convention
from hepdask.analysis.topology.isolation import cone_sum_of_one
from hepdask.config import Topology

#: Stands for the index of a lepton where an event has no candidate of one of the kinds.
_NO_CANDIDATES = -2


@dataclass(frozen=True)
class Leptons:
    """One lepton for each selected event.

    Attributes
    ----------
    reason : int16 (n_events,)
        Why an event was not selected, see `cutflow`. The other arrays have one entry for each event that was.
    pt, eta, phi, charge : float64 (n_selected,)
        pT [GeV], pseudorapidity, azimuth [rad], charge.
    isolation : float64 (n_selected, 3)
        Relative isolation from charged, photon and neutral-hadron candidates.
    is_electron : bool (n_selected,)
        Electron, otherwise muon.
    """

    reason: NDArray[np.int16]
    pt: NDArray[np.float64]
    eta: NDArray[np.float64]
    phi: NDArray[np.float64]
    charge: NDArray[np.float64]
    isolation: NDArray[np.float64]
    is_electron: NDArray[np.bool_]

    @property
    def selected(self) -> NDArray[np.bool_]:
        """Whether the event has an isolated lepton and passes all else, bool (n_events,)."""
        return self.reason == cutflow.SELECTED

    def where(self, keep: NDArray[np.bool_], reason: int) -> Leptons:
        """Drop events as well, given which of all of them to keep, and why the others are dropped."""
        left = keep[self.selected]
        columns = (self.pt, self.eta, self.phi, self.charge, self.isolation, self.is_electron)
        dropped = np.where(self.selected & ~keep, np.int16(reason), self.reason)
        return Leptons(dropped, *(column[left] for column in columns))


def leading_leptons(events: ak.Array, inputs: Inputs, settings: Topology) -> Leptons:
    """Choose the isolated lepton that leads each event.

    A lepton passes with pT > `lepton_min_pt` and a summed relative isolation below `lepton_max_isolation`
    (23 GeV and 0.45 in Migliorini et al. 2019). Which of those that pass leads, and what is left out of the
    sums, depends on the convention: `conventions.Convention`.

    Parameters
    ----------
    events : ak.Array
        With the electron and muon collections.
    inputs : Inputs
        The candidates' collections of the same events.
    settings : Topology
        Cuts and convention.

    Returns
    -------
    Leptons
    """
    leptons, is_electron = _merge(
        *(_flavour(events, settings, flavour) for flavour in ("electron", "muon")),
    )
    hard = leptons["PT"] > settings.lepton_min_pt
    leptons, is_electron = leptons.where(hard), is_electron[hard]
    convention = CONVENTIONS[settings.convention]
    chosen, isolation = _choose(
        leptons.offsets, leptons["PT"], leptons["Eta"], leptons["Phi"], is_electron, inputs,
        settings.isolation_cone, settings.own_track_cone, settings.lepton_max_isolation, convention,
    )  # fmt: skip
    reason = np.full(len(chosen), cutflow.NOT_ISOLATED, np.int16)
    reason[leptons.counts == 0] = cutflow.NO_LEPTON
    reason[chosen == _NO_CANDIDATES] = cutflow.NO_CANDIDATES
    reason[chosen >= 0] = cutflow.SELECTED
    best = chosen[chosen >= 0]
    return Leptons(
        reason,
        pt=leptons["PT"][best],
        eta=leptons["Eta"][best],
        phi=leptons["Phi"][best],
        charge=leptons["Charge"][best],
        isolation=isolation[best],
        is_electron=is_electron[best],
    )


@compiled()
def _choose(
    offsets: NDArray[np.int64],
    pt: NDArray[np.float64],
    eta: NDArray[np.float64],
    phi: NDArray[np.float64],
    is_electron: NDArray[np.bool_],
    inputs: Inputs,
    radius: float,
    own_radius: float,
    max_isolation: float,
    convention: Convention,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Give the index of each event's lepton (negative for none), and the isolation of all that were tried."""
    chosen = np.full(len(offsets) - 1, -1)
    isolation = np.zeros((len(pt), 3))
    leaders = np.empty(2, np.int64)
    for event in range(len(offsets) - 1):
        if offsets[event] == offsets[event + 1]:
            continue
        if convention.needs_every_kind and not _has_every_kind(inputs, event):
            chosen[event] = _NO_CANDIDATES
            continue
        leaders[:] = -1  # of the electrons, of the muons
        for i in range(offsets[event], offsets[event + 1]):
            own = own_radius if convention.leaves_itself_out else -1.0
            _isolate(isolation[i], pt[i], eta[i], phi[i], inputs, event, radius, own, convention.wraps_cone)
            if not convention.leaves_itself_out:
                isolation[i, 0] -= 1.0
            if isolation[i].sum() < max_isolation:
                flavour = 0 if is_electron[i] else 1
                if leaders[flavour] < 0 or (convention.hardest_leads and pt[i] > pt[leaders[flavour]]):
                    leaders[flavour] = i
        chosen[event] = _leader(leaders[0], leaders[1], pt, eta, convention.hardest_leads)
    return chosen, isolation


@compiled()
def _isolate(
    isolation: NDArray[np.float64],
    pt: float,
    eta: float,
    phi: float,
    inputs: Inputs,
    event: int,
    radius: float,
    own_radius: float,
    wraps: bool,
) -> None:
    """Fill in the relative isolation of a lepton; its own tracks, within `own_radius`, are left out."""
    first, last = inputs.track_offsets[event], inputs.track_offsets[event + 1]
    isolation[0] = cone_sum_of_one(
        eta, phi, inputs.track_pt[first:last], inputs.track_eta[first:last], inputs.track_phi[first:last],
        inputs.thresholds[TRACK], radius, own_radius, wraps,
    )  # fmt: skip
    first, last = inputs.photon_offsets[event], inputs.photon_offsets[event + 1]
    isolation[1] = cone_sum_of_one(
        eta, phi, inputs.photon_pt[first:last], inputs.photon_eta[first:last], inputs.photon_phi[first:last],
        inputs.thresholds[PHOTON], radius, -1.0, wraps,
    )  # fmt: skip
    first, last = inputs.neutral_offsets[event], inputs.neutral_offsets[event + 1]
    isolation[2] = cone_sum_of_one(
        eta, phi, inputs.neutral_pt[first:last], inputs.neutral_eta[first:last], inputs.neutral_phi[first:last],
        inputs.thresholds[NEUTRAL], radius, -1.0, wraps,
    )  # fmt: skip
    isolation /= pt


@compiled()
def _has_every_kind(inputs: Inputs, event: int) -> bool:
    """Say whether there is a track, a photon and a neutral hadron above threshold."""
    tracks = inputs.track_pt[inputs.track_offsets[event] : inputs.track_offsets[event + 1]]
    photons = inputs.photon_pt[inputs.photon_offsets[event] : inputs.photon_offsets[event + 1]]
    neutrals = inputs.neutral_pt[inputs.neutral_offsets[event] : inputs.neutral_offsets[event + 1]]
    return (
        (tracks > inputs.thresholds[TRACK]).any()
        and (photons > inputs.thresholds[PHOTON]).any()
        and (neutrals > inputs.thresholds[NEUTRAL]).any()
    )


@compiled()
def _leader(
    electron: int, muon: int, pt: NDArray[np.float64], eta: NDArray[np.float64], hardest: bool
) -> int:
    """Choose between the leading electron and the leading muon, -1 where there is none."""
    if electron < 0 or muon < 0:
        return max(electron, muon)
    if hardest:
        return muon if pt[muon] > pt[electron] else electron
    return electron if eta[electron] > eta[muon] else muon


def _flavour(events: ak.Array, settings: Topology, flavour: Literal["electron", "muon"]) -> Columns:
    """Take the leptons of a flavour; none where it may not select."""
    fields = ("PT", "Eta", "Phi", "Charge")
    if flavour in settings.leptons:
        return columns(events, getattr(settings.collections, flavour), fields, positive="PT")
    return Columns(np.zeros(len(events) + 1, np.int64), dict.fromkeys(fields, np.empty(0)))


def _merge(electrons: Columns, muons: Columns) -> tuple[Columns, NDArray[np.bool_]]:
    """Put electrons and muons of each event behind one another, in float64."""
    is_electron = np.concatenate((np.ones(len(electrons), bool), np.zeros(len(muons), bool)))
    order = np.argsort(np.concatenate((electrons.events, muons.events)), kind="stable")
    values = {
        name: np.concatenate((electrons[name], muons[name])).astype(np.float64)[order]
        for name in electrons.values
    }
    return Columns(electrons.offsets + muons.offsets, values), is_electron[order]
