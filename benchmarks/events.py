"""Events like the published ones, without a generator: fast, deterministic, of any density.

What matters for the time of the features is right: how many candidates of which kind an event has,
how steeply their pT falls, how densely they lie in (eta, phi), how many are below threshold, and
that an event has a lepton which nearly always passes. Nothing else in these events is physics.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import awkward as ak
import numpy as np
import uproot
from numpy.typing import NDArray

TREE = "Delphes"

_MAX_ETA = 4.0
_JET_SHARE = 0.15
_JET_WIDTH = 0.15
_DENSITY_AT_LEPTON = 300.0


@dataclass(frozen=True)
class _Kind:
    """One kind of candidates.

    Attributes
    ----------
    share : float
        Of the candidates above threshold.
    threshold : float
        On pT or ET [GeV].
    below : float
        Candidates below threshold for each one above, as Delphes writes them.
    scale : float
        Mean pT above threshold [GeV] outside jets.
    """

    share: float
    threshold: float
    below: float
    scale: float


_TRACK = _Kind(0.57, 0.5, 0.2, 0.65)
_PHOTON = _Kind(0.17, 1.0, 0.4, 0.5)
_NEUTRAL = _Kind(0.26, 1.0, 0.9, 0.8)


def make_events(n: int, candidates: int, seed: int) -> ak.Array:
    """Make events in Delphes' layout.

    Parameters
    ----------
    n : int
        Number of events.
    candidates : int
        Mean number of candidates above threshold an event: 57 % tracks, 17 % photons, 26 % neutral
        hadrons, each Poisson distributed; those below threshold come on top.
    seed : int
        The same arguments give the same events.

    Returns
    -------
    ak.Array
        Records of `EFlowTrack`, `EFlowPhoton`, `EFlowNeutralHadron`, `Electron`, `MuonTight`, `Jet` and
        `MissingET` in the types of Delphes (float32, int32, uint32).
    """
    rng = np.random.default_rng(seed)
    jets = _jets(n, rng)
    leptons = _leptons(n, rng)
    tracks = _candidates(_TRACK, n, candidates, jets, leptons, rng)
    photons = _candidates(_PHOTON, n, candidates, jets, leptons, rng)
    neutrals = _candidates(_NEUTRAL, n, candidates, jets, leptons, rng)

    size = len(tracks["event"])
    tracks["Charge"] = rng.choice(np.array([-1, 1]), size)
    tracks["PID"] = 211 * tracks["Charge"]
    tracks["X"], tracks["Y"] = rng.normal(0.0, 0.05, (2, size))
    tracks["Z"] = rng.normal(0.0, 53.0, size)
    tracks = _append(tracks, _lepton_tracks(leptons, rng))
    electron = leptons.pop("electron").astype(bool)
    missing = {
        "event": np.arange(n), "MET": rng.exponential(40.0, n), "Phi": rng.uniform(-np.pi, np.pi, n),
    }  # fmt: skip
    towers = {"PT": "ET"}
    return ak.zip(
        {
            "EFlowTrack": _collection(tracks, n),
            "EFlowPhoton": _collection(photons, n, towers),
            "EFlowNeutralHadron": _collection(neutrals, n, towers),
            "Electron": _collection({name: column[electron] for name, column in leptons.items()}, n),
            "MuonTight": _collection({name: column[~electron] for name, column in leptons.items()}, n),
            "Jet": _collection(jets, n),
            "MissingET": _collection(missing, n),
        },
        depth_limit=1,
    )


def write_root(
    path: Path,
    events: ak.Array,
    compression: uproot.compression.Compression | None = None,
    cluster: int | None = None,
) -> None:
    """Write events to a tree `Delphes` of flat branches `Collection.Field`.

    Parameters
    ----------
    path : Path
        Of the file, which is replaced.
    events : ak.Array
        From `make_events`.
    compression : uproot.compression.Compression, optional
        Default zlib at level 1: ROOT's own default.
    cluster : int, optional
        Events of a cluster; by default all.
    """
    with uproot.recreate(path, compression=compression or uproot.ZLIB(1)) as file:
        tree = file.mktree(
            TREE,
            {name: ak.type(events[name]).content for name in events.fields},
            counter_name=lambda collection: f"{collection}_size",
            field_name=lambda collection, field: f"{collection}.{field}" if collection else field,
        )
        step = cluster or len(events)
        for start in range(0, len(events), step):
            tree.extend({name: events[name][start : start + step] for name in events.fields})


def write_parquet(path: Path, events: ak.Array) -> None:
    """Write events to a Parquet file of array columns `Collection_Field` (snappy, Spark's default).

    Raises
    ------
    ImportError
        pyarrow is missing.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays = {}
    for name in events.fields:
        offsets = pa.array(_offsets(events[name]), pa.int32())
        for field in events[name].fields:
            flat = _flat(events[name], field)
            values = flat.astype(np.int32) if flat.dtype.kind in "ui" else flat
            arrays[f"{name}_{field}"] = pa.ListArray.from_arrays(offsets, pa.array(values))
    pq.write_table(pa.table(arrays), path, compression="snappy")


def plain(events: ak.Array) -> Iterator[dict[str, NDArray]]:
    """Give events one by one as plain arrays, ``{"Collection_Field": array}``, without copying."""
    columns = []
    for name in events.fields:
        offsets = _offsets(events[name])
        columns += [(f"{name}_{field}", offsets, _flat(events[name], field)) for field in events[name].fields]
    for i in range(len(events)):
        yield {name: flat[offsets[i] : offsets[i + 1]] for name, offsets, flat in columns}


def _jets(n: int, rng: np.random.Generator) -> dict[str, NDArray]:
    event = np.repeat(np.arange(n), 1 + rng.poisson(4.0, n))
    size = len(event)
    return {
        "event": event,
        "PT": 20.0 + rng.exponential(30.0, size),
        "Eta": rng.normal(0.0, 1.5, size).clip(-_MAX_ETA, _MAX_ETA),
        "Phi": rng.uniform(-np.pi, np.pi, size),
        "BTag": (rng.random(size) < 0.25).astype(np.uint32),
    }


def _leptons(n: int, rng: np.random.Generator) -> dict[str, NDArray]:
    """Give each event a lepton above 25 GeV and one in four events a softer second one."""
    second = np.flatnonzero(rng.random(n) < 0.25)
    event = np.concatenate((np.arange(n), second))
    size = len(event)
    return {
        "event": event,
        "PT": np.concatenate((25.0 + rng.exponential(25.0, n), 10.0 + rng.exponential(15.0, len(second)))),
        "Eta": rng.uniform(-2.4, 2.4, size),
        "Phi": rng.uniform(-np.pi, np.pi, size),
        "Charge": rng.choice(np.array([-1, 1]), size),
        "electron": (rng.random(size) < 0.5).astype(np.int64),
    }


def _candidates(
    kind: _Kind,
    n: int,
    candidates: int,
    jets: dict[str, NDArray],
    leptons: dict[str, NDArray],
    rng: np.random.Generator,
) -> dict[str, NDArray]:
    above = np.repeat(np.arange(n), rng.poisson(kind.share * candidates, n))
    below = np.repeat(np.arange(n), rng.poisson(kind.share * candidates * kind.below, n))
    event = np.concatenate((above, below))
    size = len(event)
    pt = np.concatenate(
        (
            kind.threshold * 1.0001 + rng.exponential(kind.scale, len(above)),
            kind.threshold * rng.uniform(0.2, 0.9999, len(below)),
        )
    )
    eta = rng.uniform(-_MAX_ETA, _MAX_ETA, size)
    phi = rng.uniform(-np.pi, np.pi, size)

    # some of those above threshold are in a jet: harder, and near its axis
    in_jet = np.flatnonzero(rng.random(len(above)) < _JET_SHARE)
    first = np.searchsorted(jets["event"], np.arange(n + 1))
    of_event = event[in_jet]
    jet = first[of_event] + (rng.random(len(in_jet)) * np.diff(first)[of_event]).astype(np.int64)
    pt[in_jet] += rng.exponential(4.0 * kind.scale, len(in_jet))
    eta[in_jet] = (jets["Eta"][jet] + rng.normal(0.0, _JET_WIDTH, len(in_jet))).clip(-_MAX_ETA, _MAX_ETA)
    phi[in_jet] = _wrapped(jets["Phi"][jet] + rng.normal(0.0, _JET_WIDTH, len(in_jet)))

    # around the first lepton there is no more than in an event of 300 candidates, and no jet: the
    # rest goes to the other side, so that the share of events that pass does not depend on density
    deta, dphi = eta - leptons["Eta"][event], _wrapped(phi - leptons["Phi"][event])
    surplus = rng.random(size) > _DENSITY_AT_LEPTON / candidates
    surplus[in_jet] = True
    away = surplus & (np.hypot(deta, dphi) < 0.35)
    phi[away] = _wrapped(phi[away] + np.pi)

    order = np.argsort(event, kind="stable")
    return {"event": event[order], "PT": pt[order], "Eta": eta[order], "Phi": phi[order]}


def _lepton_tracks(leptons: dict[str, NDArray], rng: np.random.Generator) -> dict[str, NDArray]:
    """Give each lepton its own track: the same direction, an electron's pT measured a little differently."""
    electron = leptons["electron"].astype(bool)
    size = len(electron)
    smeared = leptons["PT"] * rng.normal(1.0, 0.02, size).clip(0.9, 1.1)
    return {
        "event": leptons["event"],
        "PT": np.where(electron, smeared, leptons["PT"]),
        "Eta": leptons["Eta"],
        "Phi": leptons["Phi"],
        "Charge": leptons["Charge"],
        "PID": np.where(electron, -11, -13) * leptons["Charge"],
        "X": np.zeros(size),
        "Y": np.zeros(size),
        "Z": rng.normal(0.0, 53.0, size),
    }


def _append(first: dict[str, NDArray], second: dict[str, NDArray]) -> dict[str, NDArray]:
    """Put objects behind others of the same event."""
    return {name: np.concatenate((column, second[name])) for name, column in first.items()}


def _collection(columns: dict[str, NDArray], n: int, names: dict[str, str] | None = None) -> ak.Array:
    """Make the jagged records of one collection from flat columns in any order of events."""
    order = np.argsort(columns["event"], kind="stable")
    counts = np.bincount(columns["event"], minlength=n)
    fields = {}
    for name, column in columns.items():
        if name != "event":
            kind = {"f": np.float32, "u": np.uint32}.get(column.dtype.kind, np.int32)
            fields[(names or {}).get(name, name)] = ak.unflatten(column[order].astype(kind), counts)
    return ak.zip(fields, depth_limit=2)


def _wrapped(phi: NDArray) -> NDArray:
    return (phi + np.pi) % (2 * np.pi) - np.pi


def _offsets(collection: ak.Array) -> NDArray[np.int64]:
    return np.concatenate(([0], np.cumsum(ak.to_numpy(ak.num(collection)))))


def _flat(collection: ak.Array, field: str) -> NDArray:
    return ak.to_numpy(ak.flatten(collection[field]))
