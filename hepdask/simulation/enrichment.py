"""QCD events with an electron or muon that is not buried in its jet, made without waiting for them.

One multijet event in some ten thousand passes a selection of one isolated lepton above 23 GeV. Nearly all
of those come from the decay of a b or c hadron that took most of its jet's momentum. So the parts that
are quick to repeat are repeated:

1. a parton level without a b or c quark above `MIN_QUARK_PT` is thrown away before it is hadronised;
2. every other one is hadronised `FRAGMENTATIONS` times, heavy hadrons kept stable;
3. the decays of the heavy hadrons are drawn up to `DECAYS` times, until a lepton passes `has_lepton`.

Events from one parton level are not independent: they carry the same parent number and must not be
divided between training and test. `docs/simulation.md` says what the sample leaves out.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt

from hepdask.simulation.particles import NEUTRINOS, Floats, Generated, delta_phi
from hepdask.simulation.pythia import from_columns

# GeV; just below the selection's 23, so that resolution may carry an event over it.
MIN_LEPTON_PT = 22.0

# Edge of the tracker: no lepton is reconstructed beyond it.
MAX_LEPTON_ETA = 4.0

# Looser than the selection's 0.45 in the same cone: tracks and towers are lost and smeared.
MAX_ISOLATION = 0.6
ISOLATION_CONE = 0.3
# GeV; the selection's threshold for charged candidates.
MIN_ISOLATION_PT = 0.5

# A heavy hadron is not worth decaying if more than `MAX_ISOLATION` of its own pT lies this near to it:
# hardly any lepton leaves the cone around it, and none has more pT than it.
HADRON_CONE = 0.2

# GeV, for quarks and for hadrons. Of 438 leptons accepted with 22 GeV here instead, none came from a
# quark below 24.8 and 2 % from one below 32.
MIN_QUARK_PT = 25.0

FRAGMENTATIONS = 8
DECAYS = 30

# Kept stable while hadronising: the c and b hadrons that decay weakly (PDG codes).
CHARMED = (411, 421, 431, 4122, 4132, 4232, 4332)
BEAUTY = (511, 521, 531, 541, 5122, 5132, 5232, 5332)
WEAKLY_DECAYING = frozenset(CHARMED + BEAUTY)

# Pythia must stop after the parton level in ``next()``.
SETTINGS = ("HadronLevel:all = off",)

_FIELDS = ("pid", "final", "px", "py", "pz", "e", "m", "x", "y", "z")


def generate_enriched(pythia: Any, events: int) -> Generated:
    """Generate QCD events that hold a loosely isolated electron or muon.

    Parameters
    ----------
    pythia : pythia8mc.Pythia
        QCD, made with `SETTINGS`.
    events : int
        How many.

    Returns
    -------
    Generated
        Events in order of their parents; ``parent`` counts the parton levels tried, so it has gaps.
    """
    records: list[Floats] = []
    parents: list[int] = []
    for parent in count():
        if not pythia.next() or not has_heavy_quark(pythia.event):
            continue
        for record in events_of_parent(pythia):
            records.append(record)
            parents.append(parent)
            if len(records) == events:
                return _collect(pythia, records, parents)
    raise AssertionError("unreachable: count() does not end")


def has_heavy_quark(event: Any) -> bool:
    """Whether the parton level ends with a b or c quark above `MIN_QUARK_PT`."""
    return any(
        parton.idAbs() in (4, 5) and parton.isFinal() and parton.pT() > MIN_QUARK_PT
        for parton in event.particles()
    )


def events_of_parent(pythia: Any) -> Iterator[Floats]:
    """Hadronise the current parton level again and again; at most one event a fragmentation.

    Yields
    ------
    (n, 10) float64
        The whole record of an event with a lepton, columns as in ``_FIELDS``.
    """
    from pythia8mc import Event

    partons = Event(pythia.event)
    for _ in range(FRAGMENTATIONS):
        pythia.event = partons
        _let_decay(pythia, False)
        hadronised = pythia.forceHadronLevel(False)
        _let_decay(pythia, True)
        if hadronised and is_promising(pythia.event):
            record = _decay_until_lepton(pythia)
            if record is not None:
                yield record


def is_promising(event: Any) -> bool:
    """Whether a heavy hadron, still stable, is hard and alone enough to give an isolated lepton."""
    final = [particle for particle in event.particles() if particle.isFinal()]
    hadrons = [hadron for hadron in final if hadron.idAbs() in WEAKLY_DECAYING and hadron.pT() > MIN_QUARK_PT]
    if not hadrons:
        return False
    px, py, pz = np.array([(p.px(), p.py(), p.pz()) for p in final]).T
    pt = np.hypot(px, py)
    eta, phi = np.arcsinh(pz / pt), np.arctan2(py, px)
    for hadron in hadrons:
        near = np.hypot(eta - hadron.eta(), delta_phi(phi, hadron.phi())) < HADRON_CONE
        around = pt[near & (pt > MIN_ISOLATION_PT)].sum() - hadron.pT()
        if around < MAX_ISOLATION * hadron.pT():
            return True
    return False


def has_lepton(record: Floats) -> bool:
    """Whether an event holds an electron or muon that a loose isolation at generator level lets pass.

    Parameters
    ----------
    record : (n, 10) float64
        Columns as in ``_FIELDS``.
    """
    pid, final, px, py, pz = record[:, :5].T
    pt = np.hypot(px, py)
    visible = (final > 0) & (pt > MIN_ISOLATION_PT) & ~np.isin(np.abs(pid), NEUTRINOS)
    pid, pt, phi, pz = np.abs(pid[visible]), pt[visible], np.arctan2(py, px)[visible], pz[visible]
    eta = np.arcsinh(pz / pt)
    leptons = np.isin(pid, (11, 13)) & (pt > MIN_LEPTON_PT) & (np.abs(eta) < MAX_LEPTON_ETA)
    for lepton in np.flatnonzero(leptons):
        distance = np.hypot(eta - eta[lepton], delta_phi(phi, phi[lepton]))
        around = pt[distance < ISOLATION_CONE].sum() - pt[lepton]
        if around < MAX_ISOLATION * pt[lepton]:
            return True
    return False


def _decay_until_lepton(pythia: Any) -> Floats | None:
    from pythia8mc import Event

    hadrons = Event(pythia.event)
    for _ in range(DECAYS):
        pythia.event = hadrons
        if not pythia.moreDecays():
            continue
        if _has_hard_lepton(pythia.event, start=hadrons.size()):
            record = _record(pythia.event)
            if has_lepton(record):
                return record
    return None


def _has_hard_lepton(event: Any, start: int) -> bool:
    for index in range(start, event.size()):
        particle = event[index]
        if particle.idAbs() in (11, 13) and particle.pT() > MIN_LEPTON_PT:
            return True
    return False


def _let_decay(pythia: Any, allowed: bool) -> None:
    for code in WEAKLY_DECAYING:
        pythia.particleData.mayDecay(code, allowed)


def _record(event: Any) -> Floats:
    """Copy the whole event out of Pythia, one row a particle, columns as in ``_FIELDS``."""
    return np.array(
        [
            (
                *(p.id(), p.isFinal(), p.px(), p.py(), p.pz(), p.e(), p.m()),
                *(p.xProd(), p.yProd(), p.zProd()),
            )
            for p in event.particles()
        ],
        dtype=np.float64,
    )


def _collect(pythia: Any, records: list[Floats], parents: list[int]) -> Generated:
    flat = np.concatenate(records)
    columns: dict[str, npt.NDArray[Any]] = dict(zip(_FIELDS, flat.T, strict=True))
    columns["pid"] = columns["pid"].astype(np.int64)
    columns["event"] = np.repeat(np.arange(len(records)), [len(record) for record in records])
    return from_columns(pythia, columns, np.array(parents, dtype=np.int64))
