"""Baskets of zlib decompressed by libdeflate, in hepdask's own reads and nowhere else.

libdeflate takes little more than half the time of Python's zlib. uproot 5.7.7 cannot be told to use it:
`uproot.ZLIB.library` has a say in writing only, and calls deflate with an old signature. But uproot hands each basket,
as it lies in the file, to the executor that decompresses; the one here takes the compression out first, so that nothing
in uproot has to be replaced, where threads of the user may be reading at the same time.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import deflate
import numpy as np
from numpy.typing import NDArray
from uproot.source.chunk import Chunk
from uproot.source.futures import TrivialExecutor, TrivialFuture

_KEY = struct.Struct(
    ">ihiIhh"
)  # bytes in the file, version, bytes of the content, date, bytes of the key, cycle
_BLOCK = struct.Struct("<2s7B")  # algorithm, method, compressed and uncompressed bytes in three bytes each
_BYTES = struct.Struct(">i")


class Inflating(TrivialExecutor):
    """What `TTree.arrays` of uproot takes as `decompression_executor`; it has no state, and works in the caller."""

    def submit(self, task: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Run a task on a basket; one of zlib is inflated before, any other is left to uproot."""
        chunk, *rest = args
        return super().submit(task, _inflated(chunk), *rest, **kwargs)


class _Basket(Chunk):
    """A basket in the place that it has in the file, with its content as it was before it was compressed."""

    def __init__(self, chunk: Chunk, head: bytes, content: NDArray[np.uint8]) -> None:
        super().__init__(chunk.source, chunk.start, chunk.stop, TrivialFuture(head))
        self._begin, self._content = chunk.start + len(head), content

    def get(self, start: int, stop: int, cursor: Any, context: Any) -> NDArray[np.uint8]:
        """Give some bytes of the head, or of the content behind it."""
        if start < self._begin:
            return super().get(start, stop, cursor, context)
        return self._content[start - self._begin : stop - self._begin]


def _inflated(chunk: Chunk) -> Chunk:
    """Give a basket that says it is not compressed; the same where it is not one of zlib, or not whole."""
    raw = chunk.raw_data
    if len(raw) < _KEY.size:
        return chunk
    stored, *_, length, _date, key, _cycle = _KEY.unpack_from(raw)
    blocks = _blocks(raw, key, stored) if stored - key != length and key >= _KEY.size else None
    if blocks is None:
        return chunk
    pieces = [deflate.zlib_decompress(data, size) for data, size in blocks]
    if sum(map(len, pieces)) != length:
        return chunk
    content = np.frombuffer(pieces[0] if len(pieces) == 1 else b"".join(pieces), np.uint8)
    return _Basket(chunk, _BYTES.pack(key + length) + bytes(raw[_BYTES.size : key]), content)


def _blocks(raw: Any, place: int, end: int) -> list[tuple[Any, int]] | None:
    """Find the compressed blocks of a basket and their sizes before; None where it is not one of zlib, or not whole."""
    found = []
    while place < end <= len(raw) and place + _BLOCK.size <= end:
        algorithm, _method, *sizes = _BLOCK.unpack_from(raw, place)
        packed, unpacked = (int.from_bytes(sizes[at : at + 3], "little") for at in (0, 3))
        place += _BLOCK.size
        if algorithm != b"ZL" or place + packed > end:
            return None
        found.append((raw[place : place + packed], unpacked))
        place += packed
    return found if place == end else None
