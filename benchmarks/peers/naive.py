"""Per-event Python with numpy, as one would write it first; needs nothing but numpy.

For each particle, all candidates of each kind are masked with numpy and summed: the form of the
published analysis. The Spark job runs the same function over its rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

CONE = 0.3
OWN_TRACK = 1e-4
CAPS = (450, 150, 200)
KINDS = ("isChHad", "isNeuHad", "isGamma", "isEle", "isMu")


def features(events: Iterable[Mapping[str, Any]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute the features of events one by one.

    Parameters
    ----------
    events : iterable of mappings
        ``{"Collection_Field": numbers}`` an event.

    Returns
    -------
    high_level : (n_selected, 14)
    particles : (n_particles, 19)
        Of all selected events, one behind the other.
    """
    found = [result for event in events if (result := event_features(event)) is not None]
    if not found:
        return np.empty((0, 14)), np.empty((0, 19))
    high_level, particles = zip(*found, strict=True)
    return np.array(high_level), np.concatenate(particles)


def event_features(event: Mapping[str, Any]) -> tuple[list[float], NDArray[np.float64]] | None:
    """Compute the features of one event.

    Parameters
    ----------
    event : mapping
        ``{"Collection_Field": numbers}``.

    Returns
    -------
    tuple or None
        The 14 high-level features and the particles (n, 19), or None if no lepton passes.
    """
    tracks = _above(event, "EFlowTrack", "PT", 0.5, ("Charge", "X", "Y", "Z"))
    photons = _above(event, "EFlowPhoton", "ET", 1.0)
    neutrals = _above(event, "EFlowNeutralHadron", "ET", 1.0)
    candidates = (tracks, photons, neutrals)

    lepton: dict[str, Any] | None = None
    for collection, flavour in (("Electron", "isEle"), ("MuonTight", "isMu")):
        found = _above(event, collection, "PT", 23.0, ("Charge",))
        for pt, eta, phi, charge in zip(
            found["pt"], found["eta"], found["phi"], found["Charge"], strict=True
        ):
            own = delta_r(tracks["eta"], tracks["phi"], eta, phi) <= OWN_TRACK
            isolation = _isolation(pt, eta, phi, candidates, (own, None, None))
            if sum(isolation) < 0.45 and (lepton is None or pt > lepton["pt"]):
                lepton = {
                    "pt": pt, "eta": eta, "phi": phi, "charge": charge, "isolation": isolation, "kind": flavour,
                }  # fmt: skip
    if lepton is None:
        return None

    rows = []
    for i, (kind, things) in enumerate(zip(("isChHad", "isGamma", "isNeuHad"), candidates, strict=True)):
        allowed = np.arange(len(things["pt"]))
        if kind == "isChHad":
            allowed = allowed[delta_r(things["eta"], things["phi"], lepton["eta"], lepton["phi"]) > OWN_TRACK]
        hardest = np.argsort(-things["pt"][allowed], kind="stable")[: CAPS[i]]
        for j in np.sort(allowed[hardest]):
            pt, eta, phi = things["pt"][j], things["eta"][j], things["phi"][j]
            left_out: list[NDArray[np.bool_] | None] = [None, None, None]
            itself = np.zeros(len(things["pt"]), bool)
            itself[j] = True
            left_out[i] = itself
            isolation = _isolation(pt, eta, phi, candidates, left_out)
            vertex = tuple(things[name][j] for name in ("X", "Y", "Z")) if kind == "isChHad" else (0, 0, 0)
            charge = things["Charge"][j] if kind == "isChHad" else 0
            rows.append(_row(pt, eta, phi, vertex, isolation, kind, charge))
    particles = np.array(rows).reshape(-1, 19)
    distance = delta_r(particles[:, 5], particles[:, 6], lepton["eta"], lepton["phi"])
    particles = particles[np.argsort(-distance, kind="stable")]
    last = _row(
        lepton["pt"], lepton["eta"], lepton["phi"], (0, 0, 0), lepton["isolation"], lepton["kind"], lepton["charge"]
    )  # fmt: skip
    return _high_level(event, lepton), np.vstack((particles, last))


def delta_r(eta: Any, phi: Any, to_eta: Any, to_phi: Any) -> Any:
    """Distance in (eta, phi), the azimuth around the circle; all phi within [-pi, pi]."""
    dphi = np.abs(phi - to_phi)
    dphi = np.minimum(dphi, 2 * np.pi - dphi)
    return np.sqrt((eta - to_eta) ** 2 + dphi**2)


def _above(
    event: Mapping[str, Any], collection: str, momentum: str, threshold: float, more: tuple[str, ...] = ()
) -> dict[str, NDArray[np.float64]]:
    pt = np.asarray(event[f"{collection}_{momentum}"], np.float64)
    passing = pt > threshold
    found = {"pt": pt[passing]}
    for name, field in (("eta", "Eta"), ("phi", "Phi"), *((field, field) for field in more)):
        found[name] = np.asarray(event[f"{collection}_{field}"], np.float64)[passing]
    return found


def _isolation(
    pt: float,
    eta: float,
    phi: float,
    candidates: Iterable[Mapping[str, NDArray[np.float64]]],
    left_out: Iterable[NDArray[np.bool_] | None],
) -> list[float]:
    """Sum the candidates of each kind in the cone, over pT."""
    sums = []
    for kind, without in zip(candidates, left_out, strict=True):
        inside = delta_r(kind["eta"], kind["phi"], eta, phi) < CONE
        if without is not None:
            inside &= ~without
        sums.append(float(kind["pt"][inside].sum() / pt))
    return sums


def _row(
    pt: float, eta: float, phi: float, vertex: Iterable[float], isolation: Iterable[float], kind: str, charge: float
) -> list[float]:  # fmt: skip
    return [
        pt * np.cosh(eta), pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta), pt, eta, phi,
        *vertex, *isolation, *(float(kind == name) for name in KINDS), charge,
    ]  # fmt: skip


def _high_level(event: Mapping[str, Any], lepton: Mapping[str, Any]) -> list[float]:
    pt, eta = (np.asarray(event[f"Jet_{field}"], np.float64) for field in ("PT", "Eta"))
    counted = (pt > 30.0) & (np.abs(eta) < 2.6)
    b_tagged = np.asarray(event["Jet_BTag"])[counted] > 0
    met, met_phi = float(event["MissingET_MET"][0]), float(event["MissingET_Phi"][0])
    mt = np.sqrt(max(0.0, 2 * met * lepton["pt"] * (1 - np.cos(lepton["phi"] - met_phi))))
    return [
        float(pt[counted].sum()), met, met_phi, float(mt), float(counted.sum()), float(b_tagged.sum()),
        lepton["pt"], lepton["eta"], lepton["phi"], *lepton["isolation"], lepton["charge"],
        float(lepton["kind"] == "isEle"),
    ]  # fmt: skip
