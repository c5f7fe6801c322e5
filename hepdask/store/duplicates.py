"""Events that are in a store twice, told by what is in them: parts and their hadd, a skim, a file in other clothes."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hepdask.errors import InputError
from hepdask.store.reader import Store

#: Share of the smaller file's events that another file may hold too: more is no chance.
ALLOWED = 0.01

_READERS = 16
_NAMED = 5


@dataclass(frozen=True)
class Shared:
    """Events that two files hold, or one file twice.

    Attributes
    ----------
    one, other : str
        The files; the same one where it holds the events twice.
    events : int
        How many.
    of : int
        Selected events of the smaller file.
    entries : (int, int)
        Where one of them stands in `one` and in `other`.
    """

    one: str
    other: str
    events: int
    of: int
    entries: tuple[int, int]

    def __str__(self) -> str:
        first, second = self.entries
        many = f"{self.events:,} selected event{'s' if self.events > 1 else ''} ({self.events / self.of:.1%}"
        if self.one == self.other:
            return f"{self.one} holds {many}) twice, for example entries {first} and {second}"
        return (
            f"{self.one} and {self.other} share {many} of the smaller file), for example entry {first} of the first is "
            f"entry {second} of the second"
        )


def shared_events(store: Store) -> list[Shared]:
    """Find the events that are in a store more than once, by the files they came from.

    It takes 8 bytes per event, and more only for those that are there twice.

    Parameters
    ----------
    store : Store
        Its parts; the manifest need not be written yet.

    Returns
    -------
    list of Shared
        Sorted by the files. Of an event in more than two files, those next to one another in that order are paired.

    Raises
    ------
    StoreError
        A part is damaged.
    """
    twice = _twice(store)
    return _pair(store, twice) if len(twice) else []


def refuse_shared(shared: Sequence[Shared]) -> list[str]:
    """Say in a line each what files share; raise an InputError where that is more than chance.

    Raises
    ------
    InputError
        Two files share more than 1 % of the smaller one's selected events, or one holds as many twice.
    """
    many = [one for one in shared if one.events > ALLOWED * one.of]
    if many:
        more = f"\n  and {len(many) - _NAMED} more pairs of files" if len(many) > _NAMED else ""
        raise InputError(
            "the same events occur more than once; they would count double, and be in training and test at the "
            "same time:\n  "
            + "\n  ".join(map(str, many[:_NAMED]))
            + f"{more}\nKeep one of the files in the fileset "
            "(the parts or what was merged from them, a skim or what it was made from), or give steps that hold each "
            "event once."
        )
    return [str(one) for one in shared]


def _twice(store: Store) -> NDArray[np.uint64]:
    """Find the fingerprints that are there more than once, each given once, rising."""
    edges = np.concatenate(([0], np.cumsum([part["events"] for part in store.parts], dtype=np.int64)))
    everything = np.empty(edges[-1], np.uint64)

    def load(index: int) -> None:
        everything[edges[index] : edges[index + 1]] = store.column(index, "fingerprint")

    with ThreadPoolExecutor(_READERS) as pool:
        for _ in pool.map(load, range(len(store.parts))):
            pass
    everything.sort()
    return np.unique(everything[1:][everything[1:] == everything[:-1]])


def _pair(store: Store, twice: NDArray[np.uint64]) -> list[Shared]:
    """Find where events stand that are there more than once, and sum them up by pairs of files."""
    names = sorted({(part["file"], part["tree"]) for part in store.parts})
    place_of = dict(zip(names, range(len(names)), strict=True))
    sizes = np.zeros(len(names), np.int64)
    found: list[tuple[NDArray[Any], ...]] = []
    for index, part in enumerate(store.parts):
        name = place_of[part["file"], part["tree"]]
        sizes[name] += part["events"]
        values = store.column(index, "fingerprint")
        place = np.minimum(np.searchsorted(twice, values), len(twice) - 1)
        hits = np.flatnonzero(twice[place] == values)
        if len(hits):
            found.append((place[hits], np.full(len(hits), name), store.column(index, "entry")[hits]))
    value, file, entry = (np.concatenate(column) for column in zip(*found, strict=True))
    order = np.lexsort((entry, file, value))
    value, file, entry = value[order], file[order], entry[order]
    first = np.flatnonzero(value[1:] == value[:-1])
    pair_of = file[first] * len(names) + file[first + 1]
    order = np.lexsort((entry[first], pair_of))
    first = first[order]
    pairs, example, counts = np.unique(pair_of[order], return_index=True, return_counts=True)
    result = []
    for pair, at, count in zip(pairs.tolist(), first[example].tolist(), counts.tolist(), strict=True):
        one, other = divmod(pair, len(names))
        smaller = int(min(sizes[one], sizes[other]))
        entries = int(entry[at]), int(entry[at + 1])
        result.append(Shared(names[one][0], names[other][0], count, smaller, entries))
    return result
