"""The features without a loop over events: awkward arrays, every pair of an event at once.

All distances between the particles and the candidates of a chunk are laid out in memory and then
masked and summed. A hundred events a chunk by default: in small chunks the fixed cost of an awkward
call dominates, in large ones (and with dense events) the arrays of pairs overflow the caches.
"""

from __future__ import annotations

import awkward as ak
import numpy as np
from numpy.typing import NDArray

CONE = 0.3
OWN_TRACK = 1e-4
CHUNK = 100

_VERTEX = ("X", "Y", "Z")
_KINDS = ("isChHad", "isNeuHad", "isGamma", "isEle", "isMu")


def features(events: ak.Array, chunk: int = CHUNK) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute the features of events, a chunk at a time.

    Parameters
    ----------
    events : ak.Array
        In Delphes' layout.
    chunk : int
        Events whose pairs are in memory at once.

    Returns
    -------
    high_level : (n_selected, 14)
    particles : (n_particles, 19)
        Of all selected events, one behind the other.
    """
    parts = [chunk_features(events[start : start + chunk]) for start in range(0, len(events), chunk)]
    high_level, particles = zip(*parts, strict=True)
    return np.concatenate(high_level), np.concatenate(particles)


def chunk_features(events: ak.Array) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute the features of a few events, as `features`."""
    candidates = [
        _above(events.EFlowTrack, "PT", 0.5, ("Charge", *_VERTEX)),
        _above(events.EFlowPhoton, "ET", 1.0),
        _above(events.EFlowNeutralHadron, "ET", 1.0),
    ]
    leptons = _passing_leptons(events, candidates)
    selected = ak.num(leptons) > 0
    events, leptons = events[selected], leptons[selected]
    candidates = [kind[selected] for kind in candidates]
    leading = leptons[ak.argsort(leptons.pt, ascending=False, stable=True)][:, :1]
    lepton = leading[:, 0]

    parts = []
    for i, (name, cap) in enumerate((("isChHad", 450), ("isGamma", 150), ("isNeuHad", 200))):
        things = candidates[i]
        if name == "isChHad":
            things = things[_distance(things, lepton) > OWN_TRACK]
        if ak.any(ak.num(things) > cap):
            hardest = ak.argsort(things.pt, ascending=False, stable=True)[:, :cap]
            things = things[ak.sort(hardest)]
        isolation = [_cone_sums(things, kind, i == j) for j, kind in enumerate(candidates)]
        parts.append(_with_isolation(things, isolation, name))
    particles = ak.concatenate(parts, axis=1)
    order = ak.argsort(_distance(particles, lepton), ascending=False, stable=True)
    particles = ak.concatenate((particles[order], _lepton_rows(leading)), axis=1)
    return _high_level(events, lepton), _columns(ak.flatten(particles))


def _above(collection: ak.Array, momentum: str, threshold: float, more: tuple[str, ...] = ()) -> ak.Array:
    """Take the objects above threshold, all fields in float64."""
    fields = {"pt": collection[momentum], "eta": collection.Eta, "phi": collection.Phi}
    fields |= {name: collection[name] for name in more}
    fields = {name: ak.values_astype(column, np.float64) for name, column in fields.items()}
    return ak.zip(fields)[fields["pt"] > threshold]


def _passing_leptons(events: ak.Array, candidates: list[ak.Array]) -> ak.Array:
    flavours = []
    for collection, electron in ((events.Electron, 1.0), (events.MuonTight, 0.0)):
        leptons = _above(collection, "PT", 23.0, ("Charge",))
        sums = [
            _cone_sums(leptons, kind, False, OWN_TRACK if i == 0 else -1.0)
            for i, kind in enumerate(candidates)
        ]
        for name, value in zip(("charged", "photon", "neutral"), sums, strict=True):
            leptons = ak.with_field(leptons, value, name)
        flavours.append(ak.with_field(leptons, ak.full_like(leptons.pt, electron), "electron"))
    both = ak.concatenate(flavours, axis=1)
    return both[both.charged + both.photon + both.neutral < 0.45]


def _cone_sums(things: ak.Array, kind: ak.Array, same: bool, beyond: float = -1.0) -> ak.Array:
    """Sum the pT of one kind of candidates around each thing, over the pT of the thing.

    Parameters
    ----------
    things, kind : ak.Array
        Jagged records.
    same : bool
        Whether the things are of this kind and are themselves left out.
    beyond : float
        Candidates up to this distance are left out.
    """
    ours, theirs = ak.unzip(ak.cartesian((_directions(things), _directions(kind)), nested=True))
    deta, dphi = ours.eta - theirs.eta, _around(ours.phi - theirs.phi)
    distance = deta * deta + dphi * dphi
    inside = distance < CONE**2
    if beyond >= 0:
        inside = inside & (distance > beyond**2)
    sums = ak.sum(theirs.pt[inside], axis=-1)
    return (sums - things.pt if same else sums) / things.pt


def _directions(things: ak.Array) -> ak.Array:
    """Take what a pair needs, in single precision as the files have it: half the memory to go through."""
    return ak.zip({name: ak.values_astype(things[name], np.float32) for name in ("eta", "phi", "pt")})


def _distance(things: ak.Array, lepton: ak.Array) -> ak.Array:
    return np.sqrt((things.eta - lepton.eta) ** 2 + _around(things.phi - lepton.phi) ** 2)


def _around(dphi: ak.Array) -> ak.Array:
    """Take the short way around the circle; `dphi` is a difference of angles within [-pi, pi]."""
    dphi = abs(dphi)
    return np.minimum(dphi, 2 * np.pi - dphi)


def _with_isolation(things: ak.Array, isolation: list[ak.Array], name: str) -> ak.Array:
    zero = ak.zeros_like(things.pt)
    fields = {"pt": things.pt, "eta": things.eta, "phi": things.phi}
    fields |= {field: things[field] if field in things.fields else zero for field in (*_VERTEX, "Charge")}
    fields |= dict(zip(("charged", "photon", "neutral"), isolation, strict=True))
    fields |= {kind: zero + float(kind == name) for kind in _KINDS}
    return ak.zip(fields)


def _lepton_rows(lepton: ak.Array) -> ak.Array:
    zero = ak.zeros_like(lepton.pt)
    fields = {name: lepton[name] for name in ("pt", "eta", "phi", "Charge", "charged", "photon", "neutral")}
    fields |= dict.fromkeys((*_VERTEX, "isChHad", "isNeuHad", "isGamma"), zero)
    fields |= {"isEle": lepton.electron, "isMu": 1.0 - lepton.electron}
    return ak.zip(fields)


def _columns(particles: ak.Array) -> NDArray[np.float64]:
    pt, eta, phi = (ak.to_numpy(particles[name]) for name in ("pt", "eta", "phi"))
    rest = (*_VERTEX, "charged", "photon", "neutral", *_KINDS, "Charge")
    return np.stack(
        [
            pt * np.cosh(eta), pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta), pt, eta, phi,
            *(ak.to_numpy(particles[name]) for name in rest),
        ],
        axis=1,
    )  # fmt: skip


def _high_level(events: ak.Array, lepton: ak.Array) -> NDArray[np.float64]:
    jets = ak.values_astype(events.Jet[["PT", "Eta", "BTag"]], np.float64)
    jets = jets[(jets.PT > 30.0) & (abs(jets.Eta) < 2.6)]
    met = ak.values_astype(events.MissingET[:, 0], np.float64)
    mt = np.sqrt(np.maximum(2 * met.MET * lepton.pt * (1 - np.cos(lepton.phi - met.Phi)), 0.0))
    columns = (
        ak.sum(jets.PT, axis=1), met.MET, met.Phi, mt, ak.num(jets), ak.sum(jets.BTag > 0, axis=1),
        lepton.pt, lepton.eta, lepton.phi, lepton.charged, lepton.photon, lepton.neutral, lepton.Charge,
        lepton.electron,
    )  # fmt: skip
    return np.stack([np.asarray(ak.to_numpy(column), np.float64) for column in columns], axis=1)
