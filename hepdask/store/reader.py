"""Reading a store: events in a fixed order, as awkward arrays or flat columns."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import awkward as ak
import numpy as np
from numpy.typing import NDArray

from hepdask.analysis.scaling import Moments, Scaler
from hepdask.analysis.topology import expand_columns, sequences
from hepdask.analysis.topology.conventions import CONVENTIONS, Convention
from hepdask.config import Split, feature_names
from hepdask.errors import HepdaskError, StoreError, StoreNotFound
from hepdask.files.atomic import read_json, unsealed
from hepdask.files.folders import folder
from hepdask.store.column_checks import fault
from hepdask.store.layout import (
    GIVEN_DTYPES,
    MANIFEST,
    PARTICLE_DTYPES,
    ROOT,
    SCHEMA,
    checksum,
    part_file,
    shapes,
)
from hepdask.store.part_file import BadPart, PartFile
from hepdask.store.split import balanced, event_hash, is_test, is_validation
from hepdask.store.split import folds as divide

Sample = Literal["train", "test", "fit", "validation"]


@dataclass(frozen=True)
class Events:
    """Events in flat columns: what batches are made from.

    Attributes
    ----------
    offsets : int64 (n + 1,)
        Particles of event ``i`` are ``offsets[i]:offsets[i + 1]``.
    particles : dict
        The columns of `Store.particle_dtypes`, (n_particles,) each.
    high_level : float32 (n, 14 or more)
        In the order of ``Store.features["hlf"]``: `names.HIGH_LEVEL`, then the user's own.
    label : int64 (n,)
        Class.
    part, entry : int64 (n,)
        Part of the store (index into ``Store.parts``) and entry in its input file.
    """

    offsets: NDArray[np.int64]
    particles: dict[str, NDArray]
    high_level: NDArray[np.float32]
    label: NDArray[np.int64]
    part: NDArray[np.int64]
    entry: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.label)


def open_store(path: str | Path, fold: tuple[int, int] | None = None) -> Store:
    """Open a store that `prepare` has finished.

    Parameters
    ----------
    path : str or Path
        Folder of the store.
    fold : (int, int), optional
        For cross-validation, which of how many folds of the training split is the sample ``"validation"``; the others
        are ``"fit"``.

    Returns
    -------
    Store

    Raises
    ------
    StoreNotFound
        There is no store.
    StoreError
        It is not complete, or another version wrote it.
    """
    path = folder(path)
    if not (path / ROOT).exists():
        raise StoreNotFound(f"{path}: there is no store; make it with: hepdask prepare CONFIG")
    file = path / MANIFEST
    try:
        document = read_json(file)
    except HepdaskError as error:
        raise StoreError(f"{error} (hepdask prepare CONFIG)") from None
    if document is None and not file.exists():
        raise StoreError(f"{path}: not complete; go on with: hepdask prepare CONFIG")
    if isinstance(document, dict) and document.get("schema") != SCHEMA:
        raise StoreError(
            f"{path}: schema {document.get('schema')}, this version reads {SCHEMA}; prepare it again"
        )
    manifest = unsealed(document)
    wrong = "it is not what was written" if manifest is None else fault(manifest)
    if manifest is None or wrong:
        raise StoreError(f"{file}: damaged: {wrong}; remove it and run: hepdask prepare CONFIG")
    return Store(path, manifest, fold)


class Store:
    """Selected events with their features; see `open_store`.

    Attributes
    ----------
    path : Path
        Folder of the store.
    manifest : dict
        What `prepare` recorded.
    fold : (int, int) or None
        See `open_store`.
    """

    def __init__(self, path: Path, manifest: dict[str, Any], fold: tuple[int, int] | None = None) -> None:
        self.path = path
        self.manifest = manifest
        self.fold = fold
        self._marked: dict[Sample | None, list[NDArray[np.bool_]]] = {}
        self._intact: set[tuple[int, str]] = set()  # arrays whose checksum was right once

    def __len__(self) -> int:
        return sum(part["events"] for part in self.parts)

    def __repr__(self) -> str:
        return f"<Store {str(self.path)!r}: {len(self)} events of {', '.join(self.classes)}>"

    @property
    def features(self) -> dict[str, tuple[str, ...]]:
        """Names of the features, by kind."""
        return {"particles": feature_names.PARTICLE, "hlf": tuple(self.manifest["high_level_features"])}

    @property
    def classes(self) -> list[str]:
        """Names of the classes; the index is the label."""
        return list(self.manifest["classes"])

    @property
    def parts(self) -> list[dict[str, Any]]:
        """The parts in their fixed order: by dataset, file and entry."""
        return self.manifest["parts"]

    @property
    def fingerprint(self) -> str:
        """Digest of what the store holds; equal stores have equal ones."""
        content = [(part["name"], part["label"], part["events"], part["checksums"]) for part in self.parts]
        return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()

    @cached_property
    def split(self) -> Split:
        """How the events are divided."""
        return Split.model_validate(self.manifest["split"])

    @cached_property
    def particle_scaler(self) -> Scaler | None:
        """Standardisation of the 19 features, fitted on the training split's particles.

        None in the `reference` convention, which standardises event by event.
        """
        if self._convention.scales_by_event:
            return None
        return Scaler.standard(Moments.from_json(self.manifest["moments"]["particles"]))

    @cached_property
    def high_level_scaler(self) -> Scaler:
        """Min-max scaling of the 14 features, fitted on the training split; in `reference` on all events."""
        sample = "high_level_all" if self._convention.scales_by_event else "high_level"
        return Scaler.min_max(Moments.from_json(self.manifest["moments"][sample]))

    @property
    def _convention(self) -> Convention:
        return CONVENTIONS[self.manifest["analysis"]["convention"]]

    @property
    def imported(self) -> bool:
        """Whether the events came in the published layout: scaled, nobody knows by what, and padded."""
        return bool(self.manifest.get("imported"))

    @property
    def particle_dtypes(self) -> dict[str, str]:
        """Columns of the particles and their types: `names.STORED`, or all 19 where events are imported."""
        return GIVEN_DTYPES if self.imported else PARTICLE_DTYPES

    @property
    def max_particles(self) -> int:
        """Longest possible particle list."""
        return int(self.manifest["max_particles"])

    def events(
        self, sample: Sample | None = None, parts: Sequence[int] | None = None, particles: bool = True
    ) -> Events:
        """Load events as flat columns.

        Parameters
        ----------
        sample : str, optional
            ``"train"`` or ``"test"``; ``"fit"`` and ``"validation"`` are the two shares of ``"train"``.
            Training samples hold equally many events of each class where the split says so. None for all.
        parts : sequence of int, optional
            Load the events of these parts alone, part by part in this order.
        particles : bool
            Whether to load the particles; without them every event has an empty list.

        Returns
        -------
        Events
            In the fixed order of the store.
        """
        keep = self._members(sample)
        used = [index for index in (range(len(keep)) if parts is None else parts) if keep[index].any()]
        loaded = [self._load(index, keep[index], particles) for index in used]
        loaded = loaded or [_nothing(len(self.features["hlf"]), self.particle_dtypes)]
        counts = [len(arrays["entry"]) for arrays in loaded]
        lengths = np.concatenate([np.diff(arrays["offsets"]) for arrays in loaded])
        labels = [self.parts[index]["label"] for index in used] or [0]
        return Events(
            np.concatenate(([0], np.cumsum(lengths))),
            {name: np.concatenate([arrays[name] for arrays in loaded]) for name in self.particle_dtypes},
            np.concatenate([arrays["high_level"] for arrays in loaded]),
            np.repeat(np.array(labels, np.int64), counts),
            np.repeat(np.array(used or [0], np.int64), counts),
            np.concatenate([arrays["entry"] for arrays in loaded]),
        )

    def pieces(self, sample: Sample | None = None) -> Iterator[Events]:
        """Load the events of `events` part by part, for those who cannot hold all of them.

        Parameters
        ----------
        sample : str, optional
            As in `events`.

        Yields
        ------
        Events
            The events of one part; a part without any is left out.
        """
        for index in np.flatnonzero(self.counts(sample)):
            yield self.events(sample, parts=[int(index)])

    def counts(self, sample: Sample | None = None) -> NDArray[np.int64]:
        """Count the events of a sample in each part, int64 (n_parts,)."""
        return np.array([mask.sum() for mask in self._members(sample)], np.int64)

    def labels(self, sample: Sample | None = None) -> NDArray[np.int64]:
        """Class of each event of a sample, int64 (n,), without loading the features."""
        return np.repeat(
            np.array([part["label"] for part in self.parts], np.int64),
            [int(mask.sum()) for mask in self._members(sample)],
        )

    def folds(self, count: int) -> NDArray[np.int64]:
        """Divide the training split into folds by the identity of events, each class spread alike.

        Parameters
        ----------
        count : int
            Number of folds.

        Returns
        -------
        int64 (n,)
            Fold of each event of ``"train"``, in the order of the store; events of one parent share one.
        """
        hashes = [
            event_hash(
                self.split.seed, "folds", part["dataset"], part["origin"], self.column(index, "group")
            )[mask]
            for index, (part, mask) in enumerate(zip(self.parts, self._members("train"), strict=True))
        ]
        return divide(self.labels("train"), np.concatenate(hashes), count)

    def arrays(self, split: Literal["train", "test"] | None = None) -> ak.Array:
        """Give events as one awkward array.

        Parameters
        ----------
        split : {"train", "test"}, optional
            None for all events.

        Returns
        -------
        ak.Array
            One record an event, in the fixed order of the store, with the fields `particles` (list of
            records with the 19 features, lepton last), `hlf` (record with the 14), `label`, `dataset`,
            `file` and `entry`. Physical values in float32: GeV, mm, rad; of imported events what was given.
        """
        events = self.events(split)
        flat = ak.Array(events.particles if self.imported else expand_columns(events.particles))
        return ak.zip(
            {
                "particles": ak.unflatten(flat, np.diff(events.offsets)),
                "hlf": ak.Array(dict(zip(self.features["hlf"], events.high_level.T, strict=True))),
                "label": events.label,
                "dataset": self._strings("dataset", events.part),
                "file": self._strings("file", events.part),
                "entry": events.entry,
            },
            depth_limit=1,
        )

    def sequence(self, index: int) -> NDArray[np.float32]:
        """Give one event as the recurrent network takes it.

        Parameters
        ----------
        index : int
            Place of the event in the fixed order of the store.

        Returns
        -------
        float32 (max_particles, 19)
            The scaled particles, farthest from the lepton first and the lepton last, then zeros; in the
            `reference` convention the published form, with its padding among the particles.

        Raises
        ------
        IndexError
            There is no such event.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"event {index} of a store of {len(self)}")
        index %= len(self)
        for place, part in enumerate(self.parts):
            if index < part["events"]:
                arrays = self._load(place, np.arange(part["events"]) == index, True)
                stored = {name: arrays[name] for name in self.particle_dtypes}
                return sequences(stored, arrays["offsets"], self.max_particles, self.particle_scaler)[0]
            index -= part["events"]
        raise AssertionError("unreachable: the index was checked")

    def column(self, index: int, name: str) -> NDArray:
        """Load one array of a part.

        Parameters
        ----------
        index : int
            Which part.
        name : str
            One of `layout.DTYPES`.

        Returns
        -------
        number (n,) or (n, features)

        Raises
        ------
        StoreError
            It is not what was written.
        """
        with self._open(index) as file:
            return self._read(file, index, name)

    def damaged_parts(self) -> list[str]:
        """Compute all checksums again; list the arrays that differ from what was written, or parts."""
        wrong = []
        for index, part in enumerate(self.parts):
            expected = self._shapes(index)
            try:
                with self._open(index) as file:
                    for name in expected:
                        try:
                            self._checked(file, index, name)
                        except BadPart:
                            wrong.append(f"{part['name']}/{name}")
            except StoreError:
                wrong.append(part["name"])
        return wrong

    @contextmanager
    def _open(self, index: int) -> Iterator[PartFile]:
        """Open a part; what is wrong with it becomes a sentence that says what to do."""
        name = self.parts[index]["name"]
        place = part_file(self.path, name)
        again = "make the store again" if self.imported else "run: hepdask prepare CONFIG"
        try:
            with PartFile(place) as file:
                yield file
        except FileNotFoundError:
            raise StoreError(f"{place}: this part is missing; {again}") from None
        except BadPart as error:
            of_array = error.member.partition("/")[0] in self._shapes(index)
            where = f"{name}/{error}" if of_array else f"{name}: {error}"
            raise StoreError(f"{where}; remove {place} and {again}") from None

    def _shapes(self, index: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        part = self.parts[index]
        return shapes(part["events"], part["particles"], len(self.features["hlf"]), self.imported)

    def _read(self, file: PartFile, index: int, name: str) -> NDArray:
        """Read an array; the first time it is compared with its checksum, and with what the others say."""
        known = (index, name)
        if known in self._intact:
            return file.read(name, *self._shapes(index)[name])
        values = self._checked(file, index, name)
        self._intact.add(known)
        return values

    def _checked(self, file: PartFile, index: int, name: str) -> NDArray:
        part = self.parts[index]
        values = file.read(name, *self._shapes(index)[name])
        if checksum(values) != part["checksums"].get(name):
            raise BadPart("not what was written", name)
        if name == "offsets":
            if values[0] != 0 or values[-1] != part["particles"] or (values[1:] < values[:-1]).any():
                raise BadPart(f"does not divide {part['particles']} particles into events", name)
            if np.diff(values).max(initial=0) > self.max_particles:
                raise BadPart(f"an event has more than {self.max_particles} particles", name)
        return values

    def _load(self, index: int, keep: NDArray[np.bool_], particles: bool) -> dict[str, NDArray]:
        """Load the chosen events of a part."""
        columns = self.particle_dtypes
        with self._open(index) as file:
            loaded = {name: self._read(file, index, name)[keep] for name in ("entry", "high_level")}
            if not particles:
                nothing = {name: np.empty(0, dtype) for name, dtype in columns.items()}
                return loaded | nothing | {"offsets": np.zeros(keep.sum() + 1, np.int64)}
            counts = np.diff(self._read(file, index, "offsets"))
            loaded["offsets"] = np.concatenate(([0], np.cumsum(counts[keep])))
            rows = slice(None) if keep.all() else np.repeat(keep, counts)
            return loaded | {name: self._read(file, index, name)[rows] for name in columns}

    def _members(self, sample: Sample | None) -> list[NDArray[np.bool_]]:
        """Mark the events of a sample in each part."""
        if sample not in self._marked:
            self._marked[sample] = self._mark(sample)
        return self._marked[sample]

    def _mark(self, sample: Sample | None) -> list[NDArray[np.bool_]]:
        if sample is None:
            return [np.ones(part["events"], bool) for part in self.parts]
        keep, order = [], []
        for index, part in enumerate(self.parts):
            with self._open(index) as file:
                group, entry = (self._read(file, index, name) for name in ("group", "entry"))
            test = is_test(self.split, part["dataset"], part["origin"], group)
            keep.append(test if sample == "test" else ~test)
            order.append(event_hash(self.split.seed, "balance", part["dataset"], part["origin"], entry))
        if sample == "test":
            return keep
        if self.split.balance:
            members = np.concatenate(keep)
            labels = np.repeat(
                [part["label"] for part in self.parts], [part["events"] for part in self.parts]
            )
            members[members] = balanced(labels[members], np.concatenate(order)[members])
            keep = np.split(members, np.cumsum([part["events"] for part in self.parts])[:-1])
        if sample == "train":
            return keep
        if self.fold:
            number, count = self.fold
            inside = self.folds(count) == number
            ends = np.cumsum([mask.sum() for mask in keep])[:-1]
            for mask, chosen in zip(keep, np.split(inside, ends), strict=True):
                mask[mask] = chosen if sample == "validation" else ~chosen
            return keep
        watched = [
            is_validation(self.split, part["dataset"], part["origin"], self.column(index, "group"))
            for index, part in enumerate(self.parts)
        ]
        return [
            mask & (aside if sample == "validation" else ~aside)
            for mask, aside in zip(keep, watched, strict=True)
        ]

    def _strings(self, key: str, part: NDArray[np.int64]) -> ak.Array:
        words = ak.Array([entry[key] for entry in self.parts] or [""])
        index = ak.index.Index64(part)
        return ak.Array(
            ak.contents.IndexedArray(index, words.layout, parameters={"__array__": "categorical"})
        )


def _nothing(width: int, columns: dict[str, str]) -> dict[str, NDArray]:
    empty = {name: np.empty(0, dtype) for name, dtype in columns.items()}
    return empty | {
        "entry": np.empty(0, np.int64),
        "offsets": np.zeros(1, np.int64),
        "high_level": np.empty((0, width), np.float32),
    }
