"""Names of the features of the published study (Migliorini et al. 2019, tables 1 and 2)."""

from __future__ import annotations

#: The 19 low-level features of a particle, in the order of the published arrays.
PARTICLE = (
    "Energy", "Px", "Py", "Pz", "Pt", "Eta", "Phi", "vtxX", "vtxY", "vtxZ",
    "ChPFIso", "GammaPFIso", "NeuPFIso", "isChHad", "isNeuHad", "isGamma", "isEle", "isMu", "Charge",
)  # fmt: skip

#: The 14 high-level features of an event, in the order of the published arrays.
HIGH_LEVEL = (
    "HT", "MET", "phiMET", "MT", "nJets", "nBjets", "LepPt", "LepEta", "LepPhi",
    "LepIsoCh", "LepIsoGamma", "LepIsoNeu", "LepCharge", "LepIsEle",
)  # fmt: skip

#: What is stored of a particle; the rest of `PARTICLE` follows from it (see `expand`).
STORED = (
    "Pt", "Eta", "Phi", "vtxX", "vtxY", "vtxZ", "ChPFIso", "GammaPFIso", "NeuPFIso", "kind", "Charge",
)  # fmt: skip

#: Values of the stored column `kind`, in the order of the one-hot features.
CHARGED_HADRON, NEUTRAL_HADRON, PHOTON, ELECTRON, MUON = range(5)

#: Fields of a record of events beside the features.
RECORD = ("particles", "hlf", "label", "dataset", "file", "entry", "group")
