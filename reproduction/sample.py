"""What the sample is: sizes, selection, parents, and particles of an event."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import awkward as ak
import numpy as np
import uproot
from bootstrap import effective_events
from numpy.typing import NDArray

from hepdask.config import Config
from hepdask.config.feature_names import CHARGED_HADRON, NEUTRAL_HADRON, PHOTON
from hepdask.store import Events, Store

#: The published raw sample, after the lepton cut alone, and selected (Migliorini et al. 2019; docs/results.md).
PUBLISHED = {
    "qcd": (13_780_026, 9_740_000, 1_426_626),
    "ttbar": (26_335_315, 18_030_000, 14_265_397),
    "wjets": (14_354_796, 9_980_000, 9_776_447),
}

KINDS = {
    "tracks": CHARGED_HADRON,
    "photons": PHOTON,
    "neutral hadrons": NEUTRAL_HADRON,
}


@dataclass(frozen=True)
class Class:
    """The events of one class.

    Attributes
    ----------
    made, with_lepton, selected : int
        Simulated; with an electron or muon above the threshold; and isolated.
    parents, effective : int, float
        Parton levels of the selected events, and how many independent events they are worth at least.
    particles : dict of float64 (n,)
        Tracks, photons and neutral hadrons of each selected event.
    """

    made: int
    with_lepton: int
    selected: int
    parents: int
    effective: float
    particles: dict[str, NDArray]


def parents_of(store: Store, events: Events) -> NDArray[np.int64]:
    """Give each parent among events a number, int64 (n,), from `GenInfo.Parent` of the files."""
    found = np.empty((len(events), 2), np.int64)
    files = sorted({part["file"] for part in store.parts})
    for number, file in enumerate(files):
        of_file = [index for index, part in enumerate(store.parts) if part["file"] == file]
        mine = np.isin(events.part, of_file)
        with uproot.open(file) as opened:
            parent = ak.flatten(opened["Delphes"]["GenInfo.Parent"].array()).to_numpy()
        found[mine] = np.column_stack([np.full(mine.sum(), number), parent[events.entry[mine]]])
    return np.unique(found, axis=0, return_inverse=True)[1].reshape(-1)


def describe(config: Config, store: Store) -> dict[str, Class]:
    """Describe each class of a store, whatever the split."""
    events = store.events()
    parents = parents_of(store, events)
    files = {(part["file"], part["label"]) for part in store.parts}
    counted = np.zeros((len(store.classes), 2), int)
    for file, label in files:
        counted[label] += _count(Path(file), config.analysis.lepton_min_pt)
    event = np.repeat(np.arange(len(events)), np.diff(events.offsets))
    particles = {
        words: np.bincount(event[events.particles["kind"] == kind], minlength=len(events))
        for words, kind in KINDS.items()
    }
    found = {}
    for label, name in enumerate(store.classes):
        mine = events.label == label
        made, with_lepton = counted[label].tolist()
        found[name] = Class(
            made, with_lepton, int(mine.sum()), len(np.unique(parents[mine])), effective_events(parents[mine]),
            {words: counts[mine] for words, counts in particles.items()},
        )  # fmt: skip
    return found


def _count(file: Path, threshold: float) -> tuple[int, int]:
    """Count the events of a file, and those with a lepton above a threshold."""
    with uproot.open(file) as opened:
        tree = opened["Delphes"]
        leptons = tree.arrays(["Electron.PT", "MuonTight.PT"])
    hard = [ak.any(leptons[name] > threshold, axis=1) for name in leptons.fields]
    return len(leptons), int(np.sum(ak.to_numpy(hard[0] | hard[1])))


def bytes_an_event(store: Store) -> float:
    """Size of the store on disk over its events [bytes]."""
    return sum(file.stat().st_size for file in store.path.rglob("*") if file.is_file()) / len(store)
