"""The candidates of an event: tracks, photons and neutral hadrons above threshold."""

from __future__ import annotations

from dataclasses import dataclass

import awkward as ak
import numpy as np
from numpy.typing import NDArray

from hepdask.config import Physics
from hepdask.features.columns import Columns, columns


@dataclass(frozen=True)
class Candidates:
    """Candidates above threshold, in stored order.

    Attributes
    ----------
    tracks : Columns
        PT [GeV], Eta, Phi [rad], X, Y, Z [mm], Charge, PID.
    photons, neutrals : Columns
        PT [GeV] (their ET: they are massless here), Eta, Phi [rad].
    """

    tracks: Columns
    photons: Columns
    neutrals: Columns

    def of_events(self, keep: NDArray[np.bool_]) -> Candidates:
        """Keep some of the events."""
        return Candidates(*(kind.of_events(keep) for kind in (self.tracks, self.photons, self.neutrals)))


def candidates(events: ak.Array, physics: Physics) -> Candidates:
    """Take the candidates above threshold (0.5 GeV for tracks, 1 GeV for photons and neutral hadrons)."""
    names = physics.collections
    tracks = columns(events, names.track, ("PT", "Eta", "Phi", "X", "Y", "Z", "Charge", "PID"), positive="PT")
    tracks = tracks.where(tracks["PT"] > physics.track_min_pt)
    return Candidates(
        tracks,
        _towers(events, names.photon, physics.photon_min_et),
        _towers(events, names.neutral, physics.neutral_min_et),
    )


def _towers(events: ak.Array, collection: str, min_et: float) -> Columns:
    towers = columns(events, collection, ("ET", "Eta", "Phi"), positive="ET")
    towers = towers.where(towers["ET"] > min_et)
    return Columns(towers.offsets, {"PT": towers["ET"], "Eta": towers["Eta"], "Phi": towers["Phi"]})
