"""Events as TFRecord in the published layout, written without TensorFlow.

TensorFlow and the XRootD client do not go well together in one process, and the format is small. A file is a row of
records, each framed by its length and two checksums; a record is a protocol buffer of the type
``tf.train.Example``, here three lists of floats. Both formats are described in TensorFlow's documentation; the wire
format in that of Protocol Buffers.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from hepdask.errors import StoreError

SUFFIX = ".tfrecord"

_LENGTH = struct.Struct("<Q")
_CHECKSUM = struct.Struct("<I")
_HEADER = _LENGTH.size + _CHECKSUM.size


class TFRecordFile:
    """One file that is being written.

    Parameters
    ----------
    path : Path
        The file.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")

    def write(self, columns: Mapping[str, NDArray[np.float32]]) -> int:
        """Append a record for each row of the columns, (n, ...) each; return their size [bytes]."""
        records = encode(columns)
        length = _LENGTH.pack(records.shape[1])
        header = length + _CHECKSUM.pack(masked_checksum(length))
        for record in records:
            self._file.write(header)
            self._file.write(record)
            self._file.write(_CHECKSUM.pack(masked_checksum(record)))
        return len(records) * (_HEADER + records.shape[1] + _CHECKSUM.size)

    def close(self) -> None:
        """Finish the file."""
        self._file.close()


def count_rows(path: Path) -> int:
    """Count the records of a file by their frames.

    Raises
    ------
    StoreError
        The file ends within a record, or a length does not fit its checksum.
    """
    rows, place, size = 0, 0, path.stat().st_size
    with path.open("rb") as file:
        while place < size:
            header = file.read(_HEADER)
            length, checksum = header[: _LENGTH.size], header[_LENGTH.size :]
            if len(header) < _HEADER or _CHECKSUM.pack(masked_checksum(length)) != checksum:
                raise StoreError(f"{path}: damaged at byte {place}; export again")
            place += _HEADER + _LENGTH.unpack(length)[0] + _CHECKSUM.size
            file.seek(place)
            rows += 1
    if place != size:
        raise StoreError(f"{path}: ends within a record; export again")
    return rows


def encode(columns: Mapping[str, NDArray[np.float32]]) -> NDArray[np.uint8]:
    """Encode rows as ``tf.train.Example``.

    Parameters
    ----------
    columns : mapping of float32 (n, ...)
        The features; all rows of one have the same shape, which is flattened.

    Returns
    -------
    uint8 (n, length)
        One message a row: all have the same length, and differ in the floats alone.
    """
    pieces: list[NDArray[np.uint8]] = []
    rows = len(next(iter(columns.values())))
    total = 0
    for name, values in columns.items():
        floats = np.ascontiguousarray(values, "<f4").reshape(rows, -1).view(np.uint8)
        packed = _tag(1, floats.shape[1])  # FloatList.value, packed
        feature = _tag(2, len(packed) + floats.shape[1]) + packed  # Feature.float_list
        key = _tag(1, len(name.encode())) + name.encode()  # key and value of one entry of the map
        value = _tag(2, len(feature) + floats.shape[1]) + feature
        entry = _tag(1, len(key) + len(value) + floats.shape[1]) + key + value  # Features.feature
        pieces += [_repeated(entry, rows), floats]
        total += len(entry) + floats.shape[1]
    return np.concatenate([_repeated(_tag(1, total), rows), *pieces], axis=1)  # Example.features


def masked_checksum(content: bytes | NDArray[np.uint8]) -> int:
    """Compute the checksum of a frame: CRC-32C, rotated by 15 bits and shifted, so that it can be summed again."""
    crc = google_crc32c.value(content)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _tag(field: int, length: int) -> bytes:
    """Begin a field that holds so many bytes: its number and wire type 2, then the length as a varint."""
    out = bytearray([field << 3 | 2])
    while length > 0x7F:
        out.append(length & 0x7F | 0x80)
        length >>= 7
    out.append(length)
    return bytes(out)


def _repeated(content: bytes, rows: int) -> NDArray[np.uint8]:
    return np.broadcast_to(np.frombuffer(content, np.uint8), (rows, len(content)))
