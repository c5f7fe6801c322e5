"""Selections and features of this analysis, listed in config.yaml. Choose any names, and as many as you like.

Each takes an awkward array of events with the collections that are read (events.Jet.PT, events.MissingET.MET, ...) and
returns one value per event. Units are GeV and rad, as in the files.
"""

import awkward as ak


def two_jets(events: ak.Array) -> ak.Array:
    """Select events with at least two jets above 30 GeV: one bool per event."""
    return ak.sum(events.Jet.PT > 30.0, axis=1) >= 2


def leading_jet_pt(events: ak.Array) -> ak.Array:
    """Return the pT of the hardest jet [GeV], 0 if there is none: one number per event, never NaN."""
    return ak.fill_none(ak.max(events.Jet.PT, axis=1), 0.0)
