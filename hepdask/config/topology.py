"""The section `analysis`, of the published study: names, cuts and conventions."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from hepdask.config.base import Count, Name, Positive, Section
from hepdask.config.feature_names import HIGH_LEVEL
from hepdask.config.user_functions import FunctionKey


class Collections(Section):
    """Names of the collections in the input files (Delphes' own by default)."""

    track: str = Field("EFlowTrack", description="charged candidates")
    photon: str = Field("EFlowPhoton", description="photon candidates")
    neutral: str = Field("EFlowNeutralHadron", description="neutral-hadron candidates")
    electron: str = Field("Electron", description="reconstructed electrons")
    muon: str = Field("MuonTight", description="reconstructed muons")
    jet: str = Field("Jet", description="jets, with their b-tags")
    met: str = Field("MissingET", description="missing transverse momentum, one per event")
    generator: str = Field(
        "GenInfo", description="if present, its field Parent keeps events of one parent in the same split"
    )


class Topology(Section):
    """The published analysis: what an event is reduced to. Defaults are those of Migliorini et al. (2019)."""

    classes: tuple[Name, ...] = Field(
        ("qcd", "ttbar", "wjets"),
        min_length=1,
        description="names of the classes, in the order of their labels",
    )
    convention: Literal["corrected", "reference"] = Field(
        "corrected",
        description="`corrected`, or `reference`, the published pipeline's numbers (docs/physics.md)",
    )
    collections: Collections = Field(default_factory=Collections, description="names of the collections")
    branches: dict[str, str] = Field(
        default_factory=dict,
        description="{Collection.Field: branch}: branches that have other names in the files",
    )
    leptons: tuple[Literal["electron", "muon"], ...] = Field(
        ("electron", "muon"), min_length=1, description="lepton flavours that can select an event"
    )
    selections: dict[Name, FunctionKey] = Field(
        default_factory=dict,
        description="{name: function}: further selections (`module:function` or `file.py:function`), events to bools",
    )
    features: dict[Name, FunctionKey] = Field(
        default_factory=dict,
        description="{name: function}: further high-level features, selected events to numbers",
    )
    reads: dict[str, tuple[str, ...]] = Field(
        default_factory=dict,
        description="{collection: fields}: fields that these functions need beyond those that are read anyway",
    )
    track_min_pt: float = Field(0.5, ge=0, description="smallest pT of charged candidates [GeV]")
    photon_min_et: float = Field(1.0, ge=0, description="smallest ET of photon candidates [GeV]")
    neutral_min_et: float = Field(1.0, ge=0, description="smallest ET of neutral-hadron candidates [GeV]")
    max_tracks: Count = Field(450, description="most charged candidates kept per event")
    max_photons: Count = Field(150, description="most photons kept per event")
    max_neutrals: Count = Field(200, description="most neutral hadrons kept per event")
    isolation_cone: float = Field(
        0.3, ge=0.01, le=3.0, description="radius of the isolation cone in (eta, phi)"
    )
    own_track_cone: Positive = Field(1e-4, description="a track this close to a lepton is the lepton's own")
    lepton_min_pt: float = Field(23.0, ge=0, description="smallest pT of the selected lepton [GeV]")
    lepton_max_isolation: Positive = Field(0.45, description="largest sum of its relative isolations")
    jet_min_pt: float = Field(30.0, ge=0, description="smallest pT of counted jets [GeV]")
    jet_max_abs_eta: Positive = Field(2.6, description="largest |eta| of counted jets")

    @property
    def high_level_features(self) -> tuple[str, ...]:
        """Names of the high-level features: the 14, then the user's own."""
        return (*HIGH_LEVEL, *self.features)

    @property
    def max_particles(self) -> int:
        """Longest possible particle list: the lepton and the three capped kinds."""
        return 1 + self.max_tracks + self.max_photons + self.max_neutrals
