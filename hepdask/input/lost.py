"""Input that was lost: which entries, and why."""

from __future__ import annotations

from dataclasses import dataclass

from hepdask.input.input_file import Chunk, InputFile


@dataclass(frozen=True)
class Lost:
    """Input that could not be read, or that no physics can be done with.

    Attributes
    ----------
    dataset : str
        Name of the dataset.
    path : str
        The file.
    start, stop : int
        The entries among which it was; both -1 where the file could not even be opened.
    events : int
        How many of these entries are lost.
    reason : str
        What was wrong, and after how many attempts.
    version : str
        Of a chunk that could not be read: `Identity.version` of the file, so that one which has changed since is
        tried again. Else empty.
    """

    dataset: str
    path: str
    start: int
    stop: int
    events: int
    reason: str
    version: str = ""

    @classmethod
    def file(cls, file: InputFile, reason: str) -> Lost:
        """Say that a file cannot be opened."""
        return cls(file.dataset, file.path, -1, -1, 0, reason)

    @classmethod
    def chunk(cls, chunk: Chunk, reason: str) -> Lost:
        """Say that a chunk cannot be read."""
        start, stop = chunk.start, chunk.stop
        version = chunk.identity.version
        return cls(chunk.file.dataset, chunk.file.path, start, stop, stop - start, reason, version)

    @property
    def key(self) -> tuple[str, str, str, int, int]:
        """What tells a loss from others."""
        return self.dataset, self.path, self.version, self.start, self.stop
