"""Where a run goes on after a failure: whole files with a checksum, of which the last good ones are kept.

A folder of checkpoints may come from somebody else, so a file holds numbers, text, containers and NumPy arrays, and
nothing that would be run when it is read.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hepdask.distributed import collective
from hepdask.distributed.errors import CheckpointDamaged

KEPT = 2  # files: should the disk spoil the last one, the one before is still there
HEAD = b"hepdask checkpoint 2\n"
DIGEST = 16  # bytes
NAME = re.compile(r"checkpoint-(\d{8})")


@dataclass(frozen=True)
class Saved:
    """What a checkpoint holds.

    Attributes
    ----------
    shared : object
        What is the same on all ranks: weights, optimizer state, epoch, step, position in the data, history.
    per_rank : list
        What each rank has of its own, in rank order: the state of its random numbers, for instance. As long
        as the run that saved it had ranks, which may be more or fewer than there are now.
    """

    shared: Any
    per_rank: list[Any]


class Checkpoint:
    """A folder of checkpoints, the same one for all ranks of a run.

    Only rank 0 reads and writes it. The folder must be there, on a file system that every worker sees, since
    rank 0 may be elsewhere after a failure.

    Parameters
    ----------
    folder : path
        Belongs to one run at a time, and to nothing else.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).absolute()

    def save(self, shared: Any, per_rank: Any = None) -> None:
        """Keep a state to go on from; all ranks must call this at the same point.

        A file is complete or not there, whenever the process is killed: until it is, the last one counts.

        Parameters
        ----------
        shared : object
            Numbers, text, None, NumPy arrays, and lists, tuples, sets and dicts of these; rank 0's is kept.
        per_rank : object
            The same; every rank's is kept.

        Raises
        ------
        TypeError
            On rank 0, if there is anything else.
        OSError
            On rank 0, if the folder is not there or cannot be written.
        """
        gathered = collective.gather(per_rank)
        if collective.rank() == 0:
            self._write(_packed((shared, gathered)))

    def load(self) -> Saved | None:
        """Return the last good state, the same on all ranks; None if none was saved. All ranks must call this.

        Raises
        ------
        OSError
            On rank 0, if the folder is not there or cannot be read.
        CheckpointDamaged
            On rank 0, if there are files and all of them are damaged.
        """
        return collective.broadcast(self._read() if collective.rank() == 0 else None)

    def _files(self) -> dict[int, Path]:
        """Return the complete files by number, the newest first."""
        if not self.folder.is_dir():
            raise FileNotFoundError(
                f"{self.folder}: no such folder on {os.uname().nodename}; a checkpoint needs a file system that "
                "driver and workers share"
            )
        found = {int(name[1]): path for path in self.folder.iterdir() if (name := NAME.fullmatch(path.name))}
        return dict(sorted(found.items(), reverse=True))

    def _write(self, content: bytes) -> None:
        files = self._files()
        path = self.folder / f"checkpoint-{max(files, default=0) + 1:08d}"
        partial = self.folder / f".{path.name}.writing"
        try:
            with partial.open("wb") as file:
                file.write(HEAD + hashlib.blake2b(content, digest_size=DIGEST).digest() + content)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except OSError as error:  # a full disk does not say which
            error.filename = error.filename or str(path)
            raise
        with contextlib.suppress(OSError):  # some network file systems cannot flush a folder
            _flush(self.folder)
        for old in list(files.values())[KEPT - 1 :]:
            old.unlink(missing_ok=True)
        for left in self.folder.glob(".checkpoint-*.writing"):  # of a rank that was killed
            left.unlink(missing_ok=True)

    def _read(self) -> Saved | None:
        files = self._files()
        for path in files.values():
            content = path.read_bytes()
            start = len(HEAD) + DIGEST
            digest = hashlib.blake2b(content[start:], digest_size=DIGEST).digest()
            if content[:start] == HEAD + digest:
                with contextlib.suppress(Exception):  # it is whole, and not what `save` writes
                    return Saved(*_Reader(io.BytesIO(content[start:])).load())
            print(f"{path} is damaged: going back to the checkpoint before it", flush=True)
        if files:
            raise CheckpointDamaged(
                f"all checkpoints in {self.folder} are damaged; remove them to start from the beginning"
            )
        return None


def _packed(value: Any) -> bytes:
    file = io.BytesIO()
    _Writer(file, protocol=pickle.HIGHEST_PROTOCOL).dump(value)
    return file.getvalue()


#: What a pickle of NumPy's arrays and numbers names, in NumPy 1 and 2.
_NAMED = {("numpy", "ndarray"), ("numpy", "dtype"), ("builtins", "complex")} | {
    (f"numpy.{core}.{module}", name)
    for core in ("core", "_core")
    for module, name in (("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer"))
}


class _Writer(pickle.Pickler):
    """Refuses what `_Reader` would refuse."""

    def reducer_override(self, value: Any) -> Any:
        array = type(value) is np.ndarray and not value.dtype.hasobject
        number = isinstance(value, np.generic | np.dtype | complex)
        if (
            array
            or number
            or (
                callable(value)
                and (getattr(value, "__module__", None), getattr(value, "__name__", None)) in _NAMED
            )
        ):
            return NotImplemented
        raise TypeError(
            f"a checkpoint holds numbers, text, NumPy arrays, and lists, tuples, sets and dicts of these, not "
            f"{type(value).__module__}.{type(value).__qualname__}"
        )


class _Reader(pickle.Unpickler):
    """Makes numbers, text, containers and arrays, and finds nothing else by its name."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NAMED:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a checkpoint")
        return super().find_class(module, name)


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
