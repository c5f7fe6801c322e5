"""Parts of a store, each array compared with what the manifest says of it the first time it is read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hepdask.errors import StoreError
from hepdask.store.layout import checksum, part_file, shapes
from hepdask.store.part_file import BadPart, PartFile


class CheckedParts:
    """The parts of a store in the order of its manifest.

    Parameters
    ----------
    path : Path
        Folder of the store.
    manifest : dict
        What `prepare` or `import` recorded: how large each part is, and the checksums of its arrays.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self._path, self._manifest = path, manifest
        self._intact: set[tuple[int, str]] = set()  # arrays whose checksum was right once

    @contextmanager
    def open(self, index: int) -> Iterator[CheckedPart]:
        """Open a part; what is wrong with it becomes a sentence that says what to do.

        Parameters
        ----------
        index : int
            Place of the part in the manifest.

        Yields
        ------
        CheckedPart

        Raises
        ------
        StoreError
            The part is missing, or not what was written.
        """
        about = self._manifest["parts"][index]
        name = about["name"]
        place = part_file(self._path, name)
        imported = bool(self._manifest.get("imported"))
        again = "make the store again" if imported else "run: hepdask prepare CONFIG"
        try:
            with PartFile(place) as file:
                yield CheckedPart(file, index, self._manifest, self._intact)
        except FileNotFoundError:
            raise StoreError(f"{place}: this part is missing; {again}") from None
        except BadPart as error:
            known = _shapes(self._manifest, index)
            of_array = error.member.partition("/")[0] in known
            where = f"{name}/{error}" if of_array else f"{name}: {error}"
            raise StoreError(f"{where}; remove {place} and {again}") from None

    def damaged(self) -> list[str]:
        """Compute all checksums again; list the arrays ``PART/ARRAY`` that differ from what was written, or parts."""
        wrong = []
        for index, about in enumerate(self._manifest["parts"]):
            try:
                with self.open(index) as part:
                    for name in _shapes(self._manifest, index):
                        try:
                            part.check(name)
                        except BadPart:
                            wrong.append(f"{about['name']}/{name}")
            except StoreError:
                wrong.append(about["name"])
        return wrong


class CheckedPart:
    """One open part; see `CheckedParts.open`."""

    def __init__(
        self, file: PartFile, index: int, manifest: dict[str, Any], intact: set[tuple[int, str]]
    ) -> None:
        self._file, self._index, self._intact = file, index, intact
        self._about, self._max_particles = manifest["parts"][index], int(manifest["max_particles"])
        self._shapes = _shapes(manifest, index)

    def read(self, name: str) -> NDArray:
        """Read an array; the first time it is compared with its checksum, and with what the others say."""
        known = (self._index, name)
        if known in self._intact:
            return self._file.read(name, *self._shapes[name])
        values = self.check(name)
        self._intact.add(known)
        return values

    def check(self, name: str) -> NDArray:
        """Read an array, and raise a BadPart where it is not what was written."""
        values = self._file.read(name, *self._shapes[name])
        if checksum(values) != self._about["checksums"].get(name):
            raise BadPart("not what was written", name)
        if name == "offsets":
            particles = self._about["particles"]
            if values[0] != 0 or values[-1] != particles or (values[1:] < values[:-1]).any():
                raise BadPart(f"does not divide {particles} particles into events", name)
            if np.diff(values).max(initial=0) > self._max_particles:
                raise BadPart(f"an event has more than {self._max_particles} particles", name)
        return values


def _shapes(manifest: dict[str, Any], index: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of each array of a part."""
    about = manifest["parts"][index]
    width = len(manifest["high_level_features"])
    return shapes(about["events"], about["particles"], width, bool(manifest.get("imported")))
