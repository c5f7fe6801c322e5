"""Why an event was not selected: one code an event, and the words for it."""

from __future__ import annotations

from hepdask.config import Topology

SELECTED, NO_LEPTON, NO_CANDIDATES, NOT_ISOLATED, NOT_USABLE = range(5)

_WORDS = (
    "selected",
    "no electron or muon above threshold",
    "no candidate of one of the three kinds",
    "no isolated electron or muon",
    "an unphysical value",
)


def words(analysis: Topology) -> list[str]:
    """Say in words what each code means.

    Returns
    -------
    list of str
        The code is the place in this list: the codes of this module, then one for each of the user's own selections;
        the first of them that an event fails is the reason.
    """
    return [*_WORDS, *(f"analysis.selections.{name}" for name in analysis.selections)]


def code_of_selection(place: int) -> int:
    """Give the code of the user's own selection at some place in ``analysis.selections``."""
    return len(_WORDS) + place
