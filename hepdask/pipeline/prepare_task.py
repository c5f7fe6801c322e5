"""Chunks of input on their way into the store: read, select, compute, write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import awkward as ak
import numpy as np
from numpy.typing import NDArray

from hepdask import logs
from hepdask.analysis import histograms
from hepdask.analysis.bad_events import Dropped, on_usable
from hepdask.analysis.columns import BadEvent
from hepdask.analysis.fingerprint import fingerprints
from hepdask.analysis.scaling import Moments
from hepdask.analysis.topology import Extracted, branches, extract
from hepdask.analysis.topology.expand import expand
from hepdask.batches.prefetch import ahead
from hepdask.config import Config
from hepdask.config.feature_names import PARTICLE, STORED
from hepdask.errors import InputError
from hepdask.input.contents import FileContent, inspect_file
from hepdask.input.identity import file_stamp
from hepdask.input.input_file import Chunk, InputFile
from hepdask.input.lost import Lost
from hepdask.input.opening import final_errors
from hepdask.input.read_chunk import read
from hepdask.input.routes import read_with_retries
from hepdask.store.split import is_test
from hepdask.store.writer import StoreWriter

#: Bad events of a file that are named for each reason; the others are counted.
BAD_NAMED = 5

_BLOCK = 1 << 14


def describe(file: InputFile, config: Config, known: Mapping[InputFile, FileContent]) -> FileContent | Lost:
    """Say what a file holds.

    Parameters
    ----------
    file : InputFile
        Which file.
    config : Config
        Topology and reading.
    known : mapping
        What files held when they were last opened; a file that has not changed since is not opened again.

    Returns
    -------
    FileContent or Lost
    """
    logs.show()

    def look(address: str) -> FileContent:
        before = known.get(file)
        if before is not None:
            with final_errors(file, address):
                stamp = file_stamp(address, config.input.xrootd)
            if stamp is not None and stamp == before.stamp:
                return before
        return inspect_file(file, address, branches(config.analysis), config.analysis.branches, config.input)

    try:
        return read_with_retries(look, file.path, config.input)
    except InputError as error:
        return Lost.file(file, str(error))


def prepare_chunks(
    chunks: Sequence[Chunk], config: Config, writer: StoreWriter
) -> list[dict[str, Any] | Lost]:
    """Bring chunks into the store; the next is read while one is worked on.

    Parameters
    ----------
    chunks : sequence of Chunk
        Which entries of which files.
    config : Config
        Topology, split and reading.
    writer : StoreWriter
        Of a store that was started.

    Returns
    -------
    list of dict or Lost
        For each chunk the attributes of its part, or what could not be read and why.
    """
    logs.show()
    results: list[dict[str, Any] | Lost] = []
    for chunk, events in ahead(((chunk, _read(chunk, config)) for chunk in chunks), depth=0):
        # a worker that died may have done some of its chunks
        done = writer.part(chunk.name)
        results.append(
            done or (events if isinstance(events, Lost) else _prepare(chunk, events, config, writer))
        )
        del events  # before the next is waited for
    return results


def _read(chunk: Chunk, config: Config) -> ak.Array | Lost:
    analysis = config.analysis
    parent = {analysis.collections.generator: ("Parent",)}

    def attempt(address: str) -> ak.Array:
        return read(chunk, branches(analysis), parent, analysis.branches, address, config.input.xrootd)

    try:
        return read_with_retries(attempt, chunk.file.path, config.input)
    except InputError as error:
        return Lost.chunk(chunk, str(error))


def _prepare(chunk: Chunk, events: ak.Array, config: Config, writer: StoreWriter) -> dict[str, Any]:
    analysis = config.analysis
    (parents, extracted), usable, dropped = on_usable(
        lambda some: (_parents(some, analysis.collections.generator), extract(some, analysis)), events
    )
    entry = chunk.start + usable[extracted.selected]
    group = entry if parents is None else parents[extracted.selected]
    arrays = {
        "offsets": extracted.particles.offsets,
        "entry": entry,
        "group": group,
        "fingerprint": fingerprints(
            extracted.particles.offsets, (extracted.particles[name] for name in STORED), extracted.high_level
        ),
        "high_level": extracted.high_level,
        **extracted.particles.values,
    }
    training = ~is_test(config.split, chunk.file.dataset, chunk.identity.origin, group)
    attributes = {
        "name": chunk.name,
        "dataset": chunk.file.dataset,
        "file": chunk.file.path,
        "tree": chunk.file.tree,
        "uuid": chunk.identity.uuid,
        "origin": chunk.identity.origin,
        "version": chunk.identity.version,
        "start": chunk.start,
        "stop": chunk.stop,
        "events": len(entry),
        "particles": len(extracted.particles),
        "bad": [_bad(chunk, one) for one in dropped],
        "moments": _moments(extracted, training),
        "histograms": histograms.fill(extracted, config.analysis),
    }
    return writer.write_part(chunk.name, arrays, attributes)


def _bad(chunk: Chunk, dropped: Dropped) -> dict[str, Any]:
    """Sum up the events that were dropped for one reason: how many, where, and the entries of the first few."""
    entries = chunk.start + dropped.events
    return {
        "what": dropped.what,
        "events": len(entries),
        "start": int(entries[0]),
        "stop": int(entries[-1]) + 1,
        "first": entries[:BAD_NAMED].tolist(),
    }


def _parents(events: ak.Array, collection: str) -> NDArray[np.int64] | None:
    """Take the generator parent of each event; None where the file does not say."""
    if collection not in events.fields:
        return None
    parents = events[collection].Parent
    counts = ak.to_numpy(ak.num(parents, axis=1))
    if (counts != 1).any():
        raise BadEvent(np.flatnonzero(counts != 1), f"{collection}.Parent does not hold one number")
    return ak.to_numpy(ak.flatten(parents)).astype(np.int64)


def _moments(extracted: Extracted, training: np.ndarray) -> dict[str, Any]:
    """Sum up the training events for the scalers, expanding the 19 features block by block.

    The published convention scales high-level features over all events.
    """
    chosen = np.repeat(training, extracted.particles.counts)
    particles = Moments.of(np.empty((0, len(PARTICLE))))
    for start in range(0, len(chosen), _BLOCK):
        here = slice(start, start + _BLOCK)
        block = {name: column[here][chosen[here]] for name, column in extracted.particles.values.items()}
        particles = particles.merge(Moments.of_columns(expand(block)))
    high_level = extracted.high_level.astype(np.float32)
    return {
        "particles": particles.to_json(),
        "high_level": Moments.of(high_level[training]).to_json(),
        "high_level_all": Moments.of(high_level).to_json(),
    }
