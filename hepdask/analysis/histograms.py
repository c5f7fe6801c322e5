"""Histograms of every feature, filled chunk by chunk and added up, so that a person sees nonsense early.

A document is plain JSON: ``{name: {"bins", "low", "high", "scale", "unit", "counts"}}``, with the names ``hlf.HT``
for a high-level feature and ``particles.Pt`` for a feature of the particles, as in `Store.arrays`. All high-level
features of all selected events are counted; of the particles about one in sixteen, chosen by a hash of its momentum.
So neither chunks nor the order of files change a histogram of the whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from hepdask.analysis.compiled import compiled
from hepdask.analysis.topology import Extracted
from hepdask.analysis.topology.conventions import CONVENTIONS
from hepdask.analysis.topology.expand import expand
from hepdask.config import Topology
from hepdask.config.feature_names import HIGH_LEVEL, PARTICLE

if TYPE_CHECKING:
    import hist

Document = dict[str, dict[str, Any]]

_SAMPLED_BITS = 4


@dataclass(frozen=True)
class Axis:
    """Bins of equal width in a scaled coordinate; each holds its lower edge, not its upper one.

    Attributes
    ----------
    bins : int
        Number of bins between `low` and `high`; one below and one above count what lies beyond.
    low, high : float
        Outer edges, in the unit of the feature.
    scale : {"linear", "log", "asinh"}
        The coordinate: the value x, log(x), or asinh(x / unit), which is linear around zero and logarithmic far
        from it on either side.
    unit : float
        Where ``asinh`` goes from linear to logarithmic.
    """

    bins: int
    low: float
    high: float
    scale: Literal["linear", "log", "asinh"] = "linear"
    unit: float = 1.0

    def coordinate(self, values: NDArray) -> NDArray:
        """Scale values, in their own type; minus infinity or NaN where a logarithm does not exist."""
        if self.scale == "linear":
            return values
        with np.errstate(divide="ignore", invalid="ignore"):
            return (
                np.log(values) if self.scale == "log" else np.arcsinh(values / values.dtype.type(self.unit))
            )

    def edges(self) -> NDArray[np.float64]:
        """Give the edges of the bins, float64 (bins + 1,), in the unit of the feature."""
        start, end = self.coordinate(np.array([self.low, self.high], np.float64))
        edges = np.linspace(start, end, self.bins + 1)
        if self.scale == "log":
            edges = np.exp(edges)
        elif self.scale == "asinh":
            edges = np.sinh(edges) * self.unit
        edges[[0, -1]] = self.low, self.high
        return edges

    def count(self, values: NDArray[np.float32]) -> NDArray[np.int64]:
        """Count values, int64 (bins + 2,): below `low`, in each bin, and not below `high` (or not a number)."""
        start, end = self.coordinate(np.array([self.low, self.high], np.float64))
        return _count(values, self.coordinate(values), self.edges(), start, self.bins / (end - start))


_ANGLE = Axis(64, -3.141593, 3.141593)  # pi, rounded up so that float32's lies within
_YES_OR_NO = Axis(2, -0.5, 1.5)
_CHARGE = Axis(3, -1.5, 1.5)
_LEPTON_ISOLATION = Axis(55, -0.05, 0.5)
_MOMENTUM = Axis(80, -1e3, 1e3, "asinh")
_VERTEX = Axis(80, -1e4, 1e4, "asinh", 0.1)
_ISOLATION = Axis(64, -1.0, 1e3, "asinh", 0.1)

#: The axes of the 33 features (GeV, mm, rad).
AXES: dict[str, Axis] = {
    "hlf.HT": Axis(60, 0, 1500),
    "hlf.MET": Axis(50, 0, 500),
    "hlf.phiMET": _ANGLE,
    "hlf.MT": Axis(60, 0, 300),
    "hlf.nJets": Axis(20, -0.5, 19.5),
    "hlf.nBjets": Axis(10, -0.5, 9.5),
    "hlf.LepPt": Axis(60, 0, 300),
    "hlf.LepEta": Axis(60, -6, 6),
    "hlf.LepPhi": _ANGLE,
    "hlf.LepIsoCh": _LEPTON_ISOLATION,
    "hlf.LepIsoGamma": _LEPTON_ISOLATION,
    "hlf.LepIsoNeu": _LEPTON_ISOLATION,
    "hlf.LepCharge": _CHARGE,
    "hlf.LepIsEle": _YES_OR_NO,
    "particles.Energy": Axis(60, 0.1, 1e4, "log"),
    "particles.Px": _MOMENTUM,
    "particles.Py": _MOMENTUM,
    "particles.Pz": Axis(80, -1e4, 1e4, "asinh"),
    "particles.Pt": Axis(60, 0.1, 1e3, "log"),
    "particles.Eta": Axis(60, -6, 6),
    "particles.Phi": _ANGLE,
    "particles.vtxX": _VERTEX,
    "particles.vtxY": _VERTEX,
    "particles.vtxZ": _VERTEX,
    "particles.ChPFIso": _ISOLATION,
    "particles.GammaPFIso": _ISOLATION,
    "particles.NeuPFIso": _ISOLATION,
    **{f"particles.{name}": _YES_OR_NO for name in ("isChHad", "isNeuHad", "isGamma", "isEle", "isMu")},
    "particles.Charge": _CHARGE,
}

#: Where the published convention takes no square root of MT (GeV squared).
SQUARED_MT = Axis(60, 0, 9e4)

#: The axis of a user's own feature, whose range nobody knows: nine bins a decade, from 0.001 to 10^6 of either sign.
OWN = Axis(200, -1e6, 1e6, "asinh", 1e-3)


def axes(analysis: Topology) -> dict[str, Axis]:
    """Give the axis of every feature, the user's own among them."""
    chosen = AXES | {f"hlf.{name}": OWN for name in analysis.high_level_features if name not in HIGH_LEVEL}
    if not CONVENTIONS[analysis.convention].roots_mt:
        chosen["hlf.MT"] = SQUARED_MT
    return chosen


def fill(extracted: Extracted, analysis: Topology) -> Document:
    """Fill the histograms of one chunk.

    Parameters
    ----------
    extracted : Extracted
        What `hepdask.analysis.topology.extract` gave; no event need be selected.
    analysis : Topology
        What it was given; names the high-level features.

    Returns
    -------
    dict
        JSON-ready; for `merge` and `to_hist`. Values are counted in float32, in which they are stored.
    """
    high_level = np.ascontiguousarray(extracted.high_level.T, np.float32)
    chosen = _sampled(extracted.particles["Pt"], extracted.particles["Phi"])
    particles = expand({name: column[chosen] for name, column in extracted.particles.values.items()})
    columns = {f"hlf.{name}": row for name, row in zip(analysis.high_level_features, high_level, strict=True)}
    columns |= {f"particles.{name}": row for name, row in zip(PARTICLE, particles, strict=True)}
    chart = axes(analysis)
    return {
        name: asdict(chart[name]) | {"counts": chart[name].count(values).tolist()}
        for name, values in columns.items()
    }


def merge(one: Mapping[str, Mapping[str, Any]], other: Mapping[str, Mapping[str, Any]]) -> Document:
    """Add two documents, bin by bin.

    Raises
    ------
    ValueError
        They do not hold the same features with the same axes: they come from different configurations.
    """
    merged = {}
    for name in one.keys() | other.keys():
        if name not in one or name not in other or axis_of(one[name]) != axis_of(other[name]):
            raise ValueError(f"histograms of {name} from different configurations cannot be added")
    for name, first in one.items():
        counts = [a + b for a, b in zip(first["counts"], other[name]["counts"], strict=True)]
        merged[name] = {**first, "counts": counts}
    return merged


def axis_of(histogram: Mapping[str, Any]) -> Axis:
    """Give the axis of one histogram of a document."""
    return Axis(**{field.name: histogram[field.name] for field in fields(Axis)})


def to_hist(document: Mapping[str, Mapping[str, Any]], name: str) -> hist.Hist:
    """Turn one histogram of a document into a `hist.Hist`, with its under- and overflow.

    Parameters
    ----------
    document : mapping
        From `fill` or `merge`.
    name : str
        For example ``"hlf.HT"`` or ``"particles.Pt"``.

    Raises
    ------
    KeyError
        There is no such histogram.
    """
    import hist

    axis = hist.axis.Variable(axis_of(document[name]).edges(), name=name.partition(".")[2], label=name)
    filled = hist.Hist(axis, storage=hist.storage.Int64())
    filled.view(flow=True)[:] = document[name]["counts"]
    return filled


def _sampled(pt: NDArray[np.float32], phi: NDArray[np.float32]) -> NDArray[np.int64]:
    """Choose about one particle in sixteen by the bits of its momentum alone (multiplicative hashing)."""
    mixed = pt.view(np.uint32) ^ (phi.view(np.uint32) * np.uint32(0x85EBCA6B))
    mixed *= np.uint32(0x9E3779B1)
    return np.flatnonzero(mixed >> np.uint32(32 - _SAMPLED_BITS) == 0)


@compiled()
def _count(
    values: NDArray[np.float32],
    coordinates: NDArray[np.float32],
    edges: NDArray[np.float64],
    start: float,
    bins_a_step: float,
) -> NDArray[np.int64]:
    """Guess each bin from the scaled value, then let the edges decide."""
    bins = len(edges) - 1
    counts = np.zeros(bins + 2, np.int64)
    for i in range(len(values)):
        value = values[i]
        if value < edges[0]:
            counts[0] += 1
        elif not value < edges[bins]:
            counts[bins + 1] += 1
        else:
            place = min(max(int((coordinates[i] - start) * bins_a_step), 0), bins - 1)
            while value < edges[place]:
                place -= 1
            while value >= edges[place + 1]:
                place += 1
            counts[place + 1] += 1
    return counts
