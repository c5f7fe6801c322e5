"""Events for the tests: made by hand or at random, as awkward arrays and as ROOT files in Delphes' layout."""

from __future__ import annotations

import uuid

import awkward as ak
import numpy as np
import uproot

FIELDS = {
    "EFlowTrack": {
        "PT": "pt", "Eta": "eta", "Phi": "phi", "X": "x", "Y": "y", "Z": "z", "Charge": "charge", "PID": "pid",
    },
    "EFlowPhoton": {"ET": "pt", "Eta": "eta", "Phi": "phi"},
    "EFlowNeutralHadron": {"ET": "pt", "Eta": "eta", "Phi": "phi"},
    "Electron": {"PT": "pt", "Eta": "eta", "Phi": "phi", "Charge": "charge"},
    "MuonTight": {"PT": "pt", "Eta": "eta", "Phi": "phi", "Charge": "charge"},
    "Jet": {"PT": "pt", "Eta": "eta", "Phi": "phi", "BTag": "btag"},
    "MissingET": {"MET": "pt", "Phi": "phi"},
}  # fmt: skip
HOMES = {
    "EFlowTrack": "tracks", "EFlowPhoton": "photons", "EFlowNeutralHadron": "neutrals",
    "Electron": "electrons", "MuonTight": "muons", "Jet": "jets",
}  # fmt: skip
WHOLE = {"Charge", "PID", "BTag"}


def thing(pt, eta, phi, **more):
    return {"pt": float(pt), "eta": float(eta), "phi": float(phi), **more}


def track(pt, eta, phi, charge=1, x=0.0, y=0.0, z=0.0, pid=211):
    return thing(pt, eta, phi, charge=charge, x=x, y=y, z=z, pid=pid)


def lepton(pt, eta, phi, charge=-1):
    return thing(pt, eta, phi, charge=charge)


def event(**collections):
    empty = {name: [] for name in HOMES.values()}
    return {**empty, "met": {"pt": 40.0, "phi": 0.5}, **collections}


def to_awkward(events, dtype=np.float64):
    """Turn plain events into the record array that a ROOT file gives."""
    collections = {}
    for name, fields in FIELDS.items():
        objects = [[e["met"]] if name == "MissingET" else e[HOMES[name]] for e in events]
        counts = np.array([len(o) for o in objects], dtype=np.int64)
        flat = [o for group in objects for o in group]
        columns = {
            field: ak.unflatten(
                np.array([o[key] for o in flat], dtype=np.int32 if field in WHOLE else dtype), counts
            )
            for field, key in fields.items()
        }
        collections[name] = ak.zip(columns, depth_limit=2)
    return ak.zip(collections, depth_limit=1)


def random_event(rng, candidates=60, leptons=2):
    """Make an event that may or may not pass; everything is exact in float32."""

    def directions(n):
        return np.float32(rng.uniform(-3.5, 3.5, n)), np.float32(rng.uniform(-np.pi, np.pi, n))

    def some(n, low, high, **more):
        eta, phi = directions(n)
        pts = np.float32(np.exp(rng.uniform(np.log(low), np.log(high), n)))
        return [
            thing(pts[i], eta[i], phi[i], **{key: make() for key, make in more.items()}) for i in range(n)
        ]

    def sign():
        return int(rng.choice((-1, 1)))

    def length():
        return float(np.float32(rng.normal()))

    tracks = some(
        rng.poisson(candidates), 0.3, 20, charge=sign, x=length, y=length, z=length, pid=lambda: 211
    )
    found = {name: some(rng.poisson(leptons / 2), 15, 80, charge=sign) for name in ("electrons", "muons")}
    for lepton_ in found["electrons"] + found["muons"]:
        tracks.append(track(lepton_["pt"], lepton_["eta"], lepton_["phi"], lepton_["charge"]))
    return event(
        tracks=tracks,
        photons=some(rng.poisson(candidates / 3), 0.5, 20),
        neutrals=some(rng.poisson(candidates / 3), 0.5, 20),
        jets=some(rng.poisson(4), 15, 200, btag=lambda: int(rng.integers(0, 2))),
        met={
            "pt": float(np.float32(rng.exponential(40))),
            "phi": float(np.float32(rng.uniform(-np.pi, np.pi))),
        },
        **found,
    )


def random_events(n, seed, **settings):
    rng = np.random.default_rng(seed)
    return [random_event(rng, **settings) for _ in range(n)]


def write_root(path, events, parents=None, drop=(), tree="Delphes", identity=None, called=()):
    """Write events as a flat ROOT file; ``drop`` leaves branches out, ``called`` gives some another name."""
    called = dict(called)
    array = to_awkward(events, np.float32)
    collections = {}
    for name in array.fields:
        kept = [field for field in array[name].fields if f"{name}.{field}" not in drop]
        if kept:
            collections[name] = array[name][kept]
    if parents is not None:
        parents = ak.unflatten(np.asarray(parents, np.int64), np.ones(len(parents), np.int64))
        collections["GenInfo"] = ak.zip({"Parent": parents}, depth_limit=2)
    # a hash of the UUID decides the splits: the same events get the same one in every run
    identity = identity or uuid.uuid5(uuid.NAMESPACE_OID, repr(events))
    with uproot.recreate(path, uuid_function=lambda: identity) as file:
        file.mktree(
            tree,
            {name: ak.type(collection).content for name, collection in collections.items()},
            counter_name=lambda collection: f"{collection}_size",
            field_name=lambda collection, field: called.get(name := f"{collection}.{field}", name),
        ).extend(collections)
    return str(path)
