"""Selection and features of collision events, on awkward or NanoEvents input.

Three functions for people (`select`, `particles`, `high_level`), and `extract`, which does all three
at once for `prepare`.
"""

from __future__ import annotations

from dataclasses import dataclass

import awkward as ak
import numpy as np
from numpy.typing import NDArray

from hepdask.analysis import cutflow, user_functions
from hepdask.analysis.columns import BadEvent, Columns, events_of, not_finite
from hepdask.analysis.scaling import Scaler
from hepdask.analysis.topology.candidates import Inputs, inputs
from hepdask.analysis.topology.conventions import CONVENTIONS
from hepdask.analysis.topology.expand import expand
from hepdask.analysis.topology.high_level_features import high_level_features, jets, missing_et
from hepdask.analysis.topology.lepton import Leptons, leading_leptons
from hepdask.analysis.topology.particle_lists import particle_lists
from hepdask.analysis.topology.reference_sequences import published_sequences
from hepdask.config import Topology, feature_names


@dataclass(frozen=True)
class Extracted:
    """Everything kept of a chunk.

    Attributes
    ----------
    reason : int16 (n_events,)
        Why an event was not selected, see `cutflow`; the rest has one entry for each event that was.
    particles : Columns
        The columns `feature_names.STORED`, in sequence order: the lepton last; float32, `kind` and `Charge` int8.
    high_level : float64 (n_selected, 14 or more)
        In the order of ``analysis.high_level_features``: `feature_names.HIGH_LEVEL`, then the user's own.
    """

    reason: NDArray[np.int16]
    particles: Columns
    high_level: NDArray[np.float64]

    @property
    def selected(self) -> NDArray[np.bool_]:
        """Which events passed, bool (n_events,)."""
        return self.reason == cutflow.SELECTED


def branches(settings: Topology) -> dict[str, tuple[str, ...]]:
    """Name the collections and fields that the features need."""
    collections = settings.collections
    sign = "PID" if CONVENTIONS[settings.convention].signs_by_pid else "Charge"
    wanted = {
        collections.track: (sign, "PT", "Eta", "Phi", "X", "Y", "Z"),
        collections.photon: ("ET", "Eta", "Phi"),
        collections.neutral: ("ET", "Eta", "Phi"),
        **{getattr(collections, flavour): ("PT", "Eta", "Phi", "Charge") for flavour in settings.leptons},
        collections.jet: ("PT", "Eta", "BTag"),
        collections.met: ("MET", "Phi"),
    }
    for collection, fields in settings.reads.items():
        wanted[collection] = tuple(dict.fromkeys((*wanted.get(collection, ()), *fields)))
    return wanted


def extract(events: ak.Array, settings: Topology) -> Extracted:
    """Select events and compute all their features.

    Parameters
    ----------
    events : ak.Array
        Record array of events with the collections that `branches` names.
    settings : Topology
        Selection and features.

    Returns
    -------
    Extracted

    Raises
    ------
    KeyError
        A collection or field is missing.
    BadEvent
        A value is not finite, or a pT is negative; see `on_usable`.
    """
    found, leptons = _select(events, settings)
    sequence = particle_lists(leptons, found, settings, in_sequence=True, dtype=np.float32)
    high_level = _high_level(events, leptons, settings)
    _refuse_overflow(leptons, sequence, high_level)
    return Extracted(leptons.reason, sequence, high_level)


def warm_up(settings: Topology) -> None:
    """Compile the kernels, or load what was compiled before: once, not in every worker at the same time."""
    extract(_no_events(branches(settings)), settings.model_copy(update={"selections": {}, "features": {}}))


def _no_events(wanted: dict[str, tuple[str, ...]]) -> ak.Array:
    """Make an array of no events in the types of Delphes."""
    types = {"Charge": np.int32, "PID": np.int32, "BTag": np.uint32}
    none = np.zeros(0, np.int64)
    return ak.zip(
        {
            collection: ak.zip(
                {field: ak.unflatten(np.zeros(0, types.get(field, np.float32)), none) for field in fields}
            )
            for collection, fields in wanted.items()
        },
        depth_limit=1,
    )


def select(events: ak.Array, settings: Topology | None = None) -> NDArray[np.bool_]:
    """Say which events have an isolated electron or muon, and pass the user's own selections.

    Parameters
    ----------
    events : ak.Array
        Record array of events (awkward, uproot, or NanoEvents with `DelphesSchema`).
    settings : Topology, optional
        Selection; default the published cuts.

    Returns
    -------
    bool (n_events,)
        Use as ``events[select(events)]``.

    Raises
    ------
    KeyError, BadEvent
        As in `extract`.
    """
    return _select(events, settings or Topology())[1].selected


def particles(events: ak.Array, settings: Topology | None = None) -> ak.Array:
    """Give the particle list of selected events.

    Parameters
    ----------
    events : ak.Array
        Events that pass `select`.
    settings : Topology, optional
        Default the published cuts.

    Returns
    -------
    ak.Array
        One variable-length list an event of records with the 19 features `feature_names.PARTICLE` (float64; GeV,
        mm, rad): the lepton, then tracks, photons and neutral hadrons.

    Raises
    ------
    ValueError
        An event does not pass the selection.
    KeyError, BadEvent
        As in `extract`.
    """
    settings = settings or Topology()
    found, leptons = _select(events, settings)
    _require_selected(leptons)
    lists = particle_lists(leptons, found, settings)
    flat = ak.Array(expand_columns(lists.values, np.float64))
    return ak.unflatten(flat, lists.counts)


def high_level(events: ak.Array, settings: Topology | None = None) -> ak.Array:
    """Give the high-level features of selected events.

    Parameters
    ----------
    events : ak.Array
        Events that pass `select`.
    settings : Topology, optional
        Default the published cuts.

    Returns
    -------
    ak.Array
        One record an event with the 14 features `feature_names.HIGH_LEVEL` and the user's own (float64).

    Raises
    ------
    ValueError
        An event does not pass the selection.
    KeyError, BadEvent
        As in `extract`.
    """
    settings = settings or Topology()
    leptons = _select(events, settings)[1]
    _require_selected(leptons)
    values = _high_level(events, leptons, settings)
    return ak.Array(dict(zip(settings.high_level_features, values.T, strict=True)))


def sequences(
    stored: dict[str, NDArray], offsets: NDArray[np.int64], length: int, scaler: Scaler | None
) -> NDArray[np.float32]:
    """Turn stored particles into what the recurrent networks take.

    Parameters
    ----------
    stored : dict
        The columns `feature_names.STORED`, in sequence order: the lepton last. Or all of
        `feature_names.PARTICLE`, the rows of finished sequences, which are returned as they are.
    offsets : int64 (n + 1,)
        Particles of event ``i`` are ``offsets[i]:offsets[i + 1]``.
    length : int
        Rows of a sequence; no event has more particles.
    scaler : Scaler or None
        Scaling of the 19 features; None for the published form, see `reference_sequences`.

    Returns
    -------
    float32 (n, length, 19)
        Scaled particles and, behind them, zeros; in the published form no row is zero.
    """
    if "kind" not in stored:
        rows = np.stack([stored[name] for name in feature_names.PARTICLE], axis=1)
        return rows.reshape(len(offsets) - 1, length, len(feature_names.PARTICLE))
    flat = expand(stored)
    if scaler is None:
        return published_sequences(flat, offsets, offsets[1:] - 1, length)
    counts = np.diff(offsets)
    event = np.repeat(np.arange(len(counts)), counts)
    place = np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts)
    padded = np.zeros((len(counts), length, len(feature_names.PARTICLE)), np.float32)
    padded[event, place] = scaler(flat.T)
    return padded


def expand_columns(stored: dict[str, NDArray], dtype: type = np.float32) -> dict[str, NDArray]:
    """Turn flat stored columns into the 19 flat feature columns."""
    return dict(zip(feature_names.PARTICLE, expand(stored, dtype), strict=True))


def _select(events: ak.Array, settings: Topology) -> tuple[Inputs, Leptons]:
    found = inputs(events, settings)
    leptons = leading_leptons(events, found, settings)
    for place, function in enumerate(settings.selections.values()):
        leptons = leptons.where(
            user_functions.apply(function, events, "selection"), cutflow.code_of_selection(place)
        )
    return found, leptons


def _high_level(events: ak.Array, leptons: Leptons, settings: Topology) -> NDArray[np.float64]:
    keep = leptons.selected
    published = high_level_features(
        leptons,
        jets(events, settings).of_events(keep),
        missing_et(events, settings).of_events(keep),
        settings,
    )
    own = [published]
    for name, function in settings.features.items():
        values = user_functions.apply(function, events[keep], "feature")
        wrong = np.flatnonzero(~np.isfinite(values))
        if len(wrong):
            raise BadEvent(np.flatnonzero(keep)[wrong], f"analysis.features.{name} is not a finite number")
        own.append(values)
    return np.column_stack(own)


def _refuse_overflow(leptons: Leptons, sequence: Columns, high_level: NDArray[np.float64]) -> None:
    """Raise a BadEvent where a feature does not fit into float32, in which everything is stored."""
    events = np.flatnonzero(leptons.selected)
    with np.errstate(over="ignore", invalid="ignore"):
        wrong = np.flatnonzero(~np.isfinite(high_level.astype(np.float32)).all(axis=1))
        if len(wrong):
            raise BadEvent(events[wrong], "a high-level feature is too large")
        if not len(sequence):
            return
        # energy <= pT exp|eta|; only where that bound is passed somewhere is a closer look worth its time
        bound = sequence["Pt"].max() * np.exp(np.abs(sequence["Eta"]).max())
        columns = [sequence[name] for name in feature_names.STORED[:9]]
        if np.isfinite(bound) and not any(len(not_finite(column)) for column in columns):
            return
        fits = np.isfinite(sequence["Pt"] * np.exp(np.abs(sequence["Eta"])))
        for column in columns:
            fits &= np.isfinite(column)
    if not fits.all():
        wrong = events_of(sequence.offsets, np.flatnonzero(~fits))
        raise BadEvent(events[wrong], "the energy or isolation of a particle is too large")


def _require_selected(leptons: Leptons) -> None:
    rejected = np.flatnonzero(~leptons.selected)
    if len(rejected):
        raise ValueError(
            f"event {rejected[0]} does not pass the selection ({len(rejected)} of {len(leptons.selected)} "
            "do not): pass events[select(events)]"
        )
