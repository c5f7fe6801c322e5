"""A part on disk: one archive (zip, nothing in it compressed) that holds a group of Zarr v3.

zarr writes and reads it, anybody's zarr. hepdask reads it without zarr, which looks up codecs by the names that the
data give: here are the two that hepdask writes, numbers, and nothing else, so that data of others cannot choose what
runs. Sizes are compared with what is there before anything is allocated or decompressed.
"""

from __future__ import annotations

import io
import json
import math
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

import numcodecs.blosc
import numpy as np
from numpy.typing import NDArray

from hepdask.errors import StoreError
from hepdask.files.folders import is_local

#: Bytes before compression of a chunk, the larger of its rows rounded up.
CHUNK_BYTES = 64 << 20

_JSON = "zarr.json"
_NUMBERS = frozenset(
    ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32", "float64")
)
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, ..., lengths of the name and of what follows it
_BLOSC_HEADER = struct.Struct("<4xIII")  # ..., bytes before compression, of a block, after compression
_UTF8 = 0x800
_ENCRYPTED = 0x1
_TAIL = 1 << 16

# decompress in the thread that asks, as zarr does: ranks have their share of the cores
numcodecs.blosc.use_threads = False


class BadPart(Exception):
    """A part is damaged, or is none that hepdask reads.

    Attributes
    ----------
    member : str
        What of it: an array, or a file of the archive; empty where that is all of it.
    """

    def __init__(self, wrong: str, member: str = "") -> None:
        super().__init__(wrong, member)
        self.member = member

    def __str__(self) -> str:
        return f"{self.member}: {self.args[0]}" if self.member else self.args[0]


def write_archive(file: BinaryIO, members: Mapping[str, memoryview]) -> None:
    """Write what zarr has put into memory as an archive, the same bytes for the same members.

    The data come first, then all JSON: who reads the end of the file knows everything but the data.
    """
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(members, key=lambda name: (name.endswith(_JSON), name)):
            about = zipfile.ZipInfo(name)
            about.external_attr = 0o644 << 16
            archive.writestr(about, cast(bytes, members[name]))


class PartFile(AbstractContextManager["PartFile"]):
    """A part that is open for reading.

    Parameters
    ----------
    path : Path
        The archive: a file, or an object of an object store, of which only the end and what is asked for is fetched.

    Raises
    ------
    FileNotFoundError
        There is none.
    BadPart
        It is no archive, not all of one, or one that holds other things than numbers.
    StoreError
        The system cannot read it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = _Local(path) if is_local(path) else _Remote(path)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise _unreadable(path, error) from None
        try:
            self._members = self._index()
        except BaseException:
            self._file.close()
            raise

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def attributes(self) -> dict[str, Any]:
        """Read what the part says of itself.

        Raises
        ------
        BadPart
            It is damaged.
        """
        attributes = self._json(_JSON).get("attributes")
        if not isinstance(attributes, dict):
            raise BadPart("is not what was written", _JSON)
        return attributes

    def read(self, name: str, dtype: str, shape: tuple[int, ...]) -> NDArray:
        """Read an array.

        Parameters
        ----------
        name : str
            Which.
        dtype : str
            The type it must have: one of integers or floating-point numbers.
        shape : tuple of int
            The shape it must have.

        Returns
        -------
        dtype, of that shape
            Without any comparison of checksums.

        Raises
        ------
        BadPart
            It is not there, not of this type and shape, or cannot be decompressed.
        """
        rows = self._rows(name, dtype, shape)
        count = -(-shape[0] // rows)
        size = rows * math.prod(shape[1:]) * np.dtype(dtype).itemsize
        chunks = [f"{name}/c/{place}" + "/0" * (len(shape) - 1) for place in range(count)]
        missing = [chunk for chunk in chunks if chunk not in self._members]
        if missing or size > 2 * CHUNK_BYTES:
            raise BadPart(f"{missing[0]} is missing" if missing else f"a chunk has {size} bytes", name)
        found = np.empty((count * rows, *shape[1:]), dtype)
        for place, chunk in enumerate(chunks):
            _decompress(name, self._bytes(chunk), found[place * rows : (place + 1) * rows])
        return found[: shape[0]]

    def _index(self) -> dict[str, zipfile.ZipInfo]:
        try:
            infos = zipfile.ZipFile(cast(BinaryIO, self._file)).infolist()
        except OSError as error:
            raise _unreadable(self._path, error) from None
        except Exception as error:  # the many that zipfile raises for damaged archives
            raise BadPart(f"is not a complete archive ({error})") from None
        members: dict[str, zipfile.ZipInfo] = {}
        for info in infos:
            name = info.filename
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\\" in name:
                raise BadPart(f"holds {name!r}, a name that leads out of it")
            if stat.S_ISLNK(info.external_attr >> 16):
                raise BadPart(f"holds {name!r}, a link")
            if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & _ENCRYPTED:
                raise BadPart(f"holds {name!r} compressed or encrypted")
            if name in members or info.file_size != info.compress_size:
                raise BadPart(f"holds {name!r} twice or with two sizes")
            if info.header_offset < 0 or info.header_offset + info.file_size > self._file.size:
                raise BadPart(f"holds {name!r}, which is larger than the file or beyond its end")
            members[name] = info
        return members

    def _bytes(self, name: str) -> memoryview:
        info = self._members[name]
        raw = name.encode("utf-8" if info.flag_bits & _UTF8 else "cp437", "replace")
        start = _LOCAL_HEADER.size + len(raw)
        try:
            content = self._file.fetch(info.header_offset, start + info.file_size)
            if len(content) >= _LOCAL_HEADER.size:
                signature, length, more = _LOCAL_HEADER.unpack_from(content)
                if signature == b"PK\3\4" and length == len(raw) and content[start - length : start] == raw:
                    if more:
                        content = self._file.fetch(info.header_offset, start + more + info.file_size)
                    found = memoryview(content)[start + more :]
                    if len(found) == info.file_size:
                        return found
        except FileNotFoundError:
            raise
        except OSError as error:
            raise _unreadable(self._path, error) from None
        raise BadPart("is not where the archive says", name)

    def _json(self, name: str) -> dict[str, Any]:
        if name not in self._members:
            raise BadPart("is missing", name)
        content = self._bytes(name)
        if zlib.crc32(content) != self._members[name].CRC:
            raise BadPart("is not what was written", name)
        try:
            value = json.loads(bytes(content))
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict) or value.get("zarr_format") != 3:
            raise BadPart("is not a description of Zarr 3", name)
        return value

    def _rows(self, name: str, dtype: str, shape: tuple[int, ...]) -> int:
        """Check what an array says of itself; give the rows of a chunk."""
        about = self._json(f"{name}/{_JSON}")
        if about.get("node_type") != "array" or about.get("shape") != list(shape):
            raise BadPart(f"has the shape {_short(about.get('shape'))}, not {list(shape)}", name)
        if about.get("data_type") != dtype or dtype not in _NUMBERS:
            raise BadPart(f"holds {_short(about.get('data_type'))}, not numbers of the type {dtype}", name)
        codecs = [codec for codec in _list(about.get("codecs")) if isinstance(codec, dict)]
        names = [codec.get("name") for codec in codecs]
        if names != ["bytes", "blosc"] or about.get("storage_transformers"):
            raise BadPart(f"is coded with {_short(names)}, and only bytes and blosc are read", name)
        order = _configuration(codecs[0]).get("endian", "little")
        separator = _configuration(about.get("chunk_key_encoding")).get("separator", "/")
        chunk = _list(_configuration(about.get("chunk_grid")).get("chunk_shape"))
        if order != "little" or separator != "/" or len(chunk) != len(shape):
            raise BadPart("is not laid out as hepdask writes it", name)
        if chunk[1:] != list(shape[1:]) or type(chunk[0]) is not int or chunk[0] < 1:
            raise BadPart(f"has chunks of {_short(chunk)}, not of whole rows", name)
        return chunk[0]


class _Local(io.FileIO):
    """A file."""

    @property
    def size(self) -> int:
        """Its length [bytes]."""
        return os.fstat(self.fileno()).st_size

    def fetch(self, start: int, count: int) -> bytes:
        """Read bytes, fewer where the file ends."""
        return os.pread(self.fileno(), max(count, 0), start)


class _Remote(io.RawIOBase):
    """An object of an object store: its end at once, where the archive says what is in it, the rest on demand."""

    def __init__(self, path: Any) -> None:
        self._system, self._key = path.fs, path.path
        self.size = int(self._system.info(self._key)["size"])
        self._first = max(0, self.size - _TAIL)
        self._end = self._system.cat_file(self._key, start=self._first, end=self.size) if self.size else b""
        self._place = 0

    def fetch(self, start: int, count: int) -> bytes:
        """Read bytes, fewer where the object ends."""
        stop = min(start + count, self.size)
        if start >= stop:
            return b""
        if start >= self._first:
            return self._end[start - self._first : stop - self._first]
        return self._system.cat_file(self._key, start=start, end=stop)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self.size}[whence]
        if self._place < 0:
            raise ValueError("a position before the start")
        return self._place

    def tell(self) -> int:
        return self._place

    def readinto(self, buffer: Any) -> int:
        content = self.fetch(self._place, len(buffer))
        buffer[: len(content)] = content
        self._place += len(content)
        return len(content)


def _decompress(name: str, content: memoryview, into: NDArray) -> None:
    if len(content) < _BLOSC_HEADER.size:
        raise BadPart("a chunk has no start", name)
    before, _, after = _BLOSC_HEADER.unpack_from(content)
    if (before, after) != (into.nbytes, len(content)):
        raise BadPart(f"a chunk of {after} bytes for {before}, not of {len(content)} for {into.nbytes}", name)
    try:
        numcodecs.blosc.decompress(content, into.reshape(-1).view(np.uint8))
    except (RuntimeError, ValueError, MemoryError) as error:
        raise BadPart(f"cannot be decompressed ({error})", name) from None


def _configuration(named: Any) -> dict[str, Any]:
    found = named.get("configuration") if isinstance(named, dict) else None
    return found if isinstance(found, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 60 else f"{text[:60]}..."


def _unreadable(path: Path, error: OSError) -> StoreError:
    return StoreError(f"{path}: cannot be read: {error.strerror or error}")
