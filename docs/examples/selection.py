"""A coffea processor that fills histograms before and after hepdask's selection.

From Python, on any cluster::

    import hepdask
    from selection import Selection

    fileset = {"ttbar": {"files": {"ttbar.root": "Delphes"}, "metadata": {"label": "ttbar"}}}
    with hepdask.session("local") as here:
        out = here.runner(chunksize=20_000)(fileset, Selection())
    print(out["counts"])
    out["histograms"]["met"].project("step", "met").plot()
"""

import awkward as ak
import hist
from coffea import processor

from hepdask.analysis import topology
from hepdask.config import Topology


class Selection(processor.ProcessorABC):
    """Missing momentum, jets and hardest jet of all events, and of those with an isolated lepton.

    Parameters
    ----------
    analysis : Topology, optional
        The cuts; default the published ones.
    """

    def __init__(self, analysis: Topology | None = None) -> None:
        self.analysis = analysis or Topology()

    def process(self, events):
        """Fill the histograms of one chunk; branches that no line names are not read."""
        label = events.metadata["label"]
        selected = topology.select(events, self.analysis)
        histograms = empty()
        for step, chosen in (("read", events), ("selected", events[selected])):
            jets = chosen.Jet[chosen.Jet.pt > self.analysis.jet_min_pt]
            histograms["met"].fill(label, step, chosen.MissingET.MET)
            histograms["jets"].fill(label, step, ak.num(jets))
            histograms["jet_pt"].fill(label, step, ak.drop_none(ak.max(jets.pt, axis=1)))
        features_of_selected = topology.high_level(events[selected], self.analysis)
        histograms["mt"].fill(label, "selected", features_of_selected.MT)
        return {
            "histograms": histograms,
            "counts": {label: {"read": len(events), "selected": int(selected.sum())}},
        }

    def postprocess(self, accumulator):
        """Leave the sums as they are."""
        return accumulator


def empty():
    """Make the histograms, with one axis for the class and one for the step."""

    def of(name, bins, low, high, title):
        return hist.Hist(
            hist.axis.StrCategory([], growth=True, name="label"),
            hist.axis.StrCategory(["read", "selected"], name="step"),
            hist.axis.Regular(bins, low, high, name=name, label=title),
        )

    return {
        "met": of("met", 50, 0, 250, "missing transverse momentum [GeV]"),
        "jets": of("jets", 15, -0.5, 14.5, "jets"),
        "jet_pt": of("jet_pt", 50, 0, 500, "pT of the hardest jet [GeV]"),
        "mt": of("mt", 50, 0, 200, "transverse mass of lepton and missing momentum [GeV]"),
    }
