"""The 14 high-level features of a selected event."""

from __future__ import annotations

import awkward as ak
import numpy as np
from numpy.typing import NDArray

from hepdask.analysis.columns import BadEvent, Columns, columns
from hepdask.analysis.topology.conventions import CONVENTIONS
from hepdask.analysis.topology.lepton import Leptons
from hepdask.config import Topology


def missing_et(events: ak.Array, settings: Topology) -> Columns:
    """Take MET [GeV] and its Phi [rad]; every event must have it."""
    met = columns(events, settings.collections.met, ("MET", "Phi"), positive="MET")
    empty = np.flatnonzero(met.counts == 0)
    if len(empty):
        raise BadEvent(empty, f"{settings.collections.met} is empty")
    return met


def jets(events: ak.Array, settings: Topology) -> Columns:
    """Take the jets with pT > `jet_min_pt` and |eta| < `jet_max_abs_eta` (30 GeV and 2.6)."""
    found = columns(events, settings.collections.jet, ("PT", "Eta", "BTag"), positive="PT")
    return found.where(
        (found["PT"] > settings.jet_min_pt) & (np.abs(found["Eta"]) < settings.jet_max_abs_eta)
    )


def high_level_features(
    leptons: Leptons, jets: Columns, met: Columns, settings: Topology
) -> NDArray[np.float64]:
    """Compute the high-level features of the selected events.

    Parameters
    ----------
    leptons : Leptons
        One for each selected event.
    jets, met : Columns
        Of the selected events alone, from `jets` and `missing_et`.
    settings : Topology
        Decides the convention.

    Returns
    -------
    float64 (n_selected, 14)
        In the order of `feature_names.HIGH_LEVEL`. HT is the scalar pT sum of the jets [GeV], nBjets counts jets
        with BTag > 0, and MT = sqrt(2 MET pT (1 - cos dphi)) of lepton and missing ET [GeV]
        (Particle Data Group, Review of Particle Topology, Kinematics).
    """
    n = len(leptons.pt)
    first = met.offsets[:-1]
    met_pt, met_phi = met["MET"][first].astype(np.float64), met["Phi"][first].astype(np.float64)
    ht = np.bincount(jets.events, weights=jets["PT"], minlength=n)
    b_tagged = np.bincount(jets.events, weights=jets["BTag"] > 0, minlength=n)
    mt = 2.0 * met_pt * leptons.pt * (1.0 - np.cos(leptons.phi - met_phi))
    if CONVENTIONS[settings.convention].roots_mt:
        mt = np.sqrt(np.maximum(0.0, mt))
    return np.stack(
        (
            ht, met_pt, met_phi, mt, jets.counts.astype(np.float64), b_tagged,
            leptons.pt, leptons.eta, leptons.phi, *leptons.isolation.T,
            leptons.charge, leptons.is_electron.astype(np.float64),
        ),
        axis=1,
    )  # fmt: skip
