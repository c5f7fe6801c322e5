"""A file of the input, and a range of its entries: what is said of them before they are opened."""

from __future__ import annotations

import re
from dataclasses import dataclass

from hepdask.input.identity import Identity, digest


@dataclass(frozen=True)
class InputFile:
    """A file of a dataset, before it is opened, and what the fileset says of it.

    Attributes
    ----------
    dataset : str
        Name of its dataset; empty for a file that stands in no fileset.
    label : int
        Class of its events.
    path : str
        Its address, by which it is known.
    tree : str
        Name of its TTree or RNTuple.
    checksum : str or None
        ``algorithm:hexadecimal``.
    uuid : str or None
        The UUID it must have.
    entries : int or None
        The entries it must have.
    steps : tuple of (int, int) or None
        Ranges of entries to read; None for all entries.
    seen : str or None
        What the driver sees at its path, see `look`; a worker must see the same.
    """

    dataset: str
    label: int
    path: str
    tree: str
    checksum: str | None = None
    uuid: str | None = None
    entries: int | None = None
    steps: tuple[tuple[int, int], ...] | None = None
    seen: str | None = None

    def __str__(self) -> str:
        return self.path


@dataclass(frozen=True)
class Chunk:
    """The entries ``start:stop`` of a file."""

    file: InputFile
    identity: Identity
    start: int
    stop: int

    def __str__(self) -> str:
        return f"entries {self.start:,} to {self.stop:,} of {self.file.path}"

    @property
    def name(self) -> str:
        """Name that no other chunk has, fit for a folder."""
        key = digest(self.file.dataset, self.identity.version, self.file.tree)
        dataset = re.sub(r"[^\w.-]", "_", self.file.dataset, flags=re.ASCII)[:64]
        return f"{dataset}-{key}-{self.start:012d}-{self.stop:012d}"
