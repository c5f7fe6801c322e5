"""Pythia 8 generators: which processes there are, and events from Pythia to columns."""

from __future__ import annotations

from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt

from hepdask.errors import MissingDependency
from hepdask.simulation.particles import Floats, Generated, HeavyHadrons, Ints, Particles, hadron_flavour

# LHC Run 2; the published classifiers were made for it.
CENTRE_OF_MASS_GEV = 13_000.0

# Pythia takes seeds from 1 to 900,000,000 (its manual, "Random-number seed").
MAX_SEED = 900_000_000

# A heavy hadron below this cannot give a jet of 20 GeV its flavour; so it is not kept.
HEAVY_MIN_PT = 5.0

# QCD: partons of the hard scattering above this. A compromise: of 275 enriched events made from 18 GeV on,
# 27 % (47 of 138 parents) had less than 30, and each cost three times as much.
QCD_MIN_PT_HAT = 30.0

# W + jets: the parton that the W recoils against, and so the W, has at least this. Without it 81 % of the
# events would have no jet above 30 GeV.
WJETS_MIN_PT_HAT = 30.0

SETTINGS: dict[str, tuple[str, ...]] = {
    "ttbar": ("Top:gg2ttbar = on", "Top:qqbar2ttbar = on"),
    "wjets": (
        "WeakBosonAndParton:qqbar2Wg = on",
        "WeakBosonAndParton:qg2Wq = on",
        f"PhaseSpace:pTHatMin = {WJETS_MIN_PT_HAT}",
        "24:onMode = off",
        "24:onIfAny = 11 13 15",
    ),
    "qcd": ("HardQCD:all = on", f"PhaseSpace:pTHatMin = {QCD_MIN_PT_HAT}"),
    # All soft collisions, elastic ones included, is what Delphes' recipe for pile-up asks for. Diffractive
    # systems without their own multiparton interactions (mMinPert above their masses) initialise in 0.4
    # instead of 4.5 CPU s and have 5 +- 5 % fewer tracks above 0.5 GeV in |eta| < 2.5.
    "minimum bias": ("SoftQCD:all = on", "Diffraction:mMinPert = 20000."),
}

PROCESSES: dict[str, str] = {
    "ttbar": "top-quark pairs from gluons and from quarks, all decays (Top:gg2ttbar, Top:qqbar2ttbar)",
    "wjets": f"W -> l nu with l = e, mu, tau, and a parton with pT > {WJETS_MIN_PT_HAT:g} GeV; further jets "
    "from the shower (WeakBosonAndParton:qqbar2Wg, qg2Wq)",
    "qcd": f"multijets with pTHat > {QCD_MIN_PT_HAT:g} GeV (HardQCD:all); enriched in leptons unless told "
    "otherwise",
}


def make_generator(process: str, seed: int, *extra: str) -> Any:
    """Initialise Pythia for one process.

    Parameters
    ----------
    process : str
        A key of `SETTINGS`.
    seed : int
        From 1 to `MAX_SEED`.
    *extra : str
        Further Pythia settings, ``"Name:key = value"``.

    Returns
    -------
    pythia8mc.Pythia
        Ready for ``next()``.

    Raises
    ------
    MissingDependency
        If pythia8mc is not installed.
    """
    try:
        import pythia8mc
    except ImportError as error:
        raise MissingDependency(
            "simulating events needs pythia8mc: pip install 'hepdask[simulate]'"
        ) from error
    pythia = pythia8mc.Pythia("", False)
    for line in (
        "Print:quiet = on",
        f"Beams:eCM = {CENTRE_OF_MASS_GEV}",
        "Random:setSeed = on",
        f"Random:seed = {seed}",
        *SETTINGS[process],
        *extra,
    ):
        if not pythia.readString(line):
            raise ValueError(f"Pythia does not know the setting {line!r}")
    if not pythia.init():
        raise RuntimeError(f"Pythia could not be initialised for {process}")
    return pythia


def generate(pythia: Any, events: int) -> Generated:
    """Generate events in one call and keep what a detector sees.

    Parameters
    ----------
    pythia : pythia8mc.Pythia
        From `make_generator`.
    events : int
        How many; Pythia's rare failures are made up for.

    Returns
    -------
    Generated
        With ``parent`` counting from 0: every event is its own parent.
    """
    batches = []
    missing = events
    while missing > 0:
        batch = pythia.nextBatch(missing, errorMode="skip")
        batches.append(batch.prt)
        missing -= len(batch)
    record = ak.concatenate(batches)
    flat = ak.flatten(record)
    vertex = ak.fill_none(flat.vProd, {"px": 0.0, "py": 0.0, "pz": 0.0, "e": 0.0}, axis=0)
    columns = {
        "event": np.repeat(np.arange(events), ak.to_numpy(ak.num(record))),
        "pid": ak.to_numpy(flat.id).astype(np.int64),
        "final": ak.to_numpy(flat.status) > 0,
        **{name: ak.to_numpy(flat.p[name]) for name in ("px", "py", "pz", "e")},
        "m": ak.to_numpy(flat.m),
        **{name: ak.to_numpy(vertex["p" + name]) for name in ("x", "y", "z")},
    }
    return from_columns(pythia, columns, parent=np.arange(events))


def from_columns(pythia: Any, columns: dict[str, npt.NDArray[Any]], parent: Ints) -> Generated:
    """Divide whole event records into the final state and the heavy hadrons.

    Parameters
    ----------
    pythia : pythia8mc.Pythia
        For its particle data.
    columns : dict of (n,) arrays
        ``event pid final px py pz e m x y z``, every entry of the records, grouped by event.
    parent : (events,) int64
        See `Generated`.
    """
    final = columns["final"].astype(np.bool_)
    kept = {name: column[final] for name, column in columns.items() if name != "final"}
    particles = Particles(charge=charges(pythia, kept["pid"]), **kept)
    flavour = hadron_flavour(columns["pid"])
    pt = np.hypot(columns["px"], columns["py"])
    heavy = (flavour > 0) & (pt > HEAVY_MIN_PT)
    px, py, pz = (columns[name][heavy] for name in ("px", "py", "pz"))
    hadrons = HeavyHadrons(
        event=columns["event"][heavy],
        flavour=flavour[heavy],
        pt=pt[heavy],
        eta=np.arcsinh(pz / pt[heavy]),
        phi=np.arctan2(py, px),
    )
    return Generated(particles, hadrons, parent)


def charges(pythia: Any, pid: Ints) -> Floats:
    """Electric charge of each PDG code, from Pythia's particle data, in units of the positron's."""
    codes, inverse = np.unique(pid, return_inverse=True)
    return np.array([pythia.particleData.charge(int(code)) for code in codes])[inverse]
