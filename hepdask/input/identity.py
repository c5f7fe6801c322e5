"""What tells a file from all others and from its own other versions: digests, checksums, stamps."""

from __future__ import annotations

import hashlib
import os
import queue
import zlib
from dataclasses import dataclass
from typing import Any

import fsspec

from hepdask.config import XRootD
from hepdask.errors import InputError
from hepdask.input.branches import branch_names, is_rntuple
from hepdask.input.xrootd import is_xrootd, stamp

_BLOCK = 1 << 22
_HEAD_BYTES = 100  # the header of a ROOT file: its UUID, its end, where its keys lie
_SAMPLE_BYTES = 1024  # looked at of the first basket of each branch that is read


@dataclass(frozen=True)
class Identity:
    """What tells a tree in a file from all others, found in the file itself: its copies share it wherever they lie.

    A UUID alone does not tell: a file that is updated keeps it, and programs give the same one, or none, to many files.

    Attributes
    ----------
    uuid : str
        What ROOT calls the file.
    origin : str
        Digest of the UUID, the entries, and the uncompressed size of each branch. The split is decided from it: it
        stays the same where the same events are written once more.
    layout : str
        Digest of the UUID and of the description of the tree with the places and sizes of all baskets (of an RNTuple
        its checksums): another one whenever the tree is written again.
    sample : str
        Digest of the first bytes of the branches that are read: other values in the same places differ in it.
    """

    uuid: str
    origin: str
    layout: str
    sample: str

    @property
    def version(self) -> str:
        """All of it in one word."""
        return f"{self.layout}{self.sample}"


def look(path: str) -> str | None:
    """Say what lies at a local path: its size and a digest of its first bytes; None where nothing can be seen.

    Of a ROOT file those bytes hold the UUID, the end, and the place of what was written last.
    """
    if "://" in path:
        return None
    try:
        with open(path, "rb") as file:
            return f"{os.fstat(file.fileno()).st_size} {digest(file.read(_HEAD_BYTES))}"
    except OSError:
        return None


def identify(tree: Any, keys: set[str]) -> Identity:
    """Tell an opened tree from all others; of the branches `keys`, the first bytes are looked at.

    Parameters
    ----------
    tree : TTree or RNTuple
        As uproot opens it.
    keys : set of str
        Names of branches.

    Returns
    -------
    Identity
    """
    uuid, entries = str(tree.file.uuid), str(tree.num_entries)
    if is_rntuple(tree):
        pages = [
            column.pages[0].locator
            for envelope in tree.page_list_envelopes[:1]
            for cluster in envelope.pagelinklist[:1]
            for column in cluster
            if column.pages
        ]
        starts = [(int(page.offset), int(page.num_bytes)) for page in pages]
        sizes = [*branch_names(tree)]
    else:
        branches = list(tree.itervalues(recursive=True))
        starts = [
            (int(branch.member("fBasketSeek")[0]), int(branch.member("fBasketBytes")[0]))
            for branch in branches
            if branch.name in keys and branch.num_baskets and branch.member("fBasketSeek")[0] > 0
        ]
        sizes = [f"{branch.name} {branch.uncompressed_bytes}" for branch in branches]
    ranges = [(start, start + min(length, _SAMPLE_BYTES)) for start, length in sorted(starts) if length > 0]
    chunks = tree.file.source.chunks(ranges, queue.Queue()) if ranges else []
    sample = [bytes(chunk.raw_data) for chunk in chunks]
    return Identity(uuid, digest(uuid, entries, *sorted(sizes)), layout_digest(tree), digest(*sample))


def layout_digest(tree: Any) -> str:
    """Digest the UUID of a file and what it says of a tree: where everything lies, and how large it is."""
    uuid = str(tree.file.uuid)
    if not is_rntuple(tree):
        return digest(uuid, bytes(tree.chunk.raw_data))
    checksums = [tree.footer.checksum, *(envelope.checksum for envelope in tree.page_list_envelopes)]
    return digest(uuid, repr(sorted(tree.all_members.items())), repr(checksums))


def file_stamp(address: str, xrootd: XRootD) -> str | None:
    """Describe the state of a file by what its storage knows without reading it; None where that is nothing.

    Raises
    ------
    OSError
        The storage did not answer, or there is no such file.
    """
    if "://" not in address:
        found = os.stat(address)
        return f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"  # the last one cannot be set back
    if is_xrootd(address):
        return stamp(address, xrootd)
    path_fs, path = fsspec.core.url_to_fs(address)
    info = path_fs.info(path)
    known = {key: str(info[key]) for key in ("size", "ETag", "mtime", "LastModified") if info.get(key)}
    return " ".join(known.values()) if len(known) > 1 else None


def verify_checksum(address: str, checksum: str, dataset: str) -> None:
    """Read a whole file and compare its checksum with the fileset's.

    Parameters
    ----------
    address : str
        Where it lies.
    checksum : str
        ``algorithm:hexadecimal``.
    dataset : str
        Whose file it is, for the message.

    Raises
    ------
    InputError
        The checksum is another one.
    """
    algorithm, _, expected = checksum.partition(":")
    digest = None if algorithm == "adler32" else hashlib.new(algorithm)
    adler = 1
    with fsspec.open(address, "rb") as opened:
        while block := opened.read(_BLOCK):
            if digest is None:
                adler = zlib.adler32(block, adler)
            else:
                digest.update(block)
    found = f"{adler:08x}" if digest is None else digest.hexdigest()
    if found != expected.lower().rjust(len(found), "0"):
        raise InputError(
            f"{address}: damaged or another file: its checksum is {algorithm}:{found}, fileset.{dataset} says "
            f"{expected}"
        )


def digest(*content: str | bytes) -> str:
    """Digest texts and bytes in their order, 16 hexadecimal digits."""
    return hashlib.blake2b(
        b"\0".join(part.encode() if isinstance(part, str) else part for part in content), digest_size=8
    ).hexdigest()
