"""Compare the fast detector with files of others: tables of Kolmogorov distances for docs/simulation.md.

    python reproduction/detector.py --delphes FOLDER --pythia FOLDER --ours runs/paper/events

Each folder holds `ttbar*.root`, `wjets*.root` and `qcd*.root` in Delphes' layout. With `--delphes`, all events without
pile-up are compared, ours made here; with `--pythia`, selected events with pile-up, ours from `--ours`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import awkward as ak
import numpy as np
import uproot
from numpy.typing import NDArray
from scipy.stats import ks_2samp

from hepdask.analysis import cutflow, topology
from hepdask.config import Topology
from hepdask.simulation import simulate_block
from hepdask.simulation.jets import isolation

PROCESSES = {"ttbar": "tt̄", "wjets": "W", "qcd": "QCD"}

#: Events made here for the comparison without pile-up, and read at most of a file.
_MADE, _READ = 1000, 5000

_FIELDS = {
    "EFlowTrack": ("PID", "Charge", "PT", "Eta", "Phi", "Mass", "X", "Y", "Z"),
    "EFlowPhoton": ("ET", "Eta", "Phi"),
    "EFlowNeutralHadron": ("ET", "Eta", "Phi"),
    "Electron": ("PT", "Eta", "Phi", "Charge"),
    "MuonTight": ("PT", "Eta", "Phi", "Charge"),
    "Jet": ("PT", "Eta", "Phi", "BTag"),
    "MissingET": ("MET", "Phi"),
}
#: Name, field of the momentum [GeV] and threshold of the candidates.
_CANDIDATES = {
    "tracks": ("EFlowTrack", "PT", 0.5),
    "photons": ("EFlowPhoton", "ET", 1.0),
    "neutral hadrons": ("EFlowNeutralHadron", "ET", 1.0),
}
_MAX_ETA = 2.5
_PILE_UP = (0, 15, 20, 25, 100)


def main() -> None:
    """Print the tables."""
    arguments = _arguments()
    analysis = Topology()
    if arguments.delphes:
        print("Against Delphes, all events, no pile-up:\n")
        print(*table(
            {
                process: (_simulated(process), read(arguments.delphes, process, 1))
                for process in PROCESSES
            }
        ), sep="\n")  # fmt: skip
    if arguments.pythia:
        print("\nSelected events, pile-up 20:\n")
        pairs = {}
        for process in PROCESSES:
            both = [read(folder, process, 4) for folder in (arguments.ours, arguments.pythia)]
            pairs[process] = tuple(events[topology.select(events, analysis)] for events in both)
        print(*table(pairs), sep="\n")
    if arguments.ours:
        print("\nIsolated of those with a lepton, by the number of further collisions, ours:\n")
        print(*isolated(arguments.ours, analysis), sep="\n")


def table(pairs: dict[str, tuple[ak.Array, ak.Array]]) -> Iterator[str]:
    """Give a row a quantity, a column a process: Kolmogorov distance, and the means of both."""
    yield "| | " + " | ".join(PROCESSES.values()) + " |"
    yield "| --- |" + " --- |" * len(PROCESSES)
    measured = {process: [quantities(events) for events in both] for process, both in pairs.items()}
    for name in measured["ttbar"][0]:
        cells = []
        for ours, theirs in measured.values():
            if min(len(ours[name]), len(theirs[name])) < 30:
                cells.append("–")
                continue
            distance = ks_2samp(ours[name], theirs[name]).statistic
            cells.append(f"{distance:.3f}; {_short(ours[name])}, {_short(theirs[name])}")
        yield f"| {name} | " + " | ".join(cells) + " |"
    sizes = [f"{len(ours):,}, {len(theirs):,}" for ours, theirs in pairs.values()]
    yield "| events | " + " | ".join(sizes) + " |"


def quantities(events: ak.Array) -> dict[str, NDArray]:
    """Give the values of each quantity: one an event, or one an object; GeV."""
    found: dict[str, NDArray] = {}
    for name, (collection, momentum, threshold) in _CANDIDATES.items():
        objects = events[collection]
        objects = objects[(objects[momentum] > threshold) & (abs(objects.Eta) < _MAX_ETA)]
        found[name] = _numpy(ak.num(objects))
        found[f"{momentum} of {name}"] = _numpy(ak.flatten(objects[momentum]))
        found[f"abs. η of {name}"] = _numpy(abs(ak.flatten(objects.Eta)))
    jets = events.Jet[(events.Jet.PT > 30) & (abs(events.Jet.Eta) < 2.6)]
    found["jets"] = _numpy(ak.num(jets))
    found["HT"] = _numpy(ak.sum(jets.PT, axis=1))
    found["tagged jets"] = _numpy(ak.sum(jets.BTag > 0, axis=1))
    found["missing ET"] = _numpy(ak.flatten(events.MissingET.MET))
    leptons = ak.concatenate([events.Electron, events.MuonTight], axis=1)
    leptons = leptons[(leptons.PT > 23) & (abs(leptons.Eta) < _MAX_ETA)]
    found["lepton pT"] = _numpy(ak.flatten(leptons.PT))
    found["abs. η of leptons"] = _numpy(abs(ak.flatten(leptons.Eta)))
    flow = {name: events[name] for name in ("EFlowTrack", "EFlowPhoton", "EFlowNeutralHadron")}
    found["lepton isolation"] = _numpy(ak.flatten(isolation(leptons, flow)))
    return found


def isolated(folder: Path, analysis: Topology) -> Iterator[str]:
    """Give the share of events whose lepton is isolated, by process and number of further collisions."""
    ranges = list(pairwise(_PILE_UP))
    yield "| | " + " | ".join(f"{low} to {high - 1}" for low, high in ranges) + " |"
    yield "| --- |" + " --- |" * len(ranges)
    for process, words in PROCESSES.items():
        events = read(folder, process, 4)
        reason = topology.extract(events, analysis).reason
        collisions = _numpy(ak.flatten(events.GenInfo.NPU))
        cells = []
        for low, high in ranges:
            mine = (collisions >= low) & (collisions < high) & (reason != cutflow.NO_LEPTON)
            share = np.mean(reason[mine] == cutflow.SELECTED)
            cells.append(f"{share:.3f} ± {np.sqrt(share * (1 - share) / mine.sum()):.3f}")
        yield f"| {words} | " + " | ".join(cells) + " |"


def read(folder: Path, process: str, most: int) -> ak.Array:
    """Read the events of the first files of a process."""
    files = sorted(folder.glob(f"{process}*.root"))[:most]
    if not files:
        raise SystemExit(f"{folder}: holds no {process}*.root")
    parts = []
    for file in files:
        with uproot.open(file) as opened:
            tree = opened["Delphes"]
            wanted = dict(_FIELDS)
            if "GenInfo.NPU" in tree.keys(full_paths=False):
                wanted["GenInfo"] = ("NPU",)
            columns = {
                name: ak.zip({field: tree[f"{name}.{field}"].array(entry_stop=_READ) for field in fields})
                for name, fields in wanted.items()
            }
        parts.append(ak.zip(columns, depth_limit=1))
    return ak.concatenate(parts)[:_READ]


def _simulated(process: str) -> ak.Array:
    return simulate_block(process, _MADE, seed=7, block=0, enrich=False)


def _numpy(values: ak.Array) -> NDArray:
    return np.asarray(ak.to_numpy(values), np.float64)


def _short(values: NDArray) -> str:
    return f"{values.mean():.3g}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--delphes", type=Path, help="files of Delphes without pile-up")
    parser.add_argument("--pythia", type=Path, help="files with pile-up")
    parser.add_argument("--ours", type=Path, help="files of hepdask simulate with pile-up")
    arguments = parser.parse_args()
    if arguments.pythia and not arguments.ours:
        parser.error("--pythia needs --ours")
    return arguments


if __name__ == "__main__":
    main()
